"""A generator and a report for tests of making: small and real, so that what comes of them can be said by head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quorate.errors import PrivacyRefusedError
from quorate.privacy.accounting import noise_multiplier_for
from quorate.privacy.events import Event
from quorate.privacy.noise import SeededRandomness, discrete_gaussian
from quorate_client.synthetic.making import Tools
from quorate_client.tasks.data.schema import CategoryColumn, FlagColumn, TabularSchema
from quorate_client.tasks.data.table import Table

GENERATOR = "tests.one-way/1"
_BINS = 24


@dataclass(frozen=True)
class OneWayPlan:
    events: tuple[Event, ...]


def plan(schema: TabularSchema, epsilon: float | None, delta: float) -> OneWayPlan:
    """Each record is once in the histogram of each column."""
    if epsilon is None:
        return OneWayPlan(())
    if epsilon > 50:
        raise PrivacyRefusedError("Such an epsilon promises nothing", expected="at most 50", got=f"{epsilon:g}")
    columns = len(schema.columns) + 1
    noise = noise_multiplier_for(epsilon, delta, 1.0, columns)
    return OneWayPlan((Event(noise, 1.0, columns),))


def generate(
    plan: OneWayPlan,
    schema: TabularSchema,
    table: Table,
    rows: int,
    seed: bytes,
    progress: Callable[[float], None] = lambda _: None,
) -> Table:
    """Each column by itself, from its noisy histogram."""
    noise, chance = SeededRandomness(seed), np.random.default_rng(np.frombuffer(seed, np.uint32))

    def drawn(values: Any, bins: int) -> Any:
        counts = np.bincount(values, minlength=bins)
        if plan.events:
            counts = counts + discrete_gaussian(noise, plan.events[0].noise_multiplier, bins)
        weights = np.maximum(counts, 0) + 1e-9
        return chance.choice(bins, rows, p=weights / weights.sum())

    columns = {}
    for column in schema.columns:
        values = table.columns[column.name]
        missing = np.isnan(values)
        low, high, bins = 0.0, 1.0, 2
        if isinstance(column, CategoryColumn):
            low, high, bins = 0.0, len(column.categories) - 1.0, len(column.categories)
        elif not isinstance(column, FlagColumn):
            (low, high), bins = column.range, _BINS
        places = np.where(missing, bins, np.round((np.where(missing, low, values) - low) / (high - low) * (bins - 1)))
        picked = drawn(places.astype(int), bins + (column.missing != "refuse"))
        width = (high - low) / (bins - 1) if column.type in ("number", "integer") else 0.0
        exact = low + picked * (high - low) / (bins - 1) + chance.uniform(-0.5, 0.5, rows) * width
        rounded = np.clip(exact if column.type == "number" else np.round(exact), low, high)
        columns[column.name] = np.where(picked == bins, np.nan, rounded)
    progress(1.0)
    return Table(columns, drawn(table.labels, len(schema.label.classes)).astype(np.int64))


@dataclass(frozen=True)
class TestReport:
    risks: Mapping[str, float]
    utility_loss: float
    seen: Mapping[str, int]

    __test__ = False

    def to_json(self) -> dict[str, Any]:
        return {"risks": dict(self.risks), "utility_loss": self.utility_loss, "seen": dict(self.seen)}


@dataclass
class Spy:
    """Remembers which records the generator and the report were given.

    Args:
        risk, utility_loss: What the report says.
    """

    risk: float = 0.01
    utility_loss: float = 0.02
    generated_from: list[Table] = field(default_factory=list)
    measured: list[tuple[Table, Table, Table]] = field(default_factory=list)
    interrupt: Callable[[], None] = lambda: None
    """Called when the records were made, before anything is written."""

    def generate(
        self, plan: OneWayPlan, schema: TabularSchema, table: Table, rows: int, seed: bytes, *rest: Any
    ) -> Table:
        self.generated_from.append(table)
        made = generate(plan, schema, table, rows, seed, *rest)
        self.interrupt()
        return made

    def assess(
        self, schema: TabularSchema, training: Table, held_out: Table, synthetic: Table, again: Any, *rest: Any
    ) -> TestReport:
        self.measured.append((training, held_out, synthetic))
        assert again(training, b"s" * 32).records == synthetic.records
        risks = dict.fromkeys(("membership", "attribute", "singling_out", "linkability"), self.risk)
        return TestReport(risks, self.utility_loss, {"training": training.records, "held_out": held_out.records})

    def tools(self) -> Tools:
        return self.tools_with(_page)

    def tools_with(self, page: Callable[..., str]) -> Tools:
        return Tools(GENERATOR, ("quorate_client.synthetic.marking.watermark",), plan, self.generate, self.assess, page)


def _page(report: TestReport, lineage: Mapping[str, Any], _: object) -> str:
    return f"<p>{lineage['privacy']['statement']}</p><p>{report.risks}</p>"
