"""Why does it not work? Looks at everything between this site and its server, one step after the other.

gRPC reports a refused certificate, an inspecting proxy and a dead server alike as "unavailable". So the doctor goes the
way itself: name, proxy, TCP, the certificate that is shown, the handshake with this site's own certificate, and only
then a call.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quorate.attestation.policy import AttestationPolicy
from quorate.errors import QuorateError
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.offers import open_offers
from quorate_client.approval.policy_file import look_at_policy, own_attestation_policy
from quorate_client.cli.network_check import resolve, shake_hands, who_answers
from quorate_client.connection.channel import unheeded_proxies
from quorate_client.connection.way import BrokenWayError, connect, first_hop
from quorate_client.ledger.upgrading import pending_upgrades
from quorate_client.site.config import Config, read_config
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Credentials, Identity, certificate_life, load_credentials, load_identity

MIN_FREE_BYTES = 1024**3
CLOCK_TOLERANCE_S = 60.0
DAY_S = 86_400.0

Verdict = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step found, and what to do about it."""

    step: str
    verdict: Verdict
    text: str
    action: str = ""


def examine(folder: SiteFolder, wall: Callable[[], float]) -> Iterator[Finding]:
    """All findings, in order. Changes nothing and opens no session, so a running daemon is not disturbed."""
    try:
        config = read_config(folder.config)
        yield Finding("configuration", "ok", f"{folder.config} can be read" if folder.config.exists() else "defaults")
        identity = load_identity(folder.keys)
        credentials = load_credentials(folder.keys)
        yield Finding("identity", "ok", f"{identity.site} in {identity.consortium}")
    except QuorateError as error:
        yield Finding("configuration and identity", "failed", str(error))
        return
    databases = _databases(folder)
    yield databases
    if databases.verdict != "failed":
        yield _policy(folder)
        yield _attestation(folder)
        yield _synthetic(folder)
    yield _certificate(credentials, wall())
    if databases.verdict != "failed":
        yield _clock(folder)
    yield _disk(folder.root)
    yield _isolation(folder)
    yield from _way(folder, config, identity, credentials)


def _databases(folder: SiteFolder) -> Finding:
    try:
        files = pending_upgrades(folder)
    except QuorateError as error:
        return Finding("databases", "failed", str(error))
    if not folder.database.exists():
        return Finding("databases", "failed", f"{folder.database} is not there", "Restore it: `quorate-client restore`")
    waiting = [f"{each.path.name} is of layout {each.found} and goes to {each.newest}" for each in files if each.steps]
    if waiting:
        return Finding(
            "databases",
            "failed",
            f"an upgrade is pending: {'; '.join(waiting)}",
            "Restart the daemon with this version, or run `quorate-client upgrade`",
        )
    layouts = ", ".join(f"{each.path.name} {each.newest}" for each in files)
    return Finding("databases", "ok", f"of this version's layouts: {layouts}")


def _policy(folder: SiteFolder) -> Finding:
    try:
        policy = look_at_policy(folder)
    except QuorateError as error:
        return Finding("policy", "failed", str(error), "Until this is mended, every study is refused")
    if "none" in policy.protection:
        return Finding("policy", "warning", "studies without protection are allowed: the server can read updates")
    return Finding("policy", "ok", f"protection {', '.join(sorted(policy.protection))}")


def _attestation(folder: SiteFolder) -> Finding:
    step = "attestation"
    try:
        policy = look_at_policy(folder)
        own = own_attestation_policy(folder, policy)
    except QuorateError as error:
        return Finding(step, "failed", str(error), "Until this is mended, no attested machine is trusted")
    demand = "every study must demand an attested machine" if policy.attestation.required else "left to each study"
    besides = f"; {policy.attestation.file} has to be met too: {_in_words(own)}" if own is not None else ""
    if policy.attestation.software:
        text = f"{demand}; evidence made by software counts, which proves nothing about any machine{besides}"
        return Finding(step, "warning", text, "Set attestation.software = false where real records are trained on")
    return Finding(step, "ok", demand + besides)


def _in_words(policy: AttestationPolicy) -> str:
    return "; ".join(map(str, policy.versions())) or "it allows nothing, so all evidence is refused"


def _synthetic(folder: SiteFolder) -> Finding:
    from quorate_client.synthetic.kept import all_kept, leftovers  # imports numpy

    step = "synthetic data sets"
    with site_state(folder.database) as state:
        datasets = Datasets(state, time.time)
        found, unfinished = all_kept(datasets), leftovers(folder, datasets)
    try:
        for each in found:
            each.require_whole()
    except QuorateError as error:
        return Finding(step, "failed", str(error))
    if unfinished:
        names = ", ".join(each.name for each in unfinished)
        action = f"Make {names} again with the same command, which costs nothing more, or remove the folder"
        return Finding(step, "warning", f"somebody was interrupted and left {unfinished[0].parent}/{names}", action)
    return Finding(step, "ok", f"{len(found)}, with the records and reports that were made")


def _certificate(credentials: Credentials, now: float) -> Finding:
    start, end = (moment.timestamp() for moment in certificate_life(credentials.certificate_pem))
    if now < start:
        return Finding("certificate", "failed", "by this machine's clock it is not valid yet", "Set the clock")
    days = (end - now) / DAY_S
    if days < 0:
        return Finding(
            "certificate",
            "failed",
            f"by this machine's clock it expired {-days:.1f} days ago",
            "Check the clock; if it is right, ask the operator for `quorate site reinvite NAME`, "
            "then run `quorate-client join FILE --keep-keys`",
        )
    return Finding("certificate", "ok", f"{days:.1f} days left; the running daemon renews it")


def _clock(folder: SiteFolder) -> Finding:
    with site_state(folder.database) as state:
        report = state.connection
    if report is None or report.clock_offset_s is None:
        return Finding("clock", "skipped", "the daemon has not been connected yet, so there is nothing to compare with")
    offset = f"the server's clock is {round(report.clock_offset_s):+d} s from this machine's"
    if abs(report.clock_offset_s) > CLOCK_TOLERANCE_S:
        return Finding("clock", "warning", offset, "Set this machine's clock, for example with NTP")
    return Finding("clock", "ok", offset)


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    text = f"{free / 1024**3:.1f} GiB free for {root}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "warning", text, "Free some space: an update and a model have to fit several times")
    return Finding("disk", "ok", text)


def _isolation(folder: SiteFolder) -> Finding:
    """Tried in a process of its own, which it would confine for good."""
    script = (
        "import os, sys; from pathlib import Path; from quorate_client.workers.isolation import Confinement, confine; "
        "print(confine(Confinement(hidden=(Path(sys.argv[1]),)), os.getppid()).value)"
    )
    command = [sys.executable, "-c", script, str(folder.keys.resolve())]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return Finding("isolation of tasks", "failed", "a confined process does not start")
    level = tried.stdout.strip()
    if level == "full":
        return Finding("isolation of tasks", "ok", "tasks run without network and cannot see the keys")
    return Finding(
        "isolation of tasks",
        "warning",
        "this system does not let tasks be cut off from the network" if level else "confinement failed",
        "Permit user namespaces for the daemon's user (user.max_user_namespaces, the container's seccomp profile)",
    )


def _way(folder: SiteFolder, config: Config, identity: Identity, credentials: Credentials) -> Iterator[Finding]:
    """From here to a call that the server answers; the first step that fails ends it."""
    address = config.address or identity.address
    if not config.proxy and (unheeded := unheeded_proxies(os.environ)):
        text = f"{', '.join(unheeded)} of the environment is not used: the configuration names no proxy"
        yield Finding("proxy", "warning", text, f"If the way out leads through it, set `proxy` in {folder.config}")
    try:
        yield Finding("address", "ok", resolve(first_hop(address, config.proxy)))
        with connect(address, config.proxy) as plain:
            through = " through the proxy" if config.proxy else ""
            yield Finding("connection", "ok", f"{address} accepts connections{through}")
            yield Finding("server's certificate", "ok", who_answers(plain, credentials))
        with connect(address, config.proxy) as plain:
            yield Finding("this site's certificate", "ok", shake_hands(plain, folder, credentials))
        with open_offers(folder) as client:
            offers = client.offers()
        yield Finding("server", "ok", f"it knows {identity.site} and offers it {len(offers.sound)} studies")
    except BrokenWayError as failure:
        yield Finding(failure.step, "failed", failure.text, failure.action)
    except QuorateError as error:
        yield Finding("server", "failed", str(error))
