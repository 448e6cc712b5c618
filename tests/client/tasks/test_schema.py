"""Schemas: what may be written, how mistakes are told, and which data may serve which study."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import SchemaError
from quorate_client.tasks.data.schema import (
    ImageSchema,
    NumberColumn,
    TabularSchema,
    parse_schema,
    read_schema,
    schema_dict,
)
from quorate_client.tasks.data.schema_fit import require_fit

TABLE: dict[str, Any] = {
    "kind": "tabular",
    "columns": [
        {"name": "age", "type": "integer", "range": [18, 120]},
        {"name": "pressure", "type": "number", "range": [0, 300], "missing": "mean"},
        {"name": "stage", "type": "category", "categories": ["I", "II", 3], "missing": "I"},
        {"name": "smoker", "type": "flag", "missing": False},
    ],
    "label": {"name": "died", "classes": [0, 1]},
}
IMAGES: dict[str, Any] = {"kind": "images", "height": 28, "width": 20, "channels": 1, "classes": ["ill", "well"]}


def changed(schema: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one key, such as columns.0.range, set to another value."""
    copy = deepcopy(schema)
    *outer, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = copy
    for part in outer:
        inner = inner[part]
    inner[last] = value
    return copy


def test_a_schema_survives_its_way_through_json() -> None:
    for content in (TABLE, IMAGES):
        schema = parse_schema(content, "The schema")
        assert parse_schema(json.loads(json.dumps(schema_dict(schema))), "The schema") == schema


def test_categories_and_classes_may_be_written_as_numbers_and_are_texts() -> None:
    schema = parse_schema(TABLE, "The schema")
    assert isinstance(schema, TabularSchema)
    assert schema.label.classes == ("0", "1")
    assert schema_dict(schema)["columns"][2]["categories"] == ["I", "II", "3"]


def test_of_two_classes_the_positive_one_is_number_one_by_default_the_second() -> None:
    assert parse_schema(IMAGES, "The schema").class_order == ("ill", "well")  # type: ignore[union-attr]
    schema = parse_schema({**IMAGES, "positive": "ill"}, "The schema")
    assert isinstance(schema, ImageSchema)
    assert schema.class_order == ("well", "ill")


def test_a_missing_value_is_refused_unless_the_schema_says_otherwise() -> None:
    schema = parse_schema(TABLE, "The schema")
    assert isinstance(schema, TabularSchema)
    assert [column.missing for column in schema.columns] == ["refuse", "mean", "I", False]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("columns.0.colour", "red", r"column 1 \(age\)\.colour: unknown key"),
        ("columns.0.type", "date", r"column 1 \(age\): .*'number', 'integer', 'category', 'flag'"),
        ("columns.0.range", [120, 18], r"column 1 \(age\): range must be \[lowest, highest\]"),
        ("columns.0.range", [0], r"column 1 \(age\)\.range\.1: Field required"),
        ("columns.0.range", [0, "x"], r"column 1 \(age\)\.range\.1: .* valid number"),
        ("columns.0.range", [0, float("inf")], r"column 1 \(age\)\.range\.1: .* finite"),
        ("columns.1.missing", "median", r'column 2 \(pressure\)\.missing: expected "refuse", "mean" or a number'),
        ("columns.1.missing", 301, r"column 2 \(pressure\): missing is a number outside range"),
        ("columns.1.missing", True, r"column 2 \(pressure\)\.missing: expected"),
        ("columns.2.missing", "IV", r'column 3 \(stage\): missing must be "refuse" or one of categories'),
        ("columns.2.categories", ["I", "I"], r"column 3 \(stage\): categories must be distinct; more than once: I"),
        (
            "columns.2.categories",
            ["I", " II"],
            r"column 3 \(stage\)\.categories\.1: must not begin or end",
        ),
        ("columns.2.categories", ["I", "refuse"], r"column 3 \(stage\): .*has a meaning in missing"),
        ("columns.3.missing", 1, r'column 4 \(smoker\)\.missing: expected "refuse", true or false'),
        ("columns.3.name", "age", r"column names must be distinct; more than once: age"),
        ("columns", [], r"columns must hold at least one"),
        ("columns", "age", r"columns: "),
        ("label.name", "age", r"column names must be distinct"),
        ("label.classes", [1], r"label: classes must hold at least two"),
        ("label.positive", 2, r"label: positive is for two classes and must be one of them"),
        ("file", {"delimiter": "x"}, r"file\.delimiter: "),
        ("file", {"ignore": ["age"]}, r"column names must be distinct"),
        ("kind", "video", r"'tabular', 'images'"),
        ("units", {}, r"units: unknown key"),
    ],
)
def test_a_mistake_is_told_by_its_key(path: str, value: Any, told: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(changed(TABLE, path, value), "The schema heart.toml")
    assert str(caught.value).startswith("The schema heart.toml has 1 problem. Got ")
    assert re.search(told, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("channels", 4), ("height", 0), ("width", "wide"), ("positive", "dead")])
def test_a_mistake_in_an_image_schema_is_told_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(SchemaError, match=key):
        parse_schema({**IMAGES, key: value}, "The schema")


@pytest.mark.parametrize("content", [None, [], "tabular", 3])
def test_something_that_is_no_mapping_is_refused(content: object) -> None:
    with pytest.raises(SchemaError, match="The schema has 1 problem"):
        parse_schema(content, "The schema")


def test_a_schema_file_is_read_with_its_defaults_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "images.toml"
    path.write_text('kind = "images"\nheight = 8\nwidth = 8\nchannels = 3\nclasses = ["a", "b"]\n')
    assert read_schema(path)["file"] == {"images": "images", "labels": "labels", "unit": None}


def test_a_schema_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    absent, broken, wrong = tmp_path / "absent.toml", tmp_path / "broken.toml", tmp_path / "wrong.toml"
    broken.write_text("kind = ")
    wrong.write_text('kind = "images"')
    for path, told in ((absent, "Cannot read"), (broken, "is not TOML"), (wrong, "height: Field required")):
        with pytest.raises(SchemaError, match=told) as caught:
            read_schema(path)
        assert str(path) in str(caught.value)


def test_the_examples_in_the_guide_are_schemas(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "guides" / "schemas.md"
    examples = re.findall(r"```toml\n(kind.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(example, encoding="utf-8")
        assert read_schema(path)["kind"] in ("tabular", "images")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("columns.0.range", [18, 90]),
        ("columns.1.type", "integer"),
        ("columns.1.missing", "refuse"),
        ("columns.1.missing", 80),
        ("columns.2.categories", ["II", "I"]),
        ("file", {"delimiter": ";", "ignore": ["id"]}),
        ("columns", [{"name": "further", "type": "flag"}, *reversed(TABLE["columns"])]),
        ("label", {"name": "died", "classes": [1, 0], "positive": 1}),
    ],
)
def test_data_that_offer_at_least_what_is_asked_for_fit(path: str, value: Any) -> None:
    offered = parse_schema(changed(TABLE, path, value), "The data")
    assert require_fit(offered, parse_schema(TABLE, "The study"), "heart") is offered


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("columns.0.name", "years", r"column 1 \(age\).*no such column"),
        ("columns.0.range", [0, 120], r"column 1 \(age\): another range\. Expected within \[18, 120\]; got \[0, 120\]"),
        ("columns.0.type", "number", r"column 1 \(age\): another type\. Expected integer; got number"),
        ("columns.0.missing", "mean", r"column 1 \(age\): another rule for missing values"),
        ("columns.2.categories", ["I", "IV"], r"column 3 \(stage\): other categories\..*got also IV"),
        ("columns.3", {"name": "smoker", "type": "number", "range": [0, 1]}, r"column 4 \(smoker\): another type"),
        ("label.name", "alive", r"another label column\. Expected died; got alive"),
        ("label.classes", [0, 1, 2], r"other classes"),
        ("label.positive", 0, r"other classes"),
    ],
)
def test_the_first_thing_that_data_lack_is_named(path: str, value: Any, told: str) -> None:
    offered = parse_schema(changed(TABLE, path, value), "The data")
    with pytest.raises(SchemaError, match=told):
        require_fit(offered, parse_schema(TABLE, "The study"), "heart")


def test_images_must_have_the_size_and_the_classes_that_are_asked_for() -> None:
    wanted = parse_schema(IMAGES, "The study")
    require_fit(parse_schema({**IMAGES, "file": {"images": "x"}}, "The data"), wanted, "breast")
    for key, value in (("height", 27), ("channels", 3), ("classes", ["well", "ill"])):
        with pytest.raises(SchemaError, match=f"(another {key}|other {key})"):
            require_fit(parse_schema({**IMAGES, key: value}, "The data"), wanted, "breast")


def test_a_table_is_no_set_of_images() -> None:
    with pytest.raises(SchemaError, match="another kind of data"):
        require_fit(parse_schema(TABLE, "The data"), parse_schema(IMAGES, "The study"), "heart")


def test_integers_of_a_range_are_read_as_floats_so_that_canonical_json_does_not_change_a_schema() -> None:
    schema = parse_schema(TABLE, "The schema")
    assert isinstance(schema, TabularSchema)
    assert isinstance(schema.columns[0], NumberColumn)
    assert schema.columns[0].range == (18.0, 120.0)
