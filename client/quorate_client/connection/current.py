"""The connection that the server welcomed, as the rest of the daemon sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc

from quorate.errors import FrameError, ServerUnreachableError
from quorate.identity import RunId
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


MAX_RUNS_ASKED = 10_000
"""More than any server has at a time; it is the server that names them."""


class CurrentConnection:
    """Holds the present connection, if there is one, and the runs that were asked for on it, and lets others wait."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._changed = asyncio.Event()
        self._asked: set[RunId] = set()

    @property
    def connection(self) -> Connection | None:
        return self._connection

    def use(self, connection: Connection | None) -> None:
        self._connection = connection
        self._asked.clear()
        self._wake()

    def asked(self, run: RunId) -> None:
        """The server asked for something of this run on the present connection.

        Raises:
            FrameError: it has named more runs than it can have.
        """
        if len(self._asked) >= MAX_RUNS_ASKED and run not in self._asked:
            raise FrameError(f"The server names more than {MAX_RUNS_ASKED} runs on one connection")
        self._asked.add(run)
        self._wake()

    async def connected(self) -> Connection:
        """The present connection, or the next one."""
        while self._connection is None:
            await self._changed.wait()
        return self._connection

    async def connected_for(self, run: RunId) -> Connection:
        """The present connection, or the next one, when the server has asked for something of this run on it.

        A server that was started again welcomes its sites before its runs know what they want, and gives nothing out
        for work that it has not yet asked for again. Not this very message: one that was closed while the site was
        away is never asked for again, and is to make room for the next one of its run.
        """
        while self._connection is None or run not in self._asked:
            await self._changed.wait()
        return self._connection

    def _wake(self) -> None:
        """Whoever waits looks again; whoever comes later waits for the next change."""
        self._changed.set()
        self._changed.clear()


def _lost(address: str) -> ServerUnreachableError:
    return ServerUnreachableError(f"The connection to the server at {address} ended")
