"""The tally of an evaluation: what may be added, and what its sum says."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from quorate.errors import ContributionError
from quorate.evaluation import BINS, LOSS_ONE, MAX_CLASSES, ClassificationTally
from quorate.exchange import MAX_EXTRAS


def tally(scored: list[tuple[int, int]], loss: float = 0.0) -> ClassificationTally:
    """Two classes; each record is (true class, bin of its score), predicted positive in the upper half."""
    confusion, histograms = [0] * 4, [0] * (2 * BINS)
    for true, place in scored:
        confusion[2 * true + (place >= BINS // 2)] += 1
        histograms[place if true else BINS + place] += 1
    return ClassificationTally(2, round(loss * LOSS_ONE), tuple(confusion), tuple(histograms))


def added(*tallies: ClassificationTally) -> ClassificationTally:
    return ClassificationTally.decode([sum(words) for words in zip(*(t.encode() for t in tallies), strict=True)])


def exact_area(scored: list[tuple[int, int]]) -> float:
    positives = [place for true, place in scored if true]
    negatives = [place for true, place in scored if not true]
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def test_words_of_several_sites_add_up_to_the_tally_of_all_records() -> None:
    rng = random.Random(7)
    records = [(rng.randrange(2), rng.randrange(BINS)) for _ in range(300)]
    sites = [tally(records[:40], 1.5), tally(records[40:50], 0.25), tally(records[50:], 3.0)]
    assert added(*sites) == tally(records, 4.75)


def test_metrics_are_those_of_the_pooled_records() -> None:
    metrics = tally([(1, 200), (1, 190), (1, 20), (0, 10), (0, 220)], loss=2.5).metrics()
    assert metrics == pytest.approx(
        {"loss": 0.5, "accuracy": 3 / 5, "auc": 3 / 6, "recall": 2 / 3, "specificity": 1 / 2}
    )


def test_the_area_equals_the_exact_one_of_the_binned_scores_with_half_credit_for_ties() -> None:
    rng = random.Random(3)
    records = [(true, rng.randrange(60) + 40 * true) for true in (rng.randrange(2) for _ in range(400))]
    assert tally(records).metrics()["auc"] == pytest.approx(exact_area(records), abs=1e-12)
    assert tally([(0, 5), (1, 5)]).metrics()["auc"] == 0.5


def test_what_no_record_speaks_of_is_left_out() -> None:
    assert tally([]).metrics() == {}
    assert set(tally([(0, 3)]).metrics()) == {"loss", "accuracy", "specificity"}
    assert set(tally([(1, 3)]).metrics()) == {"loss", "accuracy", "recall"}


def test_beyond_two_classes_the_area_is_the_mean_of_each_class_against_the_rest() -> None:
    confusion = (2, 0, 0, 0, 1, 1, 0, 0, 0)
    members = [[0] * BINS for _ in range(6)]
    members[0][9], members[1][1] = 2, 2  # class 0: perfect
    members[2][4], members[3][4] = 2, 2  # class 1: no better than chance
    members[5][7] = 4  # class 2: no record of it, so no area
    three = ClassificationTally(3, 0, confusion, tuple(count for part in members for count in part))
    assert three.metrics() == pytest.approx({"loss": 0.0, "accuracy": 3 / 4, "auc": 0.75})
    assert ClassificationTally.decode(three.encode()) == three


def test_each_number_of_classes_has_its_own_length_and_fits_into_a_reply() -> None:
    empty = [
        ClassificationTally(k, 0, (0,) * (k * k), (0,) * ((1 if k == 2 else k) * 2 * BINS))
        for k in range(2, MAX_CLASSES + 1)
    ]
    assert len({len(t.encode()) for t in empty}) == len(empty)
    assert max(len(t.encode()) for t in empty) <= MAX_EXTRAS
    assert all(ClassificationTally.decode(t.encode()) == t for t in empty)


@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "negative loss", "negative count", "moved"])
def test_words_that_are_not_a_tally_are_refused(change: str) -> None:
    words = list(tally([(1, 200), (0, 10)], 1.0).encode())
    match change:
        case "shorter":
            words.pop()
        case "longer":
            words.append(0)
        case "empty":
            words = []
        case "negative loss":
            words[0] = -1
        case "negative count":  # sums that still agree
            words[3], words[4] = -1, 2
        case "moved":  # a positive of the histogram that the confusion counts do not know
            words[5] += 1
    with pytest.raises(ContributionError):
        ClassificationTally.decode(words)


def test_the_contract_needs_no_numpy_for_it() -> None:
    program = "import quorate.evaluation, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
