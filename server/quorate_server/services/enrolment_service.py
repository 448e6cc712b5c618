"""The gRPC service Enrolment: how a site gets and keeps its certificate."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import grpc
import structlog

from quorate.errors import CertificateRevokedError
from quorate.identity import Member, SiteName
from quorate.v1 import enrolment_pb2, enrolment_pb2_grpc
from quorate.wire.messages import member_from_proto
from quorate_server.consortium.ca import Authority, Issued, public_key_bytes, requested_key
from quorate_server.consortium.registry import Registry
from quorate_server.runs.sessions import Sessions
from quorate_server.services.access import caller

log = structlog.get_logger()


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServicer):
    """Callers: the bearer of an invitation (Redeem), a site (Renew).

    Args:
        certificate_days: How long a site's certificate lasts.
        sessions: A site that enrols anew counts its connections from one again, and its old one ends.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        registry: Registry,
        sessions: Sessions,
        certificate_days: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._registry = registry
        self._sessions = sessions
        self._certificate_days = certificate_days
        self._clock = clock

    async def Redeem(
        self, request: enrolment_pb2.RedeemRequest, context: grpc.aio.ServicerContext
    ) -> enrolment_pb2.Certificate:
        invited = SiteName(caller().subject.name)
        member = member_from_proto(request.member)
        offered = self._authority.issue_site(invited, request.csr_pem, self._clock(), self._certificate_days)
        issued = self._registry.redeem(caller().serial, member, _request_digest(request.csr_pem, member), offered)
        self._sessions.forget_number(invited)
        if issued is offered:
            await self._sessions.drop(
                invited,
                CertificateRevokedError(
                    f"{invited} joined anew, which ended this certificate",
                    action="Stop this daemon, or start it with the state folder that joined last",
                ),
            )
        log.info("site joined", site=invited, fingerprint=member.fingerprint, repeated=issued is not offered)
        return self._certificate(issued)

    async def Renew(
        self, request: enrolment_pb2.RenewRequest, context: grpc.aio.ServicerContext
    ) -> enrolment_pb2.Certificate:
        site = SiteName(caller().subject.name)
        issued = self._authority.issue_site(site, request.csr_pem, self._clock(), self._certificate_days)
        self._registry.record_certificate(issued)
        log.info("certificate renewed", site=site)
        return self._certificate(issued)

    def _certificate(self, issued: Issued) -> enrolment_pb2.Certificate:
        return enrolment_pb2.Certificate(
            certificate_pem=issued.pem,
            ca_pem=self._authority.ca_pem,
            consortium=self._authority.consortium,
            expires_unix_s=issued.expires_unix_s,
        )


def _request_digest(csr_pem: bytes, member: Member) -> bytes:
    """Over all keys of a request: what makes a repetition the same. The request's signature differs each time."""
    digest = hashlib.sha256(b"quorate/redeem/v1\x00")
    for key in (public_key_bytes(requested_key(csr_pem)), member.signing_key, member.sealing_key):
        digest.update(len(key).to_bytes(8, "big") + key)
    return digest.digest()
