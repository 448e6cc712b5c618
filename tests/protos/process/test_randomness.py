"""The source of secret bytes: no two instances and no two processes ever have one stream."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest

from quorate.process.randomness import Randomness, SystemRandomness
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_that_is_copied_draws_other_bytes_than_its_copy() -> None:
    """A fork is what tests can make of a virtual machine whose snapshot is resumed twice."""
    source = SystemRandomness()
    source.draw(8)  # whatever it might keep, it has now
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_send_a_draw, args=(source, there))
    process.start()
    there.close()  # the copy's is the only one: if it fails, there is nothing to wait for
    drawn = here.recv_bytes()
    process.join()
    assert len(drawn) == 32
    assert drawn != source.draw(32)


def test_a_source_keeps_nothing_that_a_copy_could_go_on_from() -> None:
    source = SystemRandomness()
    source.draw(8)
    assert vars(source) == {}


def test_threads_that_share_a_source_never_get_the_same_bytes() -> None:
    source = SystemRandomness()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: source.draw(32), range(2000)))
    assert len(set(drawn)) == len(drawn)


def _send_a_draw(source: SystemRandomness, there: Connection) -> None:
    there.send_bytes(source.draw(32))
