"""Who belongs to the consortium: invitations, sites, certificates; and, inherited, its studies.

Every method is one short transaction. Whether an invitation is spent is decided by one conditional update, so that of
two who redeem it at the same moment exactly one wins, whatever the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Update, bindparam, delete, func, insert, select, update

from quorate.errors import (
    AlreadyExistsError,
    CertificateExpiredError,
    CertificateRevokedError,
    IdentityError,
    InvitationExpiredError,
    InvitationSpentError,
    KeyMismatchError,
    NotFoundError,
    WrongStateError,
)
from quorate.identity import Member, Role, SiteName, Subject, fingerprint
from quorate_server.consortium.ca import Issued
from quorate_server.consortium.studies import StudyRegister
from quorate_server.consortium.tables import (
    CERTIFICATES,
    EARLIER_KEYS,
    INVITATIONS,
    SITES,
    OperatorRecord,
    SiteRecord,
    SiteStatus,
    member_of,
)

# Asked at every call and at every count of the sites, so they are built once.
_BY_SERIAL = select(
    CERTIFICATES.c.role, CERTIFICATES.c.name, CERTIFICATES.c.expires_unix_s, CERTIFICATES.c.revoked_unix_s
).where(CERTIFICATES.c.serial == bindparam("serial"))
_STATUSES = select(SITES.c.name, SITES.c.standing)


class Registry(StudyRegister):
    """The registry in its database."""

    # --- certificates ---

    def record_certificate(self, issued: Issued) -> None:
        """From now on the certificate is valid. One that is not recorded is refused, whoever signed it."""
        with self._engine.begin() as db:
            _insert_certificate(db, issued, issued.expires_unix_s)

    def check_certificate(self, subject: Subject, serial: int) -> None:
        """Checked at every call and every heartbeat.

        Raises:
            CertificateRevokedError: revoked, or not one of ours. CertificateExpiredError, InvitationExpiredError: over.
        """
        with self._engine.connect() as db:
            row = db.execute(_BY_SERIAL, {"serial": _text(serial)}).one_or_none()
        if row is None or (row.role, row.name) != (subject.role, subject.name) or row.revoked_unix_s is not None:
            raise _revoked(subject)
        if self._clock() >= row.expires_unix_s:
            raise _expired(subject)

    def operators(self) -> tuple[OperatorRecord, ...]:
        with self._engine.connect() as db:
            rows = db.execute(
                select(CERTIFICATES).where(CERTIFICATES.c.role == Role.OPERATOR).order_by(CERTIFICATES.c.name)
            ).all()
        return tuple(
            OperatorRecord(row.name, int(row.serial, 16), row.expires_unix_s, row.revoked_unix_s is not None)
            for row in rows
        )

    def revoke_operator(self, name: str) -> None:
        """Revoke all credentials of an operator. Raises NotFoundError when there is none."""
        with self._engine.begin() as db:
            if db.execute(self._revocation(name, Role.OPERATOR)).rowcount == 0:
                raise NotFoundError(f"The operator {name} has no valid credential")

    # --- sites ---

    def invite(self, site: SiteName, bootstrap: Issued, expires_unix_s: float, *, keep_keys: bool) -> None:
        """Record an invitation. Earlier ones of the site that were not used end here.

        Args:
            keep_keys: The site has joined before and must prove that it still holds the same signing key.

        Raises:
            AlreadyExistsError, WrongStateError: the site's status does not allow it; the message says what to do.
        """
        with self._engine.begin() as db:
            row = db.execute(select(SITES).where(SITES.c.name == site)).one_or_none()
            kept = _kept_key(site, row) if keep_keys else None
            if not keep_keys:
                _enter_invited(db, site, row)
            db.execute(self._revocation(site, Role.BOOTSTRAP))
            _insert_certificate(db, bootstrap, expires_unix_s)
            db.execute(insert(INVITATIONS).values(serial=_text(bootstrap.serial), site=site, kept_signing_key=kept))

    def redeem(self, serial: int, member: Member, request_digest: bytes, issued: Issued) -> Issued:
        """Spend the invitation ``serial`` and make ``member`` an active site with the certificate ``issued``.

        Earlier certificates of the site end here. The same request again, after an answer that was lost, gets the
        certificate that was issued the first time.

        Args:
            request_digest: Over all keys in the request.

        Raises:
            InvitationSpentError: somebody redeemed it with other keys. IdentityError: it is for another site.
            KeyMismatchError: not the signing key that the invitation demands, or another site's. In the last two
                cases the invitation stays unspent.
        """
        now = self._clock()
        with self._engine.begin() as db:
            mine = INVITATIONS.c.serial == _text(serial)
            spent = db.execute(
                update(INVITATIONS)
                .where(mine, INVITATIONS.c.spent_unix_s.is_(None))
                .values(
                    spent_unix_s=now,
                    request_digest=request_digest,
                    issued_serial=_text(issued.serial),
                    issued_pem=issued.pem,
                )
            )
            invitation = db.execute(select(INVITATIONS).where(mine)).one_or_none()
            if invitation is None:
                raise _revoked(Subject(issued.subject.consortium, Role.BOOTSTRAP, member.name))
            if spent.rowcount == 0:
                if invitation.request_digest != request_digest:
                    raise InvitationSpentError(
                        f"The invitation of {invitation.site} was redeemed before, with other keys",
                        action="If it was not you, somebody else holds your invitation: tell the operator, who can "
                        "revoke the site and invite it again",
                    )
                return _issued_before(db, invitation, issued.subject)
            _check_invited(invitation, member)
            _check_key_is_new(db, member)
            db.execute(
                update(SITES)
                .where(SITES.c.name == member.name)
                .values(
                    standing=SiteStatus.ACTIVE,
                    signing_key=member.signing_key,
                    sealing_key=member.sealing_key,
                    sealing_proof=member.sealing_proof,
                )
            )
            db.execute(self._revocation(member.name, Role.SITE))
            _insert_certificate(db, issued, issued.expires_unix_s)
        return issued

    def revoke_site(self, site: SiteName) -> None:
        """End all certificates and invitations of a site. Final: an invitation afterwards makes a new identity."""
        with self._engine.begin() as db:
            found = db.execute(update(SITES).where(SITES.c.name == site).values(standing=SiteStatus.REVOKED))
            if found.rowcount == 0:
                raise _no_site(site)
            db.execute(self._revocation(site, Role.SITE))
            db.execute(self._revocation(site, Role.BOOTSTRAP))

    def site(self, name: SiteName) -> SiteRecord:
        """One site. Raises NotFoundError."""
        for record in self.sites():
            if record.name == name:
                return record
        raise _no_site(name)

    def statuses(self) -> dict[SiteName, SiteStatus]:
        """What each site is, for counting: no keys are read."""
        with self._engine.connect() as db:
            return {SiteName(name): SiteStatus(status) for name, status in db.execute(_STATUSES)}

    def sites(self) -> tuple[SiteRecord, ...]:
        """All sites by name."""
        columns = CERTIFICATES.c
        latest = (
            select(columns.name, columns.role, func.max(columns.expires_unix_s))
            .outerjoin(INVITATIONS, INVITATIONS.c.serial == columns.serial)
            .where(columns.revoked_unix_s.is_(None), INVITATIONS.c.spent_unix_s.is_(None))
            .group_by(columns.name, columns.role)
        )
        with self._engine.connect() as db:
            expiries = {(name, role): expires for name, role, expires in db.execute(latest)}
            rows = db.execute(select(SITES).order_by(SITES.c.name)).all()
        return tuple(
            SiteRecord(
                SiteName(row.name),
                SiteStatus(row.standing),
                member_of(row),
                expiries.get((row.name, Role.SITE), 0.0),
                expiries.get((row.name, Role.BOOTSTRAP), 0.0),
            )
            for row in rows
        )

    def members(self, names: Sequence[SiteName]) -> tuple[Member, ...]:
        """The public keys of those of ``names`` that have joined, in the order of ``names``."""
        with self._engine.connect() as db:
            rows = db.execute(select(SITES).where(SITES.c.name.in_(names))).all()
        found = {row.name: member for row in rows if (member := member_of(row)) is not None}
        return tuple(found[name] for name in names if name in found)

    def earlier_keys(self, site: SiteName) -> tuple[bytes, ...]:
        """The signing keys that a site had before it was revoked and invited again."""
        with self._engine.connect() as db:
            return tuple(db.scalars(select(EARLIER_KEYS.c.signing_key).where(EARLIER_KEYS.c.site == site)))

    def _revocation(self, name: str, role: Role) -> Update:
        columns = CERTIFICATES.c
        valid = (columns.name == name, columns.role == role, columns.revoked_unix_s.is_(None))
        return update(CERTIFICATES).where(*valid).values(revoked_unix_s=self._clock())


def _text(serial: int) -> str:
    return f"{serial:x}"


def _insert_certificate(db: Connection, issued: Issued, expires_unix_s: float) -> None:
    db.execute(
        insert(CERTIFICATES).values(
            serial=_text(issued.serial),
            role=issued.subject.role,
            name=issued.subject.name,
            expires_unix_s=expires_unix_s,
        )
    )


def _kept_key(site: SiteName, row: Row[Any] | None) -> bytes:
    """The key that a site has to show again."""
    if row is None or row.standing != SiteStatus.ACTIVE:
        raise WrongStateError(
            f"The site {site} has no keys to keep",
            expected="a site that has joined",
            got="a site that is unknown" if row is None else f"a site that is {row.standing}",
            action=f"Use `quorate site invite {site}`",
        )
    key: bytes = row.signing_key
    return key


def _enter_invited(db: Connection, site: SiteName, row: Row[Any] | None) -> None:
    """From now on the name is that of a site that is invited and has no keys yet."""
    if row is None:
        db.execute(insert(SITES).values(name=site, standing=SiteStatus.INVITED))
    elif row.standing == SiteStatus.ACTIVE:
        raise AlreadyExistsError(
            f"The site {site} has joined already",
            action=f"`quorate site reinvite {site}` gives it a new certificate for the keys that it has; for new keys, "
            f"revoke it first with `quorate site revoke {site}`: studies that name it must then be published anew",
        )
    else:
        if row.signing_key is not None:
            known = (EARLIER_KEYS.c.signing_key == row.signing_key, EARLIER_KEYS.c.site == site)
            db.execute(delete(EARLIER_KEYS).where(*known))
            db.execute(insert(EARLIER_KEYS).values(signing_key=row.signing_key, site=site))
        fresh = {"standing": SiteStatus.INVITED, "signing_key": None, "sealing_key": None, "sealing_proof": None}
        db.execute(update(SITES).where(SITES.c.name == site).values(fresh))


def _check_invited(invitation: Row[Any], member: Member) -> None:
    if member.name != invitation.site:
        raise IdentityError(
            "The invitation is for another site",
            expected=invitation.site,
            got=member.name,
            action="Join under the name that the operator invited, or ask for another invitation",
        )
    if invitation.kept_signing_key not in (None, member.signing_key):
        raise KeyMismatchError(
            f"The invitation renews the identity of {member.name}, which has another signing key",
            expected=fingerprint(invitation.kept_signing_key),
            got=member.fingerprint,
            action="Join with the state folder that holds the site's keys; if they are lost, have the operator revoke "
            "the site and invite it again",
        )


def _check_key_is_new(db: Connection, member: Member) -> None:
    """Two sites with one key would be one site with two votes."""
    others = (SITES.c.signing_key == member.signing_key, SITES.c.name != member.name)
    holder = db.execute(select(SITES.c.name).where(*others)).scalar()
    if holder is not None:
        raise KeyMismatchError(
            f"Another site, {holder}, has the signing key that {member.name} wants to join with",
            action="Join with an empty state folder, so that new keys are made; never copy one from another site",
        )


def _issued_before(db: Connection, invitation: Row[Any], subject: Subject) -> Issued:
    expires = select(CERTIFICATES.c.expires_unix_s).where(CERTIFICATES.c.serial == invitation.issued_serial)
    return Issued(
        subject, int(invitation.issued_serial, 16), invitation.issued_pem, int(db.execute(expires).scalar_one())
    )


def _no_site(site: str) -> NotFoundError:
    return NotFoundError(f"There is no site {site}", action="`quorate site list` shows all sites")


def _revoked(subject: Subject) -> CertificateRevokedError:
    actions = {
        Role.BOOTSTRAP: "It was withdrawn, or a newer one took its place. Ask the operator for a new invitation",
        Role.OPERATOR: "Ask the server's administrator for a new credential: `quorate-server operator add`",
    }
    thing = "The invitation" if subject.role is Role.BOOTSTRAP else "The certificate"
    return CertificateRevokedError(
        f"{thing} of {subject.name} does not count (any more)",
        action=actions.get(
            subject.role, "Ask the operator whether the site was revoked; if not, for a `site reinvite`"
        ),
    )


def _expired(subject: Subject) -> IdentityError:
    if subject.role is Role.BOOTSTRAP:
        return InvitationExpiredError(
            f"The invitation of {subject.name} has expired", action="Ask the operator for a new one"
        )
    return CertificateExpiredError(
        f"The certificate of {subject.name} has expired",
        action="Ask the operator for `quorate site reinvite`"
        if subject.role is Role.SITE
        else "Ask the server's administrator for a new credential: `quorate-server operator add`",
    )
