"""The way out of a site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quorate_client.site.config import Config
from quorate_client.site.folder import SiteFolder

from ..conftest import ScriptedEngine, enrol, live
from ..consortium import RunningServer


class Proxy:
    """An HTTP CONNECT proxy."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        beyond_reader, beyond_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, beyond_writer), _pump(beyond_reader, writer))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


@asynccontextmanager
async def running_proxy() -> AsyncIterator[tuple[Proxy, int]]:
    proxy = Proxy()
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


async def test_a_site_reaches_its_server_through_a_proxy_with_a_password(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address)
    async with running_proxy() as (proxy, port):
        config = Config(proxy=f"http://user:secret@127.0.0.1:{port}")
        async with live(folder, engine, config):
            await (await server.services.visit()).next("heartbeat")

    assert proxy.asked[0].startswith(f"CONNECT {server.address} ".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.asked[0]


async def test_a_server_that_moved_is_found_at_the_configured_address(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, "old.invalid:1")
    async with live(folder, engine, Config(address=f"localhost:{server.port}")):
        await (await server.services.visit()).next("heartbeat")
