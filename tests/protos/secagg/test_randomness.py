"""The source of secret bytes: no two instances and no two processes ever have one stream."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quorate.secagg.randomness import Randomness, SystemRandomness
from tests.protos.secagg.kit import SeededRandomness, surprise


@pytest.mark.parametrize("source", [SystemRandomness(), SeededRandomness(1)])
def test_a_source_gives_as_many_bytes_as_were_asked_for_and_never_the_same(source: Randomness) -> None:
    drawn = [source.draw(count) for count in (32, 32, 0, 1, 100_000)]
    assert [len(data) for data in drawn] == [32, 32, 0, 1, 100_000]
    assert drawn[0] != drawn[1]


def test_two_instances_have_different_streams() -> None:
    assert SystemRandomness().draw(32) != SystemRandomness().draw(32)


def test_the_bytes_look_uniform() -> None:
    # The one test here without a fixed seed: eight standard deviations do not happen.
    data = np.frombuffer(SystemRandomness().draw(1 << 20), dtype=np.uint8)
    assert surprise(np.bincount(data, minlength=256), np.full(256, data.size / 256)) < 8


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_source_can_be_neither_copied_nor_pickled(duplicate: object) -> None:
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        duplicate(SystemRandomness())  # type: ignore[operator]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_cannot_use_its_parents_source() -> None:
    source = SystemRandomness()
    process = multiprocessing.get_context("fork").Process(target=_exit_with_what_happens, args=(source,))
    process.start()
    process.join()
    assert process.exitcode == REFUSED
    assert len(source.draw(8)) == 8


def test_threads_that_share_a_source_never_get_the_same_bytes() -> None:
    source = SystemRandomness()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: source.draw(32), range(2000)))
    assert len(set(drawn)) == len(drawn)


REFUSED = 7


def _exit_with_what_happens(source: SystemRandomness) -> None:
    try:
        source.draw(8)
    except RuntimeError:
        os._exit(REFUSED)
    os._exit(0)
