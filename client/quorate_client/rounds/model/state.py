"""Model states on disk: the file's form, and how one state is made from the one before.

"Model r" is the model after round r; model 0 comes from the study's seed. A state file holds all that later code
reads: the model, the optimiser's moments, and what the sums told beside the model (``secure/pooled_rates.py``). All
sites hold the same bytes, so the file's blob name is what they agree on, and a checkpoint is the file itself. The
header binds a state to its run, to the state before it, to the sum that led to it and to what was opened in that sum:
who holds a state under another name was told something else on the way.

A state appears under its name only when it is whole; being killed anywhere leaves the states before it. Nothing is
flushed to disk: what a power cut damages is seen when it is read, against its name, and the site gets there again from
the sums. The last two states are kept. Everything goes in blocks: memory does not grow with the model.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import structlog

from quorate.errors import BaseModelMismatchError, DiskFullError, TaskFailedError
from quorate.identity import RunId
from quorate.rounds.blobs import FRAME_BYTES, BlobId, cut, name_of
from quorate.study.study import Study
from quorate_client.rounds.model.plain_files import BLOCK_BYTES, open_plain, read_blocks
from quorate_client.rounds.protect import FLOAT_BYTES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = structlog.get_logger()

# magic, round, number of moments, dimension, bytes beside the model, nothing, lineage, digest of the state before, last
# sum, what was opened in it
_HEADER = struct.Struct("<8sIIQQ8x32s32s32s32s")
_MAGIC = b"QuorMdl\x02"
_NOTHING = bytes(32)
THETA_OFFSET = _HEADER.size
MAX_BESIDE_BYTES = 1024 * 1024
MAX_VALUE = 1e9
"""Largest size of a coordinate of a state."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What led to a state, beside the state before it.

    Args:
        sum_id: The name of what opens it.
        opened: The digest of the counts that were opened with it.
        beside: What later code reads beside the model.
    """

    sum_id: bytes = _NOTHING
    opened: bytes = _NOTHING
    beside: bytes = b""


@dataclass(frozen=True, slots=True)
class ModelState:
    """A state file: a header of ``THETA_OFFSET`` bytes, theta float32[dimension], each moment like theta, and what is
    beside the model."""

    path: Path
    digest: BlobId
    round_number: int
    moments: int
    dimension: int
    lineage: bytes
    parent: bytes
    origin: Origin

    @property
    def size(self) -> int:
        return _size(self.dimension, self.moments, len(self.origin.beside))


class OpenedSum(Protocol):
    """A round's sum as it is read, once and in order."""

    def average(self, count: int) -> npt.NDArray[np.float64]:
        """The weighted average of the next ``count`` coordinates."""
        ...

    def finish(self) -> Origin:
        """All was read. Raises SumRefusedError if it was not what the sites sent: nothing of it may count then."""
        ...


class StateFolder:
    """The states of one run, in a folder of their own.

    The methods do file work of the model's size and are meant for threads. A thread whose caller was cancelled works
    on to its end: the lock makes the next one wait for it.
    """

    def __init__(self, folder: Path, run: RunId, study: Study) -> None:
        self.folder = folder
        self._study = study
        self._lineage = hashlib.sha256(b"quorate/lineage/v1\x00" + study.digest() + run.encode()).digest()
        self._lock = threading.RLock()
        self._states: list[ModelState] | None = None

    @property
    def known(self) -> tuple[ModelState, ...] | None:
        """What is here, if it was read before."""
        return None if self._states is None else tuple(self._states)

    def states(self) -> tuple[ModelState, ...]:
        """What is here. Read from disk once, each file against its name; what was left half-written goes away."""
        with self._lock:
            if self._states is None:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                for leftover in self.folder.glob("new-*"):
                    leftover.unlink()
                self._states = [state for path in self.folder.glob("model-*.state") if (state := self._checked(path))]
            return tuple(self._states)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path for a passing file, which is removed after. What a crash leaves there goes away at the next start."""
        path = self.folder / f"new-{os.urandom(8).hex()}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def before(self, state: ModelState) -> ModelState | None:
        """The state that led to this one, if it is here."""
        return next((other for other in self.states() if other.digest == state.parent), None)

    def found(self, initial: Path, origin: Origin) -> ModelState:
        """Model 0, from the parameters float32[dimension] that the task made of the study's seed.

        Raises:
            BaseModelMismatchError: the task's model is none.
        """
        moments = _moments_at_start(self._study)
        with open_plain(initial) as file:
            size = _checked_size(file)
            count = size // FLOAT_BYTES

            def write(out: BinaryIO) -> None:
                out.write(self._header(0, len(moments), count, _NOTHING, origin))
                out.writelines(read_blocks(file, size))
                for start in moments:
                    out.writelines(struct.pack("<f", start) * length for length in _pieces(count))
                out.write(origin.beside)

            return self._keep(write, lambda _: True)

    def adopt(self, content: Iterable[bytes], is_meant: Callable[[ModelState], bool]) -> ModelState:
        """Take a checkpoint for this site's own, if it is this run's and the one that is meant.

        Raises:
            BaseModelMismatchError: it is not.
        """
        moments = len(_moments_at_start(self._study))

        def accepted(state: ModelState) -> bool:
            return state.lineage == self._lineage and state.moments == moments and is_meant(state)

        return self._keep(lambda out: out.writelines(content), accepted)

    def apply(self, state: ModelState, opened: OpenedSum) -> ModelState:
        """The next model: let the optimiser do its step with the average of the round that follows.

        Raises:
            BaseModelMismatchError: the step leads out of range. ContributionError: the weight is impossible.
            SumRefusedError: the sum is not what the sites sent. The states that were here are still here.
        """
        with open_plain(state.path) as old:

            def write(out: BinaryIO) -> None:
                out.seek(THETA_OFFSET)
                self._step(state, old, opened, out)
                origin = opened.finish()
                out.seek(_size(state.dimension, state.moments, 0))
                out.write(origin.beside)
                out.seek(0)
                out.write(self._header(state.round_number + 1, state.moments, state.dimension, state.digest, origin))

            return self._keep(write, lambda _: True)

    def _header(self, round_number: int, moments: int, dimension: int, parent: bytes, origin: Origin) -> bytes:
        sizes = (round_number, moments, dimension, len(origin.beside))
        return _HEADER.pack(_MAGIC, *sizes, self._lineage, parent, origin.sum_id, origin.opened)

    def _step(self, state: ModelState, old: BinaryIO, opened: OpenedSum, out: BinaryIO) -> None:
        import numpy as np  # the idle daemon does without it

        from quorate_client.rounds.model.optimizer import step

        start = 0
        for count in _pieces(state.dimension):
            places = [
                THETA_OFFSET + FLOAT_BYTES * (part * state.dimension + start) for part in range(1 + state.moments)
            ]
            now = [np.frombuffer(_read_at(old, place, count), "<f4").astype(np.float64) for place in places]
            theta, moments = step(self._study.optimizer, now[0], tuple(now[1:]), opened.average(count))
            for place, vector in zip(places, (theta, *moments), strict=True):
                with np.errstate(over="ignore"):
                    stored = vector.astype("<f4")
                # At all sites alike. What is computed on records afterwards may not fail for their sake.
                if not (np.abs(stored) <= MAX_VALUE).all():
                    raise BaseModelMismatchError(
                        "The federated optimiser's step led to values that are out of range",
                        expected=f"at most {MAX_VALUE:g}",
                        action="Have the operator lower optimizer.learning_rate",
                    )
                out.seek(place)
                out.write(stored.tobytes())
            start += count

    def _keep(self, write: Callable[[BinaryIO], None], accepted: Callable[[ModelState], bool]) -> ModelState:
        """Write a state, and let it appear once it is whole and accepted."""
        with self.scratch() as scratch:
            with _full_disk(), scratch.open("xb") as out:
                write(out)
            state = read_state(scratch)
            if state is None or not accepted(state):
                raise BaseModelMismatchError(
                    "The checkpoint that the server sent is not this run's model of that round"
                )
            state = replace(state, path=self.folder / _name(state))
            scratch.rename(state.path)
        with self._lock:
            self._states = [*(other for other in self.states() if other.digest != state.digest), state]
            self._retain(lambda other: other.digest in (state.digest, state.parent))
        return state

    def _retain(self, wanted: Callable[[ModelState], bool]) -> None:
        with self._lock:
            for state in self.states():
                if not wanted(state):
                    state.path.unlink(missing_ok=True)
            self._states = [state for state in self.states() if wanted(state)]

    def _checked(self, path: Path) -> ModelState | None:
        with suppress(TaskFailedError):  # it is not even a plain file
            state = read_state(path)
            if state is not None and state.lineage == self._lineage and path.name == _name(state):
                return state
        log.warning("a damaged model state is dropped", file=path.name)
        path.unlink()
        return None


def content_of(state: ModelState) -> Iterator[bytes]:
    """A state's bytes, in pieces. Nothing that came out counts before the end is reached.

    A task may write to this folder: what was checked when the state was read says nothing of what is there now.

    Raises:
        BaseModelMismatchError: the file is not (any more) what the state's digest names.
        TaskFailedError: it is not even a plain file of that size.
    """
    digests = bytearray()
    with open_plain(state.path) as file:
        for frame in cut(read_blocks(file, state.size)):
            digests += frame.sha256
            yield frame.data
    if name_of(state.size, bytes(digests)) != state.digest:
        raise BaseModelMismatchError("This site's model was changed on its disk, so it was not sent")


def read_state(path: Path) -> ModelState | None:
    """What a state file says of itself, with its digest; None when it is not one.

    Raises:
        TaskFailedError: not a plain file.
    """
    digests = bytearray()
    with open_plain(path) as file:
        head = file.read(_HEADER.size)
        file.seek(0)
        size = 0
        while frame := file.read(FRAME_BYTES):
            digests += hashlib.sha256(frame).digest()
            size += len(frame)
        if len(head) != _HEADER.size:
            return None
        magic, number, moments, dimension, beside_bytes, lineage, parent, sum_id, opened = _HEADER.unpack(head)
        if magic != _MAGIC or beside_bytes > MAX_BESIDE_BYTES or size != _size(dimension, moments, beside_bytes):
            return None
        file.seek(size - beside_bytes)
        origin = Origin(sum_id, opened, file.read(beside_bytes))
    return ModelState(path, name_of(size, bytes(digests)), number, moments, dimension, lineage, parent, origin)


def theta_digest(state: ModelState) -> bytes:
    """SHA-256 of the parameters alone: equal for equal parameters, in whichever round, run or study."""
    digest = hashlib.sha256()
    with open_plain(state.path) as file:
        file.seek(THETA_OFFSET)
        for block in read_blocks(file, state.dimension * FLOAT_BYTES):
            digest.update(block)
    return digest.digest()


def state_bytes(study: Study, dimension: int) -> range:
    """The sizes that a state of this study may have."""
    smallest = _size(dimension, len(_moments_at_start(study)), 0)
    return range(smallest, smallest + MAX_BESIDE_BYTES + 1)


def _moments_at_start(study: Study) -> tuple[float, ...]:
    from quorate_client.rounds.model.optimizer import moments_at_start  # imports numpy

    return moments_at_start(study.optimizer)


def _checked_size(initial: BinaryIO) -> int:
    size = os.fstat(initial.fileno()).st_size
    if size % FLOAT_BYTES or not size:
        raise BaseModelMismatchError(
            "The task's model has no size that a model can have",
            expected=f"whole parameters of {FLOAT_BYTES} bytes",
            got=f"{size} bytes",
        )
    return size


def _name(state: ModelState) -> str:
    return f"model-{state.round_number}-{state.digest.hex()}.state"


def _size(dimension: int, moments: int, beside_bytes: int) -> int:
    return _HEADER.size + FLOAT_BYTES * dimension * (1 + moments) + beside_bytes


def _pieces(dimension: int) -> Iterable[int]:
    """The lengths of the blocks in which ``dimension`` values are worked on."""
    length = BLOCK_BYTES // FLOAT_BYTES
    return (min(length, dimension - start) for start in range(0, dimension, length))


def _read_at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count * FLOAT_BYTES)


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            "The disk that holds this site's model is full",
            action="Free some space; the site takes part again in the next round",
        ) from error
