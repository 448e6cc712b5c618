"""Reads a table from CSV or Parquet and checks every cell against the schema.

The file is read piece by piece, and only the columns of the schema are kept. A refusal says where, in row and column
numbers (rows from 1 after the header, blank lines not counted; columns as they stand in the file), and which column of
the *schema* is meant. It never repeats what the file holds: the "header" of a file without one is a patient's record.
For the same reason the texts of foreign errors, which may quote cells, are dropped.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np
import numpy.typing as npt

from quorate.errors import DataError
from quorate_client.tasks.data.columns import Cells, Mask, Numbers, Report, Vector, checked, checked_labels
from quorate_client.tasks.data.problems import Problems
from quorate_client.tasks.data.schema import TabularSchema

_PIECE_ROWS = 20_000
_ACTION = "Correct the file or the schema; rows are counted from 1 after the header, without blank lines"


@dataclass(frozen=True, slots=True)
class Table:
    """Checked records, column by column.

    Args:
        columns: By name, [records] each: a number, 0 or 1 of a flag, the place of a category in the schema's list; NaN
            where the value is missing.
        labels: [records] the number of the class in the schema's ``class_order``.
        units: [records] equal numbers for the records of one unit; None where each is a unit of its own.
    """

    columns: Mapping[str, Vector]
    labels: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64] | None = None

    @property
    def records(self) -> int:
        return len(self.labels)

    def part(self, chosen: Mask) -> Table:
        """The records for which ``chosen`` is true."""
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return Table(columns, self.labels[chosen], None if self.units is None else self.units[chosen])

    def followed_by(self, made: Table) -> Table:
        """These records, then made ones of the same columns. Made ones are nobody's, so no unit is told of any."""
        columns = {name: np.concatenate([values, made.columns[name]]) for name, values in self.columns.items()}
        return Table(columns, np.concatenate([self.labels, made.labels]))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows: the cells of the columns that were asked for, in their order."""

    first_row: int
    cells: Sequence[Cells]


def read_table(path: Path, schema: TabularSchema, file: BinaryIO | None = None) -> Table:
    """Read and check a whole file.

    Args:
        file: The one at ``path``, open, where it must be a certain one: by the time it is opened again there may be
            another one. It stays open.

    Raises:
        DataError: the file cannot be read, or does not fit the schema. Names positions and no values.
    """
    problems = Problems("row")
    kept: list[list[Vector]] = [[] for _ in schema.columns]
    labels: list[npt.NDArray[np.int64]] = []
    names = [*(column.name for column in schema.columns), schema.label.name]
    with _opened(path, file, schema, names, problems) as (places, pieces):
        for piece in pieces:
            for column, place, cells, target in zip(schema.columns, places, piece.cells, kept, strict=False):
                target.append(checked(column, cells, _report(problems, piece.first_row, place, column.name)))
            label_report = _report(problems, piece.first_row, places[-1], schema.label.name)
            labels.append(checked_labels(schema.label.class_order, piece.cells[-1], label_report))
    problems.refuse_if_any(path, _ACTION)
    if not labels:
        raise DataError(f"{path} holds no records", expected="a header and at least one row")
    columns = {column.name: np.concatenate(parts) for column, parts in zip(schema.columns, kept, strict=True)}
    return Table(columns, np.concatenate(labels))


def read_units(path: Path, schema: TabularSchema, name: str, file: BinaryIO | None = None) -> list[str]:
    """Whose each record is: the cells of the column ``name``, as text, [records].

    Args:
        file: As of ``read_table``.

    Raises:
        DataError: the file cannot be read, or one is empty.
    """
    problems = Problems("row")
    units: list[str] = []
    with _opened(path, file, schema, [name], problems, as_text=True) as (places, pieces):
        for piece in pieces:
            cells = cast("Sequence[str]", piece.cells[0])
            _report(problems, piece.first_row, places[0], name)(np.array([not cell for cell in cells]), "missing")
            units += cells
    problems.refuse_if_any(path, _ACTION)
    return units


def _report(problems: Problems, first_row: int, place: int, name: str) -> Report:
    return lambda wrong, what: problems.add((first_row + np.flatnonzero(wrong)).tolist(), what, place + 1, name)


@contextmanager
def _opened(
    path: Path,
    file: BinaryIO | None,
    schema: TabularSchema,
    names: Sequence[str],
    problems: Problems,
    *,
    as_text: bool = False,
) -> Iterator[tuple[Sequence[int], Iterator[_Piece]]]:
    """The places of the columns ``names`` in the file, counted from 0, and the file's pieces.

    Args:
        as_text: Numbers of a Parquet file too: as numbers the longest would lose digits.
    """
    form = path.suffix.lower()
    if form not in (".csv", ".parquet"):
        raise DataError(f"{path} is no table that can be read", expected="a file named .csv or .parquet")
    try:
        with path.open("rb") if file is None else nullcontext(file) as content:
            content.seek(0)
            if form == ".parquet":
                yield _open_parquet(path, content, schema, names, as_text)
                return
            text = TextIOWrapper(content, encoding="utf-8-sig", newline="")
            try:
                yield _open_csv(path, text, schema, names, problems)
            finally:
                text.detach()
    except OSError as error:
        raise DataError(f"Cannot read {path}", got=error.strerror or "a damaged file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8", action="Save it as CSV in UTF-8") from None


def _open_csv(
    path: Path, file: TextIO, schema: TabularSchema, names: Sequence[str], problems: Problems
) -> tuple[Sequence[int], Iterator[_Piece]]:
    rows = _csv_rows(path, file, schema.file.delimiter)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path} is empty", expected="a header and at least one row")
    places = _places(path, header, schema, names)
    return places, _csv_pieces(rows, places, len(header), problems)


def _csv_rows(path: Path, file: TextIO, delimiter: str) -> Iterator[list[str]]:
    """Rows with their cells stripped of blanks around them. Blank lines are left out."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            raise DataError(
                f"{path} is not CSV from line {reader.line_num} on",
                expected="quotes around a whole cell, doubled inside it, and cells of at most 128 KiB",
            ) from None
        if row is None:
            return
        cells = [cell.strip() for cell in row]
        if any(cells) or len(cells) > 1:
            yield cells


def _csv_pieces(rows: Iterator[list[str]], places: Sequence[int], width: int, problems: Problems) -> Iterator[_Piece]:
    first_row = 1
    while piece := list(itertools.islice(rows, _PIECE_ROWS)):
        for row, cells in enumerate(piece, start=first_row):
            if len(cells) != width:
                problems.add([row], f"{len(cells)} columns instead of {width}")
                cells[:] = (cells + [""] * width)[:width]
        columns = list(zip(*piece, strict=True))
        yield _Piece(first_row, [columns[place] for place in places])
        first_row += len(piece)


def _open_parquet(
    path: Path, file: Any, schema: TabularSchema, names: Sequence[str], as_text: bool
) -> tuple[Sequence[int], Iterator[_Piece]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file)
    except pa.ArrowException:
        raise DataError(f"{path} is not a Parquet file") from None
    places = _places(path, list(source.schema_arrow.names), schema, names)
    return places, _parquet_pieces(path, source, names, _arrow_texts if as_text else _arrow_cells)


def _parquet_pieces(path: Path, source: Any, names: Sequence[str], cells: Callable[[Any], Cells]) -> Iterator[_Piece]:
    import pyarrow as pa

    first_row = 1
    try:
        for batch in source.iter_batches(batch_size=_PIECE_ROWS, columns=list(names)):
            yield _Piece(first_row, [cells(batch.column(name)) for name in names])
            first_row += batch.num_rows
    except pa.ArrowException:
        raise DataError(f"{path} is damaged from row {first_row} on") from None


def _arrow_cells(column: Any) -> Cells:
    import pyarrow.types as types

    if types.is_integer(column.type) or types.is_floating(column.type) or types.is_decimal(column.type):
        missing = column.is_null().to_numpy(zero_copy_only=False)
        return Numbers(column.cast("float64", safe=False).fill_null(0).to_numpy(zero_copy_only=False), missing)
    return _arrow_texts(column)


def _arrow_texts(column: Any) -> list[str]:
    return ["" if cell is None else str(cell).strip() for cell in column.to_pylist()]


def _places(path: Path, header: Sequence[str], schema: TabularSchema, names: Sequence[str]) -> list[int]:
    """Where the columns ``names`` are. All columns of the schema must be there, and all of the file accounted for."""
    unit = [] if schema.file.unit is None else [schema.file.unit]
    wanted = [*(column.name for column in schema.columns), schema.label.name, *unit]
    missing = [name for name in wanted if name not in header]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise DataError(
            f"{path} lacks {len(missing)} column{'s' if len(missing) > 1 else ''} of its schema: {shown}",
            got=f"{len(header)} column{'s' if len(header) > 1 else ''}",
            action="Correct the names in the file or in the schema; for CSV also check the schema's file.delimiter",
        )
    known = {*wanted, *schema.file.ignore}
    for place, name in enumerate(header):
        if name not in known:
            raise DataError(
                f"Column {place + 1} of {path} is not in its schema",
                action="Remove the column, or list its name in the schema under file.ignore: it is then never read",
            )
        if name in header[:place]:
            raise DataError(f"Column {place + 1} of {path} has the same name as column {header.index(name) + 1}")
    return [header.index(name) for name in names]
