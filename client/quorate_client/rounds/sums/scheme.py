"""What a run leaves to the way in which its study is protected (``rounds/schemes``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction
from quorate.wire.sum_messages import SumAnswer, SumRef, SumWork
from quorate_client.rounds.model.fetch import Fetch
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.protect import Protected
from quorate_client.site.agreement import Agreement

Answered = tuple[SumAnswer, tuple[Blob, ...]]
"""What a site answers, and the blobs that go with it."""

Average = Callable[[int], npt.NDArray[np.float64]]
"""Gives the weighted average of the next so many coordinates."""


@dataclass(frozen=True, slots=True)
class FirstModel:
    """A study's first model, as the task at this site knows it.

    Args:
        make: Writes it, float32[dimension], to a path; it is built with the summed statistics.
        dimension: How many parameters it has, before anything came from the server.
    """

    make: Callable[[Path, tuple[int, ...]], Awaitable[None]]
    dimension: Callable[[], Awaitable[int]]


class SumOpener(Protocol):
    """A sum whose form was checked. Nothing that came out of ``averages`` may be used before ``counts`` has returned.

    ``model`` names the state that it starts from, and ``survivors`` whose uploads are in it.
    """

    @property
    def model(self) -> bytes: ...
    @property
    def survivors(self) -> tuple[SiteName, ...]: ...

    def averages(self, content: BinaryIO) -> Average:
        """The summed updates as they are read. Raises SumRefusedError, ContributionError: an impossible weight."""
        ...

    def counts(self) -> tuple[int, ...]:
        """What was summed beside the updates. Raises SumRefusedError: it is not what the sites sent."""
        ...


class Scheme(Protocol):
    """One way to protect the sums of a run, at this site."""

    # --- the exchanges ---

    def enter(self, instruction: Instruction, work: SumWork, agreement: Agreement) -> None:
        """Before anything is done for an upload or a release. Raises QuorateError: this site has no part in it."""
        ...

    async def exchange(
        self, instruction: Instruction, work: SumWork, agreement: Agreement, fetch: Fetch, state: ModelState | None
    ) -> SumAnswer:
        """An exchange that only this scheme has. ``state`` is the one from which this site uploaded.

        Raises:
            FrameError: it has none such. Other QuorateErrors: what keeps this site from it.
        """
        ...

    def told_s(self, working_s: float) -> float:
        """What the server hears of the time that the task took."""
        ...

    # --- an upload ---

    def on_records(self, instruction: Instruction, state: ModelState | None) -> AbstractAsyncContextManager[None]:
        """Around all that is computed on records for an upload."""
        ...

    def one_code(self) -> AbstractAsyncContextManager[None]:
        """Around what else a task does that has opened its data."""
        ...

    def note_counted(self, records: int) -> None:
        """With how many records this site is in the totals."""
        ...

    def counted(self, records: int) -> int:
        """As how many of its records a site that is in the totals may count."""
        ...

    def begin_upload(self, work: SumWork, model: bytes, dimension: int, counts: int) -> None:
        """What this site is about to add.

        Args:
            model: The digest of the state that it starts from; empty before there is one.
            dimension: Of its update; 0 without one.
        """
        ...

    def protect(self, update: Path, dimension: int, weight: int) -> Protected:
        """An update that may leave, see ``rounds/protect.py``."""
        ...

    async def finish_upload(self, counts: tuple[int, ...], updates: tuple[Blob, ...]) -> Answered: ...

    # --- the way to a model ---

    def name_of(self, model: bytes) -> bytes:
        """How the sites name a state to each other, by its digest."""
        ...

    def require_believed(self, round_number: int, model: bytes) -> None:
        """Raises BaseModelMismatchError: another state of that round than the one from which this site went on."""
        ...

    def updates_bytes(self, dimension: int) -> int:
        """Of the summed updates of a model."""
        ...

    async def open(self, ref: SumRef, dimension: int | None, fetch: Fetch) -> SumOpener:
        """Everything about a sum but the summed updates, checked.

        Args:
            dimension: Of its updates; 0 where only counts were summed, None where it is not known yet.

        Raises:
            SumRefusedError, FrameError: it is not what opens a sum of this study.
        """
        ...

    def learn(self, number: int, counts: tuple[int, ...]) -> None:
        """Takes the counts of a sum whose rates may be told."""
        ...

    # --- checkpoints and the release ---

    async def check_checkpoint(self, way: SumWork, checkpoint: Blob, updates: Blob, first: FirstModel) -> None:
        """Before a checkpoint is fetched. Raises BaseModelMismatchError: it cannot be one of this study.

        Args:
            updates: Summed in the round that starts from it.
        """
        ...

    def checkpoint_content(self, way: SumWork, content: BinaryIO, size: int) -> Iterable[bytes]:
        """The state that a checkpoint holds. Raises SumRefusedError when it does not open."""
        ...

    async def checkpoint(self, instruction: Instruction, state: ModelState) -> Answered:
        """A state for those who join."""
        ...

    async def release(self, model: Path) -> Answered:
        """The final model, where the study has it sent."""
        ...
