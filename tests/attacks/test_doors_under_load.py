"""Whoever opens more of the server's doors than anybody needs, or says what nobody can read on them."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from demo.consortium import free_port, write_settings
from quorate.errors import QuorateError
from quorate.identity import Role
from quorate.v1 import rounds_pb2, rounds_pb2_grpc
from quorate.wire.refusal import error_from_call
from quorate_server.cli.founding import found, open_registry
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.server_certificate import ServerIdentity
from quorate_server.services.access import METHODS
from quorate_server.services.door_limits import HANDSHAKE_S, OWN_FILES, WANTED_FILES, door_options, max_connections
from quorate_server.services.open_calls import MAX_CALLS
from tests.attacks.server_kit import (
    PATIENCE_S,
    Consortium,
    HandSite,
    impatient_door,
    open_consortium,
    refusal,
    until,
)
from tests.consortium.processes import Daemon, eventually
from tests.server.door import CONSORTIUM, NAME_OVERRIDE, SiteKeys, open_door

NO_REQUEST = b"\xff\xff\xff"


@pytest.fixture
async def consortium(tmp_path: Path) -> AsyncIterator[Consortium]:
    async with open_consortium(tmp_path / "server") as consortium:
        yield consortium


# --- what nobody can read ---


async def said(channel: grpc.aio.Channel, method: str, request: bytes) -> QuorateError | None:
    """What the server answers to these bytes; any method can be called as a stream of bytes."""
    call = channel.stream_stream(method)(iter([request]), timeout=PATIENCE_S)
    try:
        async for event in call:
            if method.endswith("/Connect"):
                refused = rounds_pb2.ServerEvent.FromString(event)
                raise AssertionError(f"answered with {refused}")
    except grpc.aio.AioRpcError as failure:
        return error_from_call(failure, "")
    return None


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_bytes_that_are_no_request_are_refused_with_a_code_and_behind_the_guard(
    tmp_path: Path, method: str
) -> None:
    """They were parsed before the guard had looked at anybody, and answered with UNKNOWN and no word."""
    async with open_door(tmp_path / "server") as door:
        keys = {Role.BOOTSTRAP: door.invitation("north"), Role.SITE: door.site("east"), Role.OPERATOR: door.operator()}
        for role, credential in keys.items():
            error = await said(door.channel(credential), method, NO_REQUEST)
            assert error is not None
            assert error.code == ("bad_frame" if role is METHODS[method] else "wrong_role"), error


async def test_bytes_that_are_no_event_end_an_open_stream_with_a_code(consortium: Consortium) -> None:
    east = consortium.site("east")
    hello = rounds_pb2.SiteEvent(hello=rounds_pb2.SiteHello(session=1, version="0.1.0")).SerializeToString()
    call = east.channel.stream_stream("/quorate.v1.Rounds/Connect")(iter([hello, NO_REQUEST]), timeout=PATIENCE_S)
    events = [rounds_pb2.ServerEvent.FromString(event) async for event in call]
    assert events[0].HasField("welcome")
    assert events[-1].refused.code == "bad_frame"


# --- calls on which nothing is said ---


async def test_uploads_on_which_nothing_comes_are_closed(consortium: Consortium) -> None:
    """3,000 of one site's stayed open for ever, and held 143 MiB."""
    async with impatient_door(consortium):
        east = consortium.site("east")

        async def nothing() -> AsyncIterator[rounds_pb2.UploadFrame]:
            await asyncio.Event().wait()
            yield rounds_pb2.UploadFrame()

        silent = [east.stub.Upload(nothing(), timeout=PATIENCE_S) for _ in range(50)]
        for call in silent:
            error = await refusal(call)
            assert (error.code, error.what) == ("transport", "An upload stood still")


async def test_streams_that_are_not_read_count_until_they_are_over(consortium: Consortium) -> None:
    """The server gave up on them, and they stayed open all the same: the transport cannot end a call whose message it
    cannot get rid of."""
    async with impatient_door(consortium, most_calls=2):
        east = consortium.site("east")
        unread = []
        for number in (1, 2):
            await east.connect(session=number)
            session = consortium.server.sessions.session(east.name)
            assert session is not None
            unread.append(east.call)
            for _ in range(100):
                session.send(rounds_pb2.ServerEvent(instruction=rounds_pb2.Instruction(body=bytes(10_000))))
            await until(lambda: consortium.server.sessions.session(east.name) is None)
            assert session.outgoing.qsize() == 0
        assert (await refusal(east.connect(session=3))).code == "too_many_calls"
        ended = await refusal(drained(unread[0]))
        assert ended.what == "The site does not read what it is sent"
        assert (await east.connect(session=4)).HasField("welcome")


async def drained(call: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await call.read() is not grpc.aio.EOF:
            pass


async def test_one_site_cannot_have_any_number_of_calls_open(consortium: Consortium) -> None:
    """Nor with a connection and a certificate for each of them; the others' calls are taken as before."""
    east, west = consortium.site("east"), consortium.site("west")
    await east.connect()

    async def nothing() -> AsyncIterator[rounds_pb2.UploadFrame]:
        await asyncio.Event().wait()
        yield rounds_pb2.UploadFrame()

    renewed = consortium.again(east)
    calls = [each.stub.Upload(nothing(), timeout=PATIENCE_S) for each in (east, renewed) for _ in range(80)]
    refused = 0
    async with asyncio.timeout(PATIENCE_S):
        for done in asyncio.as_completed([refusal(call) for call in calls]):
            assert (await done).code == "too_many_calls"
            refused += 1
            if refused == 161 - MAX_CALLS:
                break
    assert (await refusal(renewed.stub.ListStudies(rounds_pb2.SiteStudiesRequest()))).code == "too_many_calls"
    assert (await west.connect()).HasField("welcome")
    for call in calls:
        call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while await answered(renewed) is None:
            await asyncio.sleep(0.01)


async def answered(site: HandSite) -> rounds_pb2.SiteStudiesReply | None:
    try:
        return await site.stub.ListStudies(rounds_pb2.SiteStudiesRequest(), timeout=PATIENCE_S)
    except grpc.aio.AioRpcError:
        return None


# --- connections on which nothing is said ---


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Opened, and nothing said on them: no certificate is needed for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 512)), hard))
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def a_server(folder: Path, soft: int, hard: int) -> tuple[Daemon, int, SiteKeys, grpc.ChannelCredentials]:
    """A daemon of its own whose system lets it have so many open files, and a site that has joined."""
    port = free_port()
    found(folder, consortium=CONSORTIUM, address=f"localhost:{port}", listen=f"127.0.0.1:{port}", now=time.time())
    write_settings(folder / "server.toml", {"metrics_listen": '""'})
    config = ServerConfig.read(folder)
    keys, authority = SiteKeys.make("east"), Authority.load(config.ca_dir, CONSORTIUM)
    with open_registry(config) as registry:
        bootstrap = authority.issue_bootstrap(keys.name, time.time(), 86_400)
        registry.invite(keys.name, bootstrap.issued, 2**40, keep_keys=False)
        issued = authority.issue_site(keys.name, keys.csr(), time.time(), 30)
        registry.redeem(bootstrap.issued.serial, keys.member, keys.tls_digest(), issued)
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"from quorate_server.cli import main; main(['run', '--state', {str(folder)!r}])"
    )
    daemon = Daemon(folder / "log", sys.executable, "-c", script)
    eventually(lambda: "server ready" in daemon.log.read_text(), "the server")
    return daemon, port, keys, grpc.ssl_channel_credentials(authority.ca_pem, keys.key_pem(), issued.pem)


@pytest.mark.parametrize(
    ("soft", "hard"), [(1024, 4096), (1024, 1024)], ids=["the system allows more files", "the system allows no more"]
)
async def test_a_site_gets_in_while_strangers_hold_1500_connections(tmp_path: Path, soft: int, hard: int) -> None:
    """They used up the files that a process may have by default: nobody was let in for two minutes, and neither
    database nor spool could be opened. Where the system allows more files the site gets in at once; where it does not,
    as soon as those who did not finish a handshake are shown the door."""
    patience_s = HANDSHAKE_S / 2 if hard > soft else PATIENCE_S
    daemon, port, keys, credentials = a_server(tmp_path / "server", soft, hard)
    try:
        with idle_connections(port, 1500):
            files = asyncio.create_task(most_files(daemon.pid))
            async with (
                asyncio.timeout(patience_s),
                grpc.aio.secure_channel(
                    f"127.0.0.1:{port}", credentials, options=(*NAME_OVERRIDE, ("grpc.max_reconnect_backoff_ms", 500))
                ) as channel,
            ):
                site = HandSite(keys, channel)
                site.call = site.stub.Connect(wait_for_ready=True)
                await site.say(hello=rounds_pb2.SiteHello(session=1, version="0.1.0"))
                assert (await site.call.read()).HasField("welcome")
            files.cancel()
            assert await files <= max_connections(min(hard, WANTED_FILES), 32) + OWN_FILES
    finally:
        daemon.end()


async def most_files(pid: int) -> int:
    """The most that a process had open at a time, until this is cancelled."""
    process, most = psutil.Process(pid), 0
    with suppress(asyncio.CancelledError):
        while True:
            most = max(most, process.num_fds())
            await asyncio.sleep(0.01)
    return most


@asynccontextmanager
async def quick_door(consortium: Consortium) -> AsyncIterator[int]:
    """Another port with the server's own limits, but for less patience."""
    server = grpc.aio.server(options=door_options(100, handshake_s=0.5, idle_s=0.5))
    rounds_pb2_grpc.add_RoundsServicer_to_server(rounds_pb2_grpc.RoundsServicer(), server)  # type: ignore[no-untyped-call]
    identity = ServerIdentity(consortium.authority, "localhost", time.time)
    port = server.add_secure_port("127.0.0.1:0", identity.server_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_whoever_does_not_finish_a_handshake_is_shown_the_door(consortium: Consortium) -> None:
    async with quick_door(consortium) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()


async def test_a_connection_with_a_certificate_and_without_a_call_is_closed(consortium: Consortium) -> None:
    async with quick_door(consortium) as port, asyncio.timeout(PATIENCE_S):
        consortium.port = port
        channel = consortium.site("east").channel
        await channel.channel_ready()
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


def test_connections_leave_files_for_the_daemon_itself() -> None:
    assert max_connections(1024, 32) == 1024 - 256 - 4 * 32
    assert max_connections(WANTED_FILES, 32) == 8192
    assert max_connections(100, 1024) == 1
