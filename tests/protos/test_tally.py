"""The tally of an evaluation: what may be added, and what its sum says."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest

from quorate.errors import ContributionError
from quorate.rounds.instruction import MAX_EXTRAS
from quorate.tally import BINS, EXACT, LOSS_ONE, MAX_CLASSES, ClassificationTally, TallyForm, sensitivity


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
    metrics = tally(10 * [(1, 200), (1, 190), (1, 20), (0, 10), (0, 220)], loss=25.0).metrics()
    assert metrics == pytest.approx(
        {"loss": 0.5, "accuracy": 3 / 5, "auc": 3 / 6, "recall": 2 / 3, "specificity": 1 / 2}
    )


def test_the_area_equals_the_exact_one_of_the_binned_scores_with_half_credit_for_ties() -> None:
    rng = random.Random(3)
    records = [(true, rng.randrange(60) + 40 * true) for true in (rng.randrange(2) for _ in range(400))]
    assert tally(records).metrics()["auc"] == pytest.approx(exact_area(records), abs=1e-12)
    assert tally([(0, 5), (1, 5)]).metrics(least=1)["auc"] == 0.5


@pytest.mark.parametrize(("negatives", "positives"), [(1, 10), (10, 1), (9, 10), (10, 9), (0, 10), (10, 0), (500, 9)])
def test_rates_of_one_class_need_ten_records_of_each(negatives: int, positives: int) -> None:
    """Of eleven patients one of whom was ill, the recall is that patient's; the accuracy less the specificity too."""
    counted = tally(negatives * [(0, 3)] + positives * [(1, 200)])
    assert set(counted.metrics()) == {"loss", "accuracy"}
    assert {"recall", "specificity", "auc"} <= set(tally(10 * [(0, 3)] + 10 * [(1, 200)]).metrics())


def test_nothing_is_told_of_fewer_than_ten_records() -> None:
    assert tally([]).metrics() == {}
    assert tally(4 * [(0, 3)] + 5 * [(1, 3)]).metrics() == {}
    assert set(tally(5 * [(0, 3)] + 5 * [(1, 3)]).metrics()) == {"loss", "accuracy"}


def test_beyond_two_classes_the_area_is_the_mean_of_each_class_against_the_rest() -> None:
    confusion = (20, 0, 0, 0, 10, 10, 0, 0, 9)
    members = [[0] * BINS for _ in range(6)]
    members[0][9], members[1][1] = 20, 29  # class 0: perfect
    members[2][4], members[3][4] = 20, 29  # class 1: no better than chance
    members[4][9], members[5][7] = 9, 40  # class 2: too few records of it for an area
    three = ClassificationTally(3, 0, confusion, tuple(count for part in members for count in part))
    assert three.metrics() == pytest.approx({"loss": 0.0, "accuracy": 39 / 49, "auc": 0.75})
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


FEW, NOISY = TallyForm(16), TallyForm(16, 256)


def test_fewer_bins_hold_the_same_records_and_nearly_the_same_area() -> None:
    rng = random.Random(5)
    exact = tally(
        [(true, min(255, rng.randrange(150) + 100 * true)) for true in (rng.randrange(2) for _ in range(600))]
    )
    few = exact.written(FEW)
    assert (len(few.histograms), sum(few.histograms)) == (32, 600)
    assert few.metrics() == pytest.approx(exact.metrics(), abs=5e-3)
    assert ClassificationTally.decode(few.encode(), FEW) == few
    assert exact.written(EXACT) == exact
    with pytest.raises(ContributionError):
        ClassificationTally.decode(exact.encode(), FEW)
    with pytest.raises(ContributionError):
        ClassificationTally.decode(few.encode())


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_one_record_more_moves_the_counts_by_exactly_their_sensitivity(classes: int) -> None:
    """Whatever its class, its prediction and its scores are; the loss, which has no small bound, is not among them."""
    rng, scored = random.Random(classes), 1 if classes == 2 else classes
    for _ in range(50):
        words = [[0] * (1 + classes**2 + 2 * scored * BINS) for _ in range(2)]
        for one in words:
            one[0] = rng.randrange(1000)
        true, predicted = rng.randrange(classes), rng.randrange(classes)
        added = words[1]
        added[1 + classes * true + predicted] += 1
        for place, scores in enumerate(range(classes - scored, classes)):
            added[1 + classes**2 + (2 * place + (true != scores)) * BINS + rng.randrange(BINS)] += 1
        without, beside = (ClassificationTally.decode(one).written(NOISY).encode() for one in words)
        moved = math.dist(without, beside) / NOISY.one
        assert moved == pytest.approx(sensitivity(classes))


def test_rates_of_noisy_counts_are_near_and_within_their_bounds() -> None:
    rng = random.Random(9)
    counted = tally(400 * [(1, 255)] + 400 * [(0, 0)]).written(NOISY)
    loss, *counts = counted.encode()
    words = [loss, *(count + round(rng.gauss(0, 3 * NOISY.one)) for count in counts)]
    assert min(words) < 0
    rates = ClassificationTally.decode(words, NOISY).metrics()
    assert rates == pytest.approx(dict.fromkeys(("accuracy", "auc", "recall", "specificity"), 1.0), abs=0.1)
    assert max(rates.values()) <= 1.0
    with pytest.raises(ContributionError):
        ClassificationTally.decode([1, *words[1:]], NOISY)


@pytest.mark.parametrize(("negatives", "positives", "told"), [(9.0, 12.0, 1), (10.0, 10.0, 4), (4.0, 5.0, 0)])
def test_noisy_counts_are_held_against_ten_records_too(negatives: float, positives: float, told: int) -> None:
    histogram = [0] * 15
    n, p = (round(count * NOISY.one) for count in (negatives, positives))
    counted = ClassificationTally(2, 0, (n, 0, 0, p), (p, *histogram, n, *histogram), NOISY)
    assert len(counted.metrics()) == told


def test_the_contract_needs_no_numpy_for_it() -> None:
    program = "import quorate.tally, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
