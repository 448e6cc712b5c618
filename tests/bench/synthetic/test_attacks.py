"""The figures of attacks on synthetic sets are measured, with little of each, and the copy is found."""

from __future__ import annotations

from bench.synthetic.attacks import SMALL, attack_rows
from tests.client.synthetic.report.population import TABULAR, people


def test_the_attacks_run_and_the_copy_is_found() -> None:
    rows = attack_rows(TABULAR, people, SMALL)
    assert [row.name.partition(":")[0] for row in rows] == [
        "attack on a generator that copies",
        "attack on the generator at epsilon 1",
        "attack on the generator at epsilon 1",
        "planted unique record, found in so many of 2 sets at epsilon 3",
    ]
    assert rows[0].met
    assert rows[3].met
