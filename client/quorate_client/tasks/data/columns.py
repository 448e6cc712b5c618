"""Turns the cells of one column into numbers and checks each against the schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from quorate_client.tasks.data.schema import REFUSE, CategoryColumn, Column, FlagColumn, NumberColumn

Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Cells that the file itself holds as numbers. ``values`` is anything where ``missing`` is true."""

    values: Vector
    missing: Mask


Cells = Sequence[str] | Numbers
"""One column: texts, where an empty one is a missing value, or numbers."""
Report = Callable[[Mask, str], None]
"""Takes which cells are wrong and what is wrong with them."""

_FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


def checked(column: Column, cells: Cells, report: Report) -> Vector:
    """The cells as a table keeps them: numbers, flags as 0 and 1, places in the list of categories; NaN if missing.

    What is wrong goes to ``report``, and what is then returned for it means nothing.
    """
    match column:
        case NumberColumn():
            values, missing = _quantities(column, cells, report)
        case CategoryColumn():
            places = {category: float(place) for place, category in enumerate(column.categories)}
            values, missing = _words(_texts(cells), places, "not one of the categories", report)
        case FlagColumn():
            values, missing = _words([text.lower() for text in _texts(cells)], _FLAGS, "neither yes nor no", report)
        case _:
            assert_never(column)
    if column.missing == REFUSE:
        report(missing, "missing")
    values[missing] = np.nan
    return values


def checked_labels(class_order: Sequence[str], cells: Cells, report: Report) -> npt.NDArray[np.int64]:
    """The number of each record's class. A missing one is reported like a wrong one."""
    places = {name: float(place) for place, name in enumerate(class_order)}
    values, missing = _words(_texts(cells), places, "not one of the classes", report)
    report(missing, "missing")
    return values.astype(np.int64)


def _quantities(column: NumberColumn, cells: Cells, report: Report) -> tuple[Vector, Mask]:
    if isinstance(cells, Numbers):
        values, missing = cells.values.copy(), cells.missing
    else:
        values, missing, unreadable = _parsed(cells)
        report(unreadable, "not a number")
        values[unreadable] = column.range[0]
    values[missing] = column.range[0]
    finite = np.isfinite(values)
    report(~finite, "not finite")
    values[~finite] = column.range[0]
    low, high = column.range
    report((values < low) | (values > high), "out of range")
    if column.type == "integer":
        report((values != np.rint(values)) & ~missing, "not a whole number")  # the lowest value stood in
    return values, missing


def _parsed(texts: Sequence[str]) -> tuple[Vector, Mask, Mask]:
    """Values, which are missing, which are unreadable. The usual column, all numbers, is converted at one go."""
    none = np.zeros(len(texts), dtype=np.bool_)
    if "_" not in "".join(texts):  # float() would read 1_000
        try:
            return np.fromiter(map(float, texts), np.float64, len(texts)), none, none
        except ValueError:
            pass
    values, missing, unreadable = np.zeros(len(texts)), none.copy(), none.copy()
    for place, text in enumerate(texts):
        if not text:
            missing[place] = True
            continue
        try:
            values[place] = float(text.replace("_", "?"))
        except ValueError:
            unreadable[place] = True
    return values, missing, unreadable


def _words(texts: Sequence[str], places: Mapping[str, float], wrong: str, report: Report) -> tuple[Vector, Mask]:
    """The place of each text; unknown ones are reported and become 0."""
    values = np.array([places.get(text, np.nan) for text in texts], dtype=np.float64)
    missing = np.array([not text for text in texts], dtype=np.bool_)
    unknown = np.isnan(values)
    report(unknown & ~missing, wrong)
    values[unknown] = 0.0
    return values, missing


def _texts(cells: Cells) -> Sequence[str]:
    """Numbers as a schema writes categories: whole ones without a fraction."""
    if not isinstance(cells, Numbers):
        return cells
    return [
        "" if missing else str(int(value)) if value.is_integer() else str(value)
        for value, missing in zip(cells.values.tolist(), cells.missing.tolist(), strict=True)
    ]
