from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Engine

from quorate.errors import (
    AlreadyExistsError,
    CertificateExpiredError,
    CertificateRevokedError,
    IdentityError,
    InputError,
    InvitationExpiredError,
    InvitationSpentError,
    KeyMismatchError,
    NotFoundError,
    QuorateError,
    WrongStateError,
)
from quorate.identity import Role, SiteName, Subject
from quorate_server.consortium.ca import Authority, Issued
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.tables import SiteStatus
from tests.server.databases import made_database
from tests.server.door import SiteKeys, a_study

DAY_S = 86_400
NORTH = SiteName("north")


class Consortium:
    """A registry with its authority and a clock that moves when it is told to."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.now = 1_800_000_000.0
        self.authority = Authority.create(folder / "ca", "north-sea", self.now)
        self.registry = Registry(engine, lambda: self.now)

    def invite(self, site: SiteName, *, keep_keys: bool = False, days: int = 7) -> Issued:
        bootstrap = self.authority.issue_bootstrap(site, self.now, days * DAY_S).issued
        self.registry.invite(site, bootstrap, self.now + days * DAY_S, keep_keys=keep_keys)
        return bootstrap

    def redeem(self, bootstrap: Issued, keys: SiteKeys, *, named: SiteName | None = None) -> Issued:
        issued = self.authority.issue_site(named or keys.name, keys.csr(), self.now, 30)
        digest = hashlib.sha256(keys.tls_digest() + keys.member.signing_key).digest()
        return self.registry.redeem(bootstrap.serial, keys.member, digest, issued)

    def join(self, name: str) -> tuple[SiteKeys, Issued]:
        keys = SiteKeys.make(name)
        return keys, self.redeem(self.invite(keys.name), keys)

    def refused(self, issued: Issued) -> type[QuorateError] | None:
        try:
            self.registry.check_certificate(issued.subject, issued.serial)
        except QuorateError as error:
            return type(error)
        return None


@pytest.fixture
def consortium(tmp_path: Path, database_url: str) -> Iterator[Consortium]:
    engine = made_database(database_url)
    yield Consortium(tmp_path, engine)
    engine.dispose()


def test_an_invited_site_becomes_active_with_its_keys(consortium: Consortium) -> None:
    keys = SiteKeys.make("north")
    bootstrap = consortium.invite(NORTH)
    (invited,) = consortium.registry.sites()
    assert (invited.state, invited.member) == (SiteStatus.INVITED, None)
    assert invited.invitation_expires_unix_s == consortium.now + 7 * DAY_S
    issued = consortium.redeem(bootstrap, keys)
    joined = consortium.registry.site(NORTH)
    assert (joined.state, joined.member) == (SiteStatus.ACTIVE, keys.member)
    assert joined.certificate_expires_unix_s == issued.expires_unix_s
    assert joined.invitation_expires_unix_s == 0
    assert consortium.registry.members((SiteName("south"), NORTH)) == (keys.member,)
    assert consortium.refused(issued) is None


def test_a_certificate_that_was_never_recorded_does_not_count_though_the_authority_signed_it(
    consortium: Consortium,
) -> None:
    stray = consortium.authority.issue_operator("mallory", consortium.now).issued
    assert consortium.refused(stray) is CertificateRevokedError


def test_a_recorded_serial_counts_for_its_own_holder_only(consortium: Consortium) -> None:
    _, issued = consortium.join("north")
    for subject in (Subject("north-sea", Role.OPERATOR, "north"), Subject("north-sea", Role.SITE, "south")):
        with pytest.raises(CertificateRevokedError):
            consortium.registry.check_certificate(subject, issued.serial)


def test_certificates_and_invitations_end_with_their_time(consortium: Consortium) -> None:
    _, issued = consortium.join("north")
    invitation = consortium.invite(SiteName("south"))
    consortium.now += 7 * DAY_S
    assert consortium.refused(invitation) is InvitationExpiredError
    assert consortium.refused(issued) is None
    consortium.now += 23 * DAY_S
    assert consortium.refused(issued) is CertificateExpiredError


def test_of_many_who_redeem_one_invitation_at_once_exactly_one_wins(consortium: Consortium) -> None:
    bootstrap = consortium.invite(NORTH)
    rivals = [SiteKeys.make("north") for _ in range(6)]
    start = Barrier(len(rivals))

    def race(keys: SiteKeys) -> Issued | InvitationSpentError:
        start.wait()
        try:
            return consortium.redeem(bootstrap, keys)
        except InvitationSpentError as error:
            return error

    with ThreadPoolExecutor(len(rivals)) as threads:
        outcomes = list(threads.map(race, rivals))
    winners = [(keys, outcome) for keys, outcome in zip(rivals, outcomes, strict=True) if isinstance(outcome, Issued)]
    assert len(winners) == 1
    assert consortium.registry.site(NORTH).member == winners[0][0].member
    assert consortium.refused(winners[0][1]) is None


def test_a_repeated_redemption_with_the_same_keys_gets_the_same_certificate(consortium: Consortium) -> None:
    keys = SiteKeys.make("north")
    bootstrap = consortium.invite(NORTH)
    first = consortium.redeem(bootstrap, keys)
    consortium.now += DAY_S
    assert consortium.redeem(bootstrap, keys) == first
    assert consortium.refused(first) is None


def test_a_spent_invitation_with_other_keys_is_refused_and_changes_nothing(consortium: Consortium) -> None:
    keys = SiteKeys.make("north")
    bootstrap = consortium.invite(NORTH)
    first = consortium.redeem(bootstrap, keys)
    other_tls = SiteKeys(keys.name, SiteKeys.make("north").tls, keys.signing)
    for thief in (SiteKeys.make("north"), other_tls):
        with pytest.raises(InvitationSpentError):
            consortium.redeem(bootstrap, thief)
    assert consortium.registry.site(NORTH).member == keys.member
    assert consortium.refused(first) is None


def test_an_invitation_for_another_site_stays_unspent(consortium: Consortium) -> None:
    bootstrap = consortium.invite(NORTH)
    with pytest.raises(IdentityError, match="another site"):
        consortium.redeem(bootstrap, SiteKeys.make("south"))
    assert consortium.registry.site(NORTH).state is SiteStatus.INVITED
    consortium.redeem(bootstrap, SiteKeys.make("north"))


def test_two_sites_cannot_share_a_signing_key(consortium: Consortium) -> None:
    keys, _ = consortium.join("north")
    copied = SiteKeys(SiteName("south"), SiteKeys.make("south").tls, keys.signing)
    with pytest.raises(KeyMismatchError, match="Another site, north"):
        consortium.redeem(consortium.invite(copied.name), copied)
    assert consortium.registry.site(copied.name).member is None


def test_an_unknown_invitation_is_refused(consortium: Consortium) -> None:
    never = consortium.authority.issue_bootstrap(NORTH, consortium.now, DAY_S).issued
    with pytest.raises(CertificateRevokedError):
        consortium.redeem(never, SiteKeys.make("north"))


def test_an_active_site_is_not_invited_over(consortium: Consortium) -> None:
    _, issued = consortium.join("north")
    with pytest.raises(AlreadyExistsError, match="site reinvite north"):
        consortium.invite(NORTH)
    assert consortium.refused(issued) is None


def test_a_new_invitation_ends_the_one_before(consortium: Consortium) -> None:
    lost = consortium.invite(NORTH)
    consortium.invite(NORTH)
    assert consortium.refused(lost) is CertificateRevokedError


def test_a_reinvited_site_comes_back_with_its_signing_key_only(consortium: Consortium) -> None:
    keys, old = consortium.join("north")
    bootstrap = consortium.invite(NORTH, keep_keys=True)
    assert consortium.refused(old) is None
    with pytest.raises(KeyMismatchError, match="another signing key"):
        consortium.redeem(bootstrap, SiteKeys.make("north"))
    renewed = SiteKeys(keys.name, SiteKeys.make("north").tls, keys.signing)
    issued = consortium.redeem(bootstrap, renewed)
    assert consortium.refused(issued) is None
    assert consortium.refused(old) is CertificateRevokedError


def test_only_a_site_that_has_joined_has_keys_to_keep(consortium: Consortium) -> None:
    with pytest.raises(WrongStateError, match="site invite north"):
        consortium.invite(NORTH, keep_keys=True)
    consortium.join("north")
    consortium.registry.revoke_site(NORTH)
    with pytest.raises(WrongStateError, match="a site that is revoked"):
        consortium.invite(NORTH, keep_keys=True)


def test_revocation_ends_every_certificate_and_invitation_and_a_new_invitation_makes_a_new_identity(
    consortium: Consortium,
) -> None:
    keys, issued = consortium.join("north")
    pending = consortium.invite(NORTH, keep_keys=True)
    consortium.registry.revoke_site(NORTH)
    consortium.registry.revoke_site(NORTH)
    assert consortium.refused(issued) is CertificateRevokedError
    assert consortium.refused(pending) is CertificateRevokedError
    assert consortium.registry.site(NORTH).state is SiteStatus.REVOKED
    fresh = SiteKeys.make("north")
    consortium.redeem(consortium.invite(NORTH), fresh)
    assert consortium.registry.site(NORTH).member == fresh.member != keys.member
    assert consortium.refused(issued) is CertificateRevokedError


def test_an_unknown_site_cannot_be_revoked(consortium: Consortium) -> None:
    with pytest.raises(NotFoundError):
        consortium.registry.revoke_site(NORTH)
    with pytest.raises(NotFoundError):
        consortium.registry.site(NORTH)


def test_revoking_an_operator_ends_all_its_credentials_and_nobody_elses(consortium: Consortium) -> None:
    issued = [consortium.authority.issue_operator(name, consortium.now).issued for name in ("alice", "alice", "bob")]
    for one in issued:
        consortium.registry.record_certificate(one)
    consortium.registry.revoke_operator("alice")
    assert [consortium.refused(one) for one in issued] == [CertificateRevokedError, CertificateRevokedError, None]
    assert [(record.name, record.revoked) for record in consortium.registry.operators()] == [
        ("alice", True),
        ("alice", True),
        ("bob", False),
    ]
    with pytest.raises(NotFoundError):
        consortium.registry.revoke_operator("alice")


def test_a_study_published_twice_is_one_study(consortium: Consortium) -> None:
    keys, _ = consortium.join("north")
    study = a_study(keys)
    first = consortium.registry.publish(study)
    consortium.now += DAY_S
    assert consortium.registry.publish(study) == first
    assert consortium.registry.studies() == (first,)
    assert (first.study, first.digest) == (study, study.digest())


def test_a_changed_study_needs_another_name(consortium: Consortium) -> None:
    keys, _ = consortium.join("north")
    first = consortium.registry.publish(a_study(keys))
    with pytest.raises(AlreadyExistsError, match="another name"):
        consortium.registry.publish(a_study(keys, purpose="Something else"))
    assert consortium.registry.studies() == (first,)


def test_a_study_is_found_by_its_name_or_by_a_beginning_of_its_digest(consortium: Consortium) -> None:
    keys, _ = consortium.join("north")
    record = consortium.registry.publish(a_study(keys))
    digest = record.digest.hex()
    assert consortium.registry.study("malignancy") == consortium.registry.study(digest[:8]) == record
    for text in ("", "malign", digest[:5], "f" * 64):
        with pytest.raises(NotFoundError):
            consortium.registry.study(text)


def test_a_later_answer_takes_the_place_of_an_earlier_one(consortium: Consortium) -> None:
    keys, _ = consortium.join("north")
    digest = consortium.registry.publish(a_study(keys)).digest
    consortium.registry.record_answer(digest, NORTH, "approved", b"first")
    consortium.now += 60
    consortium.registry.record_answer(digest, NORTH, "rejected", b"second")
    (answer,) = consortium.registry.study("malignancy").answers
    assert (answer.site, answer.answer, answer.signature) == (NORTH, "rejected", b"second")
    assert answer.at_unix_s == consortium.now


def test_an_answer_counts_for_sites_of_the_study_only(consortium: Consortium) -> None:
    keys, _ = consortium.join("north")
    consortium.join("south")
    digest = consortium.registry.publish(a_study(keys)).digest
    with pytest.raises(NotFoundError):
        consortium.registry.record_answer(digest, SiteName("south"), "approved", b"")
    with pytest.raises(NotFoundError):
        consortium.registry.record_answer(bytes(32), NORTH, "approved", b"")
    with pytest.raises(InputError):
        consortium.registry.record_answer(digest, NORTH, "perhaps", b"")
    assert consortium.registry.study("malignancy").answers == ()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_private_key_rests_in_the_database(consortium: Consortium, tmp_path: Path) -> None:
    keys, _ = consortium.join("north")
    credential = consortium.authority.issue_bootstrap(SiteName("south"), consortium.now, DAY_S)
    consortium.registry.invite(SiteName("south"), credential.issued, consortium.now + DAY_S, keep_keys=False)
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("server.sqlite*"))
    assert b"PRIVATE KEY" not in stored
    assert keys.signing.private_bytes_raw() not in stored
