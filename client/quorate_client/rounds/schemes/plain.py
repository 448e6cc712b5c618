"""Without protection: what a site sends the server reads, and what the server says is the sum. Nobody can tell.

There are no keys, votes or signatures, and no exchange but the upload, the checkpoint and the release. Whatever an
instruction has of secure aggregation is refused: the scheme comes from the study that was approved, and from nothing
else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quorate.aggregation.plain import WORD_BYTES
from quorate.aggregation.plain import PlainScheme as Words
from quorate.aggregation.schemes import plain_scheme_of
from quorate.errors import BaseModelMismatchError, FrameError, SumRefusedError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import MAX_BODY_BYTES, Instruction
from quorate.rounds.spool import Spool
from quorate.secagg.sizes import require_at_most
from quorate.study.study import Study
from quorate.wire.sum_messages import PlainOpening, SumAnswer, SumRef, SumWork, plain_opening_from_bytes
from quorate_client.rounds.model.fetch import Fetch, fetched
from quorate_client.rounds.model.plain_files import read_blocks, store_file, store_pieces
from quorate_client.rounds.model.state import ModelState, content_of, state_bytes
from quorate_client.rounds.protect import Protected, protect
from quorate_client.rounds.sums.scheme import Answered, Average, FirstModel
from quorate_client.site.agreement import Agreement


class PlainScheme:
    """The sums of one run without protection, at this site."""

    def __init__(self, study: Study, spool: Spool) -> None:
        self._study = study
        self._spool = spool
        self._words = plain_scheme_of(study)
        self._model = b""

    # --- the exchanges ---

    def enter(self, instruction: Instruction, work: SumWork, agreement: Agreement) -> None:
        del instruction, agreement
        way = SumWork(sums=work.sums, checkpoint=work.checkpoint, checkpoint_round=work.checkpoint_round)
        if work != way:
            raise _not_here()

    async def exchange(
        self, instruction: Instruction, work: SumWork, agreement: Agreement, fetch: Fetch, state: ModelState | None
    ) -> SumAnswer:
        del instruction, work, agreement, fetch, state
        raise _not_here()

    def told_s(self, working_s: float) -> float:
        return working_s

    # --- an upload ---

    @asynccontextmanager
    async def on_records(self, instruction: Instruction, state: ModelState | None) -> AsyncIterator[None]:
        del instruction, state
        yield

    @asynccontextmanager
    async def one_code(self) -> AsyncIterator[None]:
        yield

    def note_counted(self, records: int) -> None:
        del records

    def counted(self, records: int) -> int:
        return records

    def begin_upload(self, work: SumWork, model: bytes, dimension: int, counts: int) -> None:
        del work, dimension, counts
        self._model = model

    def protect(self, update: Path, dimension: int, weight: int) -> Protected:
        return protect(update, dimension, weight, self._study, self._spool)

    async def finish_upload(self, counts: tuple[int, ...], updates: tuple[Blob, ...]) -> Answered:
        return SumAnswer(plain_counts=counts, has_update=bool(updates), model=self._model), updates

    # --- the way to a model ---

    def name_of(self, model: bytes) -> bytes:
        return model

    def require_believed(self, round_number: int, model: bytes) -> None:
        """A site without a vote is bound to no state: it follows the others."""

    def updates_bytes(self, dimension: int) -> int:
        return dimension * WORD_BYTES

    async def open(self, ref: SumRef, dimension: int | None, fetch: Fetch) -> PlainOpener:
        require_at_most("What goes with a sum", ref.opening.size, MAX_BODY_BYTES)
        with await fetched(ref.opening, self._spool, fetch) as file:
            opening = plain_opening_from_bytes(file.read())
        names = list(opening.survivors)
        if names != sorted(set(names)) or not set(names) <= set(self._study.site_names):
            raise FrameError("What goes with a sum does not name sites of this study, in order")
        if opening.updates != (ref.updates.id if ref.updates is not None else b""):
            raise SumRefusedError("The counts that the server sent are those of another sum")
        if dimension == 0 and ref.updates is not None:
            raise BaseModelMismatchError("A sum that should hold counts only has a model in it")
        return PlainOpener(opening, self._words)

    def learn(self, number: int, counts: tuple[int, ...]) -> None:
        """The server tells the metrics: it reads the counts."""

    # --- checkpoints and the release ---

    async def check_checkpoint(self, way: SumWork, checkpoint: Blob, updates: Blob, first: FirstModel) -> None:
        # The task knows its model's size, whatever the server says, and nothing larger is fetched to this site's disk.
        dimension = await first.dimension()
        sizes = state_bytes(self._study, dimension)
        if updates.size != self.updates_bytes(dimension) or checkpoint.size not in sizes:
            raise BaseModelMismatchError("The checkpoint that the server sent does not have the study's size")

    def checkpoint_content(self, way: SumWork, content: BinaryIO, size: int) -> Iterable[bytes]:
        return read_blocks(content, size)

    async def checkpoint(self, instruction: Instruction, state: ModelState) -> Answered:
        blob = await asyncio.to_thread(store_pieces, content_of(state), state.size, self._spool)
        return SumAnswer(), (blob,)

    async def release(self, model: Path) -> Answered:
        if self._study.release.model != "operator":
            return SumAnswer(), ()
        return SumAnswer(), (await asyncio.to_thread(store_file, model, self._spool),)


class PlainOpener:
    """A sum that anybody can read."""

    def __init__(self, opening: PlainOpening, words: Words) -> None:
        self._opening, self._words = opening, words

    @property
    def model(self) -> bytes:
        return self._opening.model

    @property
    def survivors(self) -> tuple[SiteName, ...]:
        return self._opening.survivors

    def averages(self, content: BinaryIO) -> Average:
        def average(count: int) -> npt.NDArray[np.float64]:
            words = np.frombuffer(content.read(count * WORD_BYTES), "<u4")
            return self._words.decode(words, self._opening.counts[0])

        return average

    def counts(self) -> tuple[int, ...]:
        return self._opening.counts


def _not_here() -> FrameError:
    return FrameError("The server asks for work that is not part of a study without protection")
