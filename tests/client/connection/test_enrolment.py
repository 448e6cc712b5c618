"""Joining a consortium and keeping the certificate."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from quorate.errors import (
    AlreadyExistsError,
    IdentityError,
    InputError,
    InvitationExpiredError,
    InvitationSpentError,
    ServerIdentityError,
    ServerUnreachableError,
    WrongRoleError,
)
from quorate.identity import Role
from quorate.v1 import enrolment_pb2, rounds_pb2
from quorate_client.connection.channel import enrolment_stub, open_blocking_channel, rounds_stub, translated
from quorate_client.connection.enrolment import (
    Invitation,
    Joining,
    check_authority,
    join,
    read_invitation,
    renewal_due_unix_s,
)
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Credentials, has_identity, load_credentials, load_identity, load_keys

from ..conftest import SITE, write_invitation
from ..consortium import DAY_S, Authority, Server, blocking_server


@pytest.fixture
def joining(folder: SiteFolder) -> Joining:
    return Joining(folder, proxy=None, keep_keys=False, clock=time.time)


@pytest.fixture
def invitation(authority: Authority, address: str) -> Invitation:
    return Invitation.model_validate(authority.invitation(SITE, address))


def test_a_site_joins_with_keys_that_were_made_here(
    joining: Joining, invitation: Invitation, services: Server, folder: SiteFolder
) -> None:
    identity = join(joining, invitation)

    assert (identity.site, identity.consortium) == (SITE, invitation.consortium)
    assert load_identity(folder.keys) == identity
    assert services.members[SITE] == load_keys(folder.keys).member(SITE)
    assert load_credentials(folder.keys).ca_pem == invitation.ca_pem.encode()


def test_a_site_that_lost_the_answer_joins_by_trying_again(
    joining: Joining, invitation: Invitation, services: Server, folder: SiteFolder
) -> None:
    services.faults.redeem_answers_lost = 1
    with pytest.raises(ServerUnreachableError):
        join(joining, invitation)
    assert not has_identity(folder.keys)
    made = load_keys(folder.keys).member(SITE)

    join(joining, invitation)

    assert load_keys(folder.keys).member(SITE) == made


def test_an_invitation_that_somebody_else_used_is_told_apart(
    joining: Joining, invitation: Invitation, folder: SiteFolder, tmp_path: Path
) -> None:
    join(replace(joining, folder=SiteFolder(tmp_path / "thief")), invitation)

    with pytest.raises(InvitationSpentError) as caught:
        join(joining, invitation)

    assert "tell the operator" in caught.value.action
    assert not has_identity(folder.keys)


def test_an_identity_is_not_overwritten(joining: Joining, invitation: Invitation, folder: SiteFolder) -> None:
    join(joining, invitation)
    before = (folder.keys / "certificate.pem").read_bytes()

    with pytest.raises(AlreadyExistsError, match="--keep-keys"):
        join(joining, invitation)

    assert (folder.keys / "certificate.pem").read_bytes() == before


def test_another_identity_is_not_put_over_this_one_even_when_keys_are_kept(
    joining: Joining, invitation: Invitation, authority: Authority, address: str
) -> None:
    join(joining, invitation)
    other = Invitation.model_validate(authority.invitation("south", address))

    with pytest.raises(AlreadyExistsError, match="--state"):
        join(replace(joining, keep_keys=True), other)


def test_a_site_that_was_invited_again_keeps_its_keys(
    joining: Joining, invitation: Invitation, authority: Authority, address: str, folder: SiteFolder
) -> None:
    join(joining, invitation)
    member = load_keys(folder.keys).member(SITE)
    before = (folder.keys / "certificate.pem").read_bytes()
    again = Invitation.model_validate(authority.invitation(SITE, address))

    join(replace(joining, keep_keys=True), again)

    assert load_keys(folder.keys).member(SITE) == member
    assert (folder.keys / "certificate.pem").read_bytes() != before


def test_a_site_that_was_invited_again_has_no_part_in_secure_runs_that_began_before(
    joining: Joining, invitation: Invitation, authority: Authority, address: str, folder: SiteFolder
) -> None:
    """Its folder may have been copied back, and its database may be a new one."""
    join(joining, invitation)
    with site_state(folder.database) as state:
        assert state.memory == b""
    folder.study_keys.mkdir()
    (folder.study_keys / "run-1.key").write_bytes(bytes(32))
    memories = {b""}
    for number in (1, 2):
        again = Invitation.model_validate(authority.invitation(SITE, address))
        join(replace(joining, keep_keys=True), again)
        assert not folder.study_keys.exists()
        with site_state(folder.database) as state:
            memories.add(state.memory)
        assert len(memories) == 1 + number


def test_an_impostor_with_another_authority_gets_nothing(
    joining: Joining, authority: Authority, services: Server, folder: SiteFolder
) -> None:
    with blocking_server(services, issuer=Authority()) as where:
        invitation = Invitation.model_validate(authority.invitation(SITE, where))
        with pytest.raises(ServerIdentityError, match="is not this consortium's server"):
            join(joining, invitation)

    assert services.redeemed == {}
    assert not has_identity(folder.keys)


def test_a_site_of_the_same_consortium_cannot_pose_as_the_server(
    joining: Joining, authority: Authority, services: Server
) -> None:
    class Sibling(Authority):
        def credential(self, role: Role, name: str, ends_s: float = DAY_S, dns: str = "") -> tuple[bytes, bytes]:
            return authority.credential(Role.SITE, "south")

    with blocking_server(services, issuer=Sibling()) as where, pytest.raises(ServerIdentityError):
        join(joining, Invitation.model_validate(authority.invitation(SITE, where)))

    assert services.redeemed == {}


def test_an_expired_invitation_says_so_though_the_server_looks_dead(
    joining: Joining, authority: Authority, address: str
) -> None:
    expired = Invitation.model_validate(authority.invitation(SITE, address, expires_s=-DAY_S / 2))

    with pytest.raises(InvitationExpiredError) as caught:
        join(joining, expired)

    assert "quorate site invite north" in caught.value.action
    assert "clock" in caught.value.action


def test_a_clock_that_is_ahead_does_not_refuse_a_valid_invitation(joining: Joining, invitation: Invitation) -> None:
    assert join(replace(joining, clock=lambda: time.time() + 10 * DAY_S), invitation).site == SITE


def test_a_server_that_is_down_is_told_apart_from_an_expired_invitation(joining: Joining, authority: Authority) -> None:
    with pytest.raises(ServerUnreachableError):
        join(joining, Invitation.model_validate(authority.invitation(SITE, "127.0.0.1:1")))


def test_the_bootstrap_certificate_opens_no_other_call(invitation: Invitation, address: str) -> None:
    with open_blocking_channel(invitation.credentials(), address, None) as channel:
        with pytest.raises(WrongRoleError), translated(address):
            rounds_stub(channel).ListStudies(rounds_pb2.SiteStudiesRequest())
        with pytest.raises(WrongRoleError), translated(address):
            enrolment_stub(channel).Renew(enrolment_pb2.RenewRequest(csr_pem=b""))


# --- the file ---


@pytest.mark.parametrize(
    "content", ["", "not json", "[1, 2", '"text"', "[]", "{}", '{"format": "quorate.invitation/2"}']
)
def test_a_file_that_is_no_invitation_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "invitation.json"
    path.write_text(content)

    with pytest.raises(InputError, match="is not an invitation"):
        read_invitation(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_invitation(tmp_path / "invitation.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("address", "somewhere"), ("site", "North!"), ("ca_pem", "x"), ("expires_unix_s", "soon"), ("more", 1)],
)
def test_wrong_fields_of_an_invitation_are_named_and_its_key_is_not_shown(
    authority: Authority, tmp_path: Path, field: str, value: object
) -> None:
    content = authority.invitation(SITE, "server:1") | {field: value}

    with pytest.raises(InputError) as caught:
        read_invitation(write_invitation(tmp_path / "invitation.json", content))

    assert caught.value.got == f"wrong fields: {field}"
    assert "PRIVATE" not in str(caught.value)


def test_the_key_of_an_invitation_is_not_in_its_representation(authority: Authority) -> None:
    invitation = Invitation.model_validate(authority.invitation(SITE, "server:1"))

    assert "PRIVATE" not in repr(invitation)


def test_an_authority_that_came_by_another_way_is_compared(authority: Authority) -> None:
    invitation = Invitation.model_validate(authority.invitation(SITE, "server:1"))

    check_authority(invitation, authority.pem)
    with pytest.raises(ServerIdentityError, match="another authority"):
        check_authority(invitation, Authority().pem)
    with pytest.raises(InputError):
        check_authority(invitation, b"nonsense")


# --- renewal ---


def test_renewal_is_due_when_a_third_of_the_life_is_left(authority: Authority, joining: Joining) -> None:
    _, certificate = authority.credential(Role.SITE, SITE, ends_s=7 * DAY_S)  # it began two days ago

    assert renewal_due_unix_s(certificate) == pytest.approx(time.time() + 4 * DAY_S, abs=60)


def test_credentials_are_read_from_the_folder(joining: Joining, invitation: Invitation, folder: SiteFolder) -> None:
    join(joining, invitation)

    credentials = load_credentials(folder.keys)

    assert isinstance(credentials, Credentials)
    assert b"CERTIFICATE" in credentials.certificate_pem


def test_a_server_that_certifies_another_key_is_not_believed(
    joining: Joining, invitation: Invitation, services: Server, authority: Authority, folder: SiteFolder
) -> None:
    class Swapped(Authority):
        def issue(self, subject: object, key: object, *_: object, **__: object) -> bytes:
            return authority.credential(Role.SITE, SITE)[1]

    services.authority = Swapped()
    with pytest.raises(IdentityError):
        join(joining, invitation)

    assert not has_identity(folder.keys)
