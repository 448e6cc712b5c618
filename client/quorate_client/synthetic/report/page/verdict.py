"""From figures to words: what stands at the top of the page, and what each risk's result is called.

A limit is compared with the point that an attack found where that is more than chance (``Report.risks``). People are
told more than that: where the interval reaches over the limit, that the risk cannot be told to be under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quorate_client.synthetic.report.figures import Advantage
from quorate_client.synthetic.report.report import Report

State = Literal["passed", "warned", "failed"]

NOT_SHOWN = (
    "These are today's attacks, made with the knowledge that each of them names. Another attack may find more; that "
    "nothing was found does not mean that nothing is there.",
    "The figures are averages over many people. Somebody who is unlike all others may be given away by a set that is "
    "harmless for the rest. Only a promise of differential privacy holds for each single person.",
    "What the set teaches about people in general, and about small groups, is no disclosure here, and may hurt them "
    "all the same.",
    "Another set from the same records, by whichever generator, gives away more together with this one.",
)


@dataclass(frozen=True, slots=True)
class Result:
    """A figure against its limit: a state for the eye, and the same in a word."""

    state: State
    word: str


@dataclass(frozen=True, slots=True)
class RiskLine:
    """A row of the table of risks.

    Args:
        column: The one that counts, where the attack is made on each.
        advantage: None where the attack had nothing to go by.
    """

    name: str
    column: str
    meaning: str
    advantage: Advantage | None
    result: Result


def risk_result(advantage: Advantage | None, limit: float) -> Result:
    if advantage is None:
        return Result("passed", "nothing to attack")
    if advantage.counted > limit:
        return Result("failed", "above the limit")
    if advantage.high > limit:
        return Result("warned", "may be chance" if advantage.found > limit else "reaches over the limit")
    return Result("passed", "below the limit")


def risk_lines(report: Report, limit: float) -> tuple[RiskLine, ...]:
    attribute, singled = report.attribute.worst, report.singling_out
    lines = (
        (
            "Membership",
            "",
            f"how many of {report.membership.members:,} people an attacker finds in the set while he is wrong about "
            "1 % of those who are not in it",
            report.membership.advantage,
        ),
        (
            "Attribute",
            attribute.name if attribute else "",
            "how often somebody who knows all else about a person reads the value from the set; the column with the "
            f"largest advantage of {len(report.attribute.columns)}",
            attribute.advantage if attribute else None,
        ),
        (
            "Singling out",
            _guessed_column(report),
            f"how many people a guess made from the set points at alone, in groups of {singled.group:,}",
            singled.worst,
        ),
        (
            "Linkability",
            "",
            "how often two halves of a person's record are brought together through the set; of what was left to gain",
            report.linkability.advantage,
        ),
    )
    return tuple(
        RiskLine(name, column, meaning, found, risk_result(found, limit)) for name, column, meaning, found in lines
    )


def utility_result(report: Report, limit: float) -> Result:
    loss = report.utility.loss
    if loss is None:
        return Result("failed", "cannot be measured")
    if loss.found > limit:
        return Result("failed", "above the limit")
    return Result("warned", "reaches over the limit") if loss.high > limit else Result("passed", "below the limit")


def copies_result(report: Report) -> Result:
    if not report.hygiene.is_clean:
        return Result("failed", "must be zero")
    if report.hygiene.copies:
        return Result("warned", "no column is continuous")
    return Result("passed", "none")


def verdict(report: Report, largest_risk: float, largest_loss: float, refused: Sequence[str] = ()) -> Result:
    """In a word.

    Args:
        refused: Why the site refuses the promise with which it was made, in words.
    """
    states = [
        *(line.result.state for line in risk_lines(report, largest_risk)),
        utility_result(report, largest_loss).state,
        copies_result(report).state,
    ]
    if refused or "failed" in states:
        return Result("failed", "not within limits")
    return Result("warned", "within limits, not for sure") if "warned" in states else Result("passed", "within limits")


def lead(report: Report, largest_risk: float, largest_loss: float, refused: Sequence[str] = ()) -> str:
    """The answer in two sentences. ``refused`` as in ``verdict``."""
    lines = risk_lines(report, largest_risk)
    over = [_in_words(line) for line in lines if line.result.state == "failed"]
    unsure = [_in_words(line) for line in lines if line.result.state == "warned"]
    reasons = list(refused)
    if over:
        reasons.append(f"{_listed(over)} {'is' if len(over) == 1 else 'are'} above the limit of {largest_risk:g}")
    if copies_result(report).state == "failed":
        reasons.append("it repeats records exactly")
    if utility_result(report, largest_loss).state == "failed":
        reasons.append(_utility_reason(report, largest_loss))
    if reasons:
        return f"This set must not be used as it is: {'; '.join(reasons)}."
    said = "No attack was found to gain more than the limits allow"
    if unsure:
        said += f", but {_listed(unsure)} cannot be told to be under them"
    return f"{said}. Models trained on it instead of real records lose {_points(report.utility_loss)} of AUC."


def promise(report: Report, unit: str) -> tuple[State | Literal[""], str, str]:
    """State, headline and text of the box about what the generator promises, to each record or unit."""
    if report.epsilon is None:
        return (
            "failed",
            "This set comes with no promise.",
            "It was made without differential privacy. The figures below say only what these attacks found, and low "
            "ones do not make it safe: nothing limits what a better attack, or one with more knowledge, would find. "
            "Treat it as you treat the records.",
        )
    return (
        "",
        f"Made with epsilon {report.epsilon:g}, delta {decimal(report.delta)}, per {unit}.",
        f"That promise holds whatever the figures below show, and for every {unit}. They say what today's attacks "
        "find, not what is possible.",
    )


def _guessed_column(report: Report) -> str:
    """The column whose guesses are the worst; none where guesses of several columns are."""
    singled = report.singling_out
    return next((column.name for column in singled.columns if column.advantage == singled.worst), "")


def _in_words(line: RiskLine) -> str:
    return line.name.lower() + (f" ({line.column})" if line.column else "")


def _utility_reason(report: Report, limit: float) -> str:
    if report.utility.loss is None:
        return "its utility cannot be measured, since the held-out records are all of one class"
    return f"models trained on it lose {_points(report.utility_loss)} of AUC, more than {limit:g}"


def decimal(value: float) -> str:
    """Without an exponent, which not everybody reads."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _points(loss: float) -> str:
    return "nothing" if loss < 0.0005 else f"{loss:.3f}"


def _listed(words: list[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])
