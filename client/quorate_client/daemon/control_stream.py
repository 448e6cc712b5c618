"""The daemon's connection: one stream to the server, opened again for ever, with work and replies across all of them.

A site proves that it is alive by heartbeats and expects the server's; it announces each connection with a session
number that it persisted and never used before, so that the server can tell a copy of this site from a reconnection.
When the server says that this identity is revoked, copied or taken over, the daemon stops: fighting over it would hide
what the administrator has to see.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import grpc
import structlog

from quorate import __version__
from quorate.errors import (
    CertificateRevokedError,
    FrameError,
    IdentityClonedError,
    QuorateError,
    ServerUnreachableError,
    SupersededError,
)
from quorate.process.cancellation import cancel, wait_for_event
from quorate.rounds.instruction import MESSAGE_ID_BYTES, MessageId
from quorate.rounds.spool import Spool
from quorate.v1 import rounds_pb2
from quorate.wire.messages import head_from_proto, instruction_from_proto
from quorate.wire.refusal import error_of
from quorate_client.connection.backoff import Backoff
from quorate_client.connection.channel import rounds_stub
from quorate_client.connection.current import Connection, CurrentConnection
from quorate_client.connection.gate import Gate
from quorate_client.daemon.instructions import Instructions
from quorate_client.daemon.journal import Journal
from quorate_client.daemon.metrics import ClientMetrics, ConnectionState
from quorate_client.daemon.outbox import Outbox
from quorate_client.daemon.readiness_reports import ReadinessReports
from quorate_client.ledger.ledger import Ledger
from quorate_client.site.database import ConnectionReport, SiteDatabase

log = structlog.get_logger()

WELCOME_TIMEOUT_S = 10.0
MISSED_HEARTBEATS = 3
CLOCK_TOLERANCE_S = 60.0
MAX_EARLIER_KEYS = 100
GOODBYE_TIMEOUT_S = 1.0

FINAL_REFUSALS = (SupersededError, IdentityClonedError, CertificateRevokedError)
"""After these the daemon does not come back by itself."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the stream needs from outside.

    Args:
        open_channel: Opens a channel with the certificate that is in place at this moment.
        address: Where that leads, for messages.
        wall: Unix seconds of this machine's clock, which may be wrong.
        random: Uniform in [0, 1).
    """

    open_channel: Callable[[], grpc.aio.Channel]
    address: str
    wall: Callable[[], float]
    random: Callable[[], float]


class ControlStream:
    """Keeps the connection and brings instructions in and replies out."""

    def __init__(
        self,
        surroundings: Surroundings,
        state: SiteDatabase,
        journal: Journal,
        ledger: Ledger,
        spool: Spool,
        current: CurrentConnection,
        gate: Gate,
        metrics: ClientMetrics,
        readiness: ReadinessReports,
    ) -> None:
        self._around = surroundings
        self._state = state
        self._journal = journal
        self._ledger = ledger
        self._current = current
        self._metrics = metrics
        self._readiness = readiness
        self._outbox = Outbox(journal, ledger, spool, gate, metrics, surroundings.random)
        self._waits = Backoff(surroundings.random)
        self._stopping = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._offset_s: float | None = None
        self.report = ConnectionReport(ConnectionState.STOPPED, surroundings.address, surroundings.wall())
        """How the connection stands."""

    # --- what the rest of the daemon calls ---

    async def run(self, instructions: Instructions) -> None:
        """Stay connected until ``stop``.

        Raises:
            SupersededError, IdentityClonedError, CertificateRevokedError: this identity must not go on.
        """
        try:
            while not self._stopping.is_set():
                try:
                    await self._until_stopped(instructions)
                except FINAL_REFUSALS as error:
                    self._report(ConnectionState.STOPPED, error)
                    raise
                except QuorateError as error:
                    self._report(ConnectionState.WAITING, error)
                    delay_s = self._waits.next_s()
                    log.warning("not connected", code=error.code, reason=str(error), again_in_s=round(delay_s, 1))
                    await wait_for_event(self._stopping, delay_s)
            self._report(ConnectionState.STOPPED)
        finally:
            await instructions.stop()

    def stop(self) -> None:
        """Answer what is interrupted, say goodbye, end ``run``."""
        self._stopping.set()

    def reconnect(self) -> None:
        """Connect again, with the certificate that is now in place."""
        if self._current.connection is not None:
            self._current.connection.call.cancel()

    def beat_now(self) -> None:
        """Tell the server at once what a heartbeat says: whether this site is paused."""
        self._beat_now.set()

    def replied(self, message: MessageId) -> None:
        """A reply is in the journal: bring it to the server now, or at the next connection."""
        if self._current.connection is not None:
            self._outbox.begin(self._current.connection, message)

    @property
    def server_unix_s(self) -> float:
        """The server's clock as far as known: it decides about certificates, whatever the clock here says."""
        return self._around.wall() + (self._offset_s or 0.0)

    # --- one connection, from its first byte to its last ---

    async def _until_stopped(self, instructions: Instructions) -> None:
        session = asyncio.create_task(self._one_connection(instructions))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({session, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if session.done():
                session.result()
            elif self._current.connection is not None:
                await self._take_leave(self._current.connection, instructions)
        finally:
            await cancel({session, stopping})

    async def _one_connection(self, instructions: Instructions) -> None:
        self._report(ConnectionState.CONNECTING)
        async with self._around.open_channel() as channel:
            stub = rounds_stub(channel)
            connection = Connection(channel, stub, stub.Connect(), self._around.address)
            try:
                heartbeat_s = await self._introduce(connection)
                self._current.use(connection)
                self._report(ConnectionState.CONNECTED)
                self._outbox.start(partial(self._beat, connection, instructions, heartbeat_s))
                self._outbox.start(partial(self._readiness.run, connection))
                for entry in self._journal.owed():
                    self._outbox.begin(connection, entry.message_id)
                await self._read(connection, instructions, MISSED_HEARTBEATS * heartbeat_s)
            finally:
                self._current.use(None)
                connection.call.cancel()
                await self._outbox.cancel()

    async def _introduce(self, connection: Connection) -> float:
        """Say hello under a number never used before; returns the seconds between heartbeats."""
        session = self._state.next_session()
        hello = rounds_pb2.SiteHello(session=session, version=__version__)
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await connection.send(rounds_pb2.SiteEvent(hello=hello))
                event = checked(await connection.receive(WELCOME_TIMEOUT_S))
        except TimeoutError as error:
            raise ServerUnreachableError(
                f"The server at {connection.address} did not answer", expected=f"a welcome in {WELCOME_TIMEOUT_S:g} s"
            ) from error
        welcome = event.welcome
        if event.WhichOneof("event") != "welcome" or not 0 < welcome.heartbeat_s <= 3600:
            raise FrameError("The server did not begin with a welcome")
        if not math.isfinite(welcome.server_unix_s):
            raise FrameError("The server's clock shows no time")
        self._offset_s = welcome.server_unix_s - self._around.wall()
        self._metrics.welcomed(self._offset_s)
        if welcome.HasField("ledger_head"):
            await self._compare(welcome.ledger_head)
        for earlier in welcome.earlier_ledger_heads[:MAX_EARLIER_KEYS]:
            await self._compare(earlier, is_earlier=True)
        log.info("connected", server=connection.address, session=session)
        if abs(self._offset_s) > CLOCK_TOLERANCE_S:
            log.warning(
                "the clock of this machine and the server's differ",
                offset_s=round(self._offset_s),
                action="Set this machine's clock, for example with NTP; certificates depend on it",
            )
        return float(welcome.heartbeat_s)

    async def _compare(self, proto: rounds_pb2.LedgerHead, *, is_earlier: bool = False) -> None:
        """What the server has seen of this site's privacy ledger; studies without privacy go on in any case."""
        try:
            await asyncio.to_thread(self._ledger.entries.check_witness, head_from_proto(proto), is_earlier=is_earlier)
        except QuorateError as error:
            log.error("the privacy ledger could not be compared", code=error.code, reason=str(error))

    async def _read(self, connection: Connection, instructions: Instructions, silence_s: float) -> None:
        while True:
            event = checked(await connection.receive(silence_s))
            self._waits.reset()
            self._outbox.require_room()
            match event.WhichOneof("event"):
                case "instruction":
                    self._take(connection, event.instruction, instructions)
                case "ack":
                    for name in event.ack.message_ids:
                        self._acknowledged(MessageId(name))
                case "refused_reply":
                    message = MessageId(event.refused_reply.message_id)
                    self._outbox.refused(connection, message, error_of(event.refused_reply.reason))
                case "withdraw":
                    withdrawn = MessageId(event.withdraw.message_id)
                    self._outbox.withdrawn(withdrawn)
                    self._outbox.start(partial(instructions.withdraw, withdrawn))
                case "studies_changed":
                    log.info("there are new studies", action="Read them with `quorate-client studies`")
                    self._readiness.studies_changed()
                case "heartbeat":
                    pass
                case other:
                    # A newer server may say more than this version understands.
                    log.warning("event of the server passed over", kind=other or "unknown")

    def _take(self, connection: Connection, proto: rounds_pb2.Instruction, instructions: Instructions) -> None:
        try:
            instruction = instruction_from_proto(proto)
        except QuorateError as error:
            if len(proto.message_id) != MESSAGE_ID_BYTES:
                raise
            log.warning("instruction not understood", code=error.code, reason=str(error))
            self._metrics.instruction_refused(error.code)
            reply = rounds_pb2.Reply(message_id=proto.message_id, code=error.code)
            self._outbox.start(partial(connection.send, rounds_pb2.SiteEvent(reply=reply)))
        else:
            self._current.asked(instruction.run)
            instructions.take(instruction)

    def _acknowledged(self, message: MessageId) -> None:
        entry = self._outbox.settle(message)
        if entry is not None and entry.reply is not None and not entry.reply.code:
            self._metrics.succeeded(self._around.wall())

    async def _beat(self, connection: Connection, instructions: Instructions, every_s: float) -> None:
        sequence = 0
        while True:
            self._beat_now.clear()
            sequence += 1
            beat = rounds_pb2.Heartbeat(sequence=sequence, paused=instructions.paused, sent_unix_s=self._around.wall())
            await connection.send(rounds_pb2.SiteEvent(heartbeat=beat))
            await wait_for_event(self._beat_now, every_s)

    async def _take_leave(self, connection: Connection, instructions: Instructions) -> None:
        """Answer what is interrupted and say goodbye, so that nobody waits for this site."""
        await instructions.stop()
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._outbox.finish()
                await connection.send(rounds_pb2.SiteEvent(goodbye=rounds_pb2.Goodbye(reason="stopping")))
                await connection.call.done_writing()
        except (TimeoutError, QuorateError, grpc.RpcError, asyncio.InvalidStateError):
            log.info("left without a goodbye")

    def _report(self, state: ConnectionState, error: QuorateError | None = None) -> None:
        self._metrics.connection_is(state)
        code, problem = (error.code, str(error)) if error else ("", "")
        now = self._around.wall()
        self.report = ConnectionReport(state, self._around.address, now, code, problem, self._offset_s)
        try:
            self._state.report_connection(self.report)
        except QuorateError as failure:
            log.warning("connection state not stored", code=failure.code)


def checked(event: rounds_pb2.ServerEvent) -> rounds_pb2.ServerEvent:
    """The event, unless it is the refusal with which the server ends the stream: that is raised."""
    if event.WhichOneof("event") == "refused":
        raise error_of(event.refused)
    return event
