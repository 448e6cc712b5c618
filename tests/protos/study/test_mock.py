"""Made-up records: true to the schema, with all that it allows, from a seed and nothing else."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.errors import AlreadyExistsError, InputError, SchemaError
from quorate.study.mock import mock_table
from quorate.study.mock_file import mock_name, write_mock
from quorate_client.tasks.data.datasets import load_images, load_table, register
from quorate_client.tasks.data.schema import ImageSchema, TabularSchema, parse_schema
from quorate_client.tasks.data.table import read_table
from quorate_client.tasks.image import TASK as IMAGE_TASK
from quorate_client.tasks.tabular import TASK as TABULAR_TASK
from tests.client.data_kit import a_site

TABLE: dict[str, Any] = {
    "kind": "tabular",
    "columns": [
        {"name": "age", "type": "integer", "range": [18, 95]},
        {"name": "share", "type": "number", "range": [0.1234567, 0.2345678]},
        {"name": "sum", "type": "number", "range": [-3e9, 1.5e12], "missing": "mean"},
        {"name": "halves", "type": "integer", "range": [0.5, 2.5], "missing": 1},
        {"name": "stage", "type": "category", "categories": ["I", 'a "b"; c', "x,y", "ü"], "missing": "I"},
        {"name": "code", "type": "category", "categories": [f"c{number}" for number in range(300)]},
        {"name": "smoker", "type": "flag", "missing": True},
    ],
    "label": {"name": "died", "classes": ["no", "yes", "unknown"]},
}
IMAGES: dict[str, Any] = {
    "kind": "images",
    "height": 12,
    "width": 10,
    "channels": 1,
    "classes": ["left", "right"],
    "file": {"images": "x", "labels": "y"},
}


def parsed(schema: dict[str, Any]) -> Any:
    return parse_schema(schema, "The schema")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("rows", [1, 3, 400])
def test_a_mock_table_fits_its_schema_cell_by_cell(tmp_path: Path, separator: str, rows: int) -> None:
    schema = {**TABLE, "file": {"delimiter": separator, "ignore": ["secret"], "unit": "patient"}}
    path = tmp_path / "mock.csv"
    for seed in range(3):
        write_mock(path, schema, rows, seed)
        assert read_table(path, parsed(schema)).records == rows
        path.unlink()


def test_no_number_is_rounded_out_of_its_range() -> None:
    columns = [{"name": "a", "type": "number", "range": [0.00001, 1.00009]}]
    schema = {"kind": "tabular", "columns": columns, "label": {"name": "ill", "classes": ["no", "yes"]}}
    _, (cells, _) = mock_table(schema, 100_000, 0)
    values = [float(cell) for cell in cells]
    assert (min(values), max(values)) == (0.00001, 1.00009), "some would be rounded to 0 and to 1.0001"


def test_everything_that_the_schema_allows_occurs_where_there_are_rows_enough(tmp_path: Path) -> None:
    write_mock(tmp_path / "mock.csv", TABLE, 400, 1)
    table = read_table(tmp_path / "mock.csv", parsed(TABLE))
    assert set(table.labels) == {0, 1, 2}
    for column in parsed(TABLE).columns:
        values = table.columns[column.name]
        missing = np.isnan(values)
        assert missing.any() == (column.missing != "refuse")
        assert missing.mean() < 0.1
        match column.type:
            case "category":
                assert set(values[~missing]) == set(range(len(column.categories)))
            case "flag":
                assert set(values[~missing]) == {0, 1}
            case _:
                low, high = column.range
                assert np.quantile(values[~missing], 0.05) < low + 0.2 * (high - low) or column.name == "halves"
                assert np.quantile(values[~missing], 0.95) > low + 0.7 * (high - low)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for schema in (TABLE, IMAGES):
        written = []
        for seed in (1, 1, 2):
            path = tmp_path / mock_name(str(len(written)), schema)
            write_mock(path, schema, 30, seed)
            written.append(path.read_bytes())
        assert written[0] == written[1] != written[2]


@pytest.mark.parametrize("columns", [1, 30])
def test_a_task_finds_the_weak_relation_in_a_registered_mock_and_no_strong_one(tmp_path: Path, columns: int) -> None:
    schema = {
        "kind": "tabular",
        "columns": [{"name": f"x{number}", "type": "number", "range": [0, 10]} for number in range(columns)],
        "label": {"name": "ill", "classes": ["no", "yes"]},
    }
    write_mock(tmp_path / "mock.csv", schema, 1500, 0)
    dataset = register("mock", tmp_path / "mock.csv", schema, 0.3, a_site(tmp_path))
    assert sum(part.records for part in load_table(dataset, parsed(schema))) == 1500
    session = TABULAR_TASK.open({"schema": schema, "epochs": 5, "learning_rate": 0.1}, dataset, 1)
    session.begin(session.statistics())
    theta = session.initial()
    for number in range(3):
        theta = theta + session.train(theta, number, number, 0.0)[0]
    assert 0.7 < session.evaluate(theta).metrics()["auc"] < 0.9


def test_a_task_trains_on_a_table_of_every_kind_of_column(tmp_path: Path) -> None:
    write_mock(tmp_path / "mock.csv", TABLE, 200, 0)
    dataset = register("mock", tmp_path / "mock.csv", TABLE, 0.3, a_site(tmp_path))
    session = TABULAR_TASK.open({"schema": TABLE}, dataset, 1)
    session.begin(session.statistics())
    assert np.isfinite(session.train(session.initial(), 1, 1, 0.0)[0]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_task_trains_on_registered_mock_images(tmp_path: Path, channels: int) -> None:
    schema = {**IMAGES, "channels": channels, "file": {**IMAGES["file"], "unit": "whose"}}
    write_mock(tmp_path / "mock.npz", schema, 60, 0)
    dataset = register("mock", tmp_path / "mock.npz", schema, 0.3, a_site(tmp_path))
    assert dataset.units == 30
    site_schema = parsed(schema)
    assert isinstance(site_schema, ImageSchema)
    training, held_out = load_images(dataset, site_schema)
    assert training.pixels.shape[1:] == (channels, 12, 10)
    assert {*training.labels, *held_out.labels} == {0, 1}
    brightness = [training.pixels[training.labels == label].mean() for label in (0, 1)]
    assert brightness[1] > brightness[0] + 40
    session = IMAGE_TASK.open({"schema": {**IMAGES, "channels": channels}, "filters": [4]}, dataset, 1)
    session.begin(())
    assert np.isfinite(session.train(session.initial(), 1, 1, 0.0)[0]).all()


def test_units_of_a_table_have_records_each(tmp_path: Path) -> None:
    schema = {**TABLE, "file": {"unit": "patient"}}
    write_mock(tmp_path / "mock.csv", schema, 40, 0)
    assert isinstance(parsed(schema), TabularSchema)
    assert register("mock", tmp_path / "mock.csv", schema, 0.3, a_site(tmp_path)).units == 20


def test_numbers_in_a_schemas_lists_are_words(tmp_path: Path) -> None:
    columns = [{"name": "grade", "type": "category", "categories": [1, 2]}]
    schema = {"kind": "tabular", "columns": columns, "label": {"name": "ill", "classes": [0, 1]}}
    write_mock(tmp_path / "mock.csv", schema, 10, 0)
    assert read_table(tmp_path / "mock.csv", parsed(schema)).records == 10


@pytest.mark.parametrize(
    ("name", "schema", "told"),
    [
        ("heart.csv", TABLE, "Name it heart.mock.csv"),
        ("mock.txt", TABLE, "ends in .csv"),
        ("mock.csv", IMAGES, "ends in .npz"),
    ],
)
def test_a_file_whose_name_does_not_say_mock_is_not_written(
    tmp_path: Path, name: str, schema: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        write_mock(tmp_path / name, schema, 10, 0)
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mock.csv"
    path.write_text("real records")
    with pytest.raises(AlreadyExistsError):
        write_mock(path, TABLE, 10, 0)
    assert path.read_text() == "real records"


@pytest.mark.parametrize("rows", [0, -1, 100_001])
def test_a_number_of_rows_out_of_bounds_is_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(InputError, match="1 to 100000"):
        write_mock(tmp_path / "mock.csv", TABLE, rows, 0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"kind": "sound"},
        {**TABLE, "columns": []},
        {**TABLE, "columns": "age"},
        {**TABLE, "columns": ["age"]},
        {**TABLE, "columns": [{"name": "a", "type": "colour"}]},
        {**TABLE, "columns": [{"name": "a", "type": "number"}]},
        {**TABLE, "columns": [{"name": "a", "type": "number", "range": [1, 1]}]},
        {**TABLE, "columns": [{"name": "a", "type": "number", "range": ["0", "1"]}]},
        {**TABLE, "columns": [{"name": "a", "type": "integer", "range": [0.2, 0.8]}]},
        {**TABLE, "columns": [{"name": "a", "type": "category", "categories": ["one"]}]},
        {**TABLE, "label": {"name": "died"}},
        {**TABLE, "label": {"name": "died", "classes": ["no"]}},
        {**TABLE, "file": {"delimiter": "too long"}},
        {**IMAGES, "height": "12"},
        {**IMAGES, "classes": []},
    ],
)
def test_what_is_no_schema_is_refused_and_leaves_no_file(tmp_path: Path, schema: dict[str, Any]) -> None:
    path = tmp_path / ("mock.npz" if schema.get("kind") == "images" else "mock.csv")
    with pytest.raises(SchemaError):
        write_mock(path, schema, 10, 0)
    assert not any(tmp_path.iterdir())


def test_the_csv_has_the_header_that_registering_reads(tmp_path: Path) -> None:
    write_mock(tmp_path / "mock.csv", TABLE, 2, 0)
    with (tmp_path / "mock.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    assert header == ["age", "share", "sum", "halves", "stage", "code", "smoker", "died"]


def test_numpy_reads_the_arrays_without_unpickling(tmp_path: Path) -> None:
    write_mock(tmp_path / "mock.npz", IMAGES, 7, 0)
    with np.load(tmp_path / "mock.npz", allow_pickle=False) as arrays:
        assert (arrays["x"].shape, arrays["x"].dtype) == ((7, 12, 10), np.uint8)
        assert (arrays["y"].shape, arrays["y"].dtype) == ((7,), np.int64)
    with zipfile.ZipFile(tmp_path / "mock.npz") as archive:
        assert archive.testzip() is None
