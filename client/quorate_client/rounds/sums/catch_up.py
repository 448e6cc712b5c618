"""How a site arrives at the state from which a sum starts, whatever it has and whatever it missed.

A state's name binds all that led to it: the state before, what opened the sum between them, and the values that came
out (``model/state.py``). What opens a sum names the state that it starts from. So a site that was shown anything else
than the others (another attempt, another opening of the same votes, another checkpoint) is in no sum with them, and
builds its model anew when it sees from which one they went on.

A checkpoint proves nothing by itself. It is believed once a sum that starts from it was closed: under secure
aggregation more than half of the honest sites arrived there by themselves then, and voted over this very state. Until
then no task is started there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import structlog

from quorate.errors import BaseModelMismatchError, SumRefusedError
from quorate.identity import RunId
from quorate.process.cancellation import offload
from quorate.rounds.blobs import Blob
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.wire.sum_messages import SumRef, SumWork
from quorate_client.rounds.model.fetch import Fetch, fetched
from quorate_client.rounds.model.state import ModelState, Origin, StateFolder
from quorate_client.rounds.sums.pooled import Pooled
from quorate_client.rounds.sums.scheme import FirstModel, Scheme, SumOpener

log = structlog.get_logger()


class CatchUp:
    """Where one run stands at this site. One task at a time may call it; tidying the spool is its caller's part."""

    def __init__(self, run: RunId, study: Study, states: StateFolder, spool: Spool, scheme: Scheme) -> None:
        self._run = run
        self._colluders = study.protection.colluders
        self._sites = tuple(sorted(study.site_names))
        self._states = states
        self._spool = spool
        self._scheme = scheme

    def pooled(self, state: ModelState) -> Pooled:
        """What the sums told beside the model."""
        return Pooled.from_bytes(state.origin.beside, self._sites)

    async def arrive(self, way: SumWork, target: int, first: FirstModel, fetch: Fetch) -> ModelState:
        """Bring the site to the state after round ``target``.

        Raises:
            BaseModelMismatchError: there is no way to it, or what came is not this run's. SumRefusedError: a sum does
                not open. DiskFullError. A state that the site had goes only once a whole one,
                which was accepted, is in its place.
        """
        sums = {ref.round_number: ref for ref in way.sums}
        if len(sums) != len(way.sums):
            raise BaseModelMismatchError("The server sent two sums for one round")

        def leads_from(start: int) -> bool:
            return start <= target and all(number in sums for number in range(start + 1, target + 1))

        known = self._states.known
        if known is None:
            known = await asyncio.to_thread(self._states.states)
        for state in sorted(known, key=lambda state: -state.round_number):
            ref = sums.get(state.round_number)
            if leads_from(state.round_number) and (ref is None or ref.opening.id == state.origin.sum_id):
                try:
                    return await self._walk(state, sums, target, fetch)
                except BaseModelMismatchError as error:
                    log.warning("the way from this state is not the others'", run=self._run, reason=str(error))
                    break
        if way.checkpoint is not None and way.checkpoint_round < target and leads_from(way.checkpoint_round):
            start = await self._adopt(way, way.checkpoint, sums[way.checkpoint_round + 1], first, fetch)
        elif leads_from(-1):
            start = await self._found(sums[0], first, fetch)
        else:
            raise BaseModelMismatchError(
                f"This site cannot arrive at the model of round {target}",
                expected="a checkpoint or the first sum, and the sums of all rounds after it",
                got=f"{len(sums)} sums and {'a' if way.checkpoint else 'no'} checkpoint",
                action="The site takes part again once the server has a newer checkpoint",
            )
        return await self._walk(start, sums, target, fetch)

    async def confirm(self, state: ModelState, ref: SumRef, fetch: Fetch) -> None:
        """That a sum of counts only starts from this state; its counts are learned.

        Raises:
            BaseModelMismatchError: it starts from another. SumRefusedError: it does not open.
        """
        opener = self._starting_from(state, await self._scheme.open(ref, 0, fetch))
        self._learn(state, ref, opener)

    async def _walk(self, state: ModelState, sums: Mapping[int, SumRef], target: int, fetch: Fetch) -> ModelState:
        self._scheme.require_believed(state.round_number, state.digest)
        for number in range(state.round_number + 1, target + 1):
            state = await self._step(state, sums[number], fetch)
            self._scheme.require_believed(number, state.digest)
        return state

    async def _step(self, state: ModelState, ref: SumRef, fetch: Fetch) -> ModelState:
        opener = self._starting_from(state, await self._scheme.open(ref, state.dimension, fetch))
        size = self._scheme.updates_bytes(state.dimension)
        if ref.updates is None or ref.updates.size != size:
            raise BaseModelMismatchError("A sum that the server sent does not have the model's size")
        with await fetched(ref.updates, self._spool, fetch) as content:
            opened = _Opened(opener, content, lambda: self._taken(state, ref, opener))
            return await offload(size, self._states.apply, state, opened)

    async def _found(self, ref: SumRef, first: FirstModel, fetch: Fetch) -> ModelState:
        """The state after the sum of the statistics: the study's first model."""
        opener = await self._scheme.open(ref, 0, fetch)
        counts = opener.counts()
        honest = max(1, len(opener.survivors) - self._colluders)
        if opener.model != self._scheme.name_of(b"") or not counts or counts[0] < honest:
            raise SumRefusedError(
                "The sum of the statistics is not what honest sites add up to",
                expected=f"at least {honest} records",
                action="One of the sites does not play fair, or has no training records",
            )
        beside = Pooled(counts, frozenset(opener.survivors)).to_bytes(self._sites)
        with self._states.scratch() as initial:
            await first.make(initial, counts)
            origin = Origin(ref.opening.id, _digest(counts), beside)
            return await asyncio.to_thread(self._states.found, initial, origin)

    async def _adopt(
        self, way: SumWork, checkpoint: Blob, confirming: SumRef, first: FirstModel, fetch: Fetch
    ) -> ModelState:
        """The state of a checkpoint, by the sum that starts from it."""
        updates = confirming.updates
        if updates is None:
            raise BaseModelMismatchError("The sum after a checkpoint has no model in it")
        opener = await self._scheme.open(confirming, None, fetch)
        await self._scheme.check_checkpoint(way, checkpoint, updates, first)

        def is_meant(state: ModelState) -> bool:
            self.pooled(state)  # raises: without protection nobody but the server may know this state
            return (
                state.round_number == way.checkpoint_round
                and self._scheme.updates_bytes(state.dimension) == updates.size
                and self._scheme.name_of(state.digest) == opener.model
            )

        with await fetched(checkpoint, self._spool, fetch) as file:
            content = self._scheme.checkpoint_content(way, file, checkpoint.size)
            try:
                return await asyncio.to_thread(self._states.adopt, content, is_meant)
            except SumRefusedError as error:
                raise BaseModelMismatchError(f"The checkpoint{_sealed_by(way)} does not open") from error
            except BaseModelMismatchError as error:
                raise BaseModelMismatchError(
                    f"The checkpoint{_sealed_by(way)} is not the state from which the sites went on",
                    action="The site takes part again once the server has a newer checkpoint",
                ) from error

    def _starting_from(self, state: ModelState, opener: SumOpener) -> SumOpener:
        if opener.model != self._scheme.name_of(state.digest):
            raise BaseModelMismatchError("The sites went on from another state than the one that is here")
        return opener

    def _taken(self, state: ModelState, ref: SumRef, opener: SumOpener) -> Origin:
        """What goes beside the model after a sum that was opened to its end."""
        counts = self._learn(state, ref, opener)
        beside = self.pooled(state).having_told(opener.survivors).to_bytes(self._sites)
        return Origin(ref.opening.id, _digest(counts), beside)

    def _learn(self, state: ModelState, ref: SumRef, opener: SumOpener) -> tuple[int, ...]:
        counts = opener.counts()
        if self.pooled(state).may_tell(opener.survivors):
            self._scheme.learn(ref.round_number, counts)
        return counts


class _Opened:
    """One sum as it is read."""

    def __init__(self, opener: SumOpener, content: BinaryIO, taken: Callable[[], Origin]) -> None:
        self._average, self._taken = opener.averages(content), taken

    def average(self, count: int) -> npt.NDArray[np.float64]:
        return self._average(count)

    def finish(self) -> Origin:
        return self._taken()


def _sealed_by(way: SumWork) -> str:
    return f" that {way.checkpoint_sealer.site} sealed" if way.checkpoint_sealer is not None else ""


def _digest(counts: tuple[int, ...]) -> bytes:
    return hashlib.sha256(b"".join(count.to_bytes(8, "big", signed=True) for count in counts)).digest()
