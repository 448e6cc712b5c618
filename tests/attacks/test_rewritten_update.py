"""A process that a task left behind rewrites the task's files while the daemon reads them.

It runs as the daemon's user, and all runs' files in the work folder are open to it. Here it comes in after the first
piece was made ready to be sent: by then the daemon had read the whole update once, to find its norm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import TaskFailedError, UpdateNotFiniteError
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase
from quorate.rounds.spool import Spool
from quorate.secagg.participant import Participant
from quorate.study.study import Protection, Rounds, Study
from quorate_client.rounds import protect as protect_module
from quorate_client.rounds.protect import Protected, protect, protect_secretly
from tests.client.engine_kit import (
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_study,
)
from tests.client.run_kit import NAMES, EngineSite, engines
from tests.server.study_kit import RUN

pytestmark = pytest.mark.usefixtures("installed")

CLIP = 0.5
DIMENSION = 800_000  # three blocks and a piece
WEIGHT = WEIGHT_ONE // 3
Floats = npt.NDArray[np.float32]


class Interrupted(Spool):
    """A spool whose disk is slow: between the first piece and the next, something else gets to run."""

    def __init__(self, folder: Path, meanwhile: Callable[[], None]) -> None:
        super().__init__(folder)
        self._meanwhile = meanwhile

    def put(self, content: Iterable[bytes]) -> Blob:
        pieces = iter(content)

        def interrupted() -> Iterable[bytes]:
            yield next(pieces)
            self._meanwhile()
            yield from pieces

        return super().put(interrupted())


class Clear:
    """A participant whose ciphertext is what it was given."""

    def encrypt(self, first: int, lanes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.uint64]:
        return np.abs(lanes).astype("<u8")


def a_study(mode: str) -> Study:
    return make_study(
        protection=Protection(mode=mode, value_bound=2.0),
        rounds=Rounds(count=1, quorum=3, weights="equal"),
        privacy={"delta": 1e-4, "average": {"clip": CLIP, "noise_multiplier": 2.0}},
    )


def send(study: Study, update: Path, spool: Spool) -> Protected:
    if study.protection.mode == "none":
        return protect(update, DIMENSION, WEIGHT, study, spool)
    return protect_secretly(update, DIMENSION, WEIGHT, study, cast(Participant, Clear()), spool)


@pytest.mark.parametrize("growth", [1000, 2.4])  # of 67 % of the values, which had half of the norm that is allowed
@pytest.mark.parametrize("mode", ["none", "secagg"])
def test_an_update_that_grows_after_its_norm_was_taken_does_not_leave(tmp_path: Path, mode: str, growth: float) -> None:
    study, path = a_study(mode), tmp_path / "update"
    values = np.full(DIMENSION, CLIP / np.sqrt(DIMENSION) / 2, "<f4")
    values.tofile(path)
    spool = Interrupted(tmp_path / "spool", lambda: rewrite(path, growth * values))
    with pytest.raises(TaskFailedError, match="changed"):
        send(study, path, spool)
    assert list(spool.folder.iterdir()) == []


@pytest.mark.parametrize("growth", [1000, 2.4])
@pytest.mark.parametrize("mode", ["none", "secagg"])
def test_of_an_update_that_had_no_norm_at_first_nothing_is_left_whatever_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, growth: float
) -> None:
    """What has no norm was passed on unscaled once, to be refused where it is met, and by then it was met no more."""
    study, path, left = a_study(mode), tmp_path / "update", []

    def watched(integers: npt.NDArray[np.int64]) -> float:
        left.append(int(np.abs(integers).max()))
        return 0.0

    values = np.full(DIMENSION, CLIP / np.sqrt(DIMENSION) / 2, "<f4")
    np.append(values[:-1], np.float32(np.nan)).tofile(path)
    squares = protect_module._squares
    monkeypatch.setattr(
        protect_module, "_squares", lambda each: watched(each) if each.dtype == np.int64 else squares(each)
    )
    send(study, path, Interrupted(tmp_path / "spool", lambda: rewrite(path, growth * values)))
    assert left == [0, 0, 0, 0]


def test_without_protection_an_update_that_has_no_norm_is_refused(tmp_path: Path) -> None:
    study, path = a_study("none"), tmp_path / "update"
    np.full(DIMENSION, np.nan, "<f4").tofile(path)
    with pytest.raises(UpdateNotFiniteError):
        send(study, path, Spool(tmp_path / "spool"))


@pytest.mark.parametrize("mode", ["none", "secagg"])
def test_an_update_that_changes_and_stays_within_its_norm_is_as_good_as_another(tmp_path: Path, mode: str) -> None:
    study, path = a_study(mode), tmp_path / "update"
    values = np.full(DIMENSION, CLIP / np.sqrt(DIMENSION) / 2, "<f4")
    values.tofile(path)
    send(study, path, Interrupted(tmp_path / "spool", lambda: rewrite(path, 2.2 * values)))


@pytest.mark.parametrize("mode", ["none", "secagg"])
def test_an_update_at_its_clip_that_nobody_touches_leaves(tmp_path: Path, mode: str) -> None:
    study, path = a_study(mode), tmp_path / "update"
    np.random.default_rng(1).normal(size=DIMENSION).astype("<f4").tofile(path)
    sent = send(study, path, Interrupted(tmp_path / "spool", lambda: None))
    assert sent.blob.inline is None


def rewrite(path: Path, values: Floats) -> None:
    with path.open("r+b") as file:
        file.write(values.astype("<f4").tobytes())


def test_a_model_that_was_rewritten_on_the_disk_is_not_sealed_as_a_checkpoint(tmp_path: Path) -> None:
    """It went out to all sites, sealed: a way around every bound on what leaves."""
    with engines(tmp_path, rounds=Rounds(count=2, quorum=3, checkpoint_every=1)) as exchange:
        victim: EngineSite = exchange.sites[NAMES[3]]  # whose turn it is

        def write_a_record(instruction: Instruction) -> None:
            if instruction.phase is Phase.CHECKPOINT:
                for path in (victim.folder / "runs" / RUN).glob("model-*.state"):
                    with path.open("r+b") as file:
                        file.seek(-8, os.SEEK_END)
                        file.write(b"patient!")

        victim.before = write_a_record
        exchange.loop().run()
        answers = [
            reply for site, i, reply in exchange.stored.values() if site == victim.name and i.phase is Phase.CHECKPOINT
        ]
        assert [(reply.code, reply.blobs) for reply in answers] == [("base_model_mismatch", ())] * len(answers)
        assert answers
