"""The site's identity on disk."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from quorate.errors import IdentityError, KeyMismatchError, ServerIdentityError, WrongStateError
from quorate.identity import Role, SiteName, Subject
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import (
    check_certificate,
    load_credentials,
    load_identity,
    load_keys,
    make_or_load_keys,
)

from ..conftest import SITE, enrol
from ..consortium import NAME, Authority, Server

OWN = Subject(NAME, Role.SITE, SITE)


def test_keys_are_made_once_and_kept(folder: SiteFolder) -> None:
    folder.create()
    first = make_or_load_keys(folder.keys).member(SITE)

    assert make_or_load_keys(folder.keys).member(SITE) == first
    assert {path.stat().st_mode & 0o777 for path in folder.keys.iterdir()} == {0o600}


def test_a_key_that_others_may_read_is_refused(folder: SiteFolder) -> None:
    folder.create()
    make_or_load_keys(folder.keys)
    (folder.keys / "signing.pem").chmod(0o640)

    with pytest.raises(IdentityError) as caught:
        load_keys(folder.keys)

    assert caught.value.got == "mode 0640"
    assert "chmod 600" in caught.value.action


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_refused_without_being_shown(folder: SiteFolder, content: bytes) -> None:
    folder.create()
    make_or_load_keys(folder.keys)
    (folder.keys / "tls.pem").write_bytes(content)

    with pytest.raises(IdentityError, match="is damaged"):
        load_keys(folder.keys)


def test_a_key_of_the_wrong_kind_is_refused(folder: SiteFolder) -> None:
    folder.create()
    make_or_load_keys(folder.keys)
    (folder.keys / "tls.pem").write_bytes((folder.keys / "signing.pem").read_bytes())

    with pytest.raises(IdentityError, match="wrong kind"):
        load_keys(folder.keys)


def test_a_site_that_has_not_joined_is_told_how(folder: SiteFolder) -> None:
    folder.create()

    with pytest.raises(WrongStateError, match="quorate-client join"):
        load_identity(folder.keys)
    with pytest.raises(WrongStateError):
        load_keys(folder.keys)


def test_a_damaged_identity_is_refused(folder: SiteFolder, services: Server) -> None:
    enrol(folder, services, "somewhere:1")
    (folder.keys / "identity.json").write_text('{"format": "quorate.identity/1", "site": "north"}')

    with pytest.raises(IdentityError, match="cannot be read"):
        load_credentials(folder.keys)


@pytest.mark.parametrize("name", ["certificate.pem", "ca.pem"])
def test_a_certificate_that_is_gone_or_damaged_is_named_and_is_not_taken_for_a_server_that_is_down(
    folder: SiteFolder, services: Server, name: str
) -> None:
    enrol(folder, services, "localhost:1")
    (folder.keys / name).write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(IdentityError, match=f"{name} is damaged"):
        load_credentials(folder.keys)
    (folder.keys / name).unlink()
    with pytest.raises(WrongStateError, match=f"{name} is not there. Restore keys/"):
        load_credentials(folder.keys)


def test_a_certificate_for_another_key_than_the_sites_is_named(folder: SiteFolder, services: Server) -> None:
    enrol(folder, services, "localhost:1")
    (folder.keys / "certificate.pem").write_bytes((folder.keys / "ca.pem").read_bytes())
    with pytest.raises(IdentityError, match="is not for the key in"):
        load_credentials(folder.keys)


def test_the_certificate_request_is_signed_and_for_the_tls_key(folder: SiteFolder) -> None:
    folder.create()
    keys = make_or_load_keys(folder.keys)

    request = x509.load_pem_x509_csr(keys.request(SITE))

    assert request.is_signature_valid
    assert request.public_key() == keys.tls.public_key()


def test_an_answer_is_signed_together_with_what_it_answers(folder: SiteFolder) -> None:
    folder.create()
    keys = make_or_load_keys(folder.keys)
    signature = keys.sign_answer("approved", b"d" * 32)
    public = keys.signing.public_key()

    public.verify(signature, b"quorate/answer/v1\x00approved\x00" + b"d" * 32)
    with pytest.raises(InvalidSignature):
        public.verify(signature, b"quorate/answer/v1\x00rejected\x00" + b"d" * 32)


def test_a_certificate_for_this_site_by_the_pinned_authority_is_taken(folder: SiteFolder, authority: Authority) -> None:
    folder.create()
    keys = make_or_load_keys(folder.keys)

    check_certificate(authority.issue(OWN, keys.tls.public_key()), authority.pem, keys, OWN)


def test_a_certificate_by_another_authority_is_refused(folder: SiteFolder, authority: Authority) -> None:
    folder.create()
    keys = make_or_load_keys(folder.keys)
    foreign = Authority().issue(OWN, keys.tls.public_key())

    with pytest.raises(ServerIdentityError):
        check_certificate(foreign, authority.pem, keys, OWN)
    with pytest.raises(ServerIdentityError):
        check_certificate(b"nonsense", authority.pem, keys, OWN)


def test_a_certificate_for_another_key_is_refused(folder: SiteFolder, authority: Authority) -> None:
    folder.create()
    keys = make_or_load_keys(folder.keys)
    other = authority.issue(OWN, ec.generate_private_key(ec.SECP256R1()).public_key())

    with pytest.raises(KeyMismatchError):
        check_certificate(other, authority.pem, keys, OWN)


@pytest.mark.parametrize("subject", [Subject(NAME, Role.SITE, "south"), Subject(NAME, Role.OPERATOR, SITE)])
def test_a_certificate_that_names_somebody_else_is_refused(
    folder: SiteFolder, authority: Authority, subject: Subject
) -> None:
    folder.create()
    keys = make_or_load_keys(folder.keys)

    with pytest.raises(IdentityError, match="not this site's"):
        check_certificate(authority.issue(subject, keys.tls.public_key()), authority.pem, keys, OWN)


def test_the_roster_entry_vouches_for_the_sealing_key(folder: SiteFolder) -> None:
    folder.create()
    member = make_or_load_keys(folder.keys).member(SiteName("north"))

    assert len(member.sealing_key) == 32
