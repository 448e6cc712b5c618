"""How a site arrives at the state from which a secure sum starts, whatever it has and whatever it missed.

A state's name binds all that led to it: the state before, what opened the sum between them, and the values that came
out (``model/state.py``). A sum's round id binds the state that it starts from. So a site that was shown anything else
than the others (another attempt, another opening of the same votes, another checkpoint) is in no sum with them.

A checkpoint is sealed with a key that every site has, so it proves nothing by itself: a colluder can seal any state. It
is believed once a sum that starts from it was voted on. More than half of the honest sites arrived there by themselves
then, and the votes are over this very state. Until then no task is started.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import structlog

from quorate.aggregation import words
from quorate.aggregation.packing import Packing
from quorate.aggregation.ring import DEGREE
from quorate.aggregation.schemes import packing_of
from quorate.aggregation.weights import require_weight
from quorate.errors import BaseModelMismatchError, FrameError, QuorateError, SumRefusedError
from quorate.identity import RunId
from quorate.privacy.noise import SeededRandomness, discrete_gaussian
from quorate.privacy.update_noise import update_noise
from quorate.process.cancellation import offload
from quorate.rounds.blobs import Blob
from quorate.rounds.spool import Spool
from quorate.secagg.opening import Opener
from quorate.secagg.participant import Member
from quorate.secagg.sizes import most_opening_bytes, require_at_most
from quorate.secagg.study_key import open_stream, stream_bytes
from quorate.secagg.terms import Terms, checkpointed, is_signed
from quorate.study.study import Study
from quorate.wire.secure_messages import SecureSumRef, SecureWork, opening_from_bytes
from quorate_client.rounds.model.catch_up import Fetch, fetched
from quorate_client.rounds.model.state import MAX_BESIDE_BYTES, ModelState, Origin, StateFolder
from quorate_client.rounds.secure.pooled_rates import Pooled
from quorate_client.rounds.secure.votes import VoteLog

log = structlog.get_logger()

MakeInitial = Callable[[Path, tuple[int, ...]], Awaitable[None]]
"""Writes the study's first model, float32[dimension], to a path; it is built with the summed statistics."""
Learn = Callable[[int, tuple[int, ...]], None]
"""Takes the counts of a round's sum whose rates may be told."""


class SecureCatchUp:
    """Where one run stands at this site. One task at a time may call it.

    Args:
        learn: Called with each round's counts whose rates may be told.
    """

    def __init__(
        self, run: RunId, study: Study, states: StateFolder, spool: Spool, votes: VoteLog, learn: Learn
    ) -> None:
        self._run = run
        self._digest = study.digest()
        self._sites = tuple(sorted(study.site_names))
        self._states = states
        self._spool = spool
        self._votes = votes
        self._learn = learn
        self.packing = packing_of(study)
        self._noise_steps = update_noise(study).average / self.packing.step

    def pooled(self, state: ModelState) -> Pooled:
        """What the sums told beside the model."""
        return Pooled.from_bytes(state.origin.beside, self._sites)

    async def arrive(
        self, way: SecureWork, target: int, member: Member, make_initial: MakeInitial, fetch: Fetch
    ) -> ModelState:
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
                    return await self._walk(state, sums, target, member, fetch)
                except BaseModelMismatchError as error:
                    log.warning("the way from this state is not the others'", run=self._run, reason=str(error))
                    break
        if way.checkpoint is not None and way.checkpoint_round < target and leads_from(way.checkpoint_round):
            start = await self._adopt(way, way.checkpoint, sums[way.checkpoint_round + 1], member, fetch)
        elif leads_from(-1):
            start = await self._found(sums[0], member, make_initial, fetch)
        else:
            raise BaseModelMismatchError(
                f"This site cannot arrive at the model of round {target}",
                expected="a checkpoint or the first sum, and the sums of all rounds after it",
                got=f"{len(sums)} sums and {'a' if way.checkpoint else 'no'} checkpoint",
                action="The site takes part again once the server has a newer checkpoint",
            )
        return await self._walk(start, sums, target, member, fetch)

    async def confirm(self, state: ModelState, ref: SecureSumRef, member: Member, fetch: Fetch) -> Opener:
        """A sum of counts only that starts from this state.

        Raises:
            BaseModelMismatchError: it starts from another. SumRefusedError: it does not open.
        """
        return _starting_from(state, await self._opener(ref, 0, member, fetch), member)

    async def _walk(
        self, state: ModelState, sums: Mapping[int, SecureSumRef], target: int, member: Member, fetch: Fetch
    ) -> ModelState:
        self._votes.require_believed(self._run, state.round_number, state.digest)
        for number in range(state.round_number + 1, target + 1):
            state = await self._step(state, sums[number], member, fetch)
            self._votes.require_believed(self._run, number, state.digest)
        return state

    async def _step(self, state: ModelState, ref: SecureSumRef, member: Member, fetch: Fetch) -> ModelState:
        polynomials = self.packing.polynomials(state.dimension)
        opener = _starting_from(state, await self._opener(ref, polynomials, member, fetch), member)
        size = polynomials * words.POLYNOMIAL_BYTES
        if ref.ciphertext is None or ref.ciphertext.size != size:
            raise BaseModelMismatchError("A sum that the server sent does not have the model's size")
        with await fetched(ref.ciphertext, self._spool, fetch) as content:
            opened = _SecureSum(
                self.packing, self._noise_steps, member, opener, content, partial(self._taken, state, ref)
            )
            return await offload(size, self._states.apply, state, opened)

    async def _found(self, ref: SecureSumRef, member: Member, make_initial: MakeInitial, fetch: Fetch) -> ModelState:
        """The state after the sum of the statistics: the study's first model."""
        opener = await self._opener(ref, 0, member, fetch)
        counts = opener.counts()
        honest = len(opener.survivors) - member.rules.colluders
        if opener.model != member.study_key.model(b"") or not counts or counts[0] < honest:
            raise SumRefusedError(
                "The sum of the statistics is not what honest sites add up to",
                expected=f"at least {honest} records",
                action="One of the sites does not play fair, or has no training records",
            )
        beside = Pooled(counts, frozenset(opener.survivors)).to_bytes(self._sites)
        with self._states.scratch() as initial:
            await make_initial(initial, counts)
            origin = Origin(ref.opening.id, 0, _digest(counts), beside)
            return await asyncio.to_thread(self._states.found, initial, None, origin)

    async def _adopt(
        self, way: SecureWork, checkpoint: Blob, confirming: SecureSumRef, member: Member, fetch: Fetch
    ) -> ModelState:
        """The state of a checkpoint, by the votes on the sum that starts from it. They say its size, too."""
        if confirming.ciphertext is None:
            raise BaseModelMismatchError("The sum after a checkpoint has no model in it")
        polynomials = confirming.ciphertext.size // words.POLYNOMIAL_BYTES
        opener = await self._opener(confirming, polynomials, member, fetch)
        values = polynomials * self.packing.lanes * DEGREE
        sealer, number = way.checkpoint_sealer, way.checkpoint_round
        signed = checkpointed(self._digest, self._run, number, checkpoint.id)
        if (
            checkpoint.size > stream_bytes(self._states.size_bytes(values) + MAX_BESIDE_BYTES)
            or sealer is None
            or sealer.site not in member.roster
            or not is_signed(member.roster[sealer.site], sealer.signature, signed)
        ):
            raise BaseModelMismatchError(
                "The checkpoint that the server sent is too large, or no site of the study signed it"
            )

        def is_meant(state: ModelState) -> bool:
            return (state.round_number, self.packing.polynomials(state.dimension)) == (
                number,
                polynomials,
            ) and member.study_key.model(state.digest) == opener.model

        purpose = checkpoint_purpose(number)
        with await fetched(checkpoint, self._spool, fetch) as file:
            try:
                return await asyncio.to_thread(
                    self._states.adopt, open_stream(file, member.study_key, purpose), is_meant
                )
            except SumRefusedError as error:
                raise BaseModelMismatchError(f"The checkpoint that {sealer.site} sealed does not open") from error
            except BaseModelMismatchError as error:
                raise BaseModelMismatchError(
                    f"The checkpoint that {sealer.site} sealed is not the state from which the sites went on",
                    action="The site takes part again once the server has a newer checkpoint",
                ) from error

    async def _opener(self, ref: SecureSumRef, polynomials: int, member: Member, fetch: Fetch) -> Opener:
        """Everything about a sum but its ciphertext, checked."""
        require_at_most("What opens a secure sum", ref.opening.size, most_opening_bytes(member.rules.sites))
        with await fetched(ref.opening, self._spool, fetch) as file:
            content = file.read()
        try:
            opening = opening_from_bytes(content)
        except FrameError as error:
            raise SumRefusedError("What opens a secure sum could not be read") from error
        if opening.ciphertext != (ref.ciphertext.id if ref.ciphertext is not None else b""):
            raise SumRefusedError("The sum that the server sent is not the one that the sites voted for")
        terms = Terms(self._digest, self._run, ref.round_number, ref.attempt)
        return await offload(
            len(content), Opener, opening, terms, polynomials, member.roster, member.rules, member.study_key
        )

    def _taken(self, state: ModelState, ref: SecureSumRef, opener: Opener) -> Origin:
        """What goes beside the model after a sum that was opened to its end."""
        counts, pooled = opener.counts(), self.pooled(state)
        if pooled.may_tell(opener.survivors):
            self._learn(ref.round_number, counts)
        beside = pooled.having_told(opener.survivors).to_bytes(self._sites)
        return Origin(ref.opening.id, 0, _digest(counts), beside)


class _SecureSum:
    """One sum as it is read. The weight by which it is divided is checked with all the rest, at the end."""

    def __init__(
        self,
        packing: Packing,
        noise_steps: float,
        member: Member,
        opener: Opener,
        content: BinaryIO,
        taken: Callable[[Opener], Origin],
    ) -> None:
        self._packing, self._noise_steps = packing, noise_steps
        self._opener, self._content, self._taken = opener, content, taken
        self._weight = opener.claimed_counts()[0]
        require_weight(self._weight, len(opener.survivors), member.rules)
        # The same at every site that opens this sum, and at nobody else: who sees the model cannot subtract it.
        self._randomness = SeededRandomness(member.study_key.derive(b"average-noise", opener.identity))

    def average(self, count: int) -> npt.NDArray[np.float64]:
        packing = self._packing
        size = packing.polynomials(count) * words.POLYNOMIAL_BYTES
        try:
            opened = self._opener.piece(words.unpack(self._content.read(size)), packing)
            sums = packing.decode(opened, count)
            packing.require_bounded(sums, self._weight)
            if self._noise_steps:
                sums = sums + discrete_gaussian(self._randomness, self._noise_steps, count)
            return packing.average(sums, self._weight)
        except SumRefusedError:
            raise
        except QuorateError as error:
            raise SumRefusedError("A secure sum does not open, so the model stays as it was") from error

    def finish(self) -> Origin:
        return self._taken(self._opener)


def checkpoint_purpose(round_number: int) -> bytes:
    """What a state is sealed for."""
    return b"checkpoint" + round_number.to_bytes(8, "big")


def _starting_from(state: ModelState, opener: Opener, member: Member) -> Opener:
    if opener.model != member.study_key.model(state.digest):
        raise BaseModelMismatchError("The sites went on from another state than the one that is here")
    return opener


def _digest(counts: tuple[int, ...]) -> bytes:
    return hashlib.sha256(b"".join(count.to_bytes(8, "big", signed=True) for count in counts)).digest()
