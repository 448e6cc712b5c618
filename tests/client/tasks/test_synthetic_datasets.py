"""A model that is trained on made records is tried on people's, whatever it was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quorate.errors import DataError, SchemaError
from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.datasets import load_table, register, unchanged_index
from tests.client.data_kit import a_site
from tests.client.synthetic_sets import made_from

from .test_datasets import TABLE, wanted, write_table

MADE = "number,half,odd,patient\n" + "".join(f"{900 + n},{n},yes,-\n" for n in range(40))
"""Numbers that no real record has."""


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    return register("numbers", write_table(tmp_path, 200), TABLE, 0.2, a_site(tmp_path))


@pytest.fixture
def made(source: Dataset, tmp_path: Path) -> Dataset:
    return made_from(source, tmp_path / "made", MADE)


def test_made_records_stand_in_the_place_of_the_training_part(source: Dataset, made: Dataset) -> None:
    schema = wanted(TABLE["columns"])
    real, held_out = load_table(source, schema)
    training, test = load_table(replace(made, training="synthetic"), schema)
    assert training.columns["number"].tolist() == list(range(900, 940))
    assert test.columns["number"].tolist() == held_out.columns["number"].tolist()
    mixed, test = load_table(replace(made, training="mixed"), schema)
    assert mixed.columns["number"].tolist() == [*real.columns["number"].tolist(), *range(900, 940)]
    assert mixed.labels.tolist() == [*real.labels.tolist(), *[1] * 40]
    assert test.columns["number"].tolist() == held_out.columns["number"].tolist()


def test_no_held_out_record_is_trained_on(source: Dataset, made: Dataset) -> None:
    for training_data in ("synthetic", "mixed"):
        training, test = load_table(replace(made, training=training_data), wanted(TABLE["columns"]))
        assert not set(training.columns["number"]) & set(test.columns["number"])


def test_made_records_are_no_unit_s(tmp_path: Path) -> None:
    path = write_table(tmp_path, 200)
    path.write_text(path.read_text().replace("Jane", "p1", 60).replace("Jane", "p2", 60).replace("Jane", "p3", 40))
    schema = {**TABLE, "file": {"unit": "patient"}}
    path.write_text(path.read_text().replace("Jane", "p4"))
    source = register("numbers", path, schema, 0.5, a_site(tmp_path))
    made = made_from(source, tmp_path / "made", MADE)
    for training_data in ("synthetic", "mixed"):
        training, test = load_table(replace(made, training=training_data), wanted(TABLE["columns"]))
        assert training.units is None
        assert test.units is not None


def test_a_study_gets_the_columns_it_asks_for_of_both(made: Dataset) -> None:
    mixed, test = load_table(replace(made, training="mixed"), wanted(TABLE["columns"][:1]))
    assert list(mixed.columns) == list(test.columns) == ["number"]
    with pytest.raises(SchemaError):
        load_table(replace(made, training="synthetic"), wanted([{"name": "third", "type": "flag"}]))


def test_a_made_file_is_not_read_as_people_s(made: Dataset) -> None:
    with pytest.raises(DataError, match="nobody's records are in it"):
        load_table(made, wanted(TABLE["columns"]))
    with pytest.raises(DataError, match="nobody's records are in it"):
        unchanged_index(made)


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
@pytest.mark.parametrize("which", ["made", "source"])
def test_neither_file_may_change(made: Dataset, source: Dataset, training_data: str, which: str) -> None:
    path = made.path if which == "made" else source.path
    path.write_text(path.read_text() + "5,2.5,yes,Joe\n")
    with pytest.raises(DataError, match="has changed since it was registered"):
        load_table(replace(made, training=training_data), wanted(TABLE["columns"]))


def test_what_a_task_learns_from_follows_the_study(made: Dataset) -> None:
    """The mean of what is trained on, which statistics and scaling come from."""
    means = [
        np.mean(load_table(replace(made, training=training_data), wanted(TABLE["columns"]))[0].columns["number"])
        for training_data in ("synthetic", "mixed")
    ]
    assert means[0] == 919.5
    assert means[1] < 300
