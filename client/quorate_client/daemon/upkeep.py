"""What the daemon does beside rounds: keep the certificate young, heed the administrator, forget what is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from quorate.errors import QuorateError
from quorate.rounds.blobs import BlobId
from quorate_client.appraisals.kept import KeptAppraisals
from quorate_client.connection.backoff import Backoff
from quorate_client.connection.channel import enrolment_stub
from quorate_client.connection.current import Connection, CurrentConnection
from quorate_client.connection.enrolment import renew, renewal_due_unix_s
from quorate_client.daemon.control_stream import ControlStream
from quorate_client.daemon.instructions import Instructions
from quorate_client.daemon.journal import Journal
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.site.database import SiteDatabase
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import certificate_life, load_credentials, load_identity, load_keys

log = structlog.get_logger()

Sleep = Callable[[float], Awaitable[None]]

LOOK_EVERY_S = 3600.0
RETRY_FACTOR = 60.0
PAUSE_EVERY_S = 0.5
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class CertificateKeeper:
    """Renews the certificate when a third of its life is left, by the server's clock.

    Args:
        random: For the back-off after a refusal.
    """

    folder: SiteFolder
    stream: ControlStream
    current: CurrentConnection
    metrics: ClientMetrics
    random: Callable[[], float]
    sleep: Sleep = asyncio.sleep

    async def run(self) -> None:
        """Look after the certificate for ever. Run it as a task and cancel it."""
        waits = Backoff(self.random)
        while True:
            connection = await self.current.connected()
            try:
                wait_s = await self._look(connection)
                waits.reset()
            except QuorateError as error:
                # There is a third of its life for this; no need to hurry.
                log.warning("certificate not renewed", code=error.code, reason=str(error))
                wait_s = waits.next_s() * RETRY_FACTOR
            await self.sleep(wait_s)

    async def _look(self, connection: Connection) -> float:
        """Renew if it is time. Returns the seconds until the next look."""
        left_s = renewal_due_unix_s(self._shown()) - self.stream.server_unix_s
        if left_s > 0:
            return min(left_s, LOOK_EVERY_S)
        keys, identity = load_keys(self.folder.keys), load_identity(self.folder.keys)
        await renew(enrolment_stub(connection.channel), connection.address, self.folder, keys, identity)
        log.info("certificate renewed")
        self._shown()
        self.stream.reconnect()
        # Never sooner: near the end of its authority a new certificate is due as soon as it is made.
        return LOOK_EVERY_S

    def _shown(self) -> bytes:
        """The certificate, and in the metrics its end."""
        certificate_pem = load_credentials(self.folder.keys).certificate_pem
        self.metrics.certificate_expires(certificate_life(certificate_pem)[1].timestamp())
        return certificate_pem


async def heed_pause(
    state: SiteDatabase,
    instructions: Instructions,
    stream: ControlStream,
    metrics: ClientMetrics,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Take up `pause` and `resume` for ever. Work that is being done is finished; nothing new begins."""
    while True:
        paused = state.paused
        metrics.paused_is(paused)
        if paused != instructions.paused:
            log.info("paused by the administrator" if paused else "resumed by the administrator")
            instructions.paused = paused
            stream.beat_now()
        await sleep(PAUSE_EVERY_S)


async def forget_the_old(
    journal: Journal,
    drop: Callable[[set[BlobId]], None],
    folder: SiteFolder,
    instructions: Instructions,
    appraisals: KeptAppraisals,
    keep_days: float,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Forget, for ever, replies so old that no round waits for them, and of runs so old the models on the way and the
    records of appraisals."""
    while True:
        try:
            drop(journal.forget_older_than(keep_days * DAY_S))
            # Files carry this machine's time, so that is the clock here.
            for run in folder.idle_runs(time.time() - keep_days * DAY_S):
                await instructions.forget(run)
                log.info("old run forgotten", run=run)
            appraisals.forget_older_than(time.time() - keep_days * DAY_S)
        except (QuorateError, OSError) as error:
            log.warning("what is old was not forgotten", reason=str(error))
        await sleep(LOOK_EVERY_S)
