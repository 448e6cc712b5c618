"""What a daemon answers a monitoring system: its metrics, whether it lives, whether it can work.

    GET /metrics   Prometheus' text format
    GET /healthz   200 while the event loop turns
    GET /readyz    200 where everything that was looked at is well, else 503; one line for each thing

Nobody is asked who he is, so nothing is told that must not be told to everybody who reaches the port: codes, numbers
and our own words. Whoever asks often, slowly or for nonsense must not cost the daemon more than whoever asks rarely:
what was computed is told to all who ask within a moment, one computation at a time, and a connection has an end.
Each answer closes its connection; Prometheus opens another one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from quorate.errors import ConfigError

log = structlog.get_logger()

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 32
REQUEST_S = 5.0
"""From the opening of a connection to its end."""
FRESH_S = 0.25
"""How long an answer is told again to others who ask."""

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN_TYPE = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``problem`` is empty where it is well: a code or our own words, never a message
    that may hold a name or a path."""

    subject: str
    problem: str = ""

    def __str__(self) -> str:
        return f"failed {self.subject}: {self.problem}" if self.problem else f"ok {self.subject}"


Examine = Callable[[], Iterable[Finding]]
"""Looks at what a daemon needs to work. Runs on a thread; may take long, and is not begun again meanwhile."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content: bytes
    content_type: str = _PLAIN_TYPE

    def to_bytes(self) -> bytes:
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.content)}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + self.content


class MonitoringEndpoint:
    """Listens until it is stopped. ``port`` is the one it got."""

    def __init__(self, registry: CollectorRegistry, examine: Examine, *, is_local: bool) -> None:
        self.port = 0
        self._is_local = is_local
        self._page = _Shared(lambda: generate_latest(registry))
        self._findings = _Shared(lambda: tuple(examine()))
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._answers: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
        }

    async def listen(self, host: str, port: int) -> None:
        """Raises OSError, OverflowError."""
        self._server = await asyncio.start_server(self._admit, host, port, limit=MAX_HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._converse(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write((await self._answer(head.decode("latin-1"))).to_bytes())
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asks so gets nothing
        finally:
            writer.transport.abort()

    async def _answer(self, head: str) -> Answer:
        request, *fields = head.split("\r\n")
        words = request.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return Answer(400, b"not a request\n")
        if words[0] != "GET":
            return Answer(405, b"only GET is answered here\n")
        if self._is_local and not all(_names_this_machine(host) for host in _hosts(fields)):
            return Answer(421, b"ask by this machine's address, not by a name\n")
        answer = self._answers.get(words[1].partition("?")[0])
        if answer is None:
            return Answer(404, b"there are /metrics, /healthz and /readyz\n")
        try:
            return await answer()
        except Exception:  # the endpoint of a daemon in trouble is needed most
            log.exception("the monitoring endpoint failed")
            return Answer(500, b"the daemon failed to answer; its log says why\n")

    async def _metrics(self) -> Answer:
        return Answer(200, await self._page.get(), _METRICS_TYPE)

    async def _health(self) -> Answer:
        return Answer(200, b"ok\n")

    async def _readiness(self) -> Answer:
        try:
            async with asyncio.timeout(REQUEST_S / 2):
                findings = await self._findings.get()
        except TimeoutError:
            findings = (Finding("examination", "takes too long"),)
        lines = "".join(f"{finding}\n" for finding in findings)
        return Answer(503 if any(finding.problem for finding in findings) else 200, lines.encode())


class _Shared(Generic[Value]):
    """A value that is computed on a thread: one computation at a time, for all who ask in a moment."""

    def __init__(self, compute: Callable[[], Value], clock: Callable[[], float] = time.monotonic) -> None:
        self._compute = compute
        self._clock = clock
        self._task: asyncio.Task[Value] | None = None
        self._begun_s = 0.0

    async def get(self) -> Value:
        """Whoever stops waiting does not stop the computation: others may wait for it."""
        if self._task is None or (self._task.done() and self._clock() - self._begun_s > FRESH_S):
            self._begun_s = self._clock()
            self._task = asyncio.create_task(asyncio.to_thread(self._compute))
        return await asyncio.shield(self._task)


async def serve_monitoring(listen: str, registry: CollectorRegistry, examine: Examine) -> MonitoringEndpoint:
    """Answer at ``HOST:PORT`` from this event loop. Port 0 takes a free one.

    The default configurations listen on loopback only. There a browser's page must not ask in its reader's place: it
    has to call this machine by a name of its own (DNS rebinding), so only addresses and ``localhost`` are answered.

    Raises:
        ConfigError: the address is malformed, taken, or not one of this machine.
    """
    # They double the series of every counter, and nobody looks at them.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # left untyped there
    host, _, port = listen.rpartition(":")
    try:
        if not (host and port.isascii() and port.isdigit()):  # without a host it would listen everywhere
            raise ValueError("not an address")
        endpoint = MonitoringEndpoint(registry, examine, is_local=_is_loopback(host.strip("[]")))
        await endpoint.listen(host.strip("[]"), int(port))
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"The metrics endpoint cannot listen on {listen}",
            expected="HOST:PORT, for example 127.0.0.1:9464",
            got=str(error),
            action='Choose a free address of this machine for metrics_listen; "" switches metrics off',
        ) from error
    return endpoint


def _hosts(fields: Iterable[str]) -> list[str]:
    """What the request calls this machine, without the port."""
    values = [value.strip() for name, _, value in (field.partition(":") for field in fields) if name.lower() == "host"]
    return [
        value[: value.index("]") + 1] if value.startswith("[") and "]" in value else value.partition(":")[0]
        for value in values
    ]


def _names_this_machine(host: str) -> bool:
    """An address, which no name server can give another meaning, or the one name that never leaves the machine."""
    return host.lower() == "localhost" or _is_address(host.strip("[]"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
