"""Commands about the site itself: joining, how it stands, pausing, finding out what is wrong."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.errors import InputError, WrongStateError
from quorate_client.approval.answers import Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.policy_file import write_default_policy
from quorate_client.cli.doctor import Finding, examine
from quorate_client.cli.output import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    cell,
    moment,
    out,
    say,
    show_json,
    table,
)
from quorate_client.connection.enrolment import Joining, check_authority, read_invitation
from quorate_client.connection.enrolment import join as redeem_invitation
from quorate_client.site.config import Config, read_config
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.forgotten_votes import FOLLOWS
from quorate_client.site.keys import certificate_life, load_credentials, load_identity, load_keys

_DAY_S = 86_400.0
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def join(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The invitation that the operator sent.")],
    state: StateOption = DEFAULT_STATE,
    proxy: Annotated[
        str | None, typer.Option(metavar="URL", help="HTTP CONNECT proxy, http://[user:password@]host:port.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The consortium's authority, got by another way: the invitation must carry the same one.",
        ),
    ] = None,
    keep_keys: Annotated[
        bool, typer.Option("--keep-keys", help="This site has joined before and was invited again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Join a consortium: make this site's keys and redeem the invitation. Can be repeated after an interruption."""
    folder = SiteFolder(state)
    invitation = read_invitation(file)
    if ca is not None:
        check_authority(invitation, _read(ca))
    proxy = _proxy(folder, proxy)
    identity = redeem_invitation(Joining(folder, proxy, keep_keys, time.time), invitation)
    _write_defaults(folder, proxy)
    fingerprint = load_keys(folder.keys).member(identity.site).fingerprint
    if as_json:
        show_json(asdict(identity) | {"fingerprint": fingerprint, "state": str(folder.root)})
        return
    say(f"Joined {identity.consortium} as {identity.site}.", "green")
    say(f"Fingerprint of this site's signing key: {fingerprint}", "bold")
    say("Read it to the operator over another channel, so that both know that nobody stands between.")
    if keep_keys:
        say(FOLLOWS)
    say(f"Next: set {folder.policy}, register data with `quorate-client data add`, run `quorate-client run`.")
    say(f"The invitation {file} is used up; delete it.")


def status(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Show who this site is, whether it is connected, and what it takes part in."""
    facts = _facts(SiteFolder(state))
    if as_json:
        show_json(facts)
        return
    rows = table("", "")
    connection = facts["connection"] or {}
    rows.add_row("site", cell(f"{facts['site']} in {facts['consortium']}"))
    rows.add_row("fingerprint", cell(facts["fingerprint"]))
    rows.add_row("certificate", cell(f"{facts['certificate_days_left']:.1f} days left"))
    rows.add_row("daemon", cell("running", "green") if facts["daemon_runs"] else cell("not running", "yellow"))
    rows.add_row("connection", cell(_connection_in_words(facts)))
    if connection.get("problem"):
        rows.add_row("problem", cell(connection["problem"], "yellow"))
    rows.add_row("paused", cell("yes", "yellow") if facts["paused"] else cell("no"))
    rows.add_row("data sets", cell(", ".join(facts["datasets"]) or "none"))
    for study in facts["studies"]:
        warning = "  protection none: the server can read updates" if study["protection"] == "none" else ""
        rows.add_row("study", cell(f"{study['name']} ({study['digest'][:12]}): {study['answer']}{warning}"))
    out().print(rows)


def pause(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Take on no new work until `resume`; work that is being done is finished. The server cannot undo it."""
    _set_paused(state, True, as_json)


def resume(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """End a pause."""
    _set_paused(state, False, as_json)


def doctor(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Look for what keeps this site from working: name, proxy, certificates, clock, disk, policy."""
    findings = []
    for finding in examine(SiteFolder(state), time.time):
        findings.append(finding)
        if not as_json:
            _show_finding(finding)
    if as_json:
        show_json([asdict(finding) for finding in findings])
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(1)


def _facts(folder: SiteFolder) -> dict[str, Any]:
    identity = load_identity(folder.keys)
    config = read_config(folder.config)
    end = certificate_life(load_credentials(folder.keys).certificate_pem)[1].timestamp()
    with site_state(folder.database) as state:
        report = state.connection
        answers = Answers(state, time.time).all()
        return {
            "site": identity.site,
            "consortium": identity.consortium,
            "address": config.address or identity.address,
            "fingerprint": load_keys(folder.keys).member(identity.site).fingerprint,
            "certificate_days_left": (end - time.time()) / _DAY_S,
            "daemon_runs": folder.daemon_runs(),
            "connection": asdict(report) if report is not None else None,
            "paused": state.paused,
            "datasets": [dataset.name for dataset in Datasets(state, time.time).all()],
            "studies": [
                {
                    "name": answer.study.name,
                    "digest": answer.digest.hex(),
                    "answer": answer.answer,
                    "dataset": answer.dataset,
                    "protection": answer.study.protection.mode,
                }
                for answer in answers
            ],
        }


def _connection_in_words(facts: dict[str, Any]) -> str:
    report = facts["connection"]
    if report is None:
        return f"never connected to {facts['address']}"
    if not facts["daemon_runs"]:
        return f"down; last {report['state']} at {moment(report['since_unix_s'])}"
    return f"{report['state']} to {report['address']} since {moment(report['since_unix_s'])}"


def _set_paused(state_folder: Path, paused: bool, as_json: bool) -> None:
    folder = SiteFolder(state_folder)
    load_identity(folder.keys)
    with site_state(folder.database) as state:
        state.pause(paused)
    if as_json:
        show_json({"paused": paused, "daemon_runs": folder.daemon_runs()})
        return
    say("Paused: no new work is taken on." if paused else "Resumed.")
    if not folder.daemon_runs():
        say("The daemon does not run; it will heed this when it starts.", "yellow")


def _show_finding(finding: Finding) -> None:
    console = out()
    line = cell(f"{finding.verdict:8}", _STYLES[finding.verdict]) + cell(f"{finding.step}: {finding.text}")
    console.print(line, soft_wrap=True)
    if finding.action:
        console.print(cell(f"         {finding.action}", "bold"), soft_wrap=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}", got=error.strerror or "") from error


def _proxy(folder: SiteFolder, proxy: str | None) -> str | None:
    """The proxy to use: what is asked for and what is configured must not contradict each other."""
    configured = read_config(folder.config).proxy
    if proxy is None:
        return configured
    if folder.config.exists() and configured != proxy:
        raise WrongStateError(
            f"{folder.config} is there already and names another proxy, or none",
            action="Set `proxy` in that file and leave --proxy out",
        )
    try:
        return Config(proxy=proxy).proxy
    except ValueError as error:
        raise InputError("The proxy's address is malformed", expected="http://[user:password@]host:port") from error


def _write_defaults(folder: SiteFolder, proxy: str | None) -> None:
    """A policy to read and change, and the proxy where the daemon finds it."""
    write_default_policy(folder)
    if proxy is not None and not folder.config.exists():
        folder.config.touch(mode=0o600)  # it may hold the proxy's password
        folder.config.write_text(f"proxy = {json.dumps(proxy)}\n", encoding="utf-8")
