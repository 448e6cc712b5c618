"""By what records are known again, and by what not."""

from __future__ import annotations

import hmac
from typing import Any

import numpy as np
import pytest

from quorate_client.tasks.data import fingerprints
from quorate_client.tasks.data.images import Images
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table

KEY = bytes(range(32))


def schema(*columns: dict[str, Any], classes: tuple[str, ...] = ("no", "yes")) -> TabularSchema:
    parsed = parse_schema(
        {"kind": "tabular", "columns": list(columns), "label": {"name": "ill", "classes": classes}}, "The test's"
    )
    assert isinstance(parsed, TabularSchema)
    return parsed


NUMBER = {"name": "age", "type": "number", "range": [-1e3, 1e3]}
FLAG = {"name": "smoker", "type": "flag"}


def of(described: TabularSchema, labels: list[int], **columns: list[float]) -> list[int]:
    table = Table({name: np.array(values, float) for name, values in columns.items()}, np.array(labels))
    found: list[int] = fingerprints.of_table(KEY, described, table).tolist()
    return found


def test_a_fingerprint_is_a_keyed_hash_and_says_nothing_without_the_key() -> None:
    table = Table({"age": np.array([30.0])}, np.array([1]))
    mine = fingerprints.of_table(KEY, schema(NUMBER), table)
    assert fingerprints.of_table(bytes(32), schema(NUMBER), table) != mine
    expected = hmac.digest(KEY, b"quorate/unit/v1\x007", "sha256")[:8]
    assert fingerprints.of_units(KEY, ["7"]).tolist() == [int.from_bytes(expected)]
    assert fingerprints.key_check(KEY) != fingerprints.key_check(bytes(32))


def test_each_cell_and_the_class_count() -> None:
    base = of(schema(NUMBER, FLAG), [0], age=[30.0], smoker=[1.0])
    for labels, age, smoker in (([1], 30.0, 1.0), ([0], 30.5, 1.0), ([0], 30.0, 0.0), ([0], np.nan, 1.0)):
        assert of(schema(NUMBER, FLAG), labels, age=[age], smoker=[smoker]) != base


def test_how_a_cell_is_described_does_not_count() -> None:
    yes = of(schema(NUMBER, FLAG), [0, 1], age=[0.0, np.nan], smoker=[1.0, 0.0])
    words = {"name": "smoker", "type": "category", "categories": ["False", "true"]}
    assert of(schema(words, NUMBER), [0, 1], age=[-0.0, np.nan], smoker=[1.0, 0.0]) == yes
    swapped = schema(NUMBER, FLAG, classes=("yes", "no"))
    assert of(swapped, [1, 0], age=[0.0, np.nan], smoker=[1.0, 0.0]) == yes
    assert of(schema(NUMBER | {"name": " AGE"}, FLAG), [0, 1], **{" AGE": [0.0, np.nan]}, smoker=[1.0, 0.0]) == yes


def test_single_precision_is_the_same_number() -> None:
    ages = np.array([0.1, 63.7, 12.345], np.float32)
    assert of(schema(NUMBER), [0, 0, 0], age=ages.tolist()) == of(schema(NUMBER), [0, 0, 0], age=[0.1, 63.7, 12.345])


def test_records_that_say_the_same_are_counted_as_they_are() -> None:
    twice = of(schema(NUMBER), [0] * 5, age=[1.0, 2.0, 1.0, 1.0, 2.0])
    assert len(set(twice)) == 5
    assert sorted(twice) == sorted(of(schema(NUMBER), [0] * 5, age=[2.0, 2.0, 1.0, 1.0, 1.0]))
    assert twice[:2] == of(schema(NUMBER), [0, 0], age=[1.0, 2.0])


def test_lots_are_even_also_among_records_that_say_the_same() -> None:
    many = fingerprints.of_table(KEY, schema(NUMBER), Table({"age": np.zeros(20_000)}, np.zeros(20_000, np.int64)))
    assert abs(fingerprints.below(many, 0.2).mean() - 0.2) < 0.015
    assert (fingerprints.below(many, 0.2) <= fingerprints.below(many, 0.5)).all()


@pytest.mark.parametrize(("one", "other"), [("7", " 007"), ("7", "7.0"), ("7", "+7"), ("Anna", "ANNA ")])
def test_how_a_unit_is_written_does_not_count(one: str, other: str) -> None:
    assert len({*fingerprints.of_units(KEY, [one, other]).tolist()}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("7", "70"), ("7", "-7"), ("7.5", "7"), ("9007199254740993", "9007199254740992")]
)
def test_other_units_are_others(one: str, other: str) -> None:
    assert len({*fingerprints.of_units(KEY, [one, other]).tolist()}) == 2


def test_images_count_by_pixels_and_shape() -> None:
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    base = fingerprints.of_images(KEY, Images(pixels, np.array([0, 1])))
    assert (fingerprints.of_images(KEY, Images(pixels, np.array([1, 1]))) == base).all()
    assert (fingerprints.of_images(KEY, Images(pixels.reshape(2, 1, 2, 8), np.array([0, 1]))) != base).all()


def test_the_overlap_is_of_the_smaller_of_the_two() -> None:
    some, others = np.arange(100, dtype=np.uint64), np.arange(95, 1000, dtype=np.uint64)
    assert fingerprints.overlap(some, others) == fingerprints.overlap(others, some) == 0.05
