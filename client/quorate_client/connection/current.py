"""The connection that the server welcomed, as the rest of the daemon sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc

from quorate.errors import ServerUnreachableError
from quorate.rounds.instruction import MessageId
from quorate.v1 import rounds_pb2
from quorate_client.connection.channel import translated


@dataclass(frozen=True, slots=True)
class Connection:
    """One open stream and the channel below it.

    Args:
        channel: For other calls of this site.
        stub: The rounds service on that channel.
        call: The open ``Connect`` stream.
    """

    channel: grpc.aio.Channel
    stub: Any
    call: Any
    address: str
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, event: rounds_pb2.SiteEvent) -> None:
        """Write one event; the transport takes one at a time.

        Raises:
            ServerUnreachableError and other QuorateErrors: the stream has ended.
        """
        async with self._writing:
            try:
                with translated(self.address):
                    await self.call.write(event)
            except asyncio.InvalidStateError as error:
                raise _lost(self.address) from error

    async def receive(self, timeout_s: float) -> rounds_pb2.ServerEvent:
        """The next event.

        Raises:
            ServerUnreachableError: silence for ``timeout_s``, or the stream ended without a reason.
            Other QuorateErrors: the reason with which the server ended it.
        """
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
            async with asyncio.timeout(timeout_s):
                with translated(self.address):
                    event: rounds_pb2.ServerEvent | None = await self.call.read()
        except TimeoutError as error:
            raise ServerUnreachableError(
                f"The server at {self.address} fell silent", expected=f"a sign of life within {timeout_s:g} s"
            ) from error
        # grpc.aio gives None for a message that it cannot parse, and its own mark at the end of the stream.
        if event is None or event is grpc.aio.EOF:
            raise _lost(self.address)
        return event


class CurrentConnection:
    """Holds the present connection, if there is one, and what the server asked on it, and lets others wait for it."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._asked: dict[MessageId, asyncio.Event] = {}

    @property
    def connection(self) -> Connection | None:
        return self._connection

    def use(self, connection: Connection | None) -> None:
        self._connection = connection
        for asked in self._asked.values():
            asked.clear()
        if connection is None:
            self._up.clear()
        else:
            self._up.set()

    def asked(self, message: MessageId) -> None:
        """The server asked for this on the present connection."""
        self._of(message).set()

    def is_over(self, message: MessageId) -> None:
        """This was answered or is not wanted any more."""
        self._asked.pop(message, None)

    async def connected(self) -> Connection:
        """The present connection, or the next one."""
        while self._connection is None:
            await self._up.wait()
        return self._connection

    async def connected_for(self, message: MessageId) -> Connection:
        """The present connection, or the next one, when the server has asked for this on it.

        A server that was started again welcomes its sites before its runs know what they want, and gives nothing out
        for work that it has not yet asked for again.
        """
        while self._connection is None or not self._of(message).is_set():
            await self._of(message).wait()
        return self._connection

    def _of(self, message: MessageId) -> asyncio.Event:
        return self._asked.setdefault(message, asyncio.Event())


def _lost(address: str) -> ServerUnreachableError:
    return ServerUnreachableError(f"The connection to the server at {address} ended")
