"""Seconds of the server's own work on a sum, and what a worker may say of its sums."""

from __future__ import annotations

import pytest

from quorate.rounds.run import SumStep
from quorate_server.rounds.sum_figures import Stopwatch, SumFigures
from tests.server.study_kit import Time


def test_of_steps_that_lie_in_each_other_each_second_counts_once() -> None:
    clock = Time()
    stopwatch = Stopwatch(clock)
    with stopwatch.on(SumStep.CHECK):
        clock.now_s += 1
        with stopwatch.on(SumStep.ADD):
            clock.now_s += 2
        with stopwatch.on(SumStep.ADD):
            clock.now_s += 4
    clock.now_s += 100
    with pytest.raises(ZeroDivisionError), stopwatch.on(SumStep.PARSE):
        clock.now_s += 8
        raise ZeroDivisionError
    assert stopwatch.read() == {SumStep.PARSE: 8, SumStep.CHECK: 1, SumStep.ADD: 6}
    assert stopwatch.read() == dict.fromkeys(SumStep, 0)


@pytest.mark.parametrize(
    "said",
    [
        b'{"outcomes": ["won"], "seconds": {}}',
        b'{"outcomes": [], "seconds": {"sleep": 1}}',
        b'{"outcomes": [], "seconds": {"add": -1}}',
        b'{"outcomes": [], "seconds": {"add": NaN}}',
        b'{"outcomes": [], "seconds": {"add": 1e999}}',
        b'{"outcomes": []}',
        b"[]",
        b"",
    ],
)
def test_figures_that_nothing_can_have_are_none(said: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        SumFigures.from_json(said)
