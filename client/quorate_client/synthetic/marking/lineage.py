"""Where a synthetic table comes from, told in every file of it: a visible column, and in Parquet the file's metadata.

The lineage goes wherever the table goes. So it holds the source by a keyed digest and not by its name or size, and the
report by its digest and not by its figures. Two things in it do depend on records without noise: that digest is another
one when the source is, and a delta that nobody named tells the magnitude of the number of records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from quorate import __version__
from quorate.errors import DataError
from quorate.privacy.events import Event
from quorate_client.site.agreement import Origin
from quorate_client.synthetic.request import Request
from quorate_client.tasks.data.schema import CategoryColumn, FlagColumn, NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table

FORMAT = "quorate.lineage/1"
COLUMN = "synthetic"
"""The first column of every file of a synthetic table. Its cells hold the table's short id."""
METADATA = b"quorate.lineage"
WITHOUT_PRIVACY = "made WITHOUT privacy: nothing bounds what these records tell of the real ones"

_ID = "quorate-synthetic-{}"
_MARK = re.compile(rb"quorate-synthetic-[0-9a-f]{16}")
_MARK_BYTES = 34
_READ_BYTES = 1 << 22
_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def short_id(seed_commitment: str) -> str:
    """By which a table is called in its own cells."""
    return _ID.format(seed_commitment[:16])


def lineage_of(
    request: Request, origin: Origin, events: tuple[Event, ...], *, sets: int, is_watermarked: bool
) -> dict[str, Any]:
    """The lineage, JSON values.

    Args:
        events: What was released of one unit, as the ledger has it.
        sets: How many were made of the source so far, this one included: one of many may have been chosen among them.
    """
    return {
        "format": FORMAT,
        "id": short_id(origin.seed_commitment),
        "name": request.name,
        "source": {"fingerprint": request.source, "unit": origin.source.unit, "sets_made_of_it": sets},
        "generator": origin.generator,
        "program": f"Quorate {__version__}",
        "parameters": {"rows": request.rows, "epsilon": origin.epsilon, "delta": origin.delta},
        "transformations": list(request.transformations),
        "privacy": _promise(origin, events),
        "seed_commitment": origin.seed_commitment,
        "made_unix_s": origin.made_unix_s,
        "report_sha256": origin.report,
        "is_watermarked": is_watermarked,
    }


def _promise(origin: Origin, events: tuple[Event, ...]) -> dict[str, Any]:
    if origin.epsilon is None:
        return {"statement": WITHOUT_PRIVACY}
    unit = origin.source.unit
    return {
        "statement": f"differential privacy, epsilon {origin.epsilon:g} at delta {origin.delta:g} for each {unit} "
        "of the source's training part, added or removed",
        "accounting": "Gaussian sums, composed on the source's privacy ledger",
        "events": [{"noise_multiplier": each.noise_multiplier, "count": each.count} for each in events],
    }


# --- files ---


def to_arrow(schema: TabularSchema, table: Table, mark: str) -> pa.Table:
    """The table as it is written, the marked column first."""
    columns = {COLUMN: pa.array([mark] * table.records)}
    for column in schema.columns:
        values = table.columns[column.name]
        missing = np.isnan(values)
        match column:
            case CategoryColumn():
                places = pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)
                columns[column.name] = pa.array(column.categories).take(places)
            case NumberColumn(type="number"):
                columns[column.name] = pa.array(values, mask=missing)
            case NumberColumn() | FlagColumn():
                columns[column.name] = pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)
    columns[schema.label.name] = pa.array(schema.label.class_order).take(pa.array(table.labels))
    return pa.table(columns)


def write_csv(file: BinaryIO, schema: TabularSchema, table: Table, mark: str) -> None:
    """Raises OSError."""
    pa.csv.write_csv(to_arrow(schema, table, mark), file)


def write_parquet(path: Path, schema: TabularSchema, table: Table, lineage: Mapping[str, Any]) -> None:
    """Raises OSError."""
    marked = to_arrow(schema, table, lineage["id"])
    pq.write_table(marked.replace_schema_metadata({METADATA: json.dumps(dict(lineage))}), path)


# --- known again ---


def mark_in(path: Path) -> str | None:
    """The short id of a synthetic table that a file carries in any cell or in its metadata, whoever made it.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            before = b""
            while piece := file.read(_READ_BYTES):
                if found := _MARK.search(before + piece):
                    return found[0].decode()
                before = piece[-_MARK_BYTES + 1 :]
        return next(_marked_cells(path), None) if path.suffix.lower() == ".parquet" else None
    except OSError as error:
        raise DataError(f"Cannot read {path}", got=error.strerror or "a damaged file") from None


def _marked_cells(path: Path) -> Iterator[str]:
    """Of a Parquet file, whose pages are compressed."""
    try:
        source = pq.ParquetFile(path)
        for batch in source.iter_batches():
            for column in batch.columns:
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary
                if not any(is_of(column.type) for is_of in _TEXTS):
                    continue
                cells = pc.drop_null(column.cast(pa.large_binary()))
                cells = cells.filter(pc.match_substring_regex(cells, _MARK.pattern.decode()))
                if len(cells) and (found := _MARK.search(cells[0].as_py())):
                    yield found[0].decode()
    except pa.ArrowException:
        raise DataError(f"{path} is not a Parquet file") from None
