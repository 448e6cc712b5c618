"""What a claims director reads: one page, the same as JSON, and the table on the terminal.

Sentences are made from the figures, here and nowhere else. A word comes before a number: what an interval does not
show is not said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from demo.fraud.comparison import EACH, NEURAL, POOLED, PRIVATE, REAL, SYNTHETIC, Comparison
from demo.fraud.measures import Figure, Quality
from demo.kit.page import Dot, decimals, environment, intervals
from demo.kit.synthetic import usable

SHIPPED_RISK, SHIPPED_LOSS = 0.09, 0.1
"""The limits of a policy that nobody changed."""


@dataclass(frozen=True, slots=True)
class Told:
    """All that is on the page.

    Args:
        made: What each insurer's synthetic set is, see ``demo.kit.synthetic.make``.
        seconds: How long everything took.
    """

    found: Comparison
    made: Mapping[str, Any]
    epsilon: float
    seconds: float

    @property
    def names(self) -> dict[str, str]:
        """Of the ways that were tried, in the order of the table."""
        names = {
            POOLED: "all real claims in one place",
            REAL: "together, real claims, no noise",
            PRIVATE: f"together, private gradients, ε {self.epsilon:g}",
            SYNTHETIC: f"together, synthetic claims, ε {self.epsilon:g}",
            NEURAL: f"the same, neural network, ε {self.epsilon:g}",
            EACH: "each its own model, for itself",
            **{name: f"{name}'s model, for everybody" for name in self.found.sizes},
        }
        return {key: name for key, name in names.items() if key in self.found.ways}

    @property
    def lead(self) -> str:
        """The answer, in one sentence."""
        ways = self.found.ways
        return (
            f"Among the 5 % of claims that it rates highest, the model of the insurers' synthetic claims finds "
            f"{_percent(ways[SYNTHETIC].recall_5)} of the frauds; without a consortium, each insurer with its own "
            f"model on its own claims, they find {_percent(ways[EACH].recall_5)}; together on real claims without "
            f"noise, {_percent(ways[REAL].recall_5)}."
        )

    @property
    def verdict(self) -> tuple[str, str, str]:
        """State, headline, sentence: is the synthetic way better than an insurer alone?"""
        return verdict({name: self.found.ways[name] for name in (EACH, *self.found.sizes)})

    @property
    def absent(self) -> list[str]:
        """Those whose own policy refused the set that they made, so that they took no part in studies on such."""
        return [name for name in self.made if name not in usable(self.made)]

    def refused(self, name: str) -> str:
        """What a policy that nobody changed says to an insurer's set."""
        made = self.made[name]
        reasons = [kind.replace("_", " ") for kind, risk in made["risks"].items() if risk > SHIPPED_RISK]
        reasons += ["utility"] if made["utility_loss"] > SHIPPED_LOSS else []
        return ", ".join(reasons)

    def to_json(self) -> dict[str, Any]:
        return {
            "lead": self.lead,
            "verdict": {"state": self.verdict[0], "text": " ".join(self.verdict[1:])},
            "epsilon": self.epsilon,
            "seconds": round(self.seconds, 1),
            "claims": {name: {"training": a, "held_out": b} for name, (a, b) in self.found.sizes.items()},
            "held_out": self.found.held_out,
            "frauds": self.found.frauds,
            "stakes": asdict(self.found.stakes),
            "ways": {name: {"name": self.names[name]} | asdict(way) for name, way in self.found.ways.items()},
            "absent": self.absent,
            "sets": {name: _of_set(made) | {"refused": self.refused(name)} for name, made in self.made.items()},
        }


def verdict(alone: Mapping[str, Quality]) -> tuple[str, str, str]:
    """What the intervals of the difference allow to be said.

    Args:
        alone: Each with ``against``: the synthetic way's average precision less its own.
    """
    differences = {name: way.against for name, way in alone.items() if way.against is not None}
    better = [name for name, apart in differences.items() if apart.low > 0]
    worse = [name for name, apart in differences.items() if apart.high < 0]
    open_ones = [name for name in differences if name not in better and name not in worse]
    if not worse and not open_ones:
        return (
            "passed",
            "The model of synthetic claims is better than every insurer alone.",
            "By average precision, at 95 %.",
        )
    said = (("it is worse than", worse), ("against", open_ones), ("it is better than", better))
    parts = [f"{words} {_listed(names)}" for words, names in said if names]
    parts = [part + " the difference may be chance" if part.startswith("against") else part for part in parts]
    text = f"By average precision on the same held-out claims, at 95 %: {'; '.join(parts)}."
    every = "an insurer alone" if not better else "every insurer alone"
    return "warned", f"The model of synthetic claims is not better than {every}.", text


def write(told: Told, folder: Path) -> None:
    """The page and the same as JSON."""
    (folder / "fraud.json").write_text(json.dumps(told.to_json(), indent=2) + "\n", encoding="utf-8")
    (folder / "fraud.html").write_text(html(told), encoding="utf-8")


def html(told: Told) -> str:
    ways = told.found.ways
    dots = [
        Dot(name, ways[key].average_precision.found, ways[key].average_precision.low, ways[key].average_precision.high,
            key in (SYNTHETIC, NEURAL))
        for key, name in told.names.items()
    ]  # fmt: skip
    finding = f"Average precision: {'; '.join(f'{dot.name} {dot.found:.2f}' for dot in dots)}."
    top = max(dot.high or 0.0 for dot in dots)
    return (
        environment("demo.fraud")
        .get_template("fraud.html")
        .render(
            told=told,
            found=told.found,
            chart=intervals(dots, 0.0, 0.6 if top <= 0.6 else 1.0, 0.1 if top <= 0.6 else 0.2, finding),
            main=(SYNTHETIC, NEURAL),
            factor=f"{math.exp(told.epsilon):.0f}",
            delta=max(made["delta"] for made in told.made.values()),
            limits={"risk": SHIPPED_RISK, "loss": SHIPPED_LOSS},
            sets={name: _of_set(made) for name, made in told.made.items()},
        )
    )


def table(told: Told) -> Table:
    printed = Table(
        title=f"On {told.found.held_out} real claims that no model was trained on, {told.found.frauds} of them frauds"
    )
    printed.add_column("model")
    for name in ("precision", "in 1 %", "in 5 %", "saved, k€"):
        printed.add_column(name, justify="right")
    for key, name in told.names.items():
        way = told.found.ways[key]
        saved = decimals(way.saved_5.found / 1000, 0)
        printed.add_row(
            name, decimals(way.average_precision.found, 3), _percent(way.recall_1), _percent(way.recall_5), saved
        )
    return printed


def _of_set(made: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("records", "epsilon", "delta", "training", "held_out", "risks", "utility_loss")
    return {key: made[key] for key in kept}


def _percent(figure: Figure) -> str:
    return f"{100 * figure.found:.0f} %"


def _listed(names: list[str]) -> str:
    words = ["each insurer with its own model on its own claims" if name == EACH else f"{name} alone" for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
