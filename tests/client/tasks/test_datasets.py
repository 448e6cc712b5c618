"""Registering data sets, and loading them for a study with the same split at every start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from quorate.errors import DataError, InputError, SchemaError
from quorate_client.site.agreement import Dataset
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.data.datasets import load_images, load_table, register, unchanged_index
from quorate_client.tasks.data.schema import ImageSchema, TabularSchema, parse_schema
from tests.client.data_kit import a_site
from tests.client.real_data import real_data

TABLE: dict[str, Any] = {
    "kind": "tabular",
    "columns": [
        {"name": "number", "type": "integer", "range": [0, 999]},
        {"name": "half", "type": "number", "range": [0, 500]},
    ],
    "label": {"name": "odd", "classes": ["no", "yes"]},
    "file": {"ignore": ["patient"]},
}
IMAGES: dict[str, Any] = {"kind": "images", "height": 2, "width": 2, "channels": 1, "classes": ["a", "b"]}


def write_table(folder: Path, records: int) -> Path:
    path = folder / "numbers.csv"
    rows = [f"{n},{n / 2},{'yes' if n % 2 else 'no'},Jane" for n in range(records)]
    path.write_text("\n".join(["number,half,odd,patient", *rows]))
    return path


def held_out(dataset: Dataset) -> npt.NDArray[np.bool_]:
    return unchanged_index(dataset).held_out


def wanted(columns: list[dict[str, Any]]) -> TabularSchema:
    schema = parse_schema({**TABLE, "columns": columns, "file": {}}, "The study")
    assert isinstance(schema, TabularSchema)
    return schema


def test_a_table_that_fits_is_registered_with_its_number_of_records(tmp_path: Path) -> None:
    path = write_table(tmp_path, 30)
    dataset = register("numbers", path, TABLE, 0.2, a_site(tmp_path))
    assert (dataset.name, dataset.kind, dataset.path, dataset.records) == ("numbers", "tabular", path.resolve(), 30)
    assert dataset.schema["columns"][0]["missing"] == "refuse"
    assert register("numbers", path, dataset.schema, 0.2, a_site(tmp_path)) == dataset


def test_images_that_fit_are_registered(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((20, 2, 2), dtype=np.uint8), labels=np.arange(20) % 2)
    dataset = register("images", path, IMAGES, 0.5, a_site(tmp_path))
    assert (dataset.kind, dataset.records) == ("images", 20)
    schema = parse_schema(IMAGES, "The study")
    assert isinstance(schema, ImageSchema)
    training, test = load_images(dataset, schema)
    assert training.records + test.records == 20
    assert test.records == held_out(dataset).sum()


def test_data_that_do_not_fit_are_not_registered(tmp_path: Path) -> None:
    path = write_table(tmp_path, 1001)
    with pytest.raises(DataError, match="row 1001, column 1 \\(number\\): out of range"):
        register("numbers", path, TABLE, 0.2, a_site(tmp_path))


@pytest.mark.parametrize(("name", "error"), [("Jane Doe", InputError), ("", InputError), ("a" * 64, InputError)])
def test_a_name_that_is_not_valid_is_refused(tmp_path: Path, name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="cannot be the name of a data set"):
        register(name, write_table(tmp_path, 30), TABLE, 0.2, a_site(tmp_path))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_test_part_of_nothing_or_of_everything_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError, match="above 0 and below 1"):
        register("numbers", write_table(tmp_path, 30), TABLE, fraction, a_site(tmp_path))


@pytest.mark.parametrize(("records", "fraction"), [(3, 0.5), (30, 0.001), (30, 0.999)])
def test_fewer_than_two_records_to_train_or_to_evaluate_on_are_refused(
    tmp_path: Path, records: int, fraction: float
) -> None:
    with pytest.raises(DataError, match="leaves too few records"):
        register("numbers", write_table(tmp_path, records), TABLE, fraction, a_site(tmp_path))


def test_a_schema_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="The schema of the data set numbers has 1 problem"):
        register("numbers", write_table(tmp_path, 30), {**TABLE, "columns": []}, 0.2, a_site(tmp_path))


def test_the_test_part_is_the_same_at_every_start_and_another_at_each_site(tmp_path: Path) -> None:
    path, site = write_table(tmp_path, 400), a_site(tmp_path)
    first, again = (register("numbers", path, TABLE, 0.3, site) for _ in range(2))
    assert (held_out(first) == held_out(again)).all()
    assert 80 < held_out(first).sum() < 160
    elsewhere = SiteFolder(tmp_path / "elsewhere")
    elsewhere.create()
    assert (held_out(first) != held_out(register("numbers", path, TABLE, 0.3, elsewhere))).any()


def test_a_study_gets_the_columns_it_asks_for_in_its_own_order(tmp_path: Path) -> None:
    dataset = register("numbers", write_table(tmp_path, 30), TABLE, 0.3, a_site(tmp_path))
    training, test = load_table(dataset, wanted(TABLE["columns"][::-1]))
    assert list(training.columns) == ["half", "number"]
    chosen = held_out(dataset)
    assert test.columns["number"].tolist() == np.flatnonzero(chosen).tolist()
    assert training.columns["number"].tolist() == np.flatnonzero(~chosen).tolist()
    fewer, _ = load_table(dataset, wanted(TABLE["columns"][:1]))
    assert list(fewer.columns) == ["number"]


def test_data_that_lack_what_a_study_asks_for_are_not_loaded(tmp_path: Path) -> None:
    dataset = register("numbers", write_table(tmp_path, 30), TABLE, 0.3, a_site(tmp_path))
    with pytest.raises(SchemaError, match="The data set numbers does not have what the study asks for"):
        load_table(dataset, wanted([{"name": "third", "type": "flag"}]))
    schema = parse_schema(IMAGES, "The study")
    assert isinstance(schema, ImageSchema)
    with pytest.raises(SchemaError, match="another kind of data"):
        load_images(dataset, schema)


def test_data_that_changed_since_they_were_registered_are_not_loaded(tmp_path: Path) -> None:
    dataset: Dataset = register("numbers", write_table(tmp_path, 30), TABLE, 0.3, a_site(tmp_path))
    write_table(tmp_path, 31)
    with pytest.raises(DataError, match="has changed since it was registered"):
        load_table(dataset, wanted(TABLE["columns"]))
    write_table(tmp_path, 30)
    assert load_table(dataset, wanted(TABLE["columns"]))[0].records > 0


@pytest.mark.parametrize("how", ["put in its place", "written into it"])
@pytest.mark.parametrize("opened", [1, 2, 3])
def test_a_file_that_is_swapped_between_its_digest_and_its_reading_is_not_taken_for_the_registered_one(
    tmp_path: Path, how: str, opened: int
) -> None:
    """However often it is opened, and whether it is put in place or written: records of the other never come out."""
    dataset = register("numbers", write_table(tmp_path, 30), TABLE, 0.3, a_site(tmp_path))
    true_ones = dataset.path.read_bytes()
    others = true_ones.replace(b",0.5,", b",499.5,")
    columns = wanted(TABLE["columns"])
    with swapped(dataset.path, others, how, opened), suppress(DataError):
        training, test = load_table(dataset, columns)
        assert 499.5 not in {*training.columns["half"], *test.columns["half"]}
    dataset.path.write_bytes(true_ones)
    with swapped(dataset.path, others, how, opened), suppress(DataError):
        again = register("again", dataset.path, TABLE, 0.3, a_site(tmp_path))
        assert (again.content == dataset.content) == (again.index == dataset.index), "of one and the same file"


@contextmanager
def swapped(path: Path, others: bytes, how: str, opened: int) -> Iterator[None]:
    """Change a file at the moment at which it is opened for the so-manieth time."""
    left = {"times": opened}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if left["times"] and event == "open" and arguments[:2] == (str(path), "r"):
            left["times"] -= 1
            if not left["times"]:
                target = path if how == "written into it" else path.with_suffix(".other")
                target.write_bytes(others)
                target.replace(path)

    sys.addaudithook(hook)  # cannot be taken away again: it does nothing from here on once it was spent
    try:
        yield
    finally:
        left["times"] = 0


def test_real_credit_records_are_registered(tmp_path: Path) -> None:
    path = real_data("credit_default/credit_default.csv")
    numbers = [{"name": f"X{n}", "type": "number", "range": [-1e6, 1e7]} for n in range(1, 24)]
    schema = {"kind": "tabular", "columns": numbers, "label": {"name": "Y", "classes": [0, 1]}}
    with pytest.raises(DataError, match=r"Column 1 of .* is not in its schema"):
        register("credit", path, schema, 0.3, a_site(tmp_path))
    assert register("credit", path, {**schema, "file": {"ignore": ["ID"]}}, 0.3, a_site(tmp_path)).records == 30_000
    ages = [{"name": "X5", "type": "integer", "range": [21, 75]}, *numbers[:4], *numbers[5:]]
    with pytest.raises(DataError, match=r"in 1 place\. Got row 18246, column 6 \(X5\): out of range"):
        register("credit", path, {**schema, "columns": ages, "file": {"ignore": ["ID"]}}, 0.3, a_site(tmp_path))
