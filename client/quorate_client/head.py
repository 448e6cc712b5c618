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
from typing import TYPE_CHECKING, BinaryIO, Protocol

import structlog

from quorate.blobs import Blob, Spool
from quorate.errors import BaseModelMismatchError, BlobMissingError
from quorate.exchange import StudyWork, SumRef
from quorate_client.model_state import ModelState, OpenedSum, StateFolder
from quorate_client.offload import offload
from quorate_client.protect import FLOAT_BYTES, open_plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from quorate.secagg.plain import PlainScheme

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
    if state.dimension != work.dimension or (ref is not None and not state.came_from(ref)):
        return False
    if work.checkpoint is not None and state.round_number == work.checkpoint_round:
        return state.digest == work.checkpoint.id
    return _is_agreed(state, work)


def _is_agreed(state: ModelState, work: StudyWork) -> bool:
    """Whether a state is the agreed one, or follows it, as far as can be seen from the state."""
    if work.agreed_digest and state.round_number == work.agreed_round:
        return state.digest == work.agreed_digest
    if work.agreed_digest and state.round_number == work.agreed_round + 1:
        return state.parent == work.agreed_digest
    return True


class Sums(Protocol):
    """How a study's sums are opened: ``PlainSums``, or those of secure aggregation."""

    def size_bytes(self, dimension: int) -> int: ...

    async def open(self, state: ModelState, ref: SumRef, content: BinaryIO, fetch: Fetch) -> OpenedSum:
        """The sum of the round after ``state``; ``content`` is its blob."""
        ...


class PlainSums:
    """Sums of words that anybody can read."""

    def __init__(self, scheme: PlainScheme) -> None:
        self._scheme = scheme

    def size_bytes(self, dimension: int) -> int:
        return dimension * FLOAT_BYTES

    async def open(self, state: ModelState, ref: SumRef, content: BinaryIO, fetch: Fetch) -> OpenedSum:
        return _PlainSum(self._scheme, ref.weight, content)


@dataclass(frozen=True, slots=True)
class _PlainSum:
    scheme: PlainScheme
    weight: int
    content: BinaryIO

    def average(self, count: int) -> npt.NDArray[np.float64]:
        import numpy as np  # the idle daemon does without it

        return self.scheme.decode(np.frombuffer(self.content.read(count * FLOAT_BYTES), "<u4"), self.weight)

    def finish(self) -> None:
        """Whatever the server sends is the sum: nobody can tell."""


class Head:
    """Where one run stands at this site. One task at a time may call it; tidying the spool is its caller's part."""

    def __init__(self, states: StateFolder, spool: Spool, sums: Sums) -> None:
        self._states = states
        self._spool = spool
        self._sums = sums

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
        sum_bytes = self._sums.size_bytes(work.dimension)
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
            with await self._content(ref.blob, fetch) as content:
                opened = await self._sums.open(state, ref, content, fetch)
                state = await offload(ref.blob.size, self._states.apply, state, ref, opened)
        return state if _is_agreed(state, work) else None

    async def _start(
        self, base: ModelState | Blob | None, work: StudyWork, make_initial: MakeInitial, fetch: Fetch
    ) -> ModelState:
        if isinstance(base, ModelState):
            return base
        initial = self._states.scratch()
        try:
            # For a checkpoint too: the task knows its model's size, whatever the server says, and nothing larger is
            # fetched to this site's disk.
            await make_initial(initial)
            if base is None:
                return await asyncio.to_thread(self._states.found, initial, work.dimension)
            await asyncio.to_thread(self._states.check_size, base, initial, work.dimension)
        finally:
            initial.unlink(missing_ok=True)
        with await self._content(base, fetch) as content:
            return await asyncio.to_thread(self._states.adopt, content, base, work.checkpoint_round, work.dimension)

    async def _content(self, blob: Blob, fetch: Fetch) -> BinaryIO:
        if blob.inline is not None:
            return io.BytesIO(blob.inline)
        if not self._spool.has(blob):
            await fetch(blob)
        if not self._spool.has(blob):
            raise BlobMissingError("Bulk data that the round needs did not arrive")
        return open_plain(self._spool.path(blob.id))
