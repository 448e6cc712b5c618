from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from quorate.errors import (
    AlreadyExistsError,
    CertificateExpiredError,
    ConfigError,
    InputError,
    KeyMismatchError,
)
from quorate.identity import Role, SiteName, Subject
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.server_certificate import ServerIdentity
from tests.server.door import SiteKeys

NOW = 1_800_000_000.0
NORTH = SiteName("north")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "north-sea", NOW)


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def names(certificate: x509.Certificate, kind: type[x509.GeneralName]) -> list[object]:
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name) for name in san.get_values_for_type(kind)]


def test_an_authority_survives_a_reload_and_its_key_is_private(tmp_path: Path, authority: Authority) -> None:
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    again = Authority.load(tmp_path / "ca", "north-sea")
    assert again.ca_pem == authority.ca_pem
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_an_authority_is_never_replaced(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(AlreadyExistsError):
        Authority.create(tmp_path / "ca", "north-sea", NOW)
    assert Authority.load(tmp_path / "ca", "north-sea").ca_pem == authority.ca_pem


def test_a_damaged_foreign_or_readable_authority_is_refused(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "ca"
    with pytest.raises(ConfigError, match="another consortium"):
        Authority.load(folder, "south-sea")
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Authority.load(folder, "north-sea")
    (folder / "ca.key").chmod(0o600)
    Authority.create(tmp_path / "other", "north-sea", NOW)
    (folder / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    with pytest.raises(ConfigError, match="do not belong together"):
        Authority.load(folder, "north-sea")
    with pytest.raises(ConfigError, match="Cannot read"):
        Authority.load(tmp_path / "nowhere", "north-sea")


def test_a_site_certificate_says_who_and_for_what_and_for_how_long(authority: Authority) -> None:
    keys = SiteKeys.make("north")
    issued = authority.issue_site(NORTH, keys.csr(), NOW, days=30)
    certificate = x509.load_pem_x509_certificate(issued.pem)
    certificate.verify_directly_issued_by(authority.certificate)
    assert Subject.of(certificate) == Subject("north-sea", Role.SITE, "north") == issued.subject
    assert certificate.public_key() == keys.tls.public_key()
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert issued.expires_unix_s == NOW + 30 * 86_400 == certificate.not_valid_after_utc.timestamp()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_clock_two_days_behind_still_finds_a_new_certificate_valid(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.issue_server("server.example.org", NOW).issued.pem)
    assert certificate.not_valid_before_utc.timestamp() < NOW - timedelta(days=2).total_seconds()
    assert authority.certificate.not_valid_before_utc.timestamp() < NOW - timedelta(days=2).total_seconds()


def test_what_a_request_asks_for_beyond_its_key_counts_for_nothing(authority: Authority) -> None:
    keys = SiteKeys.make("north")
    identity = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("quorate://north-sea/operator/mallory"), x509.DNSName("quorate-server")]
    )
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(identity, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(keys.tls, hashes.SHA256())
    )
    issued = authority.issue_site(NORTH, greedy.public_bytes(Encoding.PEM), NOW, days=30)
    certificate = x509.load_pem_x509_certificate(issued.pem)
    assert names(certificate, x509.UniformResourceIdentifier) == ["quorate://north-sea/site/north"]
    assert names(certificate, x509.DNSName) == []
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_that_the_holder_of_its_key_did_not_sign_is_refused(authority: Authority) -> None:
    der = bytearray(x509.load_pem_x509_csr(SiteKeys.make("north").csr()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(KeyMismatchError):
        authority.issue_site(NORTH, x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM), NOW, days=30)


def test_a_request_for_another_kind_of_key_or_none_is_refused(authority: Authority) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    odd = ec.generate_private_key(ec.SECP521R1())
    for key in (weak, odd):
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        with pytest.raises(InputError, match="wrong kind"):
            authority.issue_site(NORTH, request.public_bytes(Encoding.PEM), NOW, days=30)
    with pytest.raises(InputError, match="cannot be read"):
        authority.issue_site(NORTH, b"-----BEGIN CERTIFICATE REQUEST-----\n", NOW, days=30)


def test_the_server_certificate_is_for_its_fixed_name_and_its_addresses_only(authority: Authority) -> None:
    for host, kind, wanted in (
        ("server.example.org", x509.DNSName, "server.example.org"),
        ("10.1.2.3", x509.IPAddress, "10.1.2.3"),
        ("::1", x509.IPAddress, "::1"),
    ):
        certificate = x509.load_pem_x509_certificate(authority.issue_server(host, NOW).issued.pem)
        assert {"quorate-server", "localhost"} <= set(names(certificate, x509.DNSName))
        assert "127.0.0.1" in names(certificate, x509.IPAddress)
        assert wanted in names(certificate, kind)
        assert usages(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_site_that_is_called_like_the_server_gets_no_name_that_a_client_would_trust(authority: Authority) -> None:
    name = SiteName("quorate-server")
    issued = authority.issue_site(name, SiteKeys.make(name).csr(), NOW, days=30)
    certificate = x509.load_pem_x509_certificate(issued.pem)
    assert names(certificate, x509.DNSName) == []
    assert "quorate-server" not in [attribute.value for attribute in certificate.subject]


def test_serials_are_random_and_never_repeat(authority: Authority) -> None:
    serials = {authority.issue_operator("alice", NOW).issued.serial for _ in range(50)}
    assert len(serials) == 50
    assert all(serial.bit_length() == 128 for serial in serials)


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    late = authority.expires_unix_s - 86_400.0
    assert authority.issue_operator("alice", late).issued.expires_unix_s == authority.expires_unix_s


def test_an_authority_that_has_ended_issues_nothing_that_nobody_would_accept(authority: Authority) -> None:
    late = authority.expires_unix_s + 10 * 86_400.0
    for issue in (
        lambda: authority.issue_operator("alice", late),
        lambda: authority.issue_bootstrap(NORTH, late, 60),
        lambda: authority.issue_site(NORTH, SiteKeys.make("north").csr(), late, 30),
    ):
        with pytest.raises(CertificateExpiredError, match="Check the clock"):
            issue()
    shown = authority.issue_server("localhost", late)
    assert shown.issued.expires_unix_s == authority.expires_unix_s, "a server starts, for its clock may be wrong"


def test_the_handshake_outlasts_an_invitation_so_that_its_bearer_can_be_told(authority: Authority) -> None:
    made = authority.issue_bootstrap(NORTH, NOW, valid_s=86_400)
    assert made.issued.expires_unix_s > NOW + 86_400
    assert made.issued.subject.role is Role.BOOTSTRAP


def test_the_server_renews_its_certificate_while_a_third_of_its_time_is_left(authority: Authority) -> None:
    now = NOW
    identity = ServerIdentity(authority, "localhost", lambda: now)
    first = identity.expires_unix_s
    now += 19 * 86_400
    assert not identity.renew_if_due()
    now += 2 * 86_400
    assert identity.renew_if_due()
    assert identity.expires_unix_s == first + 21 * 86_400
    assert not identity.renew_if_due()


def test_near_the_end_of_the_authority_the_server_does_not_make_one_certificate_after_the_other(
    authority: Authority,
) -> None:
    now = authority.expires_unix_s - 5 * 86_400.0
    identity = ServerIdentity(authority, "localhost", lambda: now)
    assert not identity.renew_if_due()
    now += 20 * 86_400
    assert not identity.renew_if_due(), "and its loop goes on"


def test_a_server_whose_clock_was_set_back_shows_a_certificate_of_now(authority: Authority) -> None:
    now = authority.expires_unix_s + 86_400.0
    identity = ServerIdentity(authority, "localhost", lambda: now)
    now = NOW
    assert identity.renew_if_due()
    assert identity.expires_unix_s == NOW + 30 * 86_400
    assert not identity.renew_if_due()


def test_a_certificate_that_was_renewed_between_handshakes_is_shown_at_the_next_one(authority: Authority) -> None:
    now = NOW
    identity = ServerIdentity(authority, "localhost", lambda: now)
    assert identity._renewed_configuration() is None
    now += 21 * 86_400
    assert identity.renew_if_due()  # the server's own look, at which no handshake is being made
    assert identity._renewed_configuration() is not None
    assert identity._renewed_configuration() is None
