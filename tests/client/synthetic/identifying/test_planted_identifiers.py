"""Telephone numbers planted into a real table, under a name that says nothing: no set is made of it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from quorate.errors import DataError
from quorate_client.approval.datasets import open_account
from quorate_client.synthetic.identifying.identifiers import Mitigation
from quorate_client.synthetic.order import Order
from quorate_client.tasks.data.datasets import register

from ..site_kit import Site, opened_site, register_visits

MADE = Order("made", "cells", 300, 3.0)
PHONES = 15_100_000_000 + np.random.default_rng(8).permutation(99_999_999)[:569]
"""Of German mobile telephones, without the 0 that a number in a table loses."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """With a data set of real measurements, eight columns, and the planted one."""
    measured, benign = load_breast_cancer(return_X_y=True)
    names = [f"x{number}" for number in range(8)]
    path = tmp_path / "cells.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "reached_at", "benign"])
        for record, phone, label in zip(measured[:, :8].tolist(), PHONES.tolist(), benign.tolist(), strict=True):
            writer.writerow([*record, phone, label])
    columns = [{"name": name, "type": "number", "range": [0, 3000]} for name in names]
    columns.append({"name": "reached_at", "type": "integer", "range": [0, 1e12]})
    schema = {"kind": "tabular", "columns": columns, "label": {"name": "benign", "classes": [0, 1]}}
    folder = register_visits(tmp_path, records=60)
    with opened_site(folder) as opened:
        dataset = register("cells", path, schema, 0.2, folder)
        open_account(dataset, opened.ledger)
        opened.datasets.add(dataset)
        yield opened


def test_planted_telephone_numbers_stop_the_making_and_cost_nothing(site: Site) -> None:
    entries = site.entries()
    with pytest.raises(DataError) as refused:
        site.make(MADE)
    assert "reached_at (telephone number: " in str(refused.value)
    assert "1 column may" in str(refused.value), "the measurements are not suspected"
    assert not any(str(phone) in str(refused.value) for phone in PHONES)
    assert (site.entries(), site.spy.generated_from) == (entries, [])
    assert not any("made" in name for name in site.everything())


def test_rounding_them_a_little_is_no_answer_and_rounding_them_away_is(site: Site) -> None:
    with pytest.raises(DataError, match="generalised by 100, but still"):
        site.make(replace(MADE, answers=Mitigation(generalise={"reached_at": 100})))
    assert site.spy.generated_from == []
    site.make(replace(MADE, answers=Mitigation(generalise={"reached_at": 1e11})))
    assert all(set(given.columns["reached_at"]) == {0.0} for given in site.spy.generated_from)


def test_left_out_no_digit_of_them_reaches_the_set_its_schema_or_the_generator(site: Site) -> None:
    made = site.make(replace(MADE, answers=Mitigation(drop=frozenset({"reached_at"}))))
    assert all("reached_at" not in given.columns for given in site.spy.generated_from)
    written = "".join(content.decode() for name, content in site.everything().items() if "/made/" in f"/{name}")
    assert "x7" in written
    assert not any(str(phone) in written for phone in PHONES)
    assert "reached_at" not in str(made.dataset.schema)
