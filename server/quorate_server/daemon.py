"""The server daemon: builds every part, opens the ports, and closes them in order."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections import Counter as Tally
from collections.abc import Iterator
from functools import partial

import grpc
import structlog
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from quorate.errors import ConfigError, WrongStateError
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import cancel
from quorate.process.disk import watch_disk
from quorate.process.metrics import watch_event_loop
from quorate.process.monitoring import Finding, MonitoringEndpoint, serve_monitoring
from quorate.rounds.spool import Spool
from quorate.v1 import enrolment_pb2_grpc, operator_pb2_grpc, rounds_pb2_grpc
from quorate_server.consortium.ca import AUTHORITY_WARN_DAYS, DAY_S, FOUND_ANEW, Authority
from quorate_server.consortium.config import ServerConfig, held_by_server
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.server_certificate import ServerIdentity
from quorate_server.consortium.tables import SiteStatus
from quorate_server.reporting.health import server_findings
from quorate_server.reporting.metrics import ServerMetrics
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.runs import Runs
from quorate_server.runs.sessions import Sessions
from quorate_server.services.access import AccessGuard
from quorate_server.services.door_limits import door_options, file_limit, max_connections, raise_file_limit
from quorate_server.services.enrolment_service import EnrolmentService
from quorate_server.services.operator_service import OperatorService
from quorate_server.services.rounds_service import RoundsService
from quorate_server.storage.database import LAYOUT, open_database, sqlite_path
from quorate_server.storage.journal import Journal
from quorate_server.storage.latency import time_transactions
from quorate_server.storage.upgrade import pending_upgrade, upgrade_database

log = structlog.get_logger()

SWEEP_S = 0.5
GRACE_S = 2.0


class Server:
    """All parts of one server. ``start`` opens the ports, ``stop`` closes them; runs go on at the next start."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        engine = open_database(config.engine_url)
        self.registry = Registry(engine)
        self.journal = Journal(engine)
        self.prometheus = CollectorRegistry()
        self.metrics = ServerMetrics(self.prometheus)
        time_transactions(engine, self.metrics.store_took)
        self.spool = Spool(config.spool_dir)
        self.sessions = Sessions(self.journal, config.silent_after_s)
        self.mailbox = Mailbox(self.sessions, self.journal, self.spool)
        self.runs = Runs(
            config=config,
            registry=self.registry,
            journal=self.journal,
            mailbox=self.mailbox,
            sessions=self.sessions,
            spool=self.spool,
            metrics=self.metrics,
        )
        authority = Authority.load(config.ca_dir, config.consortium)
        self._authority = authority
        self._identity = ServerIdentity(authority, config.public_host, time.time)
        self._guard = AccessGuard(config.consortium, self.registry, refused=self.metrics.call_refused)
        connections = max_connections(file_limit(), config.most_runs)
        self._grpc = grpc.aio.server(interceptors=[self._guard], options=door_options(connections))
        self._add_services(authority)
        self._background: list[asyncio.Task[None]] = []
        self._monitoring: MonitoringEndpoint | None = None
        self._is_started = False
        self.metrics.certificate_expires("ca", authority.expires_unix_s)
        self.metrics.certificate_expires("server", self._identity.expires_unix_s)

    def _add_services(self, authority: Authority) -> None:
        config = self._config
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(  # type: ignore[no-untyped-call]  # generated code
            EnrolmentService(
                authority=authority,
                registry=self.registry,
                sessions=self.sessions,
                certificate_days=config.certificate_days,
            ),
            self._grpc,
        )
        operator_pb2_grpc.add_OperatorServicer_to_server(  # type: ignore[no-untyped-call]  # generated code
            OperatorService(
                config=config,
                authority=authority,
                registry=self.registry,
                runs=self.runs,
                sessions=self.sessions,
            ),
            self._grpc,
        )
        rounds_pb2_grpc.add_RoundsServicer_to_server(  # type: ignore[no-untyped-call]  # generated code
            RoundsService(
                consortium=config.consortium,
                heartbeat_s=config.heartbeat_s,
                upload_slots=config.upload_slots,
                sessions=self.sessions,
                mailbox=self.mailbox,
                registry=self.registry,
                spool=self.spool,
                metrics=self.metrics,
                attest=self._attest,
            ),
            self._grpc,
        )

    async def _attest(self, site: SiteName, run: RunId, nonce: bytes) -> bytes:
        return await self.runs.attest(site, run, nonce, self._identity.door_key)

    async def start(self) -> int:
        """Open the ports. Returns the gRPC server's.

        Raises:
            ConfigError: the address is taken.
        """
        _warn_of_its_end(self._authority, time.time())
        try:
            port = self._grpc.add_secure_port(self._config.listen, self._identity.server_credentials())
        except RuntimeError as error:
            raise ConfigError(
                f"The server cannot listen on {self._config.listen}",
                action="Is another server running? Otherwise change `listen` in server.toml",
            ) from error
        if self._config.metrics_listen:
            self._monitoring = await serve_monitoring(self._config.metrics_listen, self.prometheus, self._findings)
        await self._grpc.start()
        await self.runs.recover()
        self._count_sites()
        self._background = [
            asyncio.create_task(self._sweep()),
            asyncio.create_task(watch_event_loop(self.metrics.event_loop_lagged)),
            asyncio.create_task(watch_disk(self.spool.folder, self.metrics.disk_is)),
        ]
        self._is_started = True
        log.info(
            "server ready",
            consortium=self._config.consortium,
            port=port,
            metrics_port=self._monitoring.port if self._monitoring else None,
            free_gb=round(shutil.disk_usage(self._config.state_dir).free / 1e9, 1),
        )
        return int(port)

    async def stop(self) -> None:
        await cancel(self._background)
        await self.runs.close()
        self.sessions.drop_all()
        await self._grpc.stop(GRACE_S)
        if self._monitoring is not None:
            await self._monitoring.stop()
        self.journal.close()
        if self._is_started:
            log.info("server stopped")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sessions.sweep()
            self.runs.tell_standstill()
            self._identity.renew_if_due()
            self.metrics.certificate_expires("server", self._identity.expires_unix_s)
            try:
                await asyncio.to_thread(self._count_sites)
            except SQLAlchemyError:  # without this loop nobody would be found silent any more
                log.exception("the sites could not be counted")

    def _count_sites(self) -> None:
        statuses = self.registry.statuses()
        joined = [name for name, status in statuses.items() if status is SiteStatus.ACTIVE]
        others = (status.value for status in statuses.values() if status is not SiteStatus.ACTIVE)
        self.metrics.sites_are(Tally([*map(self.sessions.state, joined), *others]))
        self.metrics.site_versions_are(Tally(map(self.sessions.age, joined)))

    def _findings(self) -> Iterator[Finding]:
        return server_findings(
            is_started=self._is_started,
            ask_database=self.registry.statuses,
            certificates={"authority": self._authority.expires_unix_s, "server": self._identity.expires_unix_s},
            spool=self.spool.folder,
            now=time.time(),
        )


def _warn_of_its_end(authority: Authority, now: float) -> None:
    """Without a valid authority nobody can connect. No reason not to start: it is this machine's clock that says so."""
    days = (authority.expires_unix_s - now) / DAY_S
    if now < authority.starts_unix_s:
        log.error("by this machine's clock the certificate authority is not valid yet", action="Set the clock")
    elif days <= 0:
        log.error(
            "by this machine's clock the certificate authority has ended: nobody can connect",
            days_ago=round(-days, 1),
            action=f"Check the clock; if it is right: {FOUND_ANEW}",
        )
    elif days < AUTHORITY_WARN_DAYS:
        log.warning("the certificate authority ends soon", days_left=round(days, 1), action=f"Until then: {FOUND_ANEW}")


def upgrade_at_start(config: ServerConfig) -> None:
    """After an upgrade of the package a server on SQLite just starts: the database is copied and upgraded.

    Raises:
        WrongStateError: the database is not a file that can be copied, so its administrator does that first.
    """
    url = config.engine_url
    todo = pending_upgrade(url)
    if not todo.steps:
        return
    if sqlite_path(url) is None:
        raise WrongStateError(
            "The server's database waits for an upgrade, before which it has to be backed up by its own tools",
            expected=f"layout {LAYOUT}",
            got=f"layout {todo.found}",
            action=f"Back it up (pg_dump), then run `quorate-server upgrade --state {config.state_dir}`",
        )
    done = upgrade_database(url)
    log.info("database upgraded", was=done.found, layout=LAYOUT, copy=str(done.copy))


async def serve(config: ServerConfig) -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        WrongStateError: another server runs on the folder; or the database is gone, empty, newer than this version, or
            waits for an upgrade that this server does not do by itself. DiskFullError: no room for the upgrade.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, partial(stop.set))
    raise_file_limit()
    with held_by_server(config):
        upgrade_at_start(config)
        server = Server(config)
        try:
            await server.start()
            await stop.wait()
        finally:
            await server.stop()
