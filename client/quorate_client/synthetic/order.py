"""An order for a synthetic data set, and whether this site carries it out: the policy's rules, and what can be made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from quorate.errors import InputError, PrivacyRefusedError
from quorate.privacy.events import Event
from quorate_client.approval.policy import Policy
from quorate_client.site.agreement import Dataset
from quorate_client.synthetic.identifying.identifiers import Mitigation
from quorate_client.synthetic.marking.lineage import COLUMN
from quorate_client.tasks.data.schema import TabularSchema

MIN_ROWS, MAX_ROWS = 20, 10_000_000


class Plan(Protocol):
    @property
    def events(self) -> tuple[Event, ...]: ...


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asked for. ``epsilon`` None is without privacy, ``delta`` None the largest of the usual rule."""

    name: str
    dataset: str
    rows: int
    epsilon: float | None
    delta: float | None = None
    answers: Mitigation = field(default_factory=Mitigation)


def require_source(source: Dataset) -> None:
    if source.origin is not None:
        raise InputError(
            f"The data set {source.name} is synthetic itself, and none is made from such a one",
            expected="a data set of real records: what is made from made records drifts away from people",
            got=f"one that was made from {source.origin.source.name}",
            action=f"Make it from {source.origin.source.name}",
        )


def require_rows(rows: int) -> None:
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise InputError(
            "So many rows are not made", expected=f"from {MIN_ROWS} to {MAX_ROWS:,} rows", got=f"--rows {rows}"
        )


def require_no_marked_column(schema: TabularSchema) -> None:
    if COLUMN in {*(column.name for column in schema.columns), schema.label.name}:
        raise InputError(
            f"The data set has a column named {COLUMN}, which is where a synthetic one is marked as such",
            action="Rename the column in the file and in the schema, and register the data set again",
        )


def require_permitted(policy: Policy, order: Order) -> None:
    """Raises PrivacyRefusedError: the site's policy does not allow an order of this kind. InputError: nobody could."""
    if order.epsilon is None:
        if not policy.synthetic.without_privacy:
            raise PrivacyRefusedError(
                "This site's policy allows no synthetic data set that is made without privacy",
                expected="synthetic.without_privacy = true",
                got="--no-privacy",
                action="Name an --epsilon, or have whoever is responsible for policy.toml change it",
            )
        if policy.privacy.budget is not None:
            raise PrivacyRefusedError(
                "A synthetic data set without privacy releases what no epsilon bounds, and this site's policy bounds "
                "the epsilon of its data sets",
                expected=policy.privacy.budget,
                got="--no-privacy",
                action="Name an --epsilon",
            )
    elif not order.epsilon > 0:
        raise InputError("There is no such epsilon", expected="a number above 0", got=f"--epsilon {order.epsilon:g}")
    elif order.epsilon > policy.synthetic.largest_epsilon:
        raise PrivacyRefusedError(
            "This site's policy allows no synthetic data set at such an epsilon",
            expected=f"synthetic.largest_epsilon = {policy.synthetic.largest_epsilon:g}",
            got=f"--epsilon {order.epsilon:g}",
        )


def delta_of(policy: Policy, order: Order, units: int) -> float:
    """The order's, or the power of ten below what the policy's rule allows for so many units.

    The rule's own figure would tell how many records there are to whoever gets the table, whose lineage has it.
    """
    if units < policy.privacy.least_records:
        raise PrivacyRefusedError(
            "The data set has fewer records than this site's policy demands",
            expected=f"privacy.least_records = {policy.privacy.least_records}",
            got=f"{units} to make it from",
            action="Register more records: so few are not imitated without showing single ones",
        )
    if order.epsilon is None:
        return 0.0
    largest = policy.privacy.delta_for(units)
    if order.delta is None:
        return 10.0 ** math.floor(math.log10(largest))
    if not 0 < order.delta <= largest:
        raise PrivacyRefusedError(
            "There is no such delta for this data set",
            expected=f"at most {largest:.2g}",
            got=f"--delta {order.delta:g}",
        )
    return order.delta


def require_noise(policy: Policy, plan: Plan) -> None:
    least = min((event.noise_multiplier for event in plan.events), default=math.inf)
    if least < policy.privacy.least_noise:
        raise PrivacyRefusedError(
            "So large an epsilon adds less noise than this site's policy demands",
            expected=f"privacy.least_noise = {policy.privacy.least_noise:g}",
            got=f"a noise multiplier of {least:.3g}",
        )


def in_words(answers: Mitigation) -> tuple[str, ...]:
    """What was done to columns, exactly: a request is known by it. The names are those of a public schema."""
    return (
        *(f"kept {name}, declared not identifying" for name in sorted(answers.keep)),
        *(f"dropped {name}" for name in sorted(answers.drop)),
        *(f"rounded {name} to multiples of {_exactly(step)}" for name, step in sorted(answers.generalise.items())),
    )


def _exactly(step: float) -> str:
    """With all digits. Two steps that read the same would share a seed, and so one noise would meet two sums."""
    return repr(float(step)).removesuffix(".0")
