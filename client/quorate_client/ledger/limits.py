"""Whether a reservation stays within what the site's policy lets an account come to.

Pure: sums and limits in, a refusal or nothing out. What events cost is decided by the accountants that are passed in,
so that the daemon imports nothing heavy until there is something to account for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from quorate.errors import BudgetExhaustedError, SiteInterruptedError
from quorate.privacy.events import Event
from quorate_client.ledger.entries import Account, Limits, Reserved, computation_of
from quorate_client.ledger.sums import YEAR_S, LedgerSums, costs_at_most, events_of, tally

WITHOUT_BOUND = "records that were released without a bound"
UNBOUNDED_ACTION = (
    "No limit can hold what was released before. Use other records, or have whoever is responsible for policy.toml set "
    'privacy.unbounded = "set_aside": the limits then hold the rest'
)
SPENT_ACTION = "Use fewer rounds or more noise, or have whoever is responsible for policy.toml change it"

Accountant = Callable[[Sequence[Event], float], float]


@dataclass(frozen=True, slots=True)
class Accountants:
    """How events are composed to an epsilon, at a delta.

    Args:
        name: Stands in each entry.
        planned: For releases whose number was fixed before (PLD).
        adaptive: For releases that may depend on the results of earlier ones (a Renyi filter).
    """

    name: str
    planned: Accountant
    adaptive: Accountant


def shipped_accountants() -> Accountants:
    """Those of ``quorate.privacy.accounting``, which imports numpy: only when there is something to compute."""

    def planned(events: Sequence[Event], delta: float) -> float:
        from quorate.privacy.accounting import epsilon

        return epsilon(events, delta)

    def adaptive(events: Sequence[Event], delta: float) -> float:
        from quorate.privacy.accounting import adaptive_epsilon

        return adaptive_epsilon(events, delta)

    return Accountants("pld-rdp/1", planned, adaptive)


def remembering(accountants: Accountants) -> Accountants:
    """The same, but no question is computed twice while it may come again, and nothing costs nothing."""

    def remember(accountant: Accountant) -> Accountant:
        @lru_cache(maxsize=256)
        def ask(events: tuple[Event, ...], delta: float) -> float:
            return accountant(events, delta) if events else 0.0

        return lambda events, delta: ask(together(events), delta)

    return Accountants(accountants.name, remember(accountants.planned), remember(accountants.adaptive))


def paid_before(sums: LedgerSums, reserved: Reserved) -> SiteInterruptedError | None:
    """The refusal of a second payment for one computation, whether or not the first one was closed.

    After a crash nobody knows whether the computation was begun. To give the old reservation again might pay once for
    two trainings; to make a new one would let a server that asks again and again spend the budget on nothing.
    """
    if not sums.paid_for(computation_of(reserved)):
        return None
    return SiteInterruptedError(
        f"Round {reserved.round_number} of run {reserved.run}, attempt {reserved.attempt}, was paid for before; "
        "this site does not compute again for it",
        action="Have the operator resume the run: the round is then asked for under another attempt",
    )


def over_limit(
    sums: LedgerSums, reserved: Reserved, limits: Limits, accountants: Accountants
) -> BudgetExhaustedError | None:
    """The refusal of a reservation that would pass the study's plan or a limit, naming the first one passed.

    A study is a plan: its cost is what its accountant says of the whole plan, before its first round, and all of its
    runs together stay within it. Which studies come, and when, depends on earlier results, so that a year's and the
    whole sum are held by a filter (Feldman and Zrnic 2021): a study's whole plan is added before its first round, and
    the sum must stay below the limit. So a study is refused at its first round or at none, whatever the number of
    records, unless somebody tightens the limits.
    """
    account, run = reserved.account, reserved.run
    if limits.plan is not None:
        in_all = tally((*sums.of_study(account, reserved.study_digest), *reserved.events))
        if not costs_at_most(in_all, tally(limits.plan)):
            return BudgetExhaustedError(
                f"Round {reserved.round_number} of run {run} would release more than the study {reserved.study} plans",
                expected=f"at most {described(limits.plan)}",
                got=described(events_of(in_all)),
                action="Have the operator publish another study, with more spare rounds: sites approve it anew, and it "
                "spends anew",
            )
    for held in _each_held(sums, reserved, limits, accountants):
        if not held.epsilon <= held.limit:  # a NaN is refused too
            return BudgetExhaustedError(
                f"The study {reserved.study} would spend more of the privacy budget of {account} than this site's "
                "policy allows",
                expected=f"{held.name} = {held.limit:g} at most (delta {limits.delta:g})",
                got=WITHOUT_BOUND if held.is_unbounded else f"{held.epsilon:.4g}",
                action=UNBOUNDED_ACTION if held.is_unbounded else SPENT_ACTION,
            )
    return None


@dataclass(frozen=True, slots=True)
class Held:
    """A limit of the policy, by its key, and the epsilon that is held against it: infinite where records were released
    without a bound."""

    name: str
    limit: float
    epsilon: float
    is_unbounded: bool = False

    @property
    def left(self) -> float:
        return max(0.0, self.limit - self.epsilon)


def lasting(
    sums: LedgerSums,
    account: Account,
    limits: Limits,
    accountants: Accountants,
    unix_s: float,
    besides: bytes | None = None,
    plan: Sequence[Event] = (),
) -> Iterator[Held]:
    """The limits for a year and for ever, with what the studies that were begun come to.

    Args:
        besides, plan: The digest of a study that is not counted as it was begun, and what it comes to in place of that.
    """
    for name, limit, since in (
        ("epsilon_per_year", limits.epsilon_per_year, unix_s - YEAR_S),
        ("epsilon_ever", limits.epsilon_ever, -math.inf),
    ):
        if limit is None:
            continue
        if limits.counts_unbounded and sums.unbounded(account, since):
            yield Held(name, limit, math.inf, is_unbounded=True)
        else:
            events = (*sums.committed(account, since, besides), *plan)
            yield Held(name, limit, accountants.adaptive(events, limits.delta))


def _each_held(sums: LedgerSums, reserved: Reserved, limits: Limits, accountants: Accountants) -> Iterator[Held]:
    account = reserved.account
    if limits.epsilon_per_run is not None:
        of_run = limits.plan or (*sums.of_run(account, reserved.run), *reserved.events)
        yield Held("epsilon_per_run", limits.epsilon_per_run, accountants.planned(of_run, limits.delta))
    besides = reserved.study_digest if limits.plan else None
    plan = limits.plan or reserved.events
    yield from lasting(sums, account, limits, accountants, reserved.unix_s, besides, plan)


def together(events: Sequence[Event]) -> tuple[Event, ...]:
    """One event of each noise and sampling rate."""
    return events_of(tally(events))


def finite(epsilon: float) -> float | None:
    """For an entry, which cannot hold infinity."""
    return epsilon if math.isfinite(epsilon) else None


def described(events: Sequence[Event]) -> str:
    """For people, in a line."""
    parts = [f"{each.count} x (noise {each.noise_multiplier:g}, rate {each.sampling_rate:g})" for each in events]
    return ", ".join(parts) or "nothing"
