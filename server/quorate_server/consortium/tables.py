"""The tables of the registry, and their rows as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Float, ForeignKey, LargeBinary, Row, String, Table

from quorate.identity import Member, SiteName
from quorate.study.readiness import Readiness
from quorate.study.study import Study
from quorate_server.storage.database import METADATA

SITES = Table(
    "sites",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("standing", String(16), nullable=False),
    Column("signing_key", LargeBinary(32), unique=True),
    Column("sealing_key", LargeBinary(32)),
    Column("sealing_proof", LargeBinary(64)),
)
# The signing keys that sites had before the ones they have: for whom the heads of their privacy ledgers are kept.
EARLIER_KEYS = Table(
    "earlier_keys",
    METADATA,
    Column("signing_key", LargeBinary(32), primary_key=True),
    Column("site", ForeignKey("sites.name"), primary_key=True),
)
# Serials are text, in hexadecimal: they have 128 bits, more than an integer column holds.
CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("serial", String(32), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("name", String(63), nullable=False, index=True),
    Column("expires_unix_s", Float, nullable=False),
    Column("revoked_unix_s", Float),
)
# The last three columns are what a repeated redemption is recognised by and answered with.
INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("serial", ForeignKey("certificates.serial"), primary_key=True),
    Column("site", ForeignKey("sites.name"), nullable=False, index=True),
    Column("kept_signing_key", LargeBinary(32)),
    Column("spent_unix_s", Float),
    Column("request_digest", LargeBinary(32)),
    Column("issued_serial", String(32)),
    Column("issued_pem", LargeBinary),
)
STUDIES = Table(
    "studies",
    METADATA,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("canonical", LargeBinary, nullable=False),
    Column("published_unix_s", Float, nullable=False),
)
ANSWERS = Table(
    "answers",
    METADATA,
    Column("study_digest", ForeignKey("studies.digest"), primary_key=True),
    Column("site", String(63), primary_key=True),
    Column("answer", String(16), nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("at_unix_s", Float, nullable=False),
)
# What a site said last about a study.
READINESS = Table(
    "readiness",
    METADATA,
    Column("study_digest", ForeignKey("studies.digest"), primary_key=True),
    Column("site", String(63), primary_key=True),
    Column("code", String(64), nullable=False),
    Column("at_unix_s", Float, nullable=False),
)


class SiteStatus(StrEnum):
    """What a site is to the consortium."""

    INVITED = "invited"
    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """A site. ``member`` is None until it has joined; an expiry is 0 where there is nothing that could expire."""

    name: SiteName
    state: SiteStatus
    member: Member | None
    certificate_expires_unix_s: float
    invitation_expires_unix_s: float


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """What a site answered to a study, signed with its own key."""

    site: SiteName
    answer: str
    signature: bytes
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class ReadinessRecord:
    """What a site said last about whether it would work for a study."""

    site: SiteName
    readiness: Readiness
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A published study with the answers so far, by site."""

    digest: bytes
    name: str
    canonical: bytes
    published_unix_s: float
    answers: tuple[AnswerRecord, ...]

    @property
    def study(self) -> Study:
        return parsed(self.canonical)


@dataclass(frozen=True, slots=True)
class OperatorRecord:
    """One operator's credential."""

    name: str
    serial: int
    expires_unix_s: float
    revoked: bool


def member_of(row: Row[Any]) -> Member | None:
    """The public keys in a row of ``SITES``."""
    if row.signing_key is None:
        return None
    return Member(SiteName(row.name), row.signing_key, row.sealing_key, row.sealing_proof)


def readiness_of(row: Row[Any]) -> ReadinessRecord:
    """A row of ``READINESS``."""
    return ReadinessRecord(SiteName(row.site), Readiness(row.code), row.at_unix_s)


@lru_cache(maxsize=128)
def parsed(canonical: bytes) -> Study:
    """The study in a row of ``STUDIES``."""
    return Study.from_canonical(canonical)
