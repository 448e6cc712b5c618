"""What each protection promises to whom, and what it costs: one page, the same as JSON, the table on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as Printed
from sklearn.metrics import roc_auc_score

from demo.collaborative.repeated import Luck
from demo.collaborative.variants import DELTA, EPSILON, VARIANTS
from demo.kit.models import scores
from demo.kit.page import Dot, decimals, environment, intervals, signed
from demo.kit.synthetic import usable
from quorate.privacy.accounting import epsilon
from quorate.privacy.events import Event
from quorate.study.study import Study
from quorate_client.tasks.data.table import Table

REAL, SYNTHETIC, AVERAGE, UPDATE, BOTH, STRONG = (each.name for each in VARIANTS)
LITTLE = 10.0
"""An epsilon above which a promise is called little: what is seen may then be e^10 = 22,000 times as likely."""


@dataclass(frozen=True, slots=True)
class Found:
    """One study.

    Args:
        auc: Of the model that its run released.
        luck: Of the same study trained many times.
        site_epsilon: What its noise promises a hospital as a whole, each of the two noises by itself; None: no noise.
    """

    auc: float
    luck: Luck
    site_epsilon: float | None


def found(study: Study, model: Path, tested: Table, luck: Luck) -> Found:
    """
    Args:
        model: That the study's run released.
        tested: Real records that no model was trained on.
    """
    auc = float(roc_auc_score(tested.labels, scores(model, tested)))
    privacy = study.privacy
    noise = (privacy.update or privacy.average) if privacy is not None else None
    if privacy is None or noise is None:
        return Found(auc, luck, None)
    rounds = study.rounds.count + privacy.spare_rounds
    return Found(auc, luck, epsilon([Event(noise.noise_multiplier, 1.0, rounds)], privacy.delta))


@dataclass(frozen=True, slots=True)
class Told:
    """All that is on the page.

    Args:
        found: By the study's name.
        made: What each hospital's synthetic set is, see ``demo.kit.synthetic.make``.
        held_out: Records that all AUC are measured on.
        times: That each study was trained in one process.
    """

    found: Mapping[str, Found]
    made: Mapping[str, Any]
    held_out: int
    times: int
    seconds: float

    def median(self, name: str) -> float:
        return self.found[name].luck.median

    def cost(self, name: str, without: str) -> str:
        """In AUC, median against median: what a study loses beside another one that lacks one thing."""
        return signed(self.median(name) - self.median(without), 3)

    @property
    def lead(self) -> str:
        """The answer, in one sentence."""
        return (
            f"With synthetic training data, noise before sending, noise after averaging and secure sums the median AUC "
            f"is {decimals(self.median(BOTH), 3)}; on real records without noise it is "
            f"{decimals(self.median(REAL), 3)}; with noise enough to hide a hospital, "
            f"{decimals(self.median(STRONG), 3)}."
        )

    @property
    def plainly(self) -> tuple[str, str]:
        """What noise per hospital comes to with four of them: headline and text."""
        weak, strong = (self.found[name].site_epsilon or 0.0 for name in (BOTH, STRONG))
        luck = self.found[STRONG].luck
        headline = "Among four hospitals noise that hides one of them costs much or promises little."
        little = ", which is as good as no promise" if weak > LITTLE else ""
        return headline, (
            f"The smaller noise has epsilon {weak:.1f} per hospital: what is seen may be {in_words(weak)} times as "
            f"likely with a hospital as without it{little}. The larger one has epsilon {strong:.1f} "
            f"({in_words(strong)} times), and single trainings reached an AUC between {decimals(luck.lowest)} and "
            f"{decimals(luck.highest)}. A hospital is a quarter of the sum here; among fifty it would be a fiftieth. "
            f"What protects single patients is the epsilon of the synthetic records."
        )

    @property
    def absent(self) -> list[str]:
        """Those whose own policy refused the set that they made, so that they took no part in studies on such."""
        return [name for name in self.made if name not in usable(self.made)]

    def to_json(self) -> dict[str, Any]:
        return {
            "lead": self.lead,
            "plainly": " ".join(self.plainly),
            "seconds": round(self.seconds, 1),
            "held_out": self.held_out,
            "times": self.times,
            "synthetic": {"epsilon": EPSILON, "delta": DELTA, "unit": "record"},
            "studies": {
                each.name: asdict(each) | asdict(self.found[each.name]) | {"delta": DELTA, "unit": "site"}
                for each in VARIANTS
            },
            "absent": self.absent,
            "sets": {
                name: {key: made[key] for key in ("records", "epsilon", "delta", "risks", "utility_loss")}
                for name, made in self.made.items()
            },
        }


def write(told: Told, folder: Path) -> None:
    """The page and the same as JSON."""
    (folder / "collaborative.json").write_text(json.dumps(told.to_json(), indent=2) + "\n", encoding="utf-8")
    (folder / "collaborative.html").write_text(html(told), encoding="utf-8")


def html(told: Told) -> str:
    dots = [
        Dot(each.words, luck.median, luck.lowest, luck.highest, each.name == BOTH)
        for each in VARIANTS
        for luck in [told.found[each.name].luck]
    ]
    finding = f"AUC, median: {'; '.join(f'{dot.name} {dot.found:.3f}' for dot in dots)}."
    template = environment("demo.collaborative").get_template("collaborative.html")
    return template.render(
        told=told,
        variants=VARIANTS,
        chart=intervals(dots, 0.0, 1.0, 0.1, finding),
        names={
            "real": REAL,
            "synthetic": SYNTHETIC,
            "average": AVERAGE,
            "update": UPDATE,
            "both": BOTH,
            "strong": STRONG,
        },
        record={"epsilon": EPSILON, "delta": DELTA, "factor": in_words(EPSILON)},
        main=BOTH,
    )


def table(told: Told) -> Printed:
    printed = Printed(title=f"On {told.held_out} real records that no model was trained on")
    printed.add_column("AUC, trained on")
    for name in ("run", f"of {told.times}", "lowest to highest", "epsilon"):
        printed.add_column(name, justify="right")
    for each in VARIANTS:
        one = told.found[each.name]
        spread = f"{decimals(one.luck.lowest, 3)} to {decimals(one.luck.highest, 3)}"
        promise = "none" if one.site_epsilon is None else decimals(one.site_epsilon, 1)
        printed.add_row(each.words, decimals(one.auc, 3), decimals(one.luck.median, 3), spread, promise)
    return printed


def in_words(of: float) -> str:
    """The factor that an epsilon allows, e^epsilon."""
    factor = math.exp(of)
    if factor < 1e4:
        return f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"
    superscript = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{str(math.floor(math.log10(factor))).translate(superscript)}"
