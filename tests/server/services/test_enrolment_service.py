from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quorate.errors import (
    CertificateRevokedError,
    IdentityError,
    InputError,
    InvitationExpiredError,
    InvitationSpentError,
    KeyMismatchError,
    QuorateError,
)
from quorate.identity import Role, SiteName, Subject
from quorate.v1 import common_pb2, enrolment_pb2, enrolment_pb2_grpc
from quorate.wire.messages import member_to_proto
from quorate.wire.refusal import error_from_call
from quorate_server.consortium.tables import SiteStatus
from tests.patience import PATIENCE_S
from tests.server.door import Door, SiteKeys, open_door, told

NORTH = SiteName("north")


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_door(tmp_path / "server") as door:
        yield door


def request_of(keys: SiteKeys) -> enrolment_pb2.RedeemRequest:
    return enrolment_pb2.RedeemRequest(csr_pem=keys.csr(), member=member_to_proto(keys.member))


async def redeem(
    door: Door, credential: grpc.ChannelCredentials, request: enrolment_pb2.RedeemRequest
) -> enrolment_pb2.Certificate | QuorateError:
    async with door.channel(credential) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
        try:
            return await stub.Redeem(request, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as failure:
            return error_from_call(failure, "the server")


async def test_an_invitation_becomes_a_certificate_for_the_sites_own_key(door: Door) -> None:
    keys = SiteKeys.make("north")
    await door.connect("north", session=9)
    issued = await redeem(door, door.invitation("north"), request_of(keys))
    assert isinstance(issued, enrolment_pb2.Certificate)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    assert Subject.of(certificate) == Subject("north-sea", Role.SITE, "north")
    assert certificate.public_key() == keys.tls.public_key()
    assert issued.ca_pem == door.authority.ca_pem
    assert issued.expires_unix_s == int(door.clock()) + 30 * 86_400
    assert door.registry.site(NORTH).member == keys.member
    await door.connect("north", session=1)  # it counts anew


async def test_a_lost_answer_is_given_again_to_the_same_keys(door: Door) -> None:
    keys = SiteKeys.make("north")
    invitation = door.invitation("north")
    first = await redeem(door, invitation, request_of(keys))
    session = await door.connect("north")
    # The request is signed anew, so its bytes differ; its keys do not.
    assert await redeem(door, invitation, request_of(keys)) == first
    assert told(session) == []


async def test_whoever_comes_second_with_other_keys_is_refused(door: Door) -> None:
    keys = SiteKeys.make("north")
    invitation = door.invitation("north")
    await redeem(door, invitation, request_of(keys))
    assert isinstance(await redeem(door, invitation, request_of(SiteKeys.make("north"))), InvitationSpentError)
    assert door.registry.site(NORTH).member == keys.member


async def test_of_two_who_redeem_at_the_same_moment_one_wins(door: Door) -> None:
    invitation = door.invitation("north")
    rivals = [SiteKeys.make("north") for _ in range(4)]
    outcomes = await asyncio.gather(*(redeem(door, invitation, request_of(keys)) for keys in rivals))
    won = [keys for keys, outcome in zip(rivals, outcomes, strict=True) if not isinstance(outcome, QuorateError)]
    assert len(won) == 1
    assert sum(isinstance(outcome, InvitationSpentError) for outcome in outcomes) == 3
    assert door.registry.site(NORTH).member == won[0].member


async def test_an_expired_invitation_is_refused_as_such(door: Door) -> None:
    invitation = door.invitation("north", days=2)
    door.clock.forward(days=2)
    assert isinstance(await redeem(door, invitation, request_of(SiteKeys.make("north"))), InvitationExpiredError)
    assert door.registry.site(NORTH).state is SiteStatus.INVITED


async def test_a_withdrawn_invitation_is_refused(door: Door) -> None:
    invitation = door.invitation("north")
    door.registry.revoke_site(NORTH)
    assert isinstance(await redeem(door, invitation, request_of(SiteKeys.make("north"))), CertificateRevokedError)
    assert door.registry.site(NORTH).member is None


async def test_an_invitation_cannot_be_used_under_another_name(door: Door) -> None:
    error = await redeem(door, door.invitation("north"), request_of(SiteKeys.make("south")))
    assert isinstance(error, IdentityError)
    assert [site.name for site in door.registry.sites()] == ["north"]


async def test_a_sealing_key_that_the_signing_key_does_not_vouch_for_is_refused(door: Door) -> None:
    keys = SiteKeys.make("north")
    member = keys.member
    swapped = common_pb2.Member(
        name="north",
        signing_key=member.signing_key,
        sealing_key=bytes(32),
        sealing_proof=member.sealing_proof,
    )
    invitation = door.invitation("north")
    error = await redeem(door, invitation, enrolment_pb2.RedeemRequest(csr_pem=keys.csr(), member=swapped))
    assert isinstance(error, KeyMismatchError)
    assert not isinstance(await redeem(door, invitation, request_of(keys)), QuorateError)


async def test_a_request_that_its_key_did_not_sign_is_refused_and_spends_nothing(door: Door) -> None:
    keys = SiteKeys.make("north")
    der = bytearray(x509.load_pem_x509_csr(keys.csr()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    invitation = door.invitation("north")
    member = member_to_proto(keys.member)
    for csr, expected in ((forged, KeyMismatchError), (b"nonsense", InputError)):
        request = enrolment_pb2.RedeemRequest(csr_pem=csr, member=member)
        assert isinstance(await redeem(door, invitation, request), expected)
    assert not isinstance(await redeem(door, invitation, request_of(keys)), QuorateError)


async def test_a_reinvited_site_must_show_the_same_signing_key_and_its_old_connection_ends(door: Door) -> None:
    keys, _ = door.enrol("north")
    made = door.bootstrap("north", keep_keys=True)
    invitation = door.credential(made.issued, made.key_pem)
    session = await door.connect("north")
    assert isinstance(await redeem(door, invitation, request_of(SiteKeys.make("north"))), KeyMismatchError)
    assert told(session) == []
    renewed = SiteKeys(keys.name, SiteKeys.make("north").tls, keys.signing)
    assert not isinstance(await redeem(door, invitation, request_of(renewed)), QuorateError)
    assert told(session) == ["certificate_revoked", "end"]


async def test_a_site_renews_its_certificate_under_its_own_name(door: Door) -> None:
    keys, issued = door.enrol("north")
    door.clock.forward(days=2)
    async with door.channel(door.credential(issued, keys.key_pem())) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
        renewed = await stub.Renew(enrolment_pb2.RenewRequest(csr_pem=keys.csr("operator")), timeout=PATIENCE_S)
    certificate = x509.load_pem_x509_certificate(renewed.certificate_pem)
    subject = Subject.of(certificate)
    assert subject == Subject("north-sea", Role.SITE, "north")
    assert renewed.expires_unix_s == int(door.clock()) + 30 * 86_400
    door.registry.check_certificate(subject, certificate.serial_number)
    door.registry.check_certificate(subject, issued.serial)


async def test_revocation_reaches_renewed_certificates_too(door: Door) -> None:
    keys, issued = door.enrol("north")
    async with door.channel(door.credential(issued, keys.key_pem())) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
        renewed = await stub.Renew(enrolment_pb2.RenewRequest(csr_pem=keys.csr()), timeout=PATIENCE_S)
    door.registry.revoke_site(NORTH)
    certificate = x509.load_pem_x509_certificate(renewed.certificate_pem)
    with pytest.raises(CertificateRevokedError):
        door.registry.check_certificate(Subject.of(certificate), certificate.serial_number)
