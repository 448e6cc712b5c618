"""What an attested machine makes of updates that it may look at."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from quorate.aggregation.plain import weight_of
from quorate.aggregation.schemes import plain_scheme_of
from quorate.errors import ContributionError, FrameError
from quorate.process.chunked_aead import CHUNK_BYTES, seal_chunks
from quorate.process.sealed_file import SealedFile
from quorate.study.robust_section import Robust
from quorate.study.study import Study
from quorate_server.rounds.robust import ROBUST_BLOCK_BYTES, RobustAdder, _squares, combine

from ..study_kit import a_study

SITES = tuple(f"site-{number}" for number in range(8))
DIMENSION = 1000
KEY = "ab" * 32


def enclave_study(**robust: Any) -> Study:
    return a_study(
        SITES,
        rounds={"quorum": 6, "weights": "equal"},
        protection={"mode": "enclave"},
        attestation={"required": True, "policy": {"environment": "development", "software": {"keys": [KEY]}}},
        release={"model": "sites"},
        **({"robust": robust} if robust else {}),
    )


def opener(content: bytes) -> Callable[[], io.BytesIO]:
    return partial(io.BytesIO, content)


def encoded(study: Study, update: npt.NDArray[np.float64]) -> bytes:
    words, _ = plain_scheme_of(study).encode(update, weight_of(1, len(SITES)))
    return words.astype("<u4").tobytes()


def averaged(study: Study, updates: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """As the sites open what came out."""
    adder = RobustAdder(len(updates[0]), study)
    for update in updates:
        adder.fold(opener(encoded(study, update)))
    opened = np.frombuffer(b"".join(adder.blocks()), "<u4")
    return plain_scheme_of(study).decode(opened, len(updates) * weight_of(1, len(SITES)))


def honest(count: int) -> list[npt.NDArray[np.float64]]:
    lot = np.random.default_rng(1)
    return list(0.5 + 0.1 * lot.normal(size=(count, DIMENSION)))


def test_without_a_rule_it_is_the_mean() -> None:
    updates = honest(7)
    np.testing.assert_allclose(averaged(enclave_study(), updates), np.mean(updates, axis=0), atol=1e-6)


@pytest.mark.parametrize("count", [6, 7, 8])
def test_the_median_is_that_of_each_coordinate(count: int) -> None:
    updates = honest(count)
    np.testing.assert_allclose(averaged(enclave_study(rule="median"), updates), np.median(updates, axis=0), atol=1e-6)


def test_the_trimmed_mean_leaves_out_either_end() -> None:
    updates = honest(8)
    expected = np.sort(updates, axis=0)[2:-2].mean(axis=0)
    np.testing.assert_allclose(averaged(enclave_study(rule="trimmed_mean", trim=0.25), updates), expected, atol=1e-6)


def test_of_few_sites_at_least_one_is_left_out_at_either_end() -> None:
    rows = np.array([[-1000], [1], [2], [3], [1000]])
    assert combine(rows, Robust(rule="trimmed_mean", trim=0.01)).tolist() == [2 * 5]


def test_an_update_that_is_too_long_is_shortened_to_the_bound() -> None:
    updates = [np.full(DIMENSION, 1.0), *(np.full(DIMENSION, 0.01) for _ in range(5))]
    bound = float(np.linalg.norm(updates[1])) * 2
    found = averaged(enclave_study(rule="mean", largest_norm=bound), updates)
    np.testing.assert_allclose(found, (0.02 + 5 * 0.01) / 6, atol=1e-6)


@pytest.mark.parametrize(
    "robust", [{"rule": "median"}, {"rule": "trimmed_mean", "trim": 0.2}, {"rule": "mean", "largest_norm": 20.0}]
)
def test_a_site_that_poisons_cannot_pull_the_model_far(robust: dict[str, Any]) -> None:
    """It sends the opposite of what the others do, as large as a coordinate may be."""
    updates = [*honest(7), np.full(DIMENSION, -4.0)]
    truth = np.mean(updates[:-1], axis=0)
    plain = np.linalg.norm(averaged(enclave_study(), updates) - truth) / np.linalg.norm(truth)
    held = np.linalg.norm(averaged(enclave_study(**robust), updates) - truth) / np.linalg.norm(truth)
    assert plain > 1
    assert held < 0.3 * plain


def test_words_beyond_any_update_change_nothing_beyond_their_share() -> None:
    study = enclave_study(rule="median")
    adder = RobustAdder(4, study)
    for _ in range(4):
        adder.fold(opener(encoded(study, np.full(4, 0.25))))
    for _ in range(3):
        adder.fold(opener(b"\xff\xff\xff\x7f" * 4))
    opened = np.frombuffer(b"".join(adder.blocks()), "<u4")
    np.testing.assert_allclose(plain_scheme_of(study).decode(opened, 7 * weight_of(1, len(SITES))), 0.25, atol=1e-6)


def test_what_does_not_open_or_is_too_short_is_not_taken_in() -> None:
    study = enclave_study(rule="median")
    adder = RobustAdder(DIMENSION, study)
    with pytest.raises(ContributionError):
        adder.fold(opener(bytes(4 * DIMENSION - 4)))

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise FrameError("What arrived is not what was sealed, or is not whole")

    with pytest.raises(FrameError):
        adder.fold(partial(Broken, bytes(4 * DIMENSION)))
    for update in honest(3):
        adder.fold(opener(encoded(study, update)))
    assert len(b"".join(adder.blocks())) == 4 * DIMENSION


class Held:
    """An update as it lies sealed at the server, which may change what is there."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __call__(self) -> SealedFile:
        sealed = b"".join(seal_chunks([self.content], bytes(32)))
        return SealedFile(lambda start, length: sealed[start : start + length], len(self.content), bytes(32))


def test_nothing_of_an_update_whose_end_does_not_open_is_in_the_sum() -> None:
    """Else two sums over the same sites differ in one of the others: with the beginning of its update, and without."""
    study, size = enclave_study(), 2 * CHUNK_BYTES
    others = encoded(study, np.full(size // 4, 0.25))
    sealed = bytearray(b"".join(seal_chunks([encoded(study, np.full(size // 4, 0.5))], bytes(32))))
    sealed[-1] ^= 1
    adder = RobustAdder(size // 4, study)
    adder.fold(opener(others))
    with pytest.raises(FrameError):
        adder.fold(lambda: SealedFile(lambda start, length: bytes(sealed[start : start + length]), size, bytes(32)))
    assert b"".join(adder.blocks()) == others


@pytest.mark.parametrize("place", [0, -1])
def test_an_update_that_was_exchanged_after_it_was_measured_is_not_combined(place: int) -> None:
    """Its site knows the key and works with whoever runs the machine: the second one is longer than the bound."""
    size = 2 * ROBUST_BLOCK_BYTES
    study = enclave_study(rule="mean", largest_norm=1.0)
    held = Held(bytes(size))
    adder = RobustAdder(size // 4, study)
    adder.fold(held)  # type: ignore[arg-type]  # a raw file does as a binary one
    changed = bytearray(size)
    changed[place] = 0x7F
    held.content = bytes(changed)
    with pytest.raises(ContributionError, match="not any more what it was"):
        list(adder.blocks())


def test_the_digests_of_updates_tell_them_apart() -> None:
    study, adders = enclave_study(), []
    for value in (0.25, 0.25, 0.5):
        adders.append(RobustAdder(DIMENSION, study))
        adders[-1].fold(opener(encoded(study, np.full(DIMENSION, value))))
    same, again, other = (adder.contents for adder in adders)
    assert same == again != other


def test_norms_are_exact_whatever_the_size_of_the_integers() -> None:
    """Two machines that measured one update differently would seal two sums under one key."""
    integers = np.array([-(2**31), 2**31 - 1, 65535, 65536, -1, 0] * 2000)
    assert _squares(integers) == sum(int(value) ** 2 for value in integers)


@pytest.mark.parametrize("rule", ["None", '{"rule": "median"}'])
def test_memory_stays_below_one_and_a_half_updates(rule: str) -> None:
    """Eight updates of 24 MB each."""
    program = f"""
from functools import partial
from tests.server.rounds.test_robust import enclave_study
from quorate_server.rounds.robust import RobustAdder
from bench.attestation import peak, peak_anew
import io, tempfile, pathlib, json
size = 24 * 2**20
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "update"
    path.write_bytes(bytes(size))
    adder = RobustAdder(size // 4, enclave_study(**({rule} or dict())))
    before = peak_anew()
    for _ in range(8):
        adder.fold(partial(path.open, "rb"))
    assert sum(map(len, adder.blocks())) == size
    print((peak() - before) / size)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5
