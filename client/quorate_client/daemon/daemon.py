"""The daemon, put together: everything that a site's process does between its start and its end.

It stays light: neither flwr nor torch nor numpy is imported before the first instruction needs it, and the tasks run in
processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog
from prometheus_client import CollectorRegistry

from quorate import __version__
from quorate.errors import (
    PolicyError,
    PrivacyUnsupportedError,
    QuorateError,
    RosterRefusedError,
    StudyExpiredError,
    StudyKeyRefusedError,
    StudyNotApprovedError,
    SumRefusedError,
    TaskMismatchError,
    VoteRefusedError,
    VotesForgottenError,
)
from quorate.identity import SiteName
from quorate.process.cancellation import cancel
from quorate.process.disk import watch_disk
from quorate.process.metrics import watch_event_loop
from quorate.process.monitoring import Examine, Finding, serve_monitoring
from quorate.rounds.blobs import BlobId
from quorate.rounds.instruction import Instruction
from quorate.rounds.spool import Spool
from quorate_client.appraisals.kept import KeptAppraisals
from quorate_client.approval.answers import Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.installed_tasks import InstalledTasks
from quorate_client.approval.other_sites import OtherSitesApprovals
from quorate_client.approval.policy_file import (
    check_policy_now,
    look_at_policy,
    policy_now,
    read_policy,
)
from quorate_client.approval.readiness import Assessor
from quorate_client.approval.usable import look_at, require_usable
from quorate_client.connection.channel import open_channel, unheeded_proxies
from quorate_client.connection.current import CurrentConnection
from quorate_client.connection.gate import Gate, GateParts
from quorate_client.connection.transfers import Downloads
from quorate_client.connection.way import key_of_the_door
from quorate_client.daemon.appraiser import Appraiser
from quorate_client.daemon.budgets import BudgetWatch
from quorate_client.daemon.control_stream import ControlStream, Surroundings
from quorate_client.daemon.health import site_findings
from quorate_client.daemon.instructions import DaemonParts, Instructions
from quorate_client.daemon.journal import Journal
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.daemon.readiness_reports import ReadinessReports
from quorate_client.daemon.upkeep import CertificateKeeper, forget_the_old, heed_pause
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.ledger.upgrading import upgrade_site
from quorate_client.rounds.engine import Engine
from quorate_client.rounds.sums.site_keys import SiteSecrets
from quorate_client.rounds.sums.votes import VoteLog
from quorate_client.rounds.training import Accounting
from quorate_client.site.agreement import Agreement
from quorate_client.site.config import Config
from quorate_client.site.database import SiteDatabase, site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import certificate_life, load_credentials, load_identity, load_keys, own_certificate_files
from quorate_client.workers.isolation import Confinement
from quorate_client.workers.pool import ProcessWorkers
from quorate_client.workers.process import WorkerSettings

log = structlog.get_logger()

AUDITED = (
    PolicyError,
    PrivacyUnsupportedError,
    RosterRefusedError,
    StudyExpiredError,
    StudyKeyRefusedError,
    StudyNotApprovedError,
    SumRefusedError,
    TaskMismatchError,
    VoteRefusedError,
    VotesForgottenError,
)
"""Refusals by this site's rules, as against what merely failed. What the budget refuses is on the ledger already."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where torch's processes share tensors


def make_engine(folder: SiteFolder, config: Config, spool: Spool, state: SiteDatabase, ledger: Ledger) -> Engine:
    """The engine with task workers that cannot see the site's keys."""
    work = folder.work.resolve()
    temporary = work / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    memory_bytes = config.task_memory_mb * 1024**2 if config.task_memory_mb is not None else None
    writable = (work, *(path for path in (SHARED_MEMORY,) if path.is_dir()))
    settings = WorkerSettings(
        folder=work,
        log_path=folder.log / "tasks.log",
        confinement=Confinement((folder.keys.resolve(),), writable, memory_bytes),
        temporary=temporary,
        require_isolation=lambda: read_policy(folder).require_isolation,
    )
    secrets = SiteSecrets(
        keys=lambda: load_keys(folder.keys).for_secure_sums(),
        sealing_keys=Answers(state, time.time).sealing_keys,
        votes=VoteLog(state),
        study_keys=folder.study_keys,
    )
    accounting = Accounting(ledger, lambda: policy_now(folder).privacy, time.time)
    return Engine(ProcessWorkers(settings), spool, folder.work, time.monotonic, secrets=secrets, accounting=accounting)


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of one daemon that have to be run."""

    stream: ControlStream
    instructions: Instructions
    upkeep: CertificateKeeper
    journal: Journal
    drop: Callable[[set[BlobId]], None]
    appraisals: KeptAppraisals


@dataclass(frozen=True, slots=True)
class _Agreeing:
    """What has to hold at this moment for work to be done, asked before every instruction."""

    folder: SiteFolder
    site: SiteName
    answers: Answers
    datasets: Datasets
    tasks: InstalledTasks
    other_sites: OtherSitesApprovals
    wall: Callable[[], float]

    async def agree(self, instruction: Instruction) -> Agreement:
        agreement = await self._allowed(instruction)
        if await self.other_sites.require(agreement):
            return agreement
        # The server was asked, and may have let this site wait for days.
        return await self._allowed(instruction)

    async def _allowed(self, instruction: Instruction) -> Agreement:
        agreement = self.answers.agreement(instruction.study_digest, self.site)
        now = datetime.fromtimestamp(self.wall()).astimezone()
        policy = check_policy_now(self.folder, agreement.study, now)
        policy.check_phase(instruction.phase, now)
        if agreement.dataset is not None:
            usable = look_at(agreement.dataset, self.datasets.find)
            require_usable(agreement.dataset, agreement.study, policy, usable)
        # A large task takes seconds the first time; heartbeats must not wait for it.
        await asyncio.to_thread(self.tasks.check, agreement.study.task, now)
        return agreement


def assemble(
    folder: SiteFolder,
    config: Config,
    state: SiteDatabase,
    ledger: Ledger,
    metrics: ClientMetrics,
    spool: Spool,
    engine: Engine,
    wall: Callable[[], float] = time.time,
) -> Daemon:
    """Wire the parts. Nothing runs yet."""
    identity = load_identity(folder.keys)
    address = config.address or identity.address
    draw = random.SystemRandom().random
    journal = Journal(state, wall)
    answers, datasets = Answers(state, wall), Datasets(state, wall)
    tasks = InstalledTasks(time.monotonic)
    current = CurrentConnection()

    def connect() -> grpc.aio.Channel:
        return open_channel(load_credentials(folder.keys), address, config.proxy)

    def drop(blobs: set[BlobId]) -> None:
        for blob in blobs:
            spool.remove(blob)

    appraisals = KeptAppraisals(folder.attestation)
    appraiser = Appraiser(folder, identity.site, answers, appraisals, metrics, wall)
    gate = Gate(_gate_parts(folder, config, identity.site, address, appraiser, journal), current, spool)
    other_sites = OtherSitesApprovals(answers, current)
    agreeing = _Agreeing(folder, identity.site, answers, datasets, tasks, other_sites, wall)
    readiness = ReadinessReports(Assessor(folder, answers, datasets, tasks, ledger, wall))
    stream = ControlStream(
        Surroundings(connect, address, wall, draw), state, journal, ledger, spool, current, gate, metrics, readiness
    )
    parts = DaemonParts(
        journal=journal,
        admits=gate.admits,
        engine=engine,
        metrics=metrics,
        agree=agreeing.agree,
        fetch=_downloads(current, spool, draw, metrics).fetch,
        drop=drop,
        replied=stream.replied,
        audit=partial(_audit, ledger),
    )
    spool.keep_only(journal.blobs())
    return Daemon(
        stream,
        Instructions(parts),
        CertificateKeeper(folder, stream, current, metrics, draw),
        journal,
        drop,
        appraisals,
    )


def _gate_parts(
    folder: SiteFolder, config: Config, site: SiteName, address: str, appraiser: Appraiser, journal: Journal
) -> GateParts:
    def door_key() -> bytes:
        credentials = load_credentials(folder.keys)
        return key_of_the_door(address, config.proxy, credentials.ca_pem, own_certificate_files(folder.keys))

    return GateParts(
        site=site,
        study=appraiser.study,
        appraise=appraiser.appraise,
        rules=appraiser.rules,
        door_key=door_key,
        signing_key=lambda: load_keys(folder.keys).signing,
        note=appraiser.note,
        owed=lambda: {entry.message_id for entry in journal.owed()},
        now=appraiser.now,
        random=random.SystemRandom().random,
    )


def _downloads(
    current: CurrentConnection, spool: Spool, draw: Callable[[], float], metrics: ClientMetrics
) -> Downloads:
    return Downloads(
        current,
        spool,
        draw,
        metrics.bytes_received,
        resumed=partial(metrics.frames_resumed, "down"),
        broken=partial(metrics.transfer_broken, "down"),
    )


def _audit(ledger: Ledger, instruction: Instruction, error: QuorateError) -> None:
    """Put on the ledger what this site's rules kept from happening."""
    if not isinstance(error, AUDITED):
        return
    try:
        ledger.refuse(instruction.study_digest, instruction.run, instruction.round_number, error.code)
    except QuorateError as failure:
        log.error("a refusal could not be put on the ledger", code=failure.code, reason=str(failure))


async def serve(folder: SiteFolder, config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises:
        SupersededError, IdentityClonedError, CertificateRevokedError: this identity must not go on.
        WrongStateError: another daemon runs on the folder, or the site has not joined, or its database is of a newer
            version or gone. LedgerError: so is the ledger. ConfigError, IdentityError.
    """
    load_identity(folder.keys)
    _warn_of_expiry(folder)
    _warn_of_proxies(config)
    with folder.held_by_this_daemon():
        for done in upgrade_site(folder):
            if done.steps:
                log.info(
                    "database upgraded", file=done.path.name, was=done.found, layout=done.newest, copy=done.copy.name
                )
        await _serve(folder, config)


async def _serve(folder: SiteFolder, config: Config) -> None:
    """On a folder that is this daemon's, with databases of this version."""
    identity = load_identity(folder.keys)
    policy = read_policy(folder)
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    signing = load_keys(folder.keys).signing
    with (
        site_state(folder.database) as state,
        closing(open_ledger(folder.ledger, folder.database, signing, shipped_accountants())) as ledger,
    ):
        spool = Spool(folder.spool)
        engine = make_engine(folder, config, spool, state, ledger)
        daemon = assemble(folder, config, state, ledger, metrics, spool, engine)
        log.info("daemon started", site=identity.site, consortium=identity.consortium, version=__version__)
        if "none" in policy.protection:
            log.warning("the policy allows studies without protection: the server can read their updates")
        daemon.instructions.recover()
        daemon.instructions.paused = state.paused
        metrics.paused_is(state.paused)
        beside = {
            asyncio.create_task(daemon.upkeep.run()),
            asyncio.create_task(heed_pause(state, daemon.instructions, daemon.stream, metrics)),
            asyncio.create_task(
                forget_the_old(
                    daemon.journal, daemon.drop, folder, daemon.instructions, daemon.appraisals, config.keep_days
                )
            ),
            *(_watches(folder, state, ledger, metrics) if config.metrics_listen else ()),
        }
        _stop_on_signals(daemon.stream)
        try:
            async with _monitored(config, registry, partial(_findings, folder, daemon.stream, ledger)):
                await _run_with(daemon.stream.run(daemon.instructions), beside)
        finally:
            await cancel(beside)
            await engine.close()
            daemon.journal.close()
        log.info("daemon stopped")


async def _run_with(main: Coroutine[Any, Any, None], beside: set[asyncio.Task[None]]) -> None:
    """Run ``main`` to its end; a task beside it that fails is a mistake of ours and ends the daemon, loudly."""
    running = asyncio.create_task(main)
    try:
        done, _ = await asyncio.wait({running, *beside}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel({running})


def _stop_on_signals(stream: ControlStream) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stream.stop)


def _warn_of_expiry(folder: SiteFolder) -> None:
    """A server refuses an expired certificate in the handshake, which looks as if it were down. Only a warning,
    because it is this machine's clock that says so.
    """
    _, end = certificate_life(load_credentials(folder.keys).certificate_pem)
    if end.timestamp() < time.time():
        log.warning(
            "by this machine's clock the site's certificate has expired",
            expired=end.isoformat(),
            action="Check the clock; if it is right, ask the operator to invite this site again with --keep-keys",
        )


def _warn_of_proxies(config: Config) -> None:
    unheeded = unheeded_proxies(os.environ)
    if unheeded and not config.proxy:
        log.warning(
            "the environment names a proxy, which is not used",
            variables=unheeded,
            action="If the way out leads through it, set `proxy` in config.toml",
        )


def _watches(
    folder: SiteFolder, state: SiteDatabase, ledger: Ledger, metrics: ClientMetrics
) -> Iterator[asyncio.Task[None]]:
    """What is looked up for a monitoring system and for nobody else: what was spent takes an accountant, and memory."""
    yield asyncio.create_task(BudgetWatch(folder, Datasets(state, time.time), ledger, metrics).run())
    yield asyncio.create_task(watch_event_loop(metrics.event_loop_lagged))
    yield asyncio.create_task(watch_disk(folder.spool, metrics.disk_is))


def _findings(folder: SiteFolder, stream: ControlStream, ledger: Ledger) -> Iterator[Finding]:
    return site_findings(
        connection=stream.report,
        certificate_ends_unix_s=lambda: certificate_life(load_credentials(folder.keys).certificate_pem)[1].timestamp(),
        read_policy=partial(look_at_policy, folder),
        ask_ledger=partial(_ask, ledger),
        work=folder.work,
        spool=folder.spool,
        now=stream.server_unix_s,
    )


def _ask(ledger: Ledger) -> None:
    """Raises LedgerError when nothing can be spent. Does not wait for a reservation where the newest entry is known."""
    if ledger.entries.head() is None:
        ledger.entries.require_newest()


@asynccontextmanager
async def _monitored(config: Config, registry: CollectorRegistry, examine: Examine) -> AsyncIterator[None]:
    """Answer a monitoring system meanwhile, if the administrator wants it."""
    if not config.metrics_listen:
        yield
        return
    endpoint = await serve_monitoring(config.metrics_listen, registry, examine)
    log.info("metrics are served", listen=config.metrics_listen, port=endpoint.port)
    try:
        yield
    finally:
        await endpoint.stop()
