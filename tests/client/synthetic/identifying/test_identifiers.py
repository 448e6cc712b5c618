"""Direct identifiers are found in a table, and each must be answered for before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from quorate.errors import DataError
from quorate_client.synthetic.identifying.identifiers import Mitigation, mitigated, require_none, suspicions
from quorate_client.tasks.data.columns import Vector
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table, read_table
from tests.client.real_data import real_data

RECORDS = 400
DRAWN = np.random.default_rng(11)
NUMBER = {"type": "number", "range": [0, 1e15]}
INTEGER = {"type": "integer", "range": [0, 1e15]}
PHONES = 4_915_100_000_000 + DRAWN.permutation(90_000_000)[:RECORDS].astype(float)
BIRTHDAYS = np.array(
    [f"{year}{month:02}{day:02}" for year in range(1940, 1990) for month in (2, 11) for day in (1, 9, 20, 28)], float
)


def a_table(
    columns: Mapping[str, tuple[Mapping[str, object], Vector]], units: np.ndarray | None = None
) -> tuple[TabularSchema, Table]:
    schema = {
        "kind": "tabular",
        "columns": [
            {"name": name, "missing": "mean" if about["type"] != "flag" else True, **about}
            if about["type"] != "category"
            else {"name": name, **about}
            for name, (about, _) in columns.items()
        ],
        "label": {"name": "ill", "classes": ["no", "yes"]},
    }
    parsed = parse_schema(schema, "The schema")
    assert isinstance(parsed, TabularSchema)
    values = {name: each for name, (_, each) in columns.items()}
    records = len(next(iter(values.values())))
    return parsed, Table(values, np.arange(records) % 2, units)


def found(
    columns: Mapping[str, tuple[Mapping[str, object], Vector]], units: np.ndarray | None = None
) -> dict[str, str]:
    return {each.column: each.kind for each in suspicions(*a_table(columns, units))}


def test_identifying_columns_are_found_between_harmless_ones() -> None:
    words = [f"Hans Muster{letter}" for letter in "abcdefgh"]
    names = {"type": "category", "categories": words}
    assert found(
        {
            "glucose": (NUMBER, DRAWN.normal(100, 20, RECORDS).clip(1)),
            "reachable": (INTEGER, PHONES),
            "platelets": (INTEGER, np.rint(DRAWN.normal(250_000, 60_000, RECORDS).clip(1))),
            "doctor": (names, DRAWN.integers(0, 8, RECORDS).astype(float)),
            "born": (INTEGER, DRAWN.choice(BIRTHDAYS, RECORDS)),
            "serial": (NUMBER, DRAWN.permutation(RECORDS).astype(float)),
            "phone": ({"type": "flag"}, DRAWN.integers(0, 2, RECORDS).astype(float)),
        }
    ) == {"reachable": "telephone number", "doctor": "name", "born": "date of birth", "serial": "record number"}


def test_missing_values_hide_nothing() -> None:
    phones = np.where(np.arange(RECORDS) % 3 == 0, np.nan, PHONES)
    assert found({"reachable": (INTEGER, phones)}) == {"reachable": "telephone number"}
    assert found({"reachable": (INTEGER, np.full(RECORDS, np.nan))}) == {}


def test_a_name_says_nothing_where_a_column_has_hardly_anything_to_say() -> None:
    few = DRAWN.integers(0, 2, RECORDS).astype(float)
    assert found({"telephone": ({"type": "category", "categories": ["none", "yes"]}, few)}) == {}
    assert found({"phone": ({"type": "integer", "range": [0, 9]}, few)}) == {}
    assert found({"comments": (INTEGER, few)}) == {}
    assert found({"phone": (INTEGER, few)}) == {"phone": "telephone number"}


def test_a_column_called_id_is_one_where_records_have_their_own() -> None:
    serial = np.arange(10.0)
    assert found({"id": (INTEGER, serial)}) == {"id": "record number"}
    assert found({"id": (INTEGER, serial % 3)}) == {}
    assert found({"index": (NUMBER, serial + 0.5)}) == {}


def test_a_number_of_the_unit_is_found_though_each_unit_has_many_records() -> None:
    units = np.repeat(np.arange(80), 5)
    numbers = DRAWN.permutation(np.arange(3000.0, 3080.0))[units]
    columns = {"chart": (INTEGER, numbers), "age": (INTEGER, np.rint(DRAWN.uniform(20, 90, 80))[units])}
    assert found(columns) == {}, "as records they repeat"
    assert found(columns, units) == {"chart": "record number"}


def test_a_label_is_looked_at_too() -> None:
    schema, table = a_table({"age": (INTEGER, DRAWN.integers(20, 90, RECORDS).astype(float))})
    people = schema.label.model_copy(update={"name": "who", "classes": ("Hans A", "Peter B", "Anna C")})
    who = schema.model_copy(update={"label": people})
    assert [each.column for each in suspicions(who, table)] == ["who"]
    require_none(who, table, Mitigation(keep=frozenset({"who"})))
    with pytest.raises(DataError, match="who is the label"):
        mitigated(who, table, Mitigation(drop=frozenset({"who"})))


def test_each_open_column_is_named_with_its_reason_and_the_three_ways_and_no_value() -> None:
    schema, table = a_table({"reachable": (INTEGER, PHONES), "serial": (INTEGER, np.arange(RECORDS, dtype=float))})
    with pytest.raises(DataError) as refused:
        require_none(schema, table, Mitigation())
    said = str(refused.value)
    for expected in (
        "2 columns",
        "reachable (telephone number: ",
        "serial (record number: ",
        "--keep",
        "--drop",
        "--generalise",
    ):
        assert expected in said
    assert not any(f"{value:.0f}" in said for value in PHONES)


def test_each_of_the_three_ways_answers_and_only_for_its_column() -> None:
    schema, table = a_table(
        {
            "age": (INTEGER, PHONES % 70),
            "born": (INTEGER, DRAWN.choice(BIRTHDAYS, RECORDS)),
            "serial": (INTEGER, PHONES),
        }
    )
    ways = Mitigation(generalise={"born": 10_000}, drop=frozenset({"serial"}))
    require_none(schema, table, ways)
    require_none(schema, table, Mitigation(keep=frozenset({"born", "serial"})))
    with pytest.raises(DataError, match=r"^1 column may say who somebody is\. Got serial \("):
        require_none(schema, table, Mitigation(generalise=ways.generalise))


def test_a_step_that_changes_nothing_is_no_answer() -> None:
    schema, table = a_table({"reachable": (INTEGER, PHONES), "age": (INTEGER, PHONES % 70)})
    with pytest.raises(DataError, match="generalised by 10, but still"):
        require_none(schema, table, Mitigation(generalise={"reachable": 10}))
    require_none(schema, table, Mitigation(generalise={"reachable": 1e9}))


def test_a_step_of_which_there_are_too_many_to_count_is_refused() -> None:
    schema, table = a_table({"dose": ({"type": "number", "range": [0.05, 10]}, np.arange(1.0, 6.0))})
    with pytest.raises(DataError, match="cannot be rounded to this step"):
        mitigated(schema, table, Mitigation(generalise={"dose": 5e-324}))


def test_rounded_numbers_are_multiples_within_the_range_and_missing_ones_stay_missing() -> None:
    schema, table = a_table(
        {
            "age": ({"type": "integer", "range": [18, 99]}, np.array([18.0, 22.0, 47.0, 99.0, np.nan])),
            "dose": ({"type": "number", "range": [0.05, 1]}, np.array([0.05, 0.31, 0.349, 1.0, 0.0501])),
            "gone": (INTEGER, np.arange(5.0)),
        }
    )
    coarse_schema, coarse = mitigated(
        schema, table, Mitigation(drop=frozenset({"gone"}), generalise={"age": 10, "dose": 0.1})
    )
    assert [column.name for column in coarse_schema.columns] == ["age", "dose"] == list(coarse.columns)
    np.testing.assert_array_equal(coarse.columns["age"], [20, 20, 50, 90, np.nan])
    np.testing.assert_array_equal(coarse.columns["dose"], [0.1, 0.3, 0.3, 1.0, 0.1])
    assert coarse_schema.columns[0] == schema.columns[0]
    np.testing.assert_array_equal(coarse.labels, table.labels)


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (Mitigation(keep=frozenset({"age"}), drop=frozenset({"age"})), "in two ways: age"),
        (Mitigation(drop=frozenset({"weight"})), "no column weight"),
        (Mitigation(drop=frozenset({"age", "stage"})), "All columns"),
        (Mitigation(generalise={"stage": 2}), "stage holds no numbers"),
        (Mitigation(generalise={"age": 0}), "above 0"),
        (Mitigation(generalise={"age": float("nan")}), "above 0"),
        (Mitigation(generalise={"age": 2.5}), "a whole number"),
        (Mitigation(generalise={"age": 1000}), "No multiple of 1000"),
        (Mitigation(generalise={"ill": 2}), "ill is the label"),
    ],
)
def test_an_answer_that_does_not_fit_the_schema_is_refused(ways: Mitigation, said: str) -> None:
    schema, table = a_table(
        {
            "age": ({"type": "integer", "range": [18, 99]}, np.full(4, 50.0)),
            "stage": ({"type": "category", "categories": ["I", "II"]}, np.zeros(4)),
        }
    )
    with pytest.raises(DataError, match=said):
        require_none(schema, table, ways)


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "wine"])
def test_real_measurements_are_not_suspected(name: str) -> None:
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    for records in (60, len(loaded.data)):
        chosen = np.random.default_rng(records).permutation(len(loaded.data))[:records]
        columns = {str(column): (NUMBER, loaded.data[chosen, at]) for at, column in enumerate(loaded.feature_names)}
        assert found(columns) == {}


def test_of_real_whole_amounts_only_the_record_number_is_suspected() -> None:
    path = real_data("credit_default/credit_default.csv")
    names = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    number = {"type": "integer", "range": [-1e7, 1e7]}
    schema = {
        "kind": "tabular",
        "columns": [{"name": name, **number} for name in names[:-1]],
        "label": {"name": names[-1], "classes": ["0", "1"]},
    }
    parsed = parse_schema(schema, "The schema")
    assert isinstance(parsed, TabularSchema)
    table = read_table(path, parsed)
    for records in (200, 3000, table.records):
        part = table.part(np.random.default_rng(records).permutation(np.arange(table.records) < records))
        assert [each.column for each in suspicions(parsed, part)] == ["ID"]
