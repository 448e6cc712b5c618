"""The entries of a site's privacy ledger and the chain that they form: plain values.

An entry's content is canonical JSON (RFC 8785). Its hash covers the hash of the entry before it, so that none can be
changed, left out or put in between without changing all later ones, and the site signs number and hash: an entry with
its signature is a receipt, and the newest one vouches for the whole ledger.

Servers are shown the hashes. An entry's content can be guessed but for the number of records behind it, so each has a
salt: without it whoever sees the hash would try one number after another.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from quorate.errors import LedgerError, QuorateError
from quorate.privacy.events import Event
from quorate.privacy.ledger_head import SignedHead, sign_head

GENESIS = bytes(32)
"""What stands for the hash before the first entry's."""
TRAIN, EVALUATE, SYNTHESISE = "train", "evaluate", "synthesise"
"""Purposes of computations."""
SALT_BYTES = 16
_CONTEXT = b"quorate/ledger-entry/v3\x00"

Unit = Literal["record", "unit", "site"]
"""What is added or removed: a record, all records of one unit of the data set (a patient, say), or a site's update."""
Part = Literal["training", "test"]
"""The records of a data set that are trained on, or those that are held out."""
EventKind = tuple[float, float]
"""Noise multiplier and sampling rate: only events in which both are the same may be counted together."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a statement of epsilon is about: a part of a data set, and the unit that is added or removed.

    The statements for a record or unit and for the whole site are two, and so are those for a record that is trained on
    and for a held-out one; they are never added. Data sets that are about the same people have one account
    (``sums``), whichever of their names is given here.
    """

    dataset: str
    unit: Unit
    part: Part = "training"

    @property
    def statement(self) -> tuple[Part, bool]:
        """Which of a data set's statements it is. Per record and per unit are one: it is the same people."""
        return self.part, self.unit == "site"

    @property
    def subject(self) -> str:
        """For people, what the statement is about beside the data set."""
        return f"test part, per {self.unit}" if self.part == "test" else f"per {self.unit}"

    def __str__(self) -> str:
        return f"{self.dataset} ({self.subject})"


@dataclass(frozen=True, slots=True)
class Charge:
    """What a computation may release at worst. All but account and events names the computation.

    Args:
        study_digest: 32 bytes.
        purpose: Which computation of the attempt, where there are several.
    """

    account: Account
    study: str
    study_digest: bytes
    run: str
    round_number: int
    attempt: int
    events: tuple[Event, ...]
    purpose: str = TRAIN


@dataclass(frozen=True, slots=True)
class Limits:
    """What the site's policy lets an account come to, at its ``delta``; None is no limit.

    Args:
        delta: The policy's, never a study's: one with a large delta would loosen the limits for all before it.
        plan: What the study lets all of its runs release together.
        counts_unbounded: Whether what was released without a bound passes the limits for a year and for ever.
    """

    delta: float
    plan: tuple[Event, ...] | None = None
    epsilon_per_run: float | None = None
    epsilon_per_year: float | None = None
    epsilon_ever: float | None = None
    counts_unbounded: bool = True


class _Dated(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex")

    salt: bytes = Field(default_factory=lambda: os.urandom(SALT_BYTES), min_length=SALT_BYTES, max_length=SALT_BYTES)
    number: int = Field(ge=1)
    unix_s: float


class Registered(_Dated):
    """A data set was registered. Names stay with their records for ever, and accounts that were joined stay joined.

    Args:
        records: Digest of the file with the records' fingerprints.
        shares: Names under which the same people are known. From here on they all have one account.
    """

    kind: Literal["registered"] = "registered"
    dataset: str
    unit: Unit
    records: bytes = Field(min_length=32, max_length=32)
    shares: tuple[str, ...]


class _OfWork(_Dated):
    study_digest: bytes = Field(min_length=32, max_length=32)
    run: str
    round_number: int


class _Charged(_OfWork):
    """Epsilon is the account's, over all its entries; None where there is no finite one."""

    account: Account
    study: str
    attempt: int
    purpose: str
    events: tuple[Event, ...]
    accountant: str
    delta: float
    epsilon_before: float | None
    epsilon_after: float | None


class Reserved(_Charged):
    """Written before a computation begins, for the most that it may release.

    Args:
        plan: What all runs of the study may release together, empty where nobody says.
    """

    kind: Literal["reserve"] = "reserve"
    plan: tuple[Event, ...] = ()


class Spent(_Charged):
    """Closes a reservation with what was really released."""

    kind: Literal["spend"] = "spend"
    reservation: int


def computation_of(paid: Charge | Reserved | Spent) -> tuple[object, ...]:
    """What names the computation that is paid for."""
    return paid.account, paid.study_digest, paid.run, paid.round_number, paid.attempt, paid.purpose


class Refused(_OfWork):
    """Work that the site declined; it costs nothing."""

    kind: Literal["refused"] = "refused"
    code: str
    account: Account | None = None


PolicyLimits = Mapping[str, float | str | None]
"""What the site's policy bounds spending by, and how that is held, by its keys; None is no limit."""


class Limited(_Dated):
    """The policy's limits are not what they were; written before anything is computed under them."""

    kind: Literal["limits"] = "limits"
    limits: dict[str, float | str | None]

    def loosened(self, before: PolicyLimits) -> list[str]:
        """The keys that allow more than before."""
        keys = sorted({*before, *self.limits})
        return [key for key in keys if _size(self.limits.get(key)) > _size(before.get(key))]


def _size(limit: float | str | None) -> float:
    """How much it allows. The larger delta is, the less epsilon the same releases come to."""
    if isinstance(limit, str):
        return 0.0 if limit == "refuse" else math.inf
    return math.inf if limit is None else limit


class Unbounded(_OfWork):
    """Written before records are used in a way that no epsilon bounds, once a day for each run and data set.

    Args:
        account: None where the code may read any records of the site: a guest app without a data set.
    """

    kind: Literal["unbounded"] = "unbounded"
    study: str
    account: Account | None

    @property
    def use(self) -> tuple[bytes, str]:
        """What names the run: of a study, on whatever server."""
        return self.study_digest, self.run


Content = Registered | Reserved | Spent | Refused | Limited | Unbounded
_CONTENT: TypeAdapter[Content] = TypeAdapter(Annotated[Content, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry in its place in the chain: a receipt. ``text`` is the canonical JSON of ``content``."""

    content: Content
    text: bytes
    head: SignedHead

    @property
    def number(self) -> int:
        return self.head.number


def make_entry(content: Content, previous: bytes, signing_key: Ed25519PrivateKey) -> Entry:
    """Put a content after the entry with the hash ``previous``, and sign it."""
    text = rfc8785.dumps(content.model_dump(mode="json"))
    return Entry(content, text, sign_head(signing_key, content.number, entry_hash(previous, text)))


def read_entry(text: bytes, head: SignedHead, previous: bytes) -> Entry:
    """An entry as it was stored; its signature is not looked at.

    Raises:
        LedgerError: it is not the one that followed ``previous``.
    """
    if entry_hash(previous, text) != head.hash:
        raise _wrong(head.number, "its hash is not that of its content after the entry before it")
    try:
        content = _CONTENT.validate_json(text)
    except (ValueError, QuorateError) as error:
        raise _wrong(head.number, "its content cannot be read") from error
    if content.number != head.number:
        raise _wrong(head.number, f"it calls itself number {content.number}")
    return Entry(content, text, head)


def check_signature(entry: Entry, signing_keys: Sequence[bytes]) -> None:
    """Raises LedgerError when none of these Ed25519 public keys signed the entry."""
    if not any(entry.head.is_signed_by(key) for key in signing_keys):
        raise _wrong(entry.number, "it is not signed with the site's key")


def entry_hash(previous: bytes, text: bytes) -> bytes:
    """SHA-256 over the hash of the entry before (32 bytes) and the canonical JSON of this one."""
    return hashlib.sha256(_CONTEXT + previous + text).digest()


def _wrong(number: int, problem: str) -> LedgerError:
    return LedgerError(
        f"Entry {number} of the privacy ledger is wrong: {problem}",
        action="Restore the newest copy of ledger.sqlite; nothing is spent without it",
    )


def to_json(entry: Entry) -> dict[str, Any]:
    """An entry for an auditor: content, hash and signature."""
    content = entry.content.model_dump(mode="json")
    return {"entry": content, "hash": entry.head.hash.hex(), "signature": entry.head.signature.hex()}


def from_json(value: Any, previous: bytes, number: int) -> Entry:
    """What ``to_json`` made, as the entry with this number after the one with the hash ``previous``.

    Raises:
        LedgerError: it is not that.
    """
    try:
        text = rfc8785.dumps(value["entry"])
        head = SignedHead(number, bytes.fromhex(value["hash"]), bytes.fromhex(value["signature"]))
    except (KeyError, TypeError, ValueError, QuorateError) as error:
        raise _wrong(number, "it cannot be read") from error
    return read_entry(text, head, previous)
