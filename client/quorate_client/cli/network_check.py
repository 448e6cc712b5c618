"""The way from a site to its server, gone step by step by hand instead of through gRPC, which hides where it ends."""

from __future__ import annotations

import socket
import ssl

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from quorate_client.connection.channel import SERVER_NAME
from quorate_client.connection.way import BrokenWayError
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Credentials, own_certificate_files

# What an HTTP/2 client says first: the preface and an empty SETTINGS frame.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def resolve(address: str) -> str:
    """The addresses behind ``host:port``, in words. Raises BrokenWayError, as all that follow."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise BrokenWayError(
            "address", f"the name {host} cannot be resolved: {error}", "Check the name, and this machine's DNS"
        ) from error
    return f"{host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}"


def who_answers(plain: socket.socket, credentials: Credentials) -> str:
    """Look at the certificate that is shown, without trusting it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as tls:
            shown = tls.getpeercert(binary_form=True) or b""
    except (ssl.SSLError, OSError) as error:
        raise BrokenWayError(
            "server's certificate", f"what answers does not speak TLS: {error}", "Check the address and the port"
        ) from error
    certificate = x509.load_der_x509_certificate(shown)
    issuer = certificate.issuer.rfc4514_string()
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(credentials.ca_pem))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BrokenWayError(
            "server's certificate",
            f"the certificate was issued by {issuer!r}, not by the consortium's authority: "
            "another server answers, or something on the way inspects TLS",
            "Have the address exempted from TLS inspection. A foreign authority is never accepted: "
            "whoever holds it could read and change what this site sends",
        ) from error
    return f"issued by the consortium's authority ({issuer})"


def shake_hands(plain: socket.socket, folder: SiteFolder, credentials: Credentials) -> str:
    """Show this site's certificate. With TLS 1.3 a refusal comes only with the first answer."""
    context = ssl.create_default_context(cadata=credentials.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*own_certificate_files(folder.keys))
    try:
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as tls:
            tls.sendall(_HELLO)
            answered = bool(tls.recv(1))
    except ssl.SSLCertVerificationError as error:
        raise BrokenWayError(
            "server's certificate",
            f"it is not valid: {error.verify_message}",
            "Check this machine's clock; if it is right, tell the operator",
        ) from error
    except (ssl.SSLError, OSError) as error:
        raise _refused(str(error)) from error
    if not answered:
        raise _refused("the connection was closed")
    return "the server accepts it in the handshake"


def _refused(reason: str) -> BrokenWayError:
    return BrokenWayError(
        "this site's certificate",
        f"the server refuses it in the handshake: {reason}",
        "It may have expired: compare the line `certificate` and the clocks. Then ask the operator for "
        "`quorate site invite NAME --keep-keys` and run `quorate-client join FILE --keep-keys`",
    )
