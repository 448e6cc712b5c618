"""What a daemon answers to whoever reaches its monitoring port, and what it does not do for him."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from quorate.errors import ConfigError
from quorate.process import monitoring
from quorate.process.metrics import Metric, MetricKind, counter, histogram, process_metrics
from quorate.process.monitoring import Examine, Finding, MonitoringEndpoint, serve_monitoring
from tests.patience import PATIENCE_S


def well() -> Iterable[Finding]:
    return (Finding("database"), Finding("disk"))


@asynccontextmanager
async def serving(
    examine: Examine = well, registry: CollectorRegistry | None = None, listen: str = "127.0.0.1:0"
) -> AsyncIterator[MonitoringEndpoint]:
    endpoint = await serve_monitoring(listen, registry or CollectorRegistry(), examine)
    try:
        yield endpoint
    finally:
        await endpoint.stop()


async def said(port: int, request: str) -> tuple[int, str]:
    """The status and the content of the answer; 0 where the connection was closed without one."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request.encode("latin-1"))
            answer = (await reader.read()).decode()
        except ConnectionError:
            return 0, ""
        finally:
            writer.close()
    head, _, content = answer.partition("\r\n\r\n")
    return int(head.split()[1]) if head else 0, content


async def get(port: int, path: str, host: str = "127.0.0.1:9464") -> tuple[int, str]:
    return await said(port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")


async def test_metrics_are_shown_as_they_were_built_until_the_endpoint_is_stopped() -> None:
    registry = CollectorRegistry()
    process_metrics(Metric("quorate_server_build_info", MetricKind.INFO, "Version.", {"version": ()}), registry)
    counter(Metric("quorate_server_rounds_total", MetricKind.COUNTER, "Rounds.", {"outcome": ("full",)}), registry)
    histogram(Metric("quorate_server_lag_seconds", MetricKind.HISTOGRAM, "Lag.", buckets=(0.5, 2.0)), registry)
    async with serving(registry=registry) as endpoint:
        status, page = await get(endpoint.port, "/metrics?name[]=up")
    assert status == 200
    assert 'quorate_server_rounds_total{outcome="full"} 0.0' in page
    assert 'quorate_server_lag_seconds_bucket{le="2.0"} 0.0' in page
    assert "quorate_server_build_info{" in page
    assert "process_open_fds" in page
    assert "_created" not in page
    with pytest.raises(ConnectionRefusedError):
        await get(endpoint.port, "/metrics")


async def test_a_daemon_that_is_well_says_so_line_by_line() -> None:
    async with serving() as endpoint:
        assert await get(endpoint.port, "/healthz") == (200, "ok\n")
        assert await get(endpoint.port, "/readyz") == (200, "ok database\nok disk\n")


async def test_a_daemon_that_cannot_work_says_what_is_wrong_and_still_lives() -> None:
    async with serving(lambda: (Finding("database", "does not answer"), Finding("disk"))) as endpoint:
        assert await get(endpoint.port, "/readyz") == (503, "failed database: does not answer\nok disk\n")
        assert (await get(endpoint.port, "/healthz"))[0] == 200


async def test_of_an_examination_that_fails_nothing_is_told() -> None:
    def fails() -> Iterable[Finding]:
        raise RuntimeError("password=hunter2 in /srv/patients/4711.csv")

    async with serving(fails) as endpoint:
        status, content = await get(endpoint.port, "/readyz")
    assert status == 500
    assert "hunter2" not in content
    assert "4711" not in content


async def test_an_examination_that_hangs_is_not_ready_and_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "REQUEST_S", 0.2)
    monkeypatch.setattr(monitoring, "FRESH_S", 0.0)
    begun: list[int] = []
    end = threading.Event()

    def hangs() -> Iterable[Finding]:
        begun.append(1)
        end.wait(PATIENCE_S)
        return ()

    async with serving(hangs) as endpoint:
        answers = [await get(endpoint.port, "/readyz") for _ in range(3)]
        end.set()
    assert answers == [(503, "failed examination: takes too long\n")] * 3
    assert begun == [1]


async def test_whoever_asks_a_hundred_times_costs_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "FRESH_S", PATIENCE_S)
    begun: list[int] = []

    def counted() -> Iterable[Finding]:
        begun.append(1)
        return ()

    async with serving(counted) as endpoint:
        for _ in range(4):
            await asyncio.gather(*(get(endpoint.port, "/readyz") for _ in range(25)))
    assert begun == [1]


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("POST /metrics HTTP/1.1\r\n\r\n", 405),
        ("GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("GET /metrics\r\n\r\n", 400),
        ("\x16\x03\x01\r\n\r\n", 400),
        (f"GET /metrics HTTP/1.1\r\nCookie: {'x' * 9000}\r\n\r\n", 0),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
    ],
    ids=["method", "path", "root", "half", "tls", "long", "old"],
)
async def test_nonsense_is_refused_and_the_next_one_is_answered(request_text: str, status: int) -> None:
    async with serving() as endpoint:
        assert (await said(endpoint.port, request_text))[0] == status
        assert (await get(endpoint.port, "/healthz"))[0] == 200


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:9464", "127.0.0.1.attacker.example", ""])
async def test_a_page_of_a_stranger_cannot_read_the_metrics_through_its_readers_browser(host: str) -> None:
    """DNS rebinding: the page's own name is given the address of the reader's machine."""
    async with serving() as endpoint:
        assert (await get(endpoint.port, "/metrics", host=host))[0] == 421
        both = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nhost: {host}\r\n\r\n"
        assert (await said(endpoint.port, both))[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9464", "LOCALHOST", "[::1]:9464", "10.0.0.7:9464"])
async def test_who_asks_by_an_address_is_answered(host: str) -> None:
    async with serving() as endpoint:
        assert (await get(endpoint.port, "/metrics", host=host))[0] == 200


async def test_where_the_administrator_opened_the_port_any_name_is_answered() -> None:
    async with serving(listen="0.0.0.0:0") as endpoint:
        assert (await get(endpoint.port, "/metrics", host="quorate.example.org"))[0] == 200


async def test_more_connections_than_there_may_be_are_closed_and_a_place_that_is_free_is_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitoring, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(monitoring, "REQUEST_S", PATIENCE_S)
    async with serving() as endpoint:
        (_, first), (_, second) = [await asyncio.open_connection("127.0.0.1", endpoint.port) for _ in range(2)]
        assert (await get(endpoint.port, "/healthz"))[0] == 0
        first.close()
        async with asyncio.timeout(PATIENCE_S):
            while (await get(endpoint.port, "/healthz"))[0] == 0:  # until the end of the first is noticed
                pass
        second.close()


async def test_who_asks_too_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "REQUEST_S", 0.1)
    async with serving() as endpoint:
        assert await said(endpoint.port, "GET /met") == (0, "")


@pytest.mark.parametrize(
    "listen", ["9464", "127.0.0.1", "127.0.0.1:", ":9464", "127.0.0.1:70000", "127.0.0.1:-1", "203.0.113.1:9465"]
)
async def test_an_address_that_cannot_be_listened_on_is_named_with_what_is_expected(listen: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT") as caught:
        await serve_monitoring(listen, CollectorRegistry(), well)
    assert listen in caught.value.what


async def test_a_taken_address_is_refused_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="Choose a free address"):
            await serve_monitoring(f"127.0.0.1:{port}", CollectorRegistry(), well)
