"""What every bench ends with: rows of figures beside their goals, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        name: What was measured, in words.
        unit: Of ``ours``, ``peer`` and ``goal``.
        ours: What we measured of ourselves.
        goal: The most that it may be, or the least where more is better.
        peer: The same of the stock deployment, measured in the same run; None where there is nothing to compare with.
        more_is_better: True for a rate, false for a time or a size.
    """

    name: str
    unit: str
    ours: float
    goal: float | None = None
    peer: float | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; above 1 we win. None where one of them is not above 0."""
        if self.peer is None or self.ours <= 0 or self.peer <= 0:
            return None
        return self.ours / self.peer if self.more_is_better else self.peer / self.ours

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None where there is none."""
        if self.goal is None:
            return None
        return self.ours >= self.goal if self.more_is_better else self.ours <= self.goal

    def as_json(self) -> dict[str, str | float | bool | None]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
        }


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for heading in ("ours", "peer", "times better", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("met")
    for row in rows:
        bound = "≥" if row.more_is_better else "≤"
        goal = "" if row.goal is None else f"{bound} {_number(row.goal)}"
        met = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}[row.met]
        table.add_row(row.name, _number(row.ours), _number(row.peer), _number(row.ratio), goal, row.unit, met)
    console.print(table)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a JSON list, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
