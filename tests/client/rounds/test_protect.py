"""The last code before an update leaves: what passes, and what is stopped."""

from __future__ import annotations

import math
import os
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.aggregation.plain import WEIGHT_ONE, PlainScheme
from quorate.aggregation.schemes import packing_of, plain_scheme_of
from quorate.errors import ContributionError, QuorateError, TaskFailedError, UpdateNotFiniteError
from quorate.privacy.update_noise import update_noise
from quorate.rounds.blobs import INLINE_BYTES
from quorate.rounds.spool import Spool
from quorate.study.study import Protection, Site, Study, TaskRef
from quorate_client.rounds import protect as protect_module
from quorate_client.rounds.model.plain_files import store_file
from quorate_client.rounds.protect import Protected, protect

STUDY = Study.model_validate(
    {
        "consortium": "tests",
        "name": "study",
        "purpose": "to be tested",
        "task": TaskRef(name="linear", digest="0" * 64),
        "rounds": {"count": 1, "quorum": 1},
        "protection": Protection(mode="none", value_bound=2.0),
        "sites": [Site(name=name, signing_key=f"{index:064x}") for index, name in enumerate(("east", "north"))],
    }
)
SCHEME = PlainScheme(2.0, 2)
WEIGHT = WEIGHT_ONE // 4


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def written(folder: Path, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Path:
    path = folder / "update"
    values.astype("<f4").tofile(path)
    return path


def values_of(count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(5).normal(scale=0.5, size=count).astype(np.float32)


def words_of(protected: Protected, spool: Spool) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(spool.content(protected.blob), "<u4")


def refused(update: Path, spool: Spool, dimension: int, weight: int = WEIGHT) -> QuorateError:
    """The refusal, after making sure that nothing was left to be sent."""
    with pytest.raises(QuorateError) as caught:
        protect(update, dimension, weight, STUDY, spool)
    assert list(spool.folder.iterdir()) == []
    return caught.value


def test_the_words_of_a_small_update_travel_inline_and_decode_to_the_weighted_update(
    tmp_path: Path, spool: Spool
) -> None:
    values = values_of(1000)
    protected = protect(written(tmp_path, values), 1000, WEIGHT, STUDY, spool)
    assert protected.blob.inline is not None
    assert (protected.weight, protected.clipped) == (WEIGHT, 0)
    np.testing.assert_allclose(SCHEME.decode(words_of(protected, spool), WEIGHT), values, atol=1e-8)


def test_a_large_update_goes_into_the_spool_block_by_block_with_the_words_of_the_whole(
    tmp_path: Path, spool: Spool
) -> None:
    values = values_of(700_001)  # two whole blocks and a piece
    protected = protect(written(tmp_path, values), 700_001, WEIGHT, STUDY, spool)
    assert protected.blob.inline is None
    np.testing.assert_array_equal(words_of(protected, spool), SCHEME.encode(values, WEIGHT)[0])


def test_the_border_between_inline_and_spool_is_the_contracts(tmp_path: Path, spool: Spool) -> None:
    most = INLINE_BYTES // 4
    assert protect(written(tmp_path, values_of(most)), most, WEIGHT, STUDY, spool).blob.inline is not None
    assert protect(written(tmp_path, values_of(most + 1)), most + 1, WEIGHT, STUDY, spool).blob.inline is None


def test_clipped_coordinates_are_counted_over_all_blocks(tmp_path: Path, spool: Spool) -> None:
    values = values_of(600_000)
    values[[0, 300_000, 599_999]] = [5.0, -7.0, 2.1]
    protected = protect(written(tmp_path, values), 600_000, WEIGHT, STUDY, spool)
    assert protected.clipped == np.count_nonzero(np.abs(values) > 2.0)
    np.testing.assert_allclose(SCHEME.decode(words_of(protected, spool), WEIGHT)[300_000], -2.0, atol=1e-8)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_in_the_last_block_stops_the_whole_update(
    tmp_path: Path, spool: Spool, wrong: float
) -> None:
    values = values_of(600_000)
    values[-1] = wrong
    assert isinstance(refused(written(tmp_path, values), spool, 600_000), UpdateNotFiniteError)


@pytest.mark.parametrize("dimension", [999, 1001])
def test_an_update_of_another_size_is_stopped(tmp_path: Path, spool: Spool, dimension: int) -> None:
    assert isinstance(refused(written(tmp_path, values_of(1000)), spool, dimension), TaskFailedError)


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_ONE + 1])
def test_an_impossible_weight_is_stopped(tmp_path: Path, spool: Spool, weight: int) -> None:
    assert isinstance(refused(written(tmp_path, values_of(10)), spool, 10, weight), ContributionError)


def test_a_link_to_a_secret_in_place_of_an_update_is_not_followed(tmp_path: Path, spool: Spool) -> None:
    secret = tmp_path / "signing.key"
    secret.write_bytes(bytes(4000))
    link = tmp_path / "update"
    link.symlink_to(secret)
    assert isinstance(refused(link, spool, 1000), TaskFailedError)


def test_a_pipe_in_place_of_an_update_does_not_hold_the_daemon_up(tmp_path: Path, spool: Spool) -> None:
    os.mkfifo(tmp_path / "update")
    assert isinstance(refused(tmp_path / "update", spool, 1000), TaskFailedError)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_only_a_plain_file_is_stored(tmp_path: Path, spool: Spool, make: Callable[[Path], None]) -> None:
    make(tmp_path / "update")
    with pytest.raises(TaskFailedError):
        store_file(tmp_path / "update", spool)


def test_a_missing_update_is_a_failure_of_the_task(tmp_path: Path, spool: Spool) -> None:
    assert isinstance(refused(tmp_path / "update", spool, 1000), TaskFailedError)


def test_memory_does_not_grow_with_the_update(tmp_path: Path, spool: Spool) -> None:
    update = written(tmp_path, values_of(8_000_000))
    tracemalloc.start()
    try:
        protect(update, 8_000_000, WEIGHT, STUDY, spool)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000  # the update has 32 million bytes


def test_a_file_is_stored_under_the_name_of_its_content(tmp_path: Path, spool: Spool) -> None:
    path = written(tmp_path, values_of(100_000))
    blob = store_file(path, spool)
    assert spool.content(blob) == path.read_bytes()


# --- noise on parameters ---

NOISE = {"clip": 0.5, "noise_multiplier": 2.0}


def noisy(**mechanisms: object) -> Study:
    changes = {"rounds": {"count": 1, "quorum": 1, "weights": "equal"}, "privacy": {"delta": 1e-4} | mechanisms}
    return Study.model_validate(STUDY.model_dump(mode="json") | changes)


def integers_sent(study: Study, update: np.ndarray[Any, Any], folder: Path, spool: Spool) -> np.ndarray[Any, Any]:
    sent = protect(written(folder, update), len(update), WEIGHT_ONE // 2, study, spool)
    return words_of(sent, spool).view(np.int32).astype(np.int64)


def test_what_leaves_carries_discrete_gaussian_noise_of_the_size_that_was_promised(
    tmp_path: Path, spool: Spool
) -> None:
    """Chi-square of the integers themselves, over classes of equal probability; a wrong size fails it."""
    study, count, classes = noisy(update=NOISE), 40_000, 20
    found = integers_sent(study, np.zeros(count, np.float32), tmp_path, spool)
    sigma = 2.0 * 0.5 / 2 / plain_scheme_of(study).step

    def statistic(std: float) -> float:
        place = np.array([0.5 * (1 + math.erf(z / std / math.sqrt(2))) for z in found])
        observed = np.bincount((place * classes).astype(int), minlength=classes)
        return float(((observed - count / classes) ** 2 / (count / classes)).sum())

    assert statistic(sigma) < 55  # 19 degrees of freedom: by chance once in 40,000
    assert statistic(sigma * 0.93) > 55


def test_two_updates_never_carry_the_same_noise(tmp_path: Path, spool: Spool) -> None:
    first, second = (integers_sent(noisy(update=NOISE), np.zeros(100, np.float32), tmp_path, spool) for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1e3, 1e30])
def test_an_update_is_cut_to_its_norm_as_integers_exactly(tmp_path: Path, spool: Spool, scale: float) -> None:
    study = noisy(average=NOISE)  # clipped, and without noise of its own
    update = values_of(1000) * np.float32(scale)
    found = integers_sent(study, update, tmp_path, spool)
    step = Fraction(plain_scheme_of(study).step)
    norm_squared = sum(int(z) ** 2 for z in found) * step**2
    assert norm_squared <= (Fraction(0.5) / 2) ** 2  # clip times the weight
    expected = update.astype(np.float64) * min(1.0, 0.5 / np.linalg.norm(update.astype(np.float64))) / 2
    np.testing.assert_allclose(found * float(step), expected, atol=1.01 * float(step), rtol=1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_not_hidden_in_noise(tmp_path: Path, spool: Spool, value: float) -> None:
    update = values_of(100)
    update[7] = value
    with pytest.raises(UpdateNotFiniteError):
        integers_sent(noisy(update=NOISE), update, tmp_path, spool)
    assert list(spool.folder.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_under_secure_aggregation_no_value_lets_an_update_be_longer_than_its_clip(tmp_path: Path, value: float) -> None:
    """What is not finite leaves as nothing there, and the norm of the whole counts before single bounds do."""
    rounds = {"count": 1, "quorum": 3, "weights": "equal"}
    sites = [{"name": f"site-{number}", "signing_key": f"{number:064x}"} for number in range(4)]
    changes = {
        "rounds": rounds,
        "protection": {"mode": "secagg"},
        "sites": sites,
        "privacy": {"delta": 1e-4, "average": NOISE},
    }
    study = Study.model_validate(STUDY.model_dump(mode="json") | changes)
    update = np.full(1000, 4.0, np.float32)
    update[7] = value
    with written(tmp_path, update).open("rb") as file:
        integers = protect_module._Integers(packing_of(study), WEIGHT_ONE // 4, update_noise(study))
        found = np.concatenate(list(integers.of(file, len(update))))
    assert np.linalg.norm(found * packing_of(study).step) <= 0.5 / 4
