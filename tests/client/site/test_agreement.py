"""Data sets as values: the real ones stay what they were, and a synthetic one says what it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quorate_client.site.agreement import Dataset

from ..synthetic_sets import REAL, SYNTHETIC


def test_a_real_data_set_is_the_one_that_it_was_before_there_were_synthetic_ones() -> None:
    assert REAL.to_plain() == {
        "name": "visits",
        "kind": "tabular",
        "path": "/data/visits.csv",
        "schema": {"kind": "tabular"},
        "test_fraction": 0.25,
        "records": 120,
        "units": None,
        "content": "c0",
        "index": "/site/records/ab",
    }
    assert REAL.identity == "c7eb9731f99ed4e1c65e76ff32ecde4d53484bdddee9b874b05c66bdc25c3900"


@pytest.mark.parametrize("dataset", [REAL, SYNTHETIC, replace(SYNTHETIC, training="mixed")])
def test_a_data_set_comes_back_from_json(dataset: Dataset) -> None:
    assert Dataset.from_plain(json.loads(json.dumps(dataset.to_plain()))) == dataset


def test_what_is_trained_on_and_what_it_was_made_from_are_part_of_the_identity() -> None:
    assert SYNTHETIC.origin is not None
    others = [
        replace(SYNTHETIC, training="synthetic"),
        replace(SYNTHETIC, training="mixed"),
        replace(SYNTHETIC, origin=replace(SYNTHETIC.origin, report="00" * 32)),
        replace(SYNTHETIC, origin=replace(SYNTHETIC.origin, epsilon=None)),
        replace(SYNTHETIC, origin=replace(SYNTHETIC.origin, source=replace(REAL, content="c1"))),
    ]
    assert len({each.identity for each in (REAL, SYNTHETIC, *others)}) == 7


def test_what_cannot_be_is_no_data_set() -> None:
    assert SYNTHETIC.origin is not None
    with pytest.raises(ValueError, match="real data set has no mixed"):
        replace(REAL, training="mixed")
    with pytest.raises(ValueError, match="has no fingerprints"):
        replace(SYNTHETIC, index=Path("/site/records/ab"))
    with pytest.raises(ValueError, match="not made from a synthetic one"):
        replace(SYNTHETIC.origin, source=SYNTHETIC)
    with pytest.raises(TypeError):
        Dataset.from_plain({**REAL.to_plain(), "trained": True})
