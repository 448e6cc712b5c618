"""Every way past the guard that an attacker with some certificate, or none, would try."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from quorate.errors import (
    CertificateExpiredError,
    CertificateRevokedError,
    IdentityError,
    InvitationExpiredError,
    NotFoundError,
    QuorateError,
    ServerIdentityError,
    ServerUnreachableError,
    TransportError,
    WrongRoleError,
)
from quorate.identity import Role, SiteName
from quorate.v1 import (
    common_pb2,
    enrolment_pb2,
    operator_pb2,
    operator_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
)
from quorate.wire.refusal import DETAIL_KEY, error_from_call
from quorate_server.consortium.ca import Authority
from quorate_server.services.access import METHODS
from tests.patience import PATIENCE_S
from tests.server.door import NAME_OVERRIDE, Door, SiteKeys, open_door, told


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_door(tmp_path / "server") as door:
        yield door


async def refusal(channel: grpc.aio.Channel, method: str, *, request: bytes = b"") -> QuorateError | None:
    """What the server says to an empty request.

    gRPC's client now and then loses the answer to a stream that is refused while it still writes: it is asked again.
    """
    for _ in range(5):
        error = await _answer(channel, method, request)
        if not isinstance(error, TransportError):
            break
    return error


async def _answer(channel: grpc.aio.Channel, method: str, request: bytes) -> QuorateError | None:
    """Any method can be called as a stream of bytes."""
    call = channel.stream_stream(method)(iter([request]), timeout=PATIENCE_S)
    try:
        async for _ in call:
            break
    except grpc.aio.AioRpcError as failure:
        return error_from_call(failure, "the server")
    return None


def all_methods() -> set[str]:
    files = (enrolment_pb2, operator_pb2, rounds_pb2)
    return {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_the_table_covers_every_method_of_the_three_services_and_no_other() -> None:
    assert set(METHODS) == all_methods()


def test_a_bootstrap_certificate_is_for_redeem_alone() -> None:
    assert [method for method, role in METHODS.items() if role is Role.BOOTSTRAP] == ["/quorate.v1.Enrolment/Redeem"]


@pytest.mark.parametrize("role", [Role.BOOTSTRAP, Role.SITE, Role.OPERATOR])
async def test_each_role_reaches_its_own_methods_and_no_other(door: Door, role: Role) -> None:
    credentials = {Role.BOOTSTRAP: door.invitation, Role.SITE: door.site, Role.OPERATOR: lambda _: door.operator()}
    session = await door.connect("south")
    async with door.channel(credentials[role]("north")) as channel:
        for method, allowed in METHODS.items():
            error = await refusal(channel, method)
            if allowed is role:
                assert not isinstance(error, IdentityError), method
            else:
                assert isinstance(error, WrongRoleError), method
    assert told(session) == []
    assert door.registry.studies() == ()


async def test_a_method_that_is_in_no_table_is_refused_to_everybody(door: Door) -> None:
    async with door.channel(door.operator()) as channel:
        for method in ("/quorate.v1.Operator/Backdoor", "/grpc.health.v1.Health/Check"):
            assert isinstance(await refusal(channel, method), WrongRoleError)
    assert door.refused == ["wrong_role", "wrong_role"]  # which the metrics count


async def test_nobody_gets_through_without_a_certificate(door: Door) -> None:
    anonymous = grpc.ssl_channel_credentials(door.authority.ca_pem)
    async with door.channel(anonymous) as channel:
        for method in METHODS:
            assert isinstance(await refusal(channel, method), ServerUnreachableError)
    async with grpc.aio.insecure_channel(f"localhost:{door.port}") as channel:
        assert isinstance(await refusal(channel, "/quorate.v1.Operator/ListSites"), ServerUnreachableError)


async def test_a_certificate_of_another_authority_gets_nobody_through(door: Door, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign", "north-sea", door.clock())
    made = foreign.issue_operator("alice", door.clock())
    door.registry.record_certificate(made.issued)
    credential = grpc.ssl_channel_credentials(door.authority.ca_pem, made.key_pem, made.issued.pem)
    async with door.channel(credential) as channel:
        assert isinstance(await refusal(channel, "/quorate.v1.Operator/ListSites"), ServerUnreachableError)


async def test_a_certificate_for_another_consortium_by_the_same_key_is_refused(door: Door) -> None:
    twin = Authority("south-sea", door.authority.certificate, door.authority._key)
    made = twin.issue_operator("alice", door.clock())
    door.registry.record_certificate(made.issued)
    async with door.channel(door.credential(made.issued, made.key_pem)) as channel:
        error = await refusal(channel, "/quorate.v1.Operator/ListSites")
    assert isinstance(error, IdentityError)
    assert "another consortium" in error.what


async def test_the_servers_own_certificate_is_no_clients_certificate(door: Door) -> None:
    made = door.authority.issue_server("localhost", door.clock())
    door.registry.record_certificate(made.issued)
    async with door.channel(door.credential(made.issued, made.key_pem)) as channel:
        assert isinstance(await refusal(channel, "/quorate.v1.Operator/ListSites"), ServerUnreachableError)


async def test_a_site_cannot_play_the_server_to_others(door: Door) -> None:
    keys, issued = door.enrol("quorate-server")
    impostor = grpc.aio.server()
    port = impostor.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(keys.key_pem(), issued.pem)], door.authority.ca_pem, True)
    )
    await impostor.start()
    async with grpc.aio.secure_channel(f"localhost:{port}", door.operator(), options=NAME_OVERRIDE) as channel:
        assert isinstance(await refusal(channel, "/quorate.v1.Operator/ListSites"), ServerIdentityError)
    await impostor.stop(None)


async def test_a_signed_certificate_that_was_never_recorded_is_refused(door: Door) -> None:
    made = door.authority.issue_operator("mallory", door.clock())
    async with door.channel(door.credential(made.issued, made.key_pem)) as channel:
        assert isinstance(await refusal(channel, "/quorate.v1.Operator/ListSites"), CertificateRevokedError)


async def test_a_revoked_site_is_refused_from_its_next_call_on_over_an_open_connection(door: Door) -> None:
    async with door.channel(door.site("north")) as channel:
        assert await refusal(channel, "/quorate.v1.Rounds/ListStudies") is None
        door.registry.revoke_site(SiteName("north"))
        assert isinstance(await refusal(channel, "/quorate.v1.Rounds/ListStudies"), CertificateRevokedError)


async def test_an_expired_certificate_is_refused_over_an_open_connection(door: Door) -> None:
    async with (
        door.channel(door.site("north")) as site,
        door.channel(door.invitation("south")) as invited,
    ):
        for channel, method in ((site, "/quorate.v1.Rounds/ListStudies"), (invited, "/quorate.v1.Operator/ListSites")):
            assert not isinstance(await refusal(channel, method), ServerUnreachableError)
        door.clock.forward(days=31)
        assert isinstance(await refusal(site, "/quorate.v1.Rounds/ListStudies"), CertificateExpiredError)
        assert isinstance(await refusal(invited, "/quorate.v1.Enrolment/Redeem"), InvitationExpiredError)


async def test_handlers_of_every_form_know_their_caller(door: Door) -> None:
    async with door.channel(door.site("north")) as north, door.channel(door.site("south")) as south:
        for name, channel in (("north", north), ("south", south)):
            stub: Any = rounds_pb2_grpc.RoundsStub(channel)
            frames = [frame async for frame in stub.Download(rounds_pb2.DownloadRequest())]
            assert [frame.data for frame in frames] == [name.encode()] * 3
            events = [rounds_pb2.SiteEvent(heartbeat=rounds_pb2.Heartbeat(sequence=n)) for n in (1, 2)]
            answers = [event.welcome.consortium async for event in stub.Connect(iter(events))]
            assert answers == [name, name]
            uploads = iter([rounds_pb2.UploadFrame(), rounds_pb2.UploadFrame()])
            assert (await stub.Upload(uploads)).complete


async def test_a_refusal_travels_with_its_code_also_out_of_a_stream_that_has_begun(door: Door) -> None:
    async with door.channel(door.site("north")) as channel:
        stub: Any = rounds_pb2_grpc.RoundsStub(channel)
        frames = stub.Download(rounds_pb2.DownloadRequest(first_frame=1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [frame async for frame in frames]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert isinstance(error_from_call(caught.value, ""), NotFoundError)


async def test_a_refusal_that_is_too_long_for_its_frame_is_shortened_and_arrives(door: Door) -> None:
    async with door.channel(door.site("north")) as channel:
        stub: Any = rounds_pb2_grpc.RoundsStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [event async for event in stub.Connect(iter([rounds_pb2.SiteEvent(goodbye=rounds_pb2.Goodbye())]))]
    error = error_from_call(caught.value, "")
    assert isinstance(error, NotFoundError)
    assert 1000 < len(error.expected) < 2000


async def test_of_any_other_exception_nothing_but_the_fact_leaves_the_server(door: Door) -> None:
    async with door.channel(door.site("north")) as channel:
        stub: Any = rounds_pb2_grpc.RoundsStub(channel)
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.OpenUpload(rounds_pb2.OpenUploadRequest())
    failure = caught.value
    assert failure.code() is grpc.StatusCode.INTERNAL
    told = failure.details() + str(list(failure.trailing_metadata() or ()))
    assert "patient" not in told
    assert "RuntimeError" not in told
    detail = common_pb2.ErrorDetail.FromString(dict(failure.trailing_metadata() or ())[DETAIL_KEY])
    assert detail.code == "internal"
    assert [(entry["event"], entry["caller"]) for entry in logs] == [("call failed", "site/north")]


async def test_a_certificate_that_names_nobody_is_refused(door: Door) -> None:
    keys, issued = SiteKeys.make("north"), door.enrol("north")[1]
    template = x509.load_pem_x509_certificate(issued.pem)
    nameless = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .public_key(keys.tls.public_key())
        .serial_number(template.serial_number)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .sign(door.authority._key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    credential = grpc.ssl_channel_credentials(door.authority.ca_pem, keys.key_pem(), nameless)
    async with door.channel(credential) as channel:
        error = await refusal(channel, "/quorate.v1.Rounds/ListStudies")
    assert type(error) is IdentityError


async def test_an_operators_empty_request_reaches_the_operator_service(door: Door) -> None:
    async with door.channel(door.operator()) as channel:
        stub: Any = operator_pb2_grpc.OperatorStub(channel)
        assert list((await stub.ListSites(operator_pb2.ListSitesRequest())).sites) == []
