"""The site's privacy ledger: what its data sets have spent, across studies, runs and servers.

A computation is paid for before it begins (``reserve``, for the most that it may release) and settled before anything
of it leaves the site (``spend``, for what it really released). Whatever happens in between, the epsilon on disk is
never below the true one: a reservation that nobody closes counts in full. The entries are in ``entries``, how they lie
on disk and who has seen them in ``witnessed``, what they add up to in ``sums``, what is too much in ``limits``.

A clock that is set back dates nothing before the newest entry. One that is set forward lets a year pass; what an
account may spend for ever does not depend on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.errors import BudgetExhaustedError, LedgerError, SiteInterruptedError
from quorate.privacy.events import Event
from quorate_client.ledger.entries import (
    Account,
    Charge,
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
    computation_of,
)
from quorate_client.ledger.file import open_file
from quorate_client.ledger.limits import Accountants, described, finite, lasting, over_limit, paid_before, remembering
from quorate_client.ledger.sums import LedgerSums, Posting, costs_at_most, events_of, tally
from quorate_client.ledger.witness import Witness
from quorate_client.ledger.witnessed import DAY_S, WitnessedEntries

MAX_REFUSALS_A_DAY = 200
"""More are not written down: a server that goes on asking would fill the disk."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The entry that pays for a computation, and whether it is still to be settled."""

    number: int
    hash: bytes
    is_open: bool = True


class Ledger:
    """What was paid for and what is left. May be used from several threads and processes at once.

    Args:
        wall: Unix seconds, for what is not given a time.
    """

    def __init__(
        self, entries: WitnessedEntries, accountants: Accountants, wall: Callable[[], float] = time.time
    ) -> None:
        self.entries = entries
        self._accountants = remembering(accountants)
        self._wall = wall

    def close(self) -> None:
        self.entries.close()

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
        with self.entries.appending() as sums:
            reserved = self._reserved(sums, charge, limits, max(now, sums.unix_s))
            problem = paid_before(sums, reserved) or self._over_limit(sums, reserved, limits)
            if problem is None:
                entry = self.entries.append(reserved)
        if problem is not None:
            raise problem
        return Reservation(entry.number, entry.head.hash)

    def paid(self, charge: Charge) -> Reservation | None:
        """What paid for a computation before, if anything did.

        Only for a computation that gives the same bytes however often it is done, and charges the same: to do it again
        releases nothing new. ``reserve`` refuses all others. Raises LedgerError.
        """
        with self.entries.reading() as sums:
            posting = sums.posting_for(computation_of(charge))
        if posting is None or tally(charge.events) != tally(posting.reserved.events):
            return None
        return Reservation(posting.entry.number, posting.entry.head.hash, posting.is_open)

    def foresee(self, charge: Charge, limits: Limits, now: float) -> None:
        """Refuse now what ``reserve`` would refuse later, so that nothing else is spent for it. Pays for nothing.

        Args:
            charge: Without events it asks whether what the study plans, in ``limits``, stays within the others.

        Raises:
            As ``reserve`` does, but for what was paid for before.
        """
        with self.entries.appending() as sums:
            problem = self._over_limit(sums, self._reserved(sums, charge, limits, max(now, sums.unix_s)), limits)
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
        with self.entries.appending() as sums:
            posting = sums.open_posting(reservation.number, reservation.hash)
            if not costs_at_most(tally(events), posting.counts):
                raise LedgerError(
                    "A computation released more than was reserved for it, so nothing of it may leave this site",
                    expected=f"at most {described(events_of(posting.counts))}",
                    got=described(events),
                    action="This is a mistake in the program; report it",
                )
            return self.entries.append(self._spent(sums, posting, tuple(events)))

    def refuse(self, study_digest: bytes, run: str, round_number: int, code: str) -> None:
        """Write down that work was declined. The same refusal is written once, and not any number of others."""
        with self.entries.appending() as sums:
            refused = Refused(
                number=sums.number + 1,
                unix_s=max(self._wall(), sums.unix_s),
                study_digest=study_digest,
                run=run,
                round_number=round_number,
                code=code,
            )
            self._append_refusal(sums, refused)

    def note_limits(self, limits: PolicyLimits) -> None:
        """Write down the policy's limits if they are not those that were written last.

        Raises:
            LedgerError, DiskFullError, WrongStateError: nothing may be computed under limits that nobody will know of.
        """
        with self.entries.reading() as sums:
            if limits == _newest_limits(sums, limits):
                return
        with self.entries.appending() as sums:
            if limits != _newest_limits(sums, limits):
                unix_s = max(self._wall(), sums.unix_s)
                self.entries.append(Limited(number=sums.number + 1, unix_s=unix_s, limits=dict(limits)))

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

        def use(sums: LedgerSums) -> Unbounded:
            return Unbounded(
                number=sums.number + 1,
                unix_s=max(self._wall(), sums.unix_s),
                study_digest=study_digest,
                run=run,
                round_number=0,
                study=study,
                account=account,
            )

        with self.entries.reading() as sums:  # before each training: it keeps nobody from writing
            if self.entries.holds_use(use(sums)):
                return
        with self.entries.appending(require_newest=False) as sums:
            self.entries.append_use(use(sums))

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
        with self.entries.appending() as sums:
            registered = Registered(
                number=sums.number + 1,
                unix_s=max(self._wall(), sums.unix_s),
                dataset=dataset,
                unit=unit,
                records=records,
                shares=tuple(shared_with(sums.registered)),
            )
            self.entries.append(registered)
            return sums.names(dataset)

    def is_registered(self, dataset: str, records: bytes) -> bool:
        """Whether these records have their account under this name. Raises LedgerError."""
        with self.entries.reading() as sums:
            return (dataset, records) in sums.registered

    # --- reading ---

    def events(self, account: Account, run: str | None = None) -> list[Event]:
        """What counts against an account, in all or in one run: one event of each noise and sampling rate."""
        with self.entries.reading() as sums:
            return list(sums.ever(account) if run is None else sums.of_run(account, run))

    def events_of_study(self, account: Account, study_digest: bytes) -> list[Event]:
        """The part of ``events`` that a study spent, in all of its runs."""
        with self.entries.reading() as sums:
            return list(sums.of_study(account, study_digest))

    def committed(self, account: Account, besides: bytes) -> list[Event]:
        """What all studies that were begun may release, but the one with this digest."""
        with self.entries.reading() as sums:
            return list(sums.committed(account, besides=besides))

    def unbounded(self, account: Account) -> list[Unbounded]:
        """The runs that used the account's records without a bound."""
        with self.entries.reading() as sums:
            return sums.unbounded(account)

    def spent(self, account: Account, delta: float) -> float:
        """The account's epsilon over all its entries, by the adaptive accountant; infinite without a bound."""
        return math.inf if self.unbounded(account) else self._accountants.adaptive(self.events(account), delta)

    def left(self, account: Account, limits: Limits) -> float:
        """What the limit for ever leaves for studies that are not begun; infinite without one."""
        with self.entries.reading() as sums:
            held = lasting(sums, account, limits, self._accountants, sums.unix_s)
            return next((each.left for each in held if each.name == "epsilon_ever"), math.inf)

    # --- entries ---

    def _reserved(self, sums: LedgerSums, charge: Charge, limits: Limits, unix_s: float) -> Reserved:
        before = sums.ever(charge.account)
        return Reserved(
            number=sums.number + 1,
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
            epsilon_before=self._epsilon(sums, charge.account, before, limits.delta),
            epsilon_after=self._epsilon(sums, charge.account, (*before, *charge.events), limits.delta),
        )

    def _spent(self, sums: LedgerSums, posting: Posting, events: tuple[Event, ...]) -> Spent:
        reserved = posting.reserved
        before = sums.ever(reserved.account)
        after = tally(before)
        after.subtract(posting.counts)
        after.update(tally(events))
        return Spent(
            number=sums.number + 1,
            unix_s=max(self._wall(), sums.unix_s),
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
            epsilon_before=self._epsilon(sums, reserved.account, before, reserved.delta),
            epsilon_after=self._epsilon(sums, reserved.account, events_of(after), reserved.delta),
            reservation=reserved.number,
        )

    def _epsilon(self, sums: LedgerSums, account: Account, events: Sequence[Event], delta: float) -> float | None:
        return None if sums.unbounded(account) else finite(self._accountants.adaptive(events, delta))

    def _over_limit(self, sums: LedgerSums, reserved: Reserved, limits: Limits) -> BudgetExhaustedError | None:
        """The refusal of a reservation, which was written down."""
        problem = over_limit(sums, reserved, limits, self._accountants)
        if problem is not None:
            self._append_refusal(sums, _refusal_of(reserved, problem.code))
        return problem

    def _append_refusal(self, sums: LedgerSums, refused: Refused) -> None:
        if (refused.study_digest, refused.run, refused.round_number, refused.code) in sums.refusals:
            return
        last = sums.refused_unix_s[-MAX_REFUSALS_A_DAY:]
        if len(last) < MAX_REFUSALS_A_DAY or last[0] <= refused.unix_s - DAY_S:
            self.entries.append(refused)


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
        return Ledger(WitnessedEntries(open_file(path), witness, signing_key), accountants, wall)
    except BaseException:
        witness.close()
        raise


def _newest_limits(sums: LedgerSums, now: PolicyLimits) -> PolicyLimits:
    """What was written last of the limits; before anything was, there are none, however they would be held."""
    if sums.limits:
        return sums.limits[-1].limits
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
