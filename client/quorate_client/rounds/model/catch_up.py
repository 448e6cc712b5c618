"""How a site arrives at the model of a round, whatever it has and whatever it missed.

A sum is never applied twice, and a round that was closed again with another sum leads to another state: what came of
the first one is passed over. A site whose model is not the one that the others agreed on builds it anew.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import structlog

from quorate.errors import BaseModelMismatchError, BlobMissingError
from quorate.process.cancellation import offload
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import StudyWork, SumRef
from quorate.rounds.spool import Spool
from quorate_client.rounds.model.plain_files import open_plain, read_blocks
from quorate_client.rounds.model.state import ModelState, Origin, StateFolder
from quorate_client.rounds.protect import FLOAT_BYTES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from quorate.aggregation.plain import PlainScheme

log = structlog.get_logger()

Fetch = Callable[[Blob], Awaitable[None]]
MakeInitial = Callable[[Path], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a round's model: from a state that is here, the checkpoint or (None) the seed, over these sums."""

    base: ModelState | Blob | None
    sums: tuple[SumRef, ...]


def plan(local: Sequence[ModelState], work: StudyWork, target: int, sum_bytes: int) -> Route:
    """The shortest way to model ``target``.

    Args:
        local: The states that are here.
        sum_bytes: The size of each sum.

    Raises:
        BaseModelMismatchError: what the server sent does not lead there.
    """
    sums = {ref.round_number: ref for ref in work.sums}
    if len(sums) != len(work.sums):
        raise BaseModelMismatchError("The server sent two sums for one round")
    if any(ref.blob.size != sum_bytes for ref in work.sums):
        raise BaseModelMismatchError("A sum that the server sent does not have the study's size")

    def beyond(start: int) -> tuple[SumRef, ...] | None:
        path = tuple(sums[number] for number in range(start + 1, target + 1) if number in sums)
        return path if start <= target and len(path) == target - start else None

    for state in sorted(local, key=lambda state: -state.round_number):
        path = beyond(state.round_number)
        if path is not None and _is_meant(state, work, sums.get(state.round_number)):
            return Route(state, path)
    if work.checkpoint is not None and (path := beyond(work.checkpoint_round)) is not None:
        return Route(work.checkpoint, path)
    if (path := beyond(0)) is not None:
        return Route(None, path)
    raise BaseModelMismatchError(
        f"This site cannot arrive at the model of round {target}",
        expected="a checkpoint or the seed, and the sums of all rounds after it",
        got=f"the sums of {len(sums)} rounds and {'a' if work.checkpoint else 'no'} checkpoint",
        action="The site takes part again once the server has a newer checkpoint",
    )


def _is_meant(state: ModelState, work: StudyWork, ref: SumRef | None) -> bool:
    """Whether a state that is here is the one of that round that the server speaks of."""
    if state.dimension != work.dimension or (ref is not None and not _came_from(state, ref)):
        return False
    if work.checkpoint is not None and state.round_number == work.checkpoint_round:
        return state.digest == work.checkpoint.id
    return _is_agreed(state, work)


def _came_from(state: ModelState, ref: SumRef) -> bool:
    return (state.origin.sum_id, state.origin.weight) == (ref.blob.id, ref.weight)


def _is_agreed(state: ModelState, work: StudyWork) -> bool:
    """Whether a state is the agreed one, or follows it, as far as can be seen from the state."""
    if work.agreed_digest and state.round_number == work.agreed_round:
        return state.digest == work.agreed_digest
    if work.agreed_digest and state.round_number == work.agreed_round + 1:
        return state.parent == work.agreed_digest
    return True


@dataclass(frozen=True, slots=True)
class _PlainSum:
    """A sum of words that anybody can read."""

    scheme: PlainScheme
    ref: SumRef
    content: BinaryIO

    def average(self, count: int) -> npt.NDArray[np.float64]:
        import numpy as np  # the idle daemon does without it

        return self.scheme.decode(np.frombuffer(self.content.read(count * FLOAT_BYTES), "<u4"), self.ref.weight)

    def finish(self) -> Origin:
        """Whatever the server sends is the sum: nobody can tell."""
        return Origin(self.ref.blob.id, self.ref.weight)


class CatchUp:
    """Where one run without protection stands at this site; ``secure/catch_up.py`` is for secure aggregation.

    One task at a time may call it; tidying the spool is its caller's part.
    """

    def __init__(self, states: StateFolder, spool: Spool, scheme: PlainScheme) -> None:
        self._states = states
        self._spool = spool
        self._scheme = scheme

    async def advance(self, work: StudyWork, target: int, make_initial: MakeInitial, fetch: Fetch) -> ModelState:
        """Bring the site to model ``target``.

        Args:
            make_initial: Writes the study's initial model, float32[dimension], to a path.
            fetch: Brings a blob into the spool.

        Raises:
            BaseModelMismatchError: there is no way to it, or what came is not this run's. DiskFullError: no room.
                The states that were here are still here.
        """
        local = self._states.known
        if local is None:
            local = await asyncio.to_thread(self._states.states)
        sum_bytes = work.dimension * FLOAT_BYTES
        route = plan(local, work, target, sum_bytes)
        state = await self._travel(route, work, make_initial, fetch)
        if state is None and isinstance(route.base, ModelState):
            log.warning("the model is not the one of the other sites and is built anew", round=target)
            await asyncio.to_thread(self._states.drop_all)
            state = await self._travel(plan((), work, target, sum_bytes), work, make_initial, fetch)
        if state is None:
            raise BaseModelMismatchError(
                f"What this site computes for round {target} is not the model that the others agreed on",
                action="Compare the versions of quorate and numpy with the other sites'",
            )
        return state

    async def _travel(
        self, route: Route, work: StudyWork, make_initial: MakeInitial, fetch: Fetch
    ) -> ModelState | None:
        """Go the way; None when it does not pass the model that the sites agreed on."""
        state = await self._start(route.base, work, make_initial, fetch)
        for ref in route.sums:
            if not _is_agreed(state, work):
                return None
            with await fetched(ref.blob, self._spool, fetch) as content:
                opened = _PlainSum(self._scheme, ref, content)
                state = await offload(ref.blob.size, self._states.apply, state, opened)
        return state if _is_agreed(state, work) else None

    async def _start(
        self, base: ModelState | Blob | None, work: StudyWork, make_initial: MakeInitial, fetch: Fetch
    ) -> ModelState:
        if isinstance(base, ModelState):
            return base
        with self._states.scratch() as initial:
            # For a checkpoint too: the task knows its model's size, whatever the server says, and nothing larger is
            # fetched to this site's disk.
            await make_initial(initial)
            if base is None:
                return await asyncio.to_thread(self._states.found, initial, work.dimension)
            await asyncio.to_thread(self._states.check_size, base, initial, work.dimension)

        announced = (base.id, work.checkpoint_round, work.dimension)

        def is_announced(state: ModelState) -> bool:
            return (state.digest, state.round_number, state.dimension) == announced

        with await fetched(base, self._spool, fetch) as content:
            return await asyncio.to_thread(self._states.adopt, read_blocks(content, base.size), is_announced)


async def fetched(blob: Blob, spool: Spool, fetch: Fetch) -> BinaryIO:
    """The content of a blob, brought into the spool if it is not there.

    Raises:
        BlobMissingError: it did not arrive.
    """
    if blob.inline is not None:
        return io.BytesIO(blob.inline)
    if not spool.has(blob):
        await fetch(blob)
    if not spool.has(blob):
        raise BlobMissingError("Bulk data that the round needs did not arrive")
    return open_plain(spool.path(blob.id))
