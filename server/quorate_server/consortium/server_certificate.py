"""The certificate by which the running server shows itself."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quorate_server.consortium.ca import DAY_S, SERVER_DAYS, Authority


class ServerIdentity:
    """The certificate that this server shows, replaced once two thirds of its time are over.

    It lives in memory only: clients pin the authority, not this key, so every start may make a new one.
    """

    def __init__(self, authority: Authority, host: str, clock: Callable[[], float]) -> None:
        self._authority = authority
        self._host = host
        self._clock = clock
        self._lock = Lock()
        self._made_s = clock()
        self._credential = authority.issue_server(host, self._made_s)
        self._shown = self._credential

    @property
    def expires_unix_s(self) -> int:
        return self._credential.issued.expires_unix_s

    @property
    def door_key(self) -> bytes:
        """The key of the certificate that is shown (SubjectPublicKeyInfo, DER), to which evidence is bound."""
        with self._lock:
            certificate = x509.load_pem_x509_certificate(self._shown.issued.pem)
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``: mutual TLS, clients of this consortium only."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._renewed_configuration, require_client_authentication=True
        )

    def renew_if_due(self) -> bool:
        """Whether the certificate was replaced. Called at each handshake, from a thread of the transport, and by the
        server itself: where sites stay connected for weeks nobody else would."""
        with self._lock:
            now = self._clock()
            is_young = self.expires_unix_s - now > SERVER_DAYS * DAY_S / 3
            is_the_last = self.expires_unix_s >= self._authority.expires_unix_s  # another one would end no later
            was_of_the_future = now < self._made_s  # the clock was set back
            if (is_young or is_the_last) and not was_of_the_future:
                return False
            self._made_s, self._credential = now, self._authority.issue_server(self._host, now)
            return True

    def _renewed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """What is shown from the next handshake on, where that is another certificate than at the last one."""
        self.renew_if_due()
        with self._lock:
            if self._shown is self._credential:
                return None
            self._shown = self._credential
            return self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (self._credential.key_pem, self._credential.issued.pem)
        return grpc.ssl_server_certificate_configuration([pair], self._authority.ca_pem)
