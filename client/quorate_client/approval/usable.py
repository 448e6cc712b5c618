"""Whether a data set may be used for a study at this site: the kind that the study wants, and a made one good enough.

The study's limits and the policy's are asked one beside the other, so that a study can only be stricter. Of the set
nothing is asked but what was registered with it, and that its source and its report are still the same: a report that
was exchanged has another digest. A message has figures, which are for this site's administrator; the server gets the
code alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import SyntheticRefusedError
from quorate.study.study import Study
from quorate_client.approval.policy import Policy
from quorate_client.site.agreement import Dataset, Origin, for_study

REPORT = "report.json"
"""Beside a synthetic data set's file."""
RISKS = ("membership", "attribute", "singling_out", "linkability")
"""What a report must have a figure of."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is there, at this moment, of what a synthetic data set comes from.

    Args:
        source: What is registered under its source's name; None if there is nothing.
        report: SHA-256, in hex, of the report beside its file; None if there is none.
    """

    source: Dataset | None
    report: str | None


def look_at(dataset: Dataset, registered: Callable[[str], Dataset | None]) -> Found:
    """Read what ``require_usable`` asks for. A real data set comes from nothing.

    Args:
        registered: The data set of a name.
    """
    if dataset.origin is None:
        return Found(None, None)
    return Found(registered(dataset.origin.source.name), _digest(dataset.path.parent / REPORT))


def require_usable(dataset: Dataset, study: Study, policy: Policy, found: Found) -> None:
    """Refuse a data set for a study.

    Raises:
        SyntheticRefusedError: with what was expected and what it has.
    """
    for_study(dataset, study)
    if dataset.origin is None:
        return
    _require_lineage(dataset, dataset.origin, found)
    for demand, figure, is_met in demands(dataset.origin, policy, study):
        if not is_met:
            raise SyntheticRefusedError(
                f"The synthetic data set {dataset.name} is not good enough for the study {study.name}",
                expected=demand,
                got=figure,
                action="Make another one with `quorate-client synthetic make`, or reject the study",
            )


def _require_lineage(dataset: Dataset, origin: Origin, found: Found) -> None:
    source = origin.source.name
    if found.source is None or found.source.identity != origin.source.identity:
        raise SyntheticRefusedError(
            f"The synthetic data set {dataset.name} is not of what is registered as {source} now",
            expected="the data set that it was made from, as it was then",
            got="none of that name" if found.source is None else "another one",
            action="Make it again from what is registered: its held-out records must not be among those that it was "
            "made from",
        )
    if found.report != origin.report:
        raise SyntheticRefusedError(
            f"The report of the synthetic data set {dataset.name} is not the one that it was registered with",
            expected=f"a file {REPORT} beside it with the digest {origin.report[:16]}…",
            got="no such file" if found.report is None else f"one with the digest {found.report[:16]}…",
            action="Put the file back, or make the set again",
        )


def demands(origin: Origin, policy: Policy, study: Study | None = None) -> Iterator[tuple[str, str, bool]]:
    """What is demanded, what the set has, and whether that is enough. A figure that is none is not enough.

    Args:
        study: None: what this site demands whatever a study says.
    """
    own = {name: limit for name, limit in policy.synthetic.limits.items() if name != "largest_epsilon"}
    asked = [("this site's policy", own)]
    asked += [("the study", study.synthetic.limits)] if study is not None and study.synthetic is not None else []
    yield from promise_demands(origin.epsilon, policy)
    for missing in sorted(set(RISKS) - set(origin.risks)):
        yield f"a report with {missing}", "none", False
    for who, limits in asked:
        for name, limit in limits.items():
            for of_what, figure in _figures(origin, name):
                is_met = figure is not None and figure <= limit
                yield f"synthetic.{name} = {limit:g} in {who}", _shown(of_what, figure), is_met


def promise_demands(epsilon: float | None, policy: Policy) -> Iterator[tuple[str, str, bool]]:
    """What this site demands of the promise with which a set was made, as ``demands``.

    Args:
        epsilon: None: it was made without privacy.
    """
    if epsilon is not None:
        limit = policy.synthetic.largest_epsilon
        demand = f"synthetic.largest_epsilon = {limit:g} in this site's policy"
        yield demand, _shown("epsilon", epsilon), epsilon <= limit
        return
    demand = "synthetic.without_privacy = true in this site's policy"
    yield demand, _WITHOUT_PRIVACY, policy.synthetic.without_privacy
    if policy.privacy.budget is not None:
        yield f"{policy.privacy.budget} in this site's policy", _WITHOUT_PRIVACY, False


def _figures(origin: Origin, name: str) -> list[tuple[str, float | None]]:
    """What a limit is held against."""
    match name:
        case "largest_epsilon":
            return [("epsilon", origin.epsilon)]
        case "largest_risk":
            return list(origin.risks.items())
        case _:
            return [("utility loss", origin.utility_loss)]


_WITHOUT_PRIVACY = "a set that was made without privacy"


def _shown(of_what: str, figure: float | None) -> str:
    return _WITHOUT_PRIVACY if figure is None else f"{of_what} {figure:.4g}"


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
