"""Class by column from differences: exact where nothing is shortened, and with less noise than counts have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorate_client.synthetic.generator import labelled
from quorate_client.synthetic.generator.bins import Bins
from quorate_client.synthetic.generator.release import Noisy
from quorate_client.synthetic.generator.sums import Counts

CODES = np.array([[0, 0, 1]] * 60 + [[0, 0, 0]] * 30 + [[1, 1, 0]] * 10, np.int16)
BINS = [
    Bins(np.arange(2, dtype=np.int16), np.array([90.0, 10.0])),
    Bins(np.arange(2, dtype=np.int16), np.array([40.0, 60.0])),
]


def test_tables_are_the_counts_where_no_row_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "_LONGEST", 100.0)
    exact = Noisy(labelled.differences("d", 2, BINS).of(CODES).astype(np.float64), 0.0)
    found = labelled.tables(exact, np.array([90.0, 10.0]), BINS)
    for place, table in enumerate(found):
        assert table.values == pytest.approx(Counts("c", (0, place + 1), (2, 2)).of(CODES))


def test_a_column_that_is_nearly_constant_costs_next_to_nothing() -> None:
    """Counts of two columns have a sensitivity of 1.41; differences have that of what varies."""
    sensitivity = labelled.differences("d", 2, [*BINS, *BINS, *BINS, *BINS]).sensitivity / 32
    assert sensitivity < math.sqrt(8) / 1.4
    assert sensitivity == pytest.approx(math.sqrt(1.3 * 4 * (0.18 + 0.48)), rel=0.05)


def test_a_record_that_is_unusual_in_one_column_counts_in_full_however_usual_all_are() -> None:
    rare = Bins(np.arange(2, dtype=np.int16), np.array([9999.0, 1.0]))
    codes = np.array([[0, 1, 0]], np.int16)
    exact = Noisy(labelled.differences("d", 2, [rare, rare]).of(codes).astype(np.float64), 0.0)
    assert labelled.tables(exact, np.array([1.0, 0.0]), [rare, rare])[0].values.tolist() == [[0, 1], [0, 0]]


def test_bins_without_any_count_are_measured_all_the_same() -> None:
    empty = Bins(np.zeros(2, np.int16), np.zeros(2))
    assert labelled.differences("d", 2, [empty]).of(np.zeros((3, 2), np.int16)).tolist() == [[96], [0]]
