"""Whoever sits between a site and the server, or answers in the server's place."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from quorate.errors import ServerIdentityError, ServerUnreachableError
from quorate.identity import SiteName
from quorate.v1 import enrolment_pb2, rounds_pb2_grpc
from quorate.wire.messages import member_to_proto
from quorate_client.connection.channel import enrolment_stub, open_channel, rounds_stub, translated
from quorate_client.site.keys import Credentials
from quorate_server.consortium.ca import Authority, Credential
from quorate_server.consortium.config import ServerConfig
from tests.attacks.server_kit import PATIENCE_S, Consortium, HandSite, open_consortium, refusal
from tests.server.door import CONSORTIUM, SiteKeys


@pytest.fixture
async def consortium(tmp_path: Path) -> AsyncIterator[Consortium]:
    async with open_consortium(tmp_path / "server") as consortium:
        yield consortium


def handshake(consortium: Consortium, folder: Path, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]) -> str | None:
    """With a valid certificate; the version that was agreed on."""
    made = consortium.authority.issue_operator("alice", time.time())
    (folder / "credential.pem").write_bytes(made.issued.pem + made.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that what refuses is the server
    context.minimum_version, context.maximum_version = versions
    context.load_verify_locations(cadata=consortium.authority.ca_pem.decode())
    context.load_cert_chain(folder / "credential.pem")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", consortium.port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="quorate-server") as secure,
    ):
        assert secure.recv(1)  # TLS 1.3 tells of a refused certificate only now
        return secure.version()


@pytest.mark.filterwarnings("ignore:.*TLSv1:DeprecationWarning")
async def test_old_versions_of_tls_are_refused(consortium: Consortium, tmp_path: Path) -> None:
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(OSError, match=r"(?i)version|alert|protocol|reset"):
            await asyncio.to_thread(handshake, consortium, tmp_path, (version, version))
    newest = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert await asyncio.to_thread(handshake, consortium, tmp_path, newest) == "TLSv1.3"


class Impostor(rounds_pb2_grpc.RoundsServicer):
    """Answers at the server's address, with a certificate of the right authority for something else."""

    heard = 0

    async def Connect(self, requests: AsyncIterator[object], context: object) -> None:  # noqa: N802
        self.heard += 1


@pytest.mark.parametrize("who", ["server", "site", "operator", "invitation", "other consortium"])
async def test_only_the_servers_own_certificate_passes_for_the_server(tmp_path: Path, who: str) -> None:
    """Members hold certificates of the same authority; a site may even be called like the server."""
    now = time.time()
    authority = Authority.create(tmp_path / "ca", CONSORTIUM, now)
    keys = SiteKeys.make("quorate-server")
    site = authority.issue_site(keys.name, keys.csr("quorate-server"), now, 30)
    credential = {
        "server": authority.issue_server("127.0.0.1", now),
        "site": Credential(site, keys.key_pem()),
        "operator": authority.issue_operator("quorate-server", now),
        "invitation": authority.issue_bootstrap(keys.name, now, 86_400),
        "other consortium": Authority.create(tmp_path / "other", CONSORTIUM, now).issue_server("127.0.0.1", now),
    }[who]
    impostor, door = Impostor(), grpc.aio.server()
    rounds_pb2_grpc.add_RoundsServicer_to_server(impostor, door)  # type: ignore[no-untyped-call]
    pair = [(credential.key_pem, credential.issued.pem)]
    port = door.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    await door.start()
    address = f"127.0.0.1:{port}"
    async with open_channel(Credentials(authority.ca_pem, site.pem, keys.key_pem()), address, None) as channel:
        call = rounds_stub(channel).Connect(timeout=PATIENCE_S)
        if who == "server":
            assert await call.read() is grpc.aio.EOF
        else:
            with pytest.raises((ServerIdentityError, ServerUnreachableError)), translated(address):
                await call.read()
    await door.stop(None)
    assert impostor.heard == (who == "server")


async def test_a_found_invitation_opens_nothing_after_it_was_redeemed(consortium: Consortium) -> None:
    """Not with other keys, not under another name, and not for anything but redeeming."""
    rightful, thief = SiteKeys.make("east"), SiteKeys.make("east")
    found = consortium.authority.issue_bootstrap(rightful.name, time.time(), 86_400)
    consortium.server.registry.invite(rightful.name, found.issued, time.time() + 86_400, keep_keys=False)
    channel = consortium.channel(found.issued.pem, found.key_pem)

    def redeem(keys: SiteKeys, name: str = "east") -> enrolment_pb2.RedeemRequest:
        member = member_to_proto(SiteKeys(SiteName(name), keys.tls, keys.signing).member)
        return enrolment_pb2.RedeemRequest(csr_pem=keys.csr(), member=member)

    stub = enrolment_stub(channel)
    await stub.Redeem(redeem(rightful), timeout=PATIENCE_S)
    for request in (redeem(thief), redeem(thief, "west"), redeem(SiteKeys(rightful.name, thief.tls, rightful.signing))):
        assert (await refusal(stub.Redeem(request, timeout=PATIENCE_S))).code == "invitation_spent"
    (record,) = consortium.server.registry.sites()
    assert record.member is not None
    assert record.member.signing_key == rightful.member.signing_key
    assert (await refusal(HandSite(thief, channel).connect())).code == "wrong_role"


def test_metrics_are_served_to_this_machine_only_unless_somebody_decides_otherwise(tmp_path: Path) -> None:
    """They travel without TLS."""
    from quorate_client.site.config import Config

    state = tmp_path / "server"
    made = ServerConfig.create(state, consortium=CONSORTIUM, address="server:8443", listen="0.0.0.0:8443")
    assert made.metrics_listen.startswith("127.0.0.1:")
    assert Config().metrics_listen.startswith("127.0.0.1:")
