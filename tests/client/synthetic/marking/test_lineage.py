"""A synthetic table says what it is, in each of its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quorate.errors import DataError
from quorate_client.synthetic.marking.lineage import METADATA, mark_in, short_id, write_csv, write_parquet
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table, read_table

from ..records import a_table, parsed

MARK = short_id("0123456789abcdef" * 4)
LINEAGE = {"id": MARK, "seed_commitment": "0123456789abcdef" * 4}


def reader() -> TabularSchema:
    schema = parsed()
    return schema.model_copy(update={"file": schema.file.model_copy(update={"ignore": ("synthetic",)})})


def written(folder: Path, suffix: str, table: Table) -> Path:
    path = folder / f"made{suffix}"
    if suffix == ".csv":
        with path.open("wb") as file:
            write_csv(file, parsed(), table, MARK)
    else:
        write_parquet(path, parsed(), table, LINEAGE)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_holds_the_very_records_with_the_mark_in_its_first_column(tmp_path: Path, suffix: str) -> None:
    table = a_table(300)
    table.columns["pressure"][:2] = (1 / 3 + 100, 60.0)
    path = written(tmp_path, suffix, table)
    again = read_table(path, reader())
    assert all(np.array_equal(again.columns[name], table.columns[name], equal_nan=True) for name in table.columns)
    assert np.array_equal(again.labels, table.labels)
    if suffix == ".csv":
        lines = path.read_text().splitlines()
        assert lines[0].split(",")[0].strip('"') == "synthetic"
        assert {line.split(",")[0].strip('"') for line in lines[1:]} == {MARK}
    else:
        file = pq.ParquetFile(path)
        assert file.schema_arrow.names[0] == "synthetic"
        assert json.loads(file.schema_arrow.metadata[METADATA]) == LINEAGE


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_mark_is_found_also_where_columns_were_renamed_moved_or_metadata_lost(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, a_table(50))
    assert mark_in(path) == MARK
    if suffix == ".csv":
        path.write_text("\ufeff" + path.read_text().replace("synthetic", "source", 1).replace(",", ";"))
    else:
        table = pq.read_table(path)
        turned = table.select([*table.column_names[1:], "synthetic"]).replace_schema_metadata(None)
        pq.write_table(turned, path, compression="zstd", use_dictionary=False)
    assert mark_in(path) == MARK


def test_a_mark_across_two_pieces_that_are_read_is_found(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_bytes(b"x" * ((1 << 22) - 10) + MARK.encode() + b"\n")
    assert mark_in(path) == MARK


def test_a_column_named_synthetic_with_other_cells_is_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "fibres.csv"
    path.write_text("synthetic,age\nquorate-synthetic,3\nyes,4\n")
    assert mark_in(path) is None
    pq.write_table(pa.table({"synthetic": ["quorate-synthetic-", None], "n": [1, 2]}), tmp_path / "fibres.parquet")
    assert mark_in(tmp_path / "fibres.parquet") is None


def test_a_file_that_cannot_be_read_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read"):
        mark_in(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a Parquet file"):
        mark_in(tmp_path / "bad.parquet")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_a_mark_is_found_behind_what_only_looks_like_one(tmp_path: Path, kind: pa.DataType) -> None:
    mark = short_id("5e" * 32)
    cells = ["quorate-synthetic-none", mark]
    if kind == pa.binary():
        cells = [each.encode() for each in cells]
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"note": pa.array(cells, kind)}), path, compression="zstd", write_statistics=False)
    assert mark_in(path) == mark
