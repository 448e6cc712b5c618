"""The way from a site to its server, gone by hand and not through gRPC, which hides where it ends and who answers."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quorate.errors import ServerUnreachableError
from quorate_client.connection.channel import SERVER_NAME

TIMEOUT_S = 10.0


class BrokenWayError(Exception):
    """The step at which the way ends; what comes behind cannot be looked at."""

    def __init__(self, step: str, text: str, action: str) -> None:
        super().__init__(text)
        self.step = step
        self.text = text
        self.action = action


def first_hop(address: str, proxy: str | None) -> str:
    """``host:port`` of where the first connection goes."""
    return urlsplit(proxy).netloc.rpartition("@")[2] if proxy else address


@contextmanager
def connect(address: str, proxy: str | None) -> Iterator[socket.socket]:
    """A TCP connection to the server, through the proxy if there is one."""
    goal = first_hop(address, proxy)
    host, _, port = goal.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as plain:
            if proxy:
                _ask_proxy(plain, proxy, address)
            yield plain
    except OSError as error:
        raise BrokenWayError(
            "connection",
            f"{goal} does not accept a connection: {error}",
            "Check that quorate-server runs there, and that every firewall between lets this port through",
        ) from error


def _ask_proxy(plain: socket.socket, proxy: str, address: str) -> None:
    user = urlsplit(proxy).netloc.rpartition("@")[0]
    login = f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n" if user else ""
    plain.sendall(f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{login}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < 65_536 and (piece := plain.recv(4096)):
        answer += piece
    status = answer.split(b"\r\n", 1)[0].decode("ascii", "replace")
    if " 200" not in status:
        raise BrokenWayError(
            "proxy",
            f"the proxy does not let this connection through: {status[:80] or 'no answer'}",
            f"Have CONNECT to {address} allowed at the proxy",
        )


def key_of_the_door(address: str, proxy: str | None, ca_pem: bytes, own: tuple[Path, Path]) -> bytes:
    """The key of the certificate that the server shows now (SubjectPublicKeyInfo, DER), by a handshake of its own.

    gRPC checks that certificate against the consortium's authority, and tells nobody which it was.

    Args:
        own: The site's certificate and key, as files.

    Raises:
        ServerUnreachableError: nothing answers there that the authority vouches for.
    """
    context = ssl.create_default_context(cadata=ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*own)
    try:
        with connect(address, proxy) as plain, context.wrap_socket(plain, server_hostname=SERVER_NAME) as tls:
            shown = tls.getpeercert(binary_form=True) or b""
        certificate = x509.load_der_x509_certificate(shown)
    except (BrokenWayError, OSError, ValueError) as error:
        raise ServerUnreachableError(
            f"The certificate of the server at {address} could not be looked at", got=str(error)
        ) from error
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
