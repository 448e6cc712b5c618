"""Whether a synthetic data set stays within this site's limits, whatever a study says beside: told when it is made, and
asked when it is exported. What is demanded, for use in a study too, is one rule (``approval/usable.py``)."""

from __future__ import annotations

from collections.abc import Iterable

from quorate.errors import SyntheticRefusedError
from quorate_client.approval.policy import Policy
from quorate_client.approval.usable import demands, promise_demands
from quorate_client.site.agreement import Origin


def refusals(origin: Origin, policy: Policy) -> list[str]:
    """Why it is refused here, each with figure and limit; none where it is not."""
    return _unmet(demands(origin, policy))


def promise_refusals(epsilon: float | None, policy: Policy) -> list[str]:
    """Those of them that no figure of the report says: the promise with which it was made, or that there is none."""
    return _unmet(promise_demands(epsilon, policy))


def _unmet(asked: Iterable[tuple[str, str, bool]]) -> list[str]:
    return [f"{figure}, where {demand}" for demand, figure, is_met in asked if not is_met]


def require_within(name: str, origin: Origin, policy: Policy) -> None:
    """Raises SyntheticRefusedError, naming the first limit that it passes."""
    for demand, figure, is_met in demands(origin, policy):
        if not is_met:
            raise SyntheticRefusedError(
                f"The synthetic data set {name} passes a limit of this site, so it is not exported",
                expected=demand,
                got=figure,
                action="Make another one, or have whoever is responsible for policy.toml change the limit; "
                f"`quorate-client synthetic report {name}` shows all figures",
            )
