"""What a site's privacy ledger adds up to: the sums of its entries, kept as they are read, so that none is read twice.

Pure: entries in, sums out. A reservation counts in full until a spend closes it; one that is never closed (the site
died in between) counts in full for ever. Events are counted by their kind (noise, sampling rate), which loses nothing:
both the PLD and the Renyi curve of a composition depend on the counts alone.

Limits look at what was committed and not at what was spent: a study counts with its whole plan from its first round on.
Were its rounds counted one by one, the round in which the budget ends would tell the server the sampling rate, and
with it the number of records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from quorate.errors import LedgerError
from quorate.privacy.events import Event
from quorate.privacy.ledger_head import SignedHead
from quorate_client.ledger.entries import (
    GENESIS,
    Account,
    Entry,
    EventKind,
    Limited,
    Part,
    Refused,
    Registered,
    Reserved,
    Spent,
    Unbounded,
    Unit,
    check_signature,
    computation_of,
)

YEAR_S = 365 * 86_400.0

Tally = Counter[EventKind]


@dataclass(slots=True)
class Posting:
    """One reservation and what counts of it now."""

    entry: Entry
    reserved: Reserved
    counts: Tally
    is_open: bool = True


@dataclass(slots=True)
class RunSums:
    """What one run of a study cost an account. ``rounds`` are those with a reservation, ``open`` are reservations that
    were not closed."""

    run: str
    study: str
    counts: Tally = field(default_factory=Counter)
    rounds: set[int] = field(default_factory=set)
    open: int = 0
    last_unix_s: float = 0.0


@dataclass(slots=True)
class _Commitment:
    """What a study, or one computation without a plan, counts with against limits."""

    counts: Tally = field(default_factory=Counter)
    last_unix_s: float = 0.0


@dataclass(slots=True)
class _AccountSums:
    ever: Tally = field(default_factory=Counter)
    runs: dict[str, RunSums] = field(default_factory=dict)
    studies: dict[bytes, Tally] = field(default_factory=dict)
    commitments: dict[bytes | int, _Commitment] = field(default_factory=dict)
    """By the study's digest, or by the number of a reservation without a plan."""
    postings: list[Posting] = field(default_factory=list)

    def add(self, other: _AccountSums) -> None:
        """What was charged under another name: it is about the same people."""
        self.ever.update(other.ever)
        for digest, counts in other.studies.items():
            self.studies.setdefault(digest, Counter()).update(counts)
        for run, sums in other.runs.items():
            mine = self.runs.setdefault(run, RunSums(run, sums.study))
            mine.counts.update(sums.counts)
            mine.rounds.update(sums.rounds)
            mine.open += sums.open
            mine.last_unix_s = max(mine.last_unix_s, sums.last_unix_s)
        self.runs = dict(sorted(self.runs.items(), key=lambda item: item[1].last_unix_s))
        self.postings = sorted([*self.postings, *other.postings], key=lambda posting: posting.entry.number)
        for key, commitment in other.commitments.items():
            mine_of = self.commitments.setdefault(key, _Commitment())
            mine_of.counts |= commitment.counts
            mine_of.last_unix_s = max(mine_of.last_unix_s, commitment.last_unix_s)
            # Names that were joined later may have spent one study's plan each.
            mine_of.counts |= self.studies.get(key, Counter()) if isinstance(key, bytes) else Counter()


class LedgerSums:
    """The sums of the entries that were added, in their order."""

    def __init__(self) -> None:
        self.head: SignedHead | None = None
        self.unix_s = 0.0
        """When the newest entry was written; times never fall from one entry to the next."""
        self.refusals: set[tuple[bytes, str, int, str]] = set()
        self.refused_unix_s: list[float] = []
        self.limits: list[Limited] = []
        """What the policy's limits were, oldest first; none before the first."""
        self.registered: list[tuple[str, bytes]] = []
        """The names and fingerprints of all data sets that were ever registered."""
        self._names: dict[str, set[str]] = {}
        self._accounts: dict[Account, _AccountSums] = {}
        self._unbounded: dict[Account | None, dict[tuple[bytes, str], Unbounded]] = {}
        self._postings: dict[int, Posting] = {}
        self._computations: dict[tuple[object, ...], Posting] = {}

    @property
    def number(self) -> int:
        """Of the newest entry; 0 without one."""
        return self.head.number if self.head else 0

    @property
    def hash(self) -> bytes:
        return self.head.hash if self.head else GENESIS

    def add(self, entry: Entry) -> None:
        """The next entry.

        Raises:
            LedgerError: it cannot follow; the sums are of no use then.
        """
        content = entry.content
        if entry.number != self.number + 1 or not content.unix_s >= self.unix_s:
            raise _impossible(entry.number, f"number {self.number + 1}, not dated before the entry in front of it")
        match content:
            case Registered():
                self._register(content)
            case Reserved():
                self._reserve(entry, content)
            case Spent():
                self._spend(content)
            case Refused():
                self.refusals.add((content.study_digest, content.run, content.round_number, content.code))
                self.refused_unix_s.append(content.unix_s)
            case Limited():
                self.limits.append(content)
            case Unbounded():
                self._unbounded.setdefault(content.account, {})[content.use] = content
            case _:
                assert_never(content)
        self.head, self.unix_s = entry.head, content.unix_s

    @property
    def paid(self) -> bool:
        """Whether anything was ever paid for."""
        return bool(self._postings)

    def paid_for(self, computation: tuple[object, ...]) -> bool:
        """Whether there was a reservation for it, open or closed."""
        return computation in self._computations

    def posting_for(self, computation: tuple[object, ...]) -> Posting | None:
        """The reservation that paid for it."""
        return self._computations.get(computation)

    def open_posting(self, number: int, entry_hash: bytes) -> Posting:
        """The open reservation with this number and hash. Raises LedgerError when there is none."""
        posting = self._postings.get(number)
        if posting is None or posting.entry.head.hash != entry_hash:
            raise LedgerError("The privacy ledger holds no such reservation", got=f"number {number}")
        if not posting.is_open:
            raise LedgerError("A reservation in the privacy ledger is closed once", got=f"number {number} again")
        return posting

    # --- sums ---

    def accounts(self) -> list[Account]:
        """Each once, by the first of its names; per record as soon as anything in it was."""
        units: dict[tuple[str, Part, bool], set[Unit]] = {}
        named = {account for account in self._unbounded if account is not None}
        for account in self._accounts.keys() | named:
            units.setdefault((min(self.names(account.dataset)), *account.statement), set()).add(account.unit)
        return sorted((Account(name, min(found), part) for (name, part, _), found in units.items()), key=str)

    def names(self, dataset: str) -> set[str]:
        """All data sets with which one has its account in common, itself among them."""
        return self._names.get(dataset, {dataset})

    def runs(self, account: Account) -> list[RunSums]:
        """Oldest first."""
        return list(self._sums(account).runs.values())

    def unbounded(self, account: Account | None, since_unix_s: float = -math.inf) -> list[Unbounded]:
        """The runs that used an account's records without a bound, each by its newest entry, oldest first; of None
        those that may have used any records of the site, which count for each data set. The statement of a whole site
        is not about records."""
        if account is not None and account.unit == "site":
            return []
        uses = sorted(
            (
                each
                for used, of_account in self._unbounded.items()
                if used is None or (account is not None and self._is_same(used, account))
                for each in of_account.values()
            ),
            key=lambda each: each.number,
        )
        newest = {each.use: each for each in uses}.values()
        return sorted((each for each in newest if each.unix_s > since_unix_s), key=lambda each: each.number)

    def committed(
        self, account: Account, since_unix_s: float = -math.inf, besides: bytes | None = None
    ) -> tuple[Event, ...]:
        """The whole plans of the studies that were begun, of those that reserved something since then.

        Args:
            besides: The digest of a study that is left out.
        """
        counts: Tally = Counter()
        for key, commitment in self._sums(account).commitments.items():
            if key != besides and commitment.last_unix_s > since_unix_s:
                counts.update(commitment.counts)
        return events_of(counts)

    def ever(self, account: Account) -> tuple[Event, ...]:
        return events_of(self._sums(account).ever)

    def of_run(self, account: Account, run: str) -> tuple[Event, ...]:
        sums = self._sums(account).runs.get(run)
        return () if sums is None else events_of(sums.counts)

    def of_study(self, account: Account, study_digest: bytes) -> tuple[Event, ...]:
        """Of all its runs, on whatever servers."""
        return events_of(self._sums(account).studies.get(study_digest, Counter()))

    def of_last_year(self, account: Account, unix_s: float) -> tuple[Event, ...]:
        """What was reserved in the 365 days before: all but what is older, which the first entries are."""
        sums = self._sums(account)
        counts = sums.ever.copy()
        for posting in sums.postings:
            if posting.reserved.unix_s > unix_s - YEAR_S:
                break
            counts.subtract(posting.counts)
        return events_of(counts)

    def _sums(self, account: Account) -> _AccountSums:
        """Of an account under all its names."""
        found = [sums for each, sums in self._accounts.items() if self._is_same(each, account)]
        if len(found) == 1:
            return found[0]
        together = _AccountSums()
        for sums in found:
            together.add(sums)
        return together

    def _is_same(self, one: Account, other: Account) -> bool:
        """Whether two accounts make one statement about the same people."""
        return one.statement == other.statement and one.dataset in self.names(other.dataset)

    # --- entries ---

    def _register(self, registered: Registered) -> None:
        """The names are one group from here on, and so are those with which each of them was one."""
        group: set[str] = set().union(*(self.names(name) for name in (registered.dataset, *registered.shares)))
        self._names |= dict.fromkeys(group, group)
        self.registered.append((registered.dataset, registered.records))

    def _reserve(self, entry: Entry, reserved: Reserved) -> None:
        if self.paid_for(computation_of(reserved)):
            raise _impossible(entry.number, "one reservation for each computation")
        posting = Posting(entry, reserved, tally(reserved.events))
        sums = self._accounts.setdefault(reserved.account, _AccountSums())
        run = sums.runs.setdefault(reserved.run, RunSums(reserved.run, reserved.study))
        self._computations[computation_of(reserved)] = posting
        self._postings[entry.number] = posting
        sums.postings.append(posting)
        commitment = sums.commitments.setdefault(_commitment_key(posting), _Commitment())
        commitment.counts |= tally(reserved.plan) or posting.counts
        commitment.last_unix_s = reserved.unix_s
        sums.ever.update(posting.counts)
        run.counts.update(posting.counts)
        sums.studies.setdefault(reserved.study_digest, Counter()).update(posting.counts)
        run.rounds.add(reserved.round_number)
        run.open += 1
        run.last_unix_s = reserved.unix_s

    def _spend(self, spent: Spent) -> None:
        posting = self._postings.get(spent.reservation)
        if posting is None or not posting.is_open or computation_of(posting.reserved) != computation_of(spent):
            raise _impossible(spent.number, "an open reservation of the same computation that it closes")
        released = tally(spent.events)
        if not costs_at_most(released, posting.counts):
            raise _impossible(spent.number, "no more than was reserved")
        sums = self._accounts[spent.account]
        run = sums.runs[spent.run]
        for total in (sums.ever, run.counts, sums.studies[spent.study_digest]):
            total.subtract(posting.counts)
            total.update(released)
        run.open -= 1
        run.last_unix_s = spent.unix_s
        if not posting.reserved.plan:
            sums.commitments[_commitment_key(posting)].counts = released
        posting.counts, posting.is_open = released, False


def sums_of(entries: Iterable[Entry]) -> LedgerSums:
    """Raises LedgerError at the first entry that cannot follow the ones before it."""
    sums = LedgerSums()
    for entry in entries:
        sums.add(entry)
    return sums


def verify(entries: Iterable[Entry], signing_keys: Sequence[bytes]) -> LedgerSums:
    """Walk a whole ledger whose chain was already followed (``read_entry``): each entry signed, and possible.

    Args:
        signing_keys: The site's Ed25519 public keys, 32 bytes each; several if it joined anew with other keys.

    Raises:
        LedgerError: naming the number of the first wrong entry.
    """
    return sums_of(_signed(entries, signing_keys))


def _signed(entries: Iterable[Entry], signing_keys: Sequence[bytes]) -> Iterator[Entry]:
    for entry in entries:
        check_signature(entry, signing_keys)
        yield entry


def tally(events: Iterable[Event]) -> Tally:
    counts: Tally = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_rate] += event.count
    return counts


def costs_at_most(released: Tally, reserved: Tally) -> bool:
    """Of each kind no more: then every accountant gives at most the same epsilon. Other noise does not compare."""
    return all(count <= reserved[kind] for kind, count in released.items())


def events_of(counts: Tally) -> tuple[Event, ...]:
    """One event of each kind, in an order that depends on nothing else."""
    return tuple(_events(counts))


def _events(counts: Tally) -> Iterator[Event]:
    for (noise, rate), count in sorted(counts.items()):
        if count:
            yield Event(noise, rate, count)


def _commitment_key(posting: Posting) -> bytes | int:
    return posting.reserved.study_digest if posting.reserved.plan else posting.entry.number


def _impossible(number: int, expected: str) -> LedgerError:
    return LedgerError(
        f"Entry {number} of the privacy ledger cannot be where it is",
        expected=expected,
        action="Restore the newest copy of ledger.sqlite; nothing is spent without it",
    )
