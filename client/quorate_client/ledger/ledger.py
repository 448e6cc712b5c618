"""The site's privacy ledger: what its data sets have spent, across studies, runs and servers.

A computation is paid for before it begins (``reserve``, for the most that it may release) and settled before anything
of it leaves the site (``spend``, for what it really released). Whatever happens in between, the epsilon on disk is
never below the true one: a reservation that nobody closes counts in full. The chain of entries is in
``entries``, what they add up to in ``sums``, what is too much in ``limits``.

An older ledger put in the place of this one is found out by its witnesses (``witness``): the site's other
database, and the servers, which repeat the newest head that they were shown. One whose entries were signed with a key
of which that database knows nothing has lost its witness, and is refused as well. There is no command that accepts a
loss: what was spent and forgotten cannot be known.

A clock that is set back dates nothing before the newest entry. One that is set forward lets a year pass; what an
account may spend for ever does not depend on it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.errors import BudgetExhaustedError, LedgerError, LedgerRolledBackError, SiteInterruptedError
from quorate.privacy.events import Event
from quorate.privacy.ledger_head import SignedHead
from quorate_client.ledger.entries import (
    GENESIS,
    Account,
    Charge,
    Content,
    Entry,
    Limited,
    Limits,
    PolicyLimits,
    Refused,
    Registered,
    Reserved,
    Spent,
    Unbounded,
    Unit,
    make_entry,
)
from quorate_client.ledger.file import LedgerFile, open_file
from quorate_client.ledger.limits import Accountants, described, finite, lasting, over_limit, paid_before, remembering
from quorate_client.ledger.sums import LedgerSums, Posting, book_of, costs_at_most, events_of, tally, verify
from quorate_client.ledger.witness import Witness

log = structlog.get_logger()

MAX_REFUSALS_A_DAY = 200
"""More are not written down: a server that goes on asking would fill the disk."""
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """The entry that pays for a computation."""

    number: int
    hash: bytes


class Ledger:
    """The entries and their sums. May be used from several threads and processes at once.

    Args:
        wall: Unix seconds, for what is not given a time.
    """

    def __init__(
        self,
        file: LedgerFile,
        witness: Witness,
        signing_key: Ed25519PrivateKey,
        accountants: Accountants,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.file = file
        self._witness = witness
        self._signing_key = signing_key
        self._public_key = signing_key.public_key().public_bytes_raw()
        witness.signs_with(self._public_key)
        self._accountants = remembering(accountants)
        self._wall = wall
        self._lock = threading.Lock()
        self._head: SignedHead | None = None
        self._start_anew()

    def close(self) -> None:
        self.file.close()
        self._witness.close()

    # --- spending ---

    def reserve(self, charge: Charge, limits: Limits, now: float) -> Reservation:
        """Pay for a computation before it begins; on disk and witnessed when this returns.

        A computation (account, study, run, round, attempt, purpose) is paid for once (``paid_before`` says why).
        May take seconds, in which an accountant computes.

        Args:
            now: Unix seconds.

        Raises:
            BudgetExhaustedError: it would pass a limit; only the refusal was written.
            SiteInterruptedError: it was paid for before.
            LedgerRolledBackError: the ledger is older than it was seen to be. LedgerError: it cannot be used.
            DiskFullError, WrongStateError: it could not be written, or not be witnessed.
            Nothing may be computed in any of these cases.
        """
        problem: BudgetExhaustedError | SiteInterruptedError | None
        with self._appending() as book:
            reserved = self._reserved(book, charge, limits, max(now, book.unix_s))
            problem = paid_before(book, reserved) or self._over_limit(book, reserved, limits)
            if problem is None:
                entry = self._append(book, reserved)
        if problem is not None:
            raise problem
        return Reservation(entry.number, entry.head.hash)

    def foresee(self, charge: Charge, limits: Limits, now: float) -> None:
        """Refuse now what ``reserve`` would refuse later, so that nothing else is spent for it. Pays for nothing.

        Args:
            charge: Without events it asks whether what the study plans, in ``limits``, stays within the others.

        Raises:
            As ``reserve`` does, but for what was paid for before.
        """
        with self._appending() as book:
            problem = self._over_limit(book, self._reserved(book, charge, limits, max(now, book.unix_s)), limits)
        if problem is not None:
            raise problem

    def spend(self, reservation: Reservation, events: Sequence[Event]) -> Entry:
        """Settle a reservation before anything of the computation leaves the site; the entry is the receipt.

        Args:
            events: What was really released: of each noise and sampling rate at most as many as were reserved.

        Raises:
            LedgerError: more than was reserved, or the reservation is closed, or the ledger cannot be used.
            DiskFullError, WrongStateError: it could not be written, or not be witnessed.
            In each case the reservation counts in full, and nothing of the computation may leave.
        """
        with self._appending() as book:
            posting = book.open_posting(reservation.number, reservation.hash)
            if not costs_at_most(tally(events), posting.counts):
                raise LedgerError(
                    "A computation released more than was reserved for it, so nothing of it may leave this site",
                    expected=f"at most {described(events_of(posting.counts))}",
                    got=described(events),
                    action="This is a mistake in the program; report it",
                )
            return self._append(book, self._spent(book, posting, tuple(events)))

    def refuse(self, study_digest: bytes, run: str, round_number: int, code: str) -> None:
        """Write down that work was declined. The same refusal is written once, and not any number of others."""
        with self._appending() as book:
            refused = Refused(
                number=book.number + 1,
                unix_s=max(self._wall(), book.unix_s),
                study_digest=study_digest,
                run=run,
                round_number=round_number,
                code=code,
            )
            self._append_refusal(book, refused)

    def note_limits(self, limits: PolicyLimits) -> None:
        """Write down the policy's limits if they are not those that were written last.

        Raises:
            LedgerError, DiskFullError, WrongStateError: nothing may be computed under limits that nobody will know of.
        """
        with self._reading() as book:
            if limits == _newest_limits(book, limits):
                return
        with self._appending() as book:
            if limits != _newest_limits(book, limits):
                unix_s = max(self._wall(), book.unix_s)
                self._append(book, Limited(number=book.number + 1, unix_s=unix_s, limits=dict(limits)))

    def record_unbounded(self, account: Account | None, study: str, study_digest: bytes, run: str) -> None:
        """Write down, before records are touched, that a run uses them in a way that no epsilon bounds; once a day for
        a run, so that a year counts from its last use.

        A ledger that lost entries takes it too: it says the most that an entry can say, whatever was forgotten. No
        witness sees its head then, or it would take the place of what was lost. The other database keeps the use until
        the ledger is whole again, and it is written there anew.

        Args:
            account: None where the code may read any records of the site.

        Raises:
            LedgerError, DiskFullError, WrongStateError: it could not be written, and no record may be touched.
        """
        with self._appending(require_newest=False) as book:
            use = Unbounded(
                number=book.number + 1,
                unix_s=max(self._wall(), book.unix_s),
                study_digest=study_digest,
                run=run,
                round_number=0,
                study=study,
                account=account,
            )
            if self._distrusted() is not None:
                self._witness.keep(use)
            self._append_use(book, use)

    # --- accounts ---

    def register(
        self,
        dataset: str,
        unit: Unit,
        records: bytes,
        shared_with: Callable[[Sequence[tuple[str, bytes]]], Sequence[str]],
    ) -> set[str]:
        """Give a data set its account: its own, or that of the data sets that are about the same people.

        Args:
            records: Digest of its records' fingerprints.
            shared_with: Finds those among the names and fingerprints of all that were ever registered. Its errors
                pass through, and then nothing was registered.

        Returns:
            All names that have the account in common.

        Raises:
            LedgerRolledBackError: the ledger is older than it was seen to be. LedgerError: it cannot be used.
        """
        with self._appending() as book:
            registered = Registered(
                number=book.number + 1,
                unix_s=max(self._wall(), book.unix_s),
                dataset=dataset,
                unit=unit,
                records=records,
                shares=tuple(shared_with(book.registered)),
            )
            self._append(book, registered)
            return book.names(dataset)

    def is_registered(self, dataset: str, records: bytes) -> bool:
        """Whether these records have their account under this name. Raises LedgerError."""
        with self._reading() as book:
            return (dataset, records) in book.registered

    # --- witnesses ---

    def head(self) -> SignedHead | None:
        """The number and hash of the newest entry, signed: for servers to keep and repeat. None without entries, and of
        a ledger that lost some: a server would forget what it lost.

        The newest on disk that this process wrote or read; does not wait for a reservation that is being made.
        """
        if self._head is None:
            with self._reading():
                pass
        return self._head

    def check_witness(self, head: SignedHead, *, is_earlier: bool = False) -> None:
        """Compare what a server repeated. If the ledger does not hold it, ``reserve`` refuses from now on.

        A head that this site did not sign, with the key that it has or one that it had, is passed over: a server must
        not be able to stop a site. A ledger that never paid for anything believes the server of an ``earlier`` key of
        this site: there one was deleted, and has nothing to say against it.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._reading() as book:
            is_own = any(head.is_signed_by(key) for key in self._witness.signing_keys())
            if not (is_own or (is_earlier and not book.paid)):
                log.warning("the server repeats a head of the privacy ledger that this site did not sign")
                return
            if self.file.holds(head.number, head.hash):
                return
            self._witness.was_told(head)
            self._head = None
        log.error("the privacy ledger is not what the server has seen of it", seen=head.number)

    def require_newest(self) -> None:
        """Raises LedgerRolledBackError when the ledger does not hold what it was seen to hold."""
        with self._reading():
            if (problem := self._distrusted()) is not None:
                raise problem

    # --- reading ---

    def events(self, account: Account, run: str | None = None) -> list[Event]:
        """What counts against an account, in all or in one run: one event of each noise and sampling rate."""
        with self._reading() as book:
            return list(book.ever(account) if run is None else book.of_run(account, run))

    def events_of_study(self, account: Account, study_digest: bytes) -> list[Event]:
        """The part of ``events`` that a study spent, in all of its runs."""
        with self._reading() as book:
            return list(book.of_study(account, study_digest))

    def committed(self, account: Account, besides: bytes) -> list[Event]:
        """What all studies that were begun may release, but the one with this digest."""
        with self._reading() as book:
            return list(book.committed(account, besides=besides))

    def unbounded(self, account: Account) -> list[Unbounded]:
        """The runs that used the account's records without a bound."""
        with self._reading() as book:
            return book.unbounded(account)

    def spent(self, account: Account, delta: float) -> float:
        """The account's epsilon over all its entries, by the adaptive accountant; infinite without a bound."""
        return math.inf if self.unbounded(account) else self._accountants.adaptive(self.events(account), delta)

    def left(self, account: Account, limits: Limits) -> float:
        """What the limit for ever leaves for studies that are not begun; infinite without one."""
        with self._reading() as book:
            held = lasting(book, account, limits, self._accountants, book.unix_s)
            return next((each.left for each in held if each.name == "epsilon_ever"), math.inf)

    def entries(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            LedgerError: naming the first one that does not follow from the one before it.
        """
        self._write_kept()
        with self._lock:
            return list(self.file.entries_from(1, GENESIS))

    def book(self) -> LedgerSums:
        """The sums of all entries, read anew: they stay as they are when others are written."""
        return book_of(self.entries())

    def verify(self, earlier_keys: Sequence[bytes] = ()) -> LedgerSums:
        """Walk the whole ledger: chain, signatures, and whether each entry may be where it is.

        Args:
            earlier_keys: Ed25519 public keys that the site had before the one it has now.

        Raises:
            LedgerError: naming the first wrong entry. LedgerRolledBackError.
        """
        book = verify(self.entries(), (self._public_key, *earlier_keys))
        self.require_newest()
        return book

    # --- entries ---

    def _reserved(self, book: LedgerSums, charge: Charge, limits: Limits, unix_s: float) -> Reserved:
        before = book.ever(charge.account)
        return Reserved(
            number=book.number + 1,
            unix_s=unix_s,
            account=charge.account,
            study=charge.study,
            study_digest=charge.study_digest,
            run=charge.run,
            round_number=charge.round_number,
            attempt=charge.attempt,
            purpose=charge.purpose,
            events=charge.events,
            plan=limits.plan or (),
            accountant=self._accountants.name,
            delta=limits.delta,
            epsilon_before=self._epsilon(book, charge.account, before, limits.delta),
            epsilon_after=self._epsilon(book, charge.account, (*before, *charge.events), limits.delta),
        )

    def _spent(self, book: LedgerSums, posting: Posting, events: tuple[Event, ...]) -> Spent:
        reserved = posting.reserved
        before = book.ever(reserved.account)
        after = tally(before)
        after.subtract(posting.counts)
        after.update(tally(events))
        return Spent(
            number=book.number + 1,
            unix_s=max(self._wall(), book.unix_s),
            account=reserved.account,
            study=reserved.study,
            study_digest=reserved.study_digest,
            run=reserved.run,
            round_number=reserved.round_number,
            attempt=reserved.attempt,
            purpose=reserved.purpose,
            events=events,
            accountant=self._accountants.name,
            delta=reserved.delta,
            epsilon_before=self._epsilon(book, reserved.account, before, reserved.delta),
            epsilon_after=self._epsilon(book, reserved.account, events_of(after), reserved.delta),
            reservation=reserved.number,
        )

    def _epsilon(self, book: LedgerSums, account: Account, events: Sequence[Event], delta: float) -> float | None:
        return None if book.unbounded(account) else finite(self._accountants.adaptive(events, delta))

    def _append(self, book: LedgerSums, content: Content) -> Entry:
        entry = make_entry(content, book.hash, self._signing_key)
        self.file.append(entry)
        book.add(entry)
        return entry

    def _over_limit(self, book: LedgerSums, reserved: Reserved, limits: Limits) -> BudgetExhaustedError | None:
        """The refusal of a reservation, which was written down."""
        problem = over_limit(book, reserved, limits, self._accountants)
        if problem is not None:
            self._append_refusal(book, _refusal_of(reserved, problem.code))
        return problem

    def _append_refusal(self, book: LedgerSums, refused: Refused) -> None:
        if (refused.study_digest, refused.run, refused.round_number, refused.code) in book.refusals:
            return
        last = book.refused_unix_s[-MAX_REFUSALS_A_DAY:]
        if len(last) < MAX_REFUSALS_A_DAY or last[0] <= refused.unix_s - _DAY_S:
            self._append(book, refused)

    def _append_use(self, book: LedgerSums, use: Unbounded) -> None:
        """At its time, or if later entries were written since, at theirs; nothing if it is written already."""
        written = (each.unix_s for each in book.unbounded(use.account) if each.use == use.use)
        if max(written, default=-math.inf) < use.unix_s - _DAY_S:
            unix_s = max(use.unix_s, book.unix_s)
            self._append(book, use.model_copy(update={"number": book.number + 1, "unix_s": unix_s}))

    def _write_kept(self) -> None:
        """What was used without a bound while the ledger lacked entries, as soon as it has them."""
        if self._witness.kept():
            with self._appending(require_newest=False):
                pass

    @contextmanager
    def _appending(self, *, require_newest: bool = True) -> Iterator[LedgerSums]:
        """Alone with the newest entries, of which nothing was lost; what is appended is on disk and witnessed after.

        The witness comes second: a crash in between leaves it one entry behind, which the next one mends.
        """
        with self._lock:
            try:
                with self.file.alone():
                    self._catch_up()
                    problem = self._distrusted()
                    if problem is not None and require_newest:
                        raise problem
                    kept = self._witness.kept() if problem is None else []
                    for use in kept:
                        self._append_use(self._book, use)
                    yield self._book
            except BaseException:
                self._start_anew()  # it may hold what was not written: the file is read anew
                raise
            self._head = self._book.head if problem is None else None
            if self._head is not None:
                self._witness.saw(self._head)
            self._witness.release(kept)

    @contextmanager
    def _reading(self) -> Iterator[LedgerSums]:
        self._write_kept()
        with self._lock:
            try:
                self._catch_up()
            except BaseException:
                self._start_anew()
                raise
            self._head = self._book.head if self._distrusted() is None else None
            yield self._book

    def _start_anew(self) -> None:
        self._book = LedgerSums()
        self._stranger: int | None = None
        """The first entry that was signed with a key that is not known as this site's."""

    def _catch_up(self) -> None:
        """Add to the book what is new: each entry is read once, and the chain followed from the last one read."""
        book = self._book
        if book.head is not None and not self.file.holds(book.number, book.hash):
            raise _rolled_back(book.number)
        keys = self._witness.signing_keys()
        for entry in self.file.entries_from(book.number + 1, book.hash):
            book.add(entry)
            if self._stranger is None and not any(entry.head.is_signed_by(key) for key in keys):
                self._stranger = entry.number

    def _distrusted(self) -> LedgerRolledBackError | None:
        """Why nothing is spent on this ledger: it lacks what it was seen to hold, or nobody here saw it before."""
        lost = next((seen for seen in self._witness.heads() if not self.file.holds(seen.number, seen.hash)), None)
        if lost is not None:
            return _rolled_back(lost.number, self._book.number)
        return None if self._stranger is None else _unwitnessed(self._stranger)


def open_ledger(
    path: Path,
    state_path: Path,
    signing_key: Ed25519PrivateKey,
    accountants: Accountants,
    wall: Callable[[], float] = time.time,
) -> Ledger:
    """Open, and on first use create, a site's ledger. One that is gone is created too, and refused by ``reserve``.

    Args:
        state_path: The site's other database, which is the witness.

    Raises:
        LedgerError: it is damaged, or another version wrote it. WrongStateError: the other database cannot be used.
    """
    witness = Witness(state_path)
    try:
        return Ledger(open_file(path), witness, signing_key, accountants, wall)
    except BaseException:
        witness.close()
        raise


def _newest_limits(book: LedgerSums, now: PolicyLimits) -> PolicyLimits:
    """What was written last of the limits; before anything was, there are none, however they would be held."""
    if book.limits:
        return book.limits[-1].limits
    return {key: None if key.startswith("epsilon_") else value for key, value in now.items()}


def _refusal_of(reserved: Reserved, code: str) -> Refused:
    return Refused(
        number=reserved.number,
        unix_s=reserved.unix_s,
        study_digest=reserved.study_digest,
        run=reserved.run,
        round_number=reserved.round_number,
        code=code,
        account=reserved.account,
    )


def _rolled_back(seen: int, newest: int | None = None) -> LedgerRolledBackError:
    return LedgerRolledBackError(
        "The site's privacy ledger is not what it was seen to be, so what it lacks would be spent again",
        expected=f"the entry {seen} that was seen",
        got="another one or none in its place" + (f"; the newest entry is {newest}" if newest is not None else ""),
        action="Restore the newest copy of ledger.sqlite. Without one nobody knows what was spent: use the records of "
        "this site in no private study again",
    )


def _unwitnessed(number: int) -> LedgerRolledBackError:
    return LedgerRolledBackError(
        "Nobody here saw whether the privacy ledger is the newest: it is signed with a key that state.sqlite does not "
        "know as this site's",
        expected="the state.sqlite that was used with this ledger",
        got=f"another or a new one, to which the signature of entry {number} is strange",
        action="Restore the newest copies of ledger.sqlite and state.sqlite together. Without them nobody knows what "
        "was spent: use the records of this site in no private study again",
    )
