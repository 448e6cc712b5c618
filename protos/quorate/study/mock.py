"""Made-up records that fit a schema: for whoever writes a task, and must see no record to do so.

A schema is public, and this is all that goes in; so nothing about anybody can come out. Numbers are spread over their
ranges, all words and classes occur where there are rows enough, and cells are empty where a schema allows it. Columns
lean a little towards the label, all together about as much for three columns as for thirty, so that a training has
something to find (an AUC of about 0.8). It means nothing, nor does any other pattern.

Schemas come as plain JSON, as a study carries them or as TOML holds them: the rules of the keys are checked where data
sets are registered. What is read here is what is needed here. Writing files is ``mock_file``'s.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quorate.errors import SchemaError

MAX_ROWS = 100_000

_EMPTY_SHARE = 0.05
_LEANING = 0.3
"""How far a single column leans: the share of a cell that the label decides."""
_RECORDS_OF_A_UNIT = 2


def mock_table(schema: Mapping[str, Any], rows: int, seed: int) -> tuple[list[str], list[Sequence[str]]]:
    """The header and the columns, [columns][rows], of a CSV file.

    Raises:
        SchemaError: it is no schema of a table.
    """
    match schema:
        case {"columns": [_, *_] as columns, "label": {"name": str(label), "classes": [_, _, *_] as classes}}:
            drawn = _Drawn(rows, len(classes), _LEANING / math.sqrt(len(columns)), seed)
            cells: dict[str, Sequence[str]] = {_name(column): _cells(column, drawn) for column in columns}
            cells[label] = [str(classes[place]) for place in drawn.labels]
            if unit := _of_file(schema, "unit", None):
                cells[unit] = [str(row // _RECORDS_OF_A_UNIT + 1) for row in range(rows)]
            return list(cells), list(cells.values())
        case _:
            raise _no_schema("columns, and a label with classes")


class MockImages:
    """Noise of the size that a schema says, a little brighter from class to class.

    Args:
        rows: How many.

    Raises:
        SchemaError: it is no schema of images.
    """

    def __init__(self, schema: Mapping[str, Any], rows: int, seed: int) -> None:
        match schema:
            case {
                "height": int(height),
                "width": int(width),
                "channels": int(channels),
                "classes": [_, _, *_] as classes,
            }:
                self.shape = (rows, height, width) if channels == 1 else (rows, height, width, channels)
            case _:
                raise _no_schema("height, width, channels and classes")
        self._drawn = _Drawn(rows, len(classes), _LEANING, seed)
        self.labels: Sequence[int] = self._drawn.labels
        self.images_name: str = _of_file(schema, "images", "images")
        self.labels_name: str = _of_file(schema, "labels", "labels")
        self.unit_name: str | None = _of_file(schema, "unit", None)
        self.units = [row // _RECORDS_OF_A_UNIT + 1 for row in range(rows)]

    def pixels(self) -> Iterable[bytes]:
        """Image by image."""
        size = math.prod(self.shape[1:])
        tints = [
            bytes(int((1 - _LEANING) * value + _LEANING * 255 * share) for value in range(256))
            for share in self._drawn.shares
        ]
        for label in self.labels:
            yield self._drawn.random.randbytes(size).translate(tints[label])


class _Drawn:
    """What all cells are drawn with: the labels, and how far the label draws a cell along.

    Args:
        leaning: The share of a cell that the label decides.
    """

    def __init__(self, rows: int, classes: int, leaning: float, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # nothing here is secret, and a seed gives the same rows again
        self.rows = rows
        self.labels = [row % classes for row in range(rows)]
        self.random.shuffle(self.labels)
        self.shares = [place / (classes - 1) for place in range(classes)]
        self._leaning = leaning

    def positions(self) -> list[float]:
        """For each row a place between 0 and below 1."""
        own, below_one = 1 - self._leaning, math.nextafter(1, 0)
        drawn = (own * self.random.random() + self._leaning * self.shares[label] for label in self.labels)
        return [min(position, below_one) for position in drawn]

    def some_rows(self, count: int) -> list[int]:
        return self.random.sample(range(self.rows), min(count, self.rows))


def _cells(column: Mapping[str, Any], drawn: _Drawn) -> list[str]:
    cells = [_cell(column, position) for position in drawn.positions()]
    if column.get("missing", "refuse") != "refuse":
        for row in drawn.some_rows(max(1, round(_EMPTY_SHARE * drawn.rows))):
            cells[row] = ""
    if column["type"] == "category" and len(words := column["categories"]) <= drawn.rows:
        for row, word in zip(drawn.some_rows(len(words)), words, strict=True):
            cells[row] = str(word)
    return cells


def _cell(column: Mapping[str, Any], position: float) -> str:
    """What stands at a position, from 0 to below 1, of all that the column can hold."""
    match column:
        case {"type": "number", "range": [int() | float() as low, int() | float() as high]} if low < high:
            digits = max(0, 4 - math.floor(math.log10(high - low)))
            return repr(min(max(round(low + position * (high - low), digits), float(low)), float(high)))
        case {"type": "integer", "range": [int() | float() as low, int() | float() as high]} if math.ceil(low) <= high:
            first, last = math.ceil(low), math.floor(high)
            return str(first + int(position * (last - first + 1)))
        case {"type": "category", "categories": [_, _, *_] as words}:
            return str(words[int(position * len(words))])
        case {"type": "flag"}:
            return str(int(position >= 0.5))
        case _:
            raise _no_schema(f"in the column {_name(column)} a type with its range or categories")


def _name(column: object) -> str:
    match column:
        case {"name": str(name)}:
            return name
        case _:
            raise _no_schema("columns with names")


def _of_file(schema: Mapping[str, Any], key: str, default: Any) -> Any:
    match schema.get("file"):
        case {**given}:
            return given.get(key) or default
        case _:
            return default


def delimiter(schema: Mapping[str, Any]) -> str:
    """What stands between the cells.

    Raises:
        SchemaError: no single character does.
    """
    match _of_file(schema, "delimiter", ","):
        case str(character) if len(character) == 1:
            return character
        case _:
            raise _no_schema("one character as file.delimiter")


def _no_schema(expected: str) -> SchemaError:
    return SchemaError(
        "No records can be made up from this schema", expected=expected, action="See docs/reference/schema.md"
    )
