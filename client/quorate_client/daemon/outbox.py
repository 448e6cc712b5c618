"""Bringing stored replies to the server, over the present connection: bulk data first, then the reply.

A delivery lives as long as the connection; whatever is still owed begins again at the next one, where the server says
how much of a blob it already has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from quorate.errors import BlobMissingError, DiskFullError, FrameError, MessageUnknownError, QuorateError
from quorate.process.cancellation import cancel
from quorate.rounds.instruction import MessageId, Reply
from quorate.rounds.spool import Spool
from quorate.v1 import rounds_pb2
from quorate.wire.messages import head_to_proto, reply_to_proto
from quorate_client.connection.backoff import Backoff
from quorate_client.connection.current import Connection
from quorate_client.connection.gate import Gate
from quorate_client.connection.transfers import upload, upload_until_done
from quorate_client.daemon.journal import Entry, Journal
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.ledger.ledger import Ledger

log = structlog.get_logger()

AGAIN_AFTER_S = 1.0
MAX_AT_A_TIME = 1000

# Not a coroutine: one that is cancelled before its first step would never be awaited.
Action = Callable[[], Coroutine[Any, Any, None]]


class Outbox:
    """What is being said on one connection beside reading it."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        spool: Spool,
        gate: Gate,
        metrics: ClientMetrics,
        random: Callable[[], float],
    ) -> None:
        self._gate = gate
        self._journal = journal
        self._ledger = ledger
        self._spool = spool
        self._metrics = metrics
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: dict[MessageId, asyncio.Task[None]] = {}

    def require_room(self) -> None:
        """Raises FrameError when the server asks for answers and does not take them: each one waits in memory."""
        if len(self._tasks) >= MAX_AT_A_TIME:
            raise FrameError("The server asks for more than it takes")

    def start(self, action: Action) -> asyncio.Task[None]:
        """Do something on the connection beside the reading of it. It ends with the connection."""
        task = asyncio.create_task(_logged(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def begin(self, connection: Connection, message: MessageId, after_s: float = 0.0) -> None:
        """Bring a stored reply to the server, unless that is already being done."""
        if message not in self._replies:
            self._replies[message] = self.start(partial(self._deliver, connection, message, after_s))
            self._replies[message].add_done_callback(lambda _: self._replies.pop(message, None))

    def refused(self, connection: Connection, message: MessageId, reason: QuorateError) -> None:
        """The server could not take a reply: mend or wait for what can be mended, else let it go."""
        log.warning("reply not taken by the server", code=reason.code, reason=str(reason))
        if isinstance(reason, BlobMissingError | FrameError | DiskFullError):
            self.begin(connection, message, AGAIN_AFTER_S)
        else:
            self.settle(message)

    def settle(self, message: MessageId) -> Entry | None:
        """The server has the reply, or does not want it."""
        self._gate.settled(message)
        return self._journal.settle(message)

    def withdrawn(self, message: MessageId) -> None:
        """The server does not want the reply, if there is one; whether it is to be is its work's matter."""
        self._gate.settled(message)

    async def finish(self) -> None:
        """Wait until the replies that are on their way have been sent."""
        if self._replies:
            await asyncio.wait(set(self._replies.values()))

    async def cancel(self) -> None:
        """The connection is over."""
        await cancel(self._tasks)
        self._replies.clear()

    async def _deliver(self, connection: Connection, message: MessageId, after_s: float) -> None:
        if after_s:
            await asyncio.sleep(after_s)
        entry = self._journal.find(message)
        if entry is None or entry.reply is None or entry.is_settled:
            return
        reply = entry.reply
        try:
            # After the time that the work had, nobody waits for it; another connection, or a repeated instruction,
            # begins a new delivery.
            async with asyncio.timeout(entry.deadline_s):
                leaving = await self._leaving(entry, reply)
                await self._upload(connection, entry, leaving)
        except MessageUnknownError:
            log.info("reply came too late", run=entry.run, round=entry.round_number, phase=entry.phase)
            self.settle(message)
            return
        except TimeoutError:
            log.warning("reply not delivered in time", run=entry.run, round=entry.round_number, phase=entry.phase)
            return
        except (BlobMissingError, FrameError) as error:
            log.error("bulk data of a reply is damaged", run=entry.run, round=entry.round_number, code=error.code)
            reply = Reply(message, error.code)
            self._journal.replace(reply)
            leaving = await self._leaving(entry, reply)
        proto = reply_to_proto(leaving)
        self._show_ledger(proto)
        await connection.send(rounds_pb2.SiteEvent(reply=proto))
        self._metrics.reply_bytes_sent(proto.ByteSize())

    async def _leaving(self, entry: Entry, reply: Reply) -> Reply:
        """The reply as the gate lets it out; while it does not, it waits."""
        waits = Backoff(self._random)
        while True:
            try:
                return await self._gate.outgoing(entry.run, entry.study_digest, reply)
            except (BlobMissingError, FrameError):
                raise
            except QuorateError as error:
                log.warning("a reply may not leave yet", run=entry.run, code=error.code, reason=str(error))
            await asyncio.sleep(waits.next_s())

    def _show_ledger(self, proto: rounds_pb2.Reply) -> None:
        """What this site has spent until now the server keeps, and repeats when the site comes back."""
        try:
            head = self._ledger.entries.head()
        except QuorateError as error:  # nothing can be spent then; the refusals that say so must leave
            log.error("the privacy ledger cannot be read", code=error.code, reason=str(error))
            return
        if head is not None:
            proto.ledger_head.CopyFrom(head_to_proto(head))

    async def _upload(self, connection: Connection, entry: Entry, reply: Reply) -> None:
        sent = partial(self._metrics.blob_bytes_sent, entry.phase)
        resumed, broken = partial(self._metrics.frames_resumed, "up"), partial(self._metrics.transfer_broken, "up")
        for blob in reply.blobs:
            if blob.inline is None:
                attempt = partial(
                    upload, connection.stub, connection.address, self._spool, entry.message_id, blob, sent, resumed
                )
                await upload_until_done(attempt, Backoff(self._random), broken)


async def _logged(action: Action) -> None:
    """The reader of the connection meets its end too; a failure here is worth a line and no more."""
    try:
        await action()
    except QuorateError as error:
        log.debug("not said to the server", code=error.code)
    except Exception:
        log.exception("unexpected failure on the connection")
