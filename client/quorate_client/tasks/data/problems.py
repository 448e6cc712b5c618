"""What is wrong with a data set, told by position: which row, which column, never which value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from quorate.errors import DataError

_SHOWN = 5


@dataclass(slots=True)
class Problems:
    """Collects wrong places while a file is read piece by piece; keeps the first few and counts all.

    ``counted`` names what the rows are, such as "row" or "image". Rows and columns are counted from 1.
    """

    counted: str
    total: int = 0
    _first: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, rows: Iterable[int], what: str, column: int = 0, name: str = "") -> None:
        """Note ``what`` is true of these rows, in the column with this number and name, or as a whole (column 0)."""
        places = [(row, column, f"column {column} ({name}): {what}" if column else what) for row in rows]
        self.total += len(places)
        self._first = sorted(self._first + places)[:_SHOWN]

    def refuse_if_any(self, path: Path, action: str) -> None:
        """Raises DataError with the number of wrong places and the first of them."""
        if not self.total:
            return
        shown = "; ".join(f"{self.counted} {row}{', ' if column else ': '}{text}" for row, column, text in self._first)
        more = self.total - len(self._first)
        raise DataError(
            f"{path} does not fit its schema in {self.total} place{'s' if self.total > 1 else ''}",
            got=shown + (f"; and {more} more" if more else ""),
            action=action,
        )
