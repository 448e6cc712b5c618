"""The way to the server by hand: whose key the door shows, and where the way ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quorate.errors import ServerUnreachableError
from quorate_client.connection.way import BrokenWayError, connect, first_hop, key_of_the_door
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_credentials, own_certificate_files

from ..conftest import enrol
from ..consortium import Authority, RunningServer, Server, start_server


@pytest.fixture
def enrolled(folder: SiteFolder, services: Server) -> SiteFolder:
    enrol(folder, services, "nobody:1")
    return folder


def key_at(address: str, folder: SiteFolder, proxy: str | None = None) -> bytes:
    ca_pem = load_credentials(folder.keys).ca_pem
    return key_of_the_door(address, proxy, ca_pem, own_certificate_files(folder.keys))


def shown_at(server: RunningServer) -> bytes:
    certificate = x509.load_pem_x509_certificate(server.certificate_pem)
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def test_the_key_is_that_of_the_certificate_that_is_shown(server: RunningServer, enrolled: SiteFolder) -> None:
    assert await asyncio.to_thread(key_at, server.address, enrolled) == shown_at(server)


async def test_another_server_of_the_consortium_shows_another_key(
    server: RunningServer, enrolled: SiteFolder, authority: Authority
) -> None:
    other = await start_server(server.services, issuer=authority)
    assert await asyncio.to_thread(key_at, other.address, enrolled) == shown_at(other) != shown_at(server)
    await other.stop()


@pytest.mark.parametrize("stranger", ["of another authority", "of another name"])
async def test_who_is_not_the_consortium_s_server_has_no_key(
    services: Server, enrolled: SiteFolder, stranger: str
) -> None:
    if stranger == "of another authority":
        other = await start_server(services, issuer=Authority())
    else:
        other = await start_server(services, name="mallory")
    with pytest.raises(ServerUnreachableError):
        await asyncio.to_thread(key_at, other.address, enrolled)
    await other.stop()


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A port at which everybody gets this answer and no more."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            sock, _ = door.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield door.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x03\xff\xff" + bytes(100)])
async def test_what_is_no_tls_has_no_key(enrolled: SiteFolder, answer: bytes) -> None:
    with answering(answer) as port, pytest.raises(ServerUnreachableError):
        await asyncio.to_thread(key_at, f"127.0.0.1:{port}", enrolled)


def test_a_proxy_that_refuses_ends_the_way_and_is_named() -> None:
    with answering(b"HTTP/1.1 403 Forbidden\r\n\r\n") as port:
        proxy = f"http://user:secret@127.0.0.1:{port}"
        assert first_hop("server:1", proxy) == f"127.0.0.1:{port}"
        with pytest.raises(BrokenWayError) as broken, connect("server:1", proxy):
            pass
    assert broken.value.step == "proxy"
    assert "403" in broken.value.text
    assert "secret" not in broken.value.text + broken.value.action


def test_where_nobody_listens_the_way_ends() -> None:
    with pytest.raises(BrokenWayError) as broken, connect("127.0.0.1:1", None):
        pass
    assert broken.value.step == "connection"
