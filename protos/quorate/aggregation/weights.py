"""How much a site counts in a secure sum, and what a sum of weights may be.

The weights of all sites are at most 1 together, which is what a lane holds. They are also bounded from below: one site
that subtracts the others' weights from the sum would make the average whatever it likes, or one site's update. The
bounds are public and the same at all sites: a bound of a site's own, refused when it does not hold, would be an oracle
for its weight.
"""

from __future__ import annotations

from quorate.aggregation.plain import WEIGHT_ONE, weight_of
from quorate.errors import SumRefusedError
from quorate.study.rules import Rules

MIN_SHARE = 100
"""A site counts for at least one part in so many of what it would count for if all were equal."""


def least_weight(sites: int) -> int:
    """What any site of a roster counts for at least, in units of 1/WEIGHT_ONE."""
    return WEIGHT_ONE // (MIN_SHARE * sites)


def record_weight(records: int, total_records: int, sites: int, missing: int, *, is_counted: bool) -> int:
    """A site's weight by its records.

    Who was not there when records were counted is in no total. Then those who were share one half, and the others
    share the other. One part in ``MIN_SHARE`` is left for those who are raised to the least weight.

    Args:
        total_records: Of the sites that were counted.
        missing: How many were not.
        is_counted: Whether this site was.
    """
    share = weight_of(records, 2 * total_records if missing else total_records)
    if not is_counted:
        share = min(share, WEIGHT_ONE // (2 * max(1, missing)))
    return max(least_weight(sites), share * (MIN_SHARE - 1) // MIN_SHARE)


def require_weight(total: int, survivors: int, rules: Rules) -> None:
    """Raises SumRefusedError: honest survivors weigh more together, or all sites less."""
    least = (survivors - rules.colluders) * least_weight(rules.sites)
    if not least <= total <= WEIGHT_ONE:
        raise SumRefusedError(
            "The weights in a secure sum are not what honest sites add up to, so the model stays as it was",
            expected=f"at least {least} and at most {WEIGHT_ONE}, in units of 1/{WEIGHT_ONE}",
            action="One of the sites does not play fair; the round can be repeated without it",
        )
