"""The simulated claims: they fit their schema, a few are frauds, and the frauds are neither plain nor hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from demo import claims
from demo.fraud.measures import Stakes, measure
from demo.kit.models import table_schema
from quorate_client.tasks.data.schema import NumberColumn
from quorate_client.tasks.data.table import Table, read_table
from quorate_client.tasks.models.tabular_features import column_sums, features, standardisation

SCHEMA = table_schema(Path(claims.__file__).with_name("claims.toml"))


def table(folder: Path, rows: list[claims.Row]) -> Table:
    claims.write(folder / "claims.csv", rows)
    return read_table(folder / "claims.csv", SCHEMA)


def test_the_same_seed_gives_the_same_claims_and_another_one_others() -> None:
    assert claims.simulate(50, 1) == claims.simulate(50, 1)
    assert claims.simulate(50, 1) != claims.simulate(50, 2)


@pytest.mark.parametrize("name", claims.insurers())
def test_every_insurers_claims_fit_the_schema_and_some_cells_are_empty(name: str, tmp_path: Path) -> None:
    records, book = claims.insurers()[name]
    found = table(tmp_path, claims.simulate(records, 1, book))
    assert found.records == records
    assert 0.02 < found.labels.mean() < 0.05
    assert all(np.isnan(found.columns[name]).any() for name in ("bmi", "income", "diagnosis"))


def test_every_limit_of_the_simulator_lies_within_the_schemas_range() -> None:
    ranges = {column.name: column.range for column in SCHEMA.columns if isinstance(column, NumberColumn)}
    assert ranges.keys() == claims.LIMITS.keys()
    assert all(ranges[name][0] <= low and high <= ranges[name][1] for name, (low, high) in claims.LIMITS.items())


def test_a_book_without_a_mechanism_has_no_fraud_of_it(tmp_path: Path) -> None:
    alone = claims.Book(mechanisms={"takeover": 1.0}, fraud=0.3)
    found = table(tmp_path, claims.simulate(2_000, 1, alone))
    frauds = found.labels == 1
    assert found.columns["account_changed"][frauds].mean() > 0.8
    assert found.columns["account_changed"][~frauds].mean() < 0.2


def test_frauds_are_found_by_a_simple_model_in_part_only(tmp_path: Path) -> None:
    """Of five draws: area under the curve about .87, average precision about .35, whose luck is large."""
    found = []
    for seed in range(5):
        records = table(tmp_path, claims.simulate(11_300, seed))
        tested = np.random.default_rng(seed).random(records.records) < 0.3
        training, held_out = records.part(~tested), records.part(tested)
        by = standardisation(SCHEMA, column_sums(SCHEMA, training))
        model = LogisticRegression(max_iter=1000).fit(features(SCHEMA, training, by), training.labels)
        scores = model.predict_proba(features(SCHEMA, held_out, by))[:, 1]
        found.append(measure(held_out.labels == 1, scores, held_out.columns["sum_insured"], Stakes()))
    assert 0.85 < np.mean([each.auc for each in found]) < 0.90
    assert 0.29 < np.mean([each.average_precision for each in found]) < 0.42
