"""Tables from CSV and Parquet: everything wrong is told by its place and never by its value."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import DataError
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table, read_table

COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "type": "integer", "range": [18, 120]},
    {"name": "pressure", "type": "number", "range": [0, 300], "missing": "mean"},
    {"name": "stage", "type": "category", "categories": ["I", "II", 3], "missing": "II"},
    {"name": "smoker", "type": "flag"},
]
HEADER = "age,pressure,stage,smoker,died\n"
GOOD = "40,120.5,I,1,0\n"


def schema(**file: Any) -> TabularSchema:
    content = {"kind": "tabular", "columns": COLUMNS, "label": {"name": "died", "classes": [1, 0], "positive": 1}}
    parsed = parse_schema({**content, "file": file}, "The schema")
    assert isinstance(parsed, TabularSchema)
    return parsed


def read_csv(folder: Path, content: str | bytes, **file: Any) -> Table:
    path = folder / "records.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, schema(**file))


def read_parquet(folder: Path, columns: dict[str, Any]) -> Table:
    path = folder / "records.parquet"
    pq.write_table(pa.table(columns), path)
    return read_table(path, schema())


def refusal(folder: Path, content: str | bytes, **file: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_csv(folder, content, **file)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def rows_of(table: Table) -> list[list[float]]:
    return [[table.columns[c["name"]][row] for c in COLUMNS] + [table.labels[row]] for row in range(table.records)]


def test_cells_become_numbers_flags_places_and_class_numbers(tmp_path: Path) -> None:
    table = read_csv(tmp_path, HEADER + "40,120.5,I,true,0\n 41.0 , 1e2 ,3,FALSE,1\n")
    assert rows_of(table) == [[40, 120.5, 0, 1, 0], [41, 100, 2, 0, 1]]


def test_what_may_be_missing_is_kept_as_missing(tmp_path: Path) -> None:
    table = read_csv(tmp_path, HEADER + "40,,I,1,0\n41,7, ,0,1\n")
    assert math.isnan(table.columns["pressure"][0])
    assert math.isnan(table.columns["stage"][1])


def test_an_empty_cell_of_whole_numbers_is_missing_whatever_the_range_begins_with(tmp_path: Path) -> None:
    columns = [{"name": "visits", "type": "integer", "range": [0.5, 9.5], "missing": 1}]
    content = {"kind": "tabular", "columns": columns, "label": {"name": "died", "classes": [1, 0]}}
    parsed = parse_schema(content, "The schema")
    assert isinstance(parsed, TabularSchema)
    path = tmp_path / "records.csv"
    path.write_text("visits,died\n,0\n3,1\n")
    np.testing.assert_array_equal(read_table(path, parsed).columns["visits"], [math.nan, 3])


def test_the_order_of_the_columns_in_the_file_does_not_matter(tmp_path: Path) -> None:
    assert rows_of(read_csv(tmp_path, "died,smoker,stage,pressure,age\n1,0,II,5,60\n")) == [[60, 5, 1, 0, 1]]


def test_a_byte_order_mark_quotes_blank_lines_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    content = '\ufeff"age",pressure,"stage",smoker,died\r\n\r\n"40","120.5","I","1",0\r\n   \r\n41,1,"3",0,1\r\n\r\n'
    assert rows_of(read_csv(tmp_path, content)) == [[40, 120.5, 0, 1, 0], [41, 1, 2, 0, 1]]


def test_another_delimiter_is_read_where_it_is_declared_and_only_there(tmp_path: Path) -> None:
    content = (HEADER + GOOD).replace(",", ";")
    assert read_csv(tmp_path, content, delimiter=";").records == 1
    told = refusal(tmp_path, content)
    assert "lacks 5 columns of its schema: age, pressure, stage, smoker, died" in told
    assert "delimiter" in told


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("forty,1,I,1,0", "row 2, column 1 (age): not a number"),
        ("4_0,1,I,1,0", "row 2, column 1 (age): not a number"),
        (",1,I,1,0", "row 2, column 1 (age): missing"),
        ("40.5,1,I,1,0", "row 2, column 1 (age): not a whole number"),
        ("17,1,I,1,0", "row 2, column 1 (age): out of range"),
        ("40,300.1,I,1,0", "row 2, column 2 (pressure): out of range"),
        ("40,nan,I,1,0", "row 2, column 2 (pressure): not finite"),
        ("40,-inf,I,1,0", "row 2, column 2 (pressure): not finite"),
        ("40,1e999,I,1,0", "row 2, column 2 (pressure): not finite"),
        ("40,1,IV,1,0", "row 2, column 3 (stage): not one of the categories"),
        ("40,1,I,2,0", "row 2, column 4 (smoker): neither yes nor no"),
        ("40,1,I,,0", "row 2, column 4 (smoker): missing"),
        ("40,1,I,1,2", "row 2, column 5 (died): not one of the classes"),
        ("40,1,I,1,", "row 2, column 5 (died): missing"),
        ("40,1,I,1", "row 2: 4 columns instead of 5"),
        ("40,1,I,1,0,secret", "row 2: 6 columns instead of 5"),
    ],
)
def test_a_wrong_cell_is_told_by_row_and_column(tmp_path: Path, row: str, told: str) -> None:
    assert told in refusal(tmp_path, HEADER + GOOD + row + "\n" + GOOD)


def test_all_wrong_places_are_counted_and_the_first_five_named_in_order(tmp_path: Path) -> None:
    told = refusal(tmp_path, HEADER + "1,1,I,1,0\n" + 20_000 * GOOD + 9 * "200,1,x,1,0\n")
    assert "in 19 places" in told
    assert "row 1, column 1 (age): out of range; row 20002, column 1 (age): out of range; row 20002, column 3" in told
    assert "row 20004" not in told
    assert told.count("row ") == 5
    assert "and 14 more" in told


def test_no_refusal_repeats_what_a_cell_holds(tmp_path: Path) -> None:
    canary = "Jane-Doe-4711"
    for content in (
        f"{canary},120.5,I,1,0\n" + GOOD,
        HEADER + f"{canary},{canary},{canary},{canary},{canary}\n",
        HEADER + f"40,1,I,1,0,{canary}\n",
        HEADER + f'40,1,"I{canary},1,0\n',
        HEADER + f'40,1,"I"{canary},1,0\n',
        (HEADER + f"40,1,{canary}é,1,0\n").encode("latin-1"),
        HEADER.replace("\n", f",{canary}\n") + GOOD.replace("\n", ",1\n"),
    ):
        assert canary not in refusal(tmp_path, content)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "is empty" in refusal(tmp_path, content)


def test_a_header_without_records_is_refused(tmp_path: Path) -> None:
    assert "holds no records" in refusal(tmp_path, HEADER + "\n")


def test_a_missing_column_is_named_as_the_schema_names_it(tmp_path: Path) -> None:
    assert "lacks 1 column of its schema: smoker" in refusal(tmp_path, HEADER.replace("smoker", "smokes") + GOOD)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, HEADER.replace("\n", ",age\n") + GOOD.replace("\n", ",40\n"))
    assert "Column 6 of" in told
    assert "the same name as column 1" in told


def test_a_column_that_is_not_in_the_schema_is_refused_unless_it_is_to_be_ignored(tmp_path: Path) -> None:
    content = "patient," + HEADER + "Jane Doe," + GOOD
    told = refusal(tmp_path, content)
    assert "Column 1 of" in told
    assert "patient" not in told
    assert rows_of(read_csv(tmp_path, content, ignore=["patient"])) == [[40, 120.5, 0, 1, 0]]


def test_an_unclosed_quote_is_refused(tmp_path: Path) -> None:
    assert "is not CSV from line 2 on" in refusal(tmp_path, HEADER + '40,"1,I,1,0\n')


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    assert "is not text in UTF-8" in refusal(tmp_path, HEADER.encode() + b"\xff\xfe\n")


def test_a_file_that_is_not_there_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*absent\.csv"):
        read_table(tmp_path / "absent.csv", schema())
    with pytest.raises(DataError, match=r"a file named \.csv or \.parquet"):
        read_table(tmp_path / "records.xlsx", schema())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="Cannot read"):
        read_table(tmp_path / "folder.csv", schema())


@given(st.lists(st.tuples(st.integers(18, 120), st.floats(0, 300), st.booleans()), min_size=1, max_size=30))
def test_numbers_are_read_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    lines = [f"{age},{pressure!r},I,{int(flag)},0\n" for age, pressure, flag in rows]
    table = read_csv(tmp_path_factory.mktemp("csv"), HEADER + "".join(lines))
    assert [[*row[:2], bool(row[3])] for row in rows_of(table)] == [list(row) for row in rows]


def test_parquet_gives_the_same_as_csv(tmp_path: Path) -> None:
    table = read_parquet(
        tmp_path,
        {
            "age": pa.array([40, 41, 42], pa.int16()),
            "pressure": pa.array([120.5, None, 3], pa.float32()),
            "stage": pa.array(["I", None, "3"]).dictionary_encode(),
            "smoker": [True, False, True],
            "died": pa.array([0.0, 1.0, 0.0]),
        },
    )
    csv = read_csv(tmp_path, HEADER + "40,120.5,I,1,0\n41,,,0,1\n42,3,3,1,0\n")
    np.testing.assert_array_equal(rows_of(table), rows_of(csv))


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("age", pa.array(["old", "41"]), "row 1, column 1 (age): not a number"),
        ("age", pa.array([40, None]), "row 2, column 1 (age): missing"),
        ("pressure", pa.array([1.0, math.nan]), "row 2, column 2 (pressure): not finite"),
        ("pressure", pa.array([[1.0], [2.0]]), "row 1, column 2 (pressure): not a number"),
        ("stage", pa.array([3, 4]), "row 2, column 3 (stage): not one of the categories"),
        ("smoker", pa.array([0.5, 1]), "row 1, column 4 (smoker): neither yes nor no"),
    ],
)
def test_a_wrong_cell_of_parquet_is_told_by_row_and_column(tmp_path: Path, column: str, values: Any, told: str) -> None:
    columns = {"age": [40, 41], "pressure": [1.0, 2], "stage": ["I", "I"], "smoker": [True, True], "died": [0, 1]}
    with pytest.raises(DataError) as caught:
        read_parquet(tmp_path, {**columns, column: values})
    assert told in str(caught.value)


def test_a_column_of_parquet_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    content = {
        "kind": "tabular",
        "columns": [{"name": "a.b", "type": "integer", "range": [0, 9]}],
        "label": {"name": "y", "classes": ["n", "y"]},
    }
    parsed = parse_schema(content, "The schema")
    assert isinstance(parsed, TabularSchema)
    pq.write_table(pa.table({"a.b": [1, 2], "y": ["n", "y"]}), tmp_path / "dots.parquet")
    assert read_table(tmp_path / "dots.parquet", parsed).columns["a.b"].tolist() == [1, 2]


def test_damaged_parquet_is_refused_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    columns = {"age": [40] * 99, "pressure": [1.0] * 99, "stage": ["I"] * 99, "smoker": [True] * 99, "died": [0] * 99}
    pq.write_table(pa.table(columns), path, compression="gzip")
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], whole[:8] + b"Jane-Doe" * 9 + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_table(path, schema())
        assert "Jane" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_part_keeps_the_records_that_are_chosen(tmp_path: Path) -> None:
    table = read_csv(tmp_path, HEADER + GOOD + "41,1,I,0,1\n")
    assert rows_of(table.part(np.array([False, True]))) == [[41, 1, 0, 0, 1]]
