"""Under secure aggregation: what a site sends opens only as a sum of enough sites, on which enough of them voted.

With its reveal a site says hello for the next sum, whose upload can then begin at once. Who missed the reveal, or has
to begin a sum anew, is asked for a hello.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quorate.aggregation import one_time_pad, words
from quorate.aggregation.ring import DEGREE
from quorate.aggregation.schemes import packing_of
from quorate.errors import FrameError, SumRefusedError, VoteRefusedError
from quorate.identity import RunId
from quorate.privacy.update_noise import update_noise
from quorate.process.cancellation import offload
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase
from quorate.rounds.spool import Spool
from quorate.secagg import share_boxes
from quorate.secagg.opening import Opener
from quorate.secagg.participant import Member, Participant
from quorate.secagg.sizes import most_opening_bytes, require_at_most, require_bytes
from quorate.secagg.terms import Hello, Layout, Terms, Vote
from quorate.study.study import Study
from quorate.wire.sum_messages import (
    SumAnswer,
    SumRef,
    SumWork,
    opening_from_bytes,
    shares_from_bytes,
    shares_to_bytes,
    words_to_bytes,
)
from quorate_client.rounds.model.fetch import Fetch, fetched
from quorate_client.rounds.model.plain_files import store
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.protect import Protected, protect_secretly
from quorate_client.rounds.schemes.encrypted_sum import EncryptedSum
from quorate_client.rounds.schemes.keyed import KeyedScheme
from quorate_client.rounds.sums.scheme import Answered
from quorate_client.rounds.sums.site_keys import SiteSecrets
from quorate_client.site.agreement import Agreement


class SecaggScheme(KeyedScheme):
    """The sums of one run under secure aggregation, at this site."""

    def __init__(
        self, run: RunId, study: Study, secrets: SiteSecrets, spool: Spool, clock: Callable[[], float]
    ) -> None:
        super().__init__(run, study, secrets, spool, clock)
        self._packing = packing_of(study)
        self._noise_steps = update_noise(study).average / self._packing.step
        self._participant: Participant | None = None

    # --- the exchanges ---

    def enter(self, instruction: Instruction, work: SumWork, agreement: Agreement) -> None:
        match instruction.phase:
            case Phase.UPLOAD:
                participant = self._of(instruction)
                participant.check(work.hellos)
                self._joined = participant.member
                if instruction.round_number > 0:
                    self._joined = self._join(agreement, work)
            case Phase.RELEASE:
                self._joined = self._join(agreement, work)
            case _:
                self._of(instruction)

    async def exchange(
        self, instruction: Instruction, work: SumWork, agreement: Agreement, fetch: Fetch, state: ModelState | None
    ) -> SumAnswer:
        match instruction.phase:
            case Phase.KEYS:
                return self._make_parts(agreement)
            case Phase.HELLO:
                member = self._join(agreement, work)
                return SumAnswer(hello=self._begin(instruction.round_number, instruction.attempt, member))
            case Phase.VOTE:
                return SumAnswer(vote=await self._vote(instruction, work, fetch, state))
            case Phase.REVEAL:
                return self._reveal(instruction, work)
            case _:
                raise FrameError("The server asks for work that is not part of a study under secure aggregation")

    def _begin(self, number: int, attempt: int, member: Member) -> Hello:
        """Leave whatever sum this site was in, with all its secrets, for this one."""
        self._participant = Participant(Terms(self._digest, self._run, number, attempt), member, SystemRandomness())
        return self._participant.hello()

    async def _vote(self, instruction: Instruction, work: SumWork, fetch: Fetch, state: ModelState | None) -> Vote:
        participant = self._of(instruction)
        if work.shares is None:
            raise FrameError("The server asks for a vote and does not pass on the shares")
        require_bytes("What the server passes on of shares", work.shares.size, participant.shares_bytes(work.survivors))
        with await fetched(work.shares, self._spool, fetch) as file:
            boxes = shares_from_bytes(file.read())
        return participant.vote(work.survivors, work.digest, boxes, self._lock(instruction.round_number, state))

    def _reveal(self, instruction: Instruction, work: SumWork) -> SumAnswer:
        """This site's last word in the sum, and the first one in the next, if there is to be one."""
        participant = self._of(instruction)
        reveal = participant.reveal(work.votes)
        following = instruction.round_number + 1
        if following > self._study.rounds.count + 1:
            return SumAnswer(reveal=reveal)
        return SumAnswer(reveal=reveal, hello=self._begin(following, instruction.attempt, participant.member))

    # --- an upload ---

    def begin_upload(self, work: SumWork, model: bytes, dimension: int, counts: int) -> None:
        layout = Layout(self._packing.polynomials(dimension), counts)
        self._here().begin_upload(work.hellos, model, layout)

    def protect(self, update: Path, dimension: int, weight: int) -> Protected:
        return protect_secretly(update, dimension, weight, self._study, self._here(), self._spool)

    async def finish_upload(self, counts: tuple[int, ...], updates: tuple[Blob, ...]) -> Answered:
        """The counts, masked, and a share of what masks them for each of the others. None is so large that it would be
        refused: that would say something of the records."""
        participant = self._here()
        largest = one_time_pad.MAX_VALUE // len(self._study.sites)
        counts = tuple(max(-largest, min(largest, count)) for count in counts)
        dealt_bytes = len(participant.member.roster) * share_boxes.message_bytes(len(counts) + DEGREE)
        masked, boxes = await offload(dealt_bytes, participant.finish_upload, counts)
        shares = await offload(dealt_bytes, store, shares_to_bytes(boxes), self._spool)
        answer = SumAnswer(
            counts=words_to_bytes(masked),
            has_update=bool(updates),
            model=participant.model,
            metrics=self._rates.told(),
            opened=self._opened(),
        )
        return answer, (*updates, shares)

    # --- the way to a model ---

    def most_parameters(self, sum_bytes: int) -> int:
        return sum_bytes // words.POLYNOMIAL_BYTES * self._packing.lanes * DEGREE

    def updates_bytes(self, dimension: int) -> int:
        return self._packing.polynomials(dimension) * words.POLYNOMIAL_BYTES

    async def open(self, ref: SumRef, dimension: int | None, fetch: Fetch) -> EncryptedSum:
        member = self._member
        require_at_most("What opens a sum", ref.opening.size, most_opening_bytes(member.rules.sites))
        with await fetched(ref.opening, self._spool, fetch) as file:
            content = file.read()
        try:
            opening = opening_from_bytes(content)
        except FrameError as error:
            raise SumRefusedError("What opens a secure sum could not be read") from error
        if opening.ciphertext != (ref.updates.id if ref.updates is not None else b""):
            raise SumRefusedError("The sum that the server sent is not the one that the sites voted for")
        terms = Terms(self._digest, self._run, ref.round_number, ref.attempt)
        if dimension is not None:
            polynomials = self._packing.polynomials(dimension)
        else:  # the votes say whether it is true
            polynomials = ref.updates.size // words.POLYNOMIAL_BYTES if ref.updates is not None else 0
        opener = await offload(
            len(content), Opener, opening, terms, polynomials, member.roster, member.rules, member.study_key
        )
        return EncryptedSum(opener, self._packing, self._noise_steps, member)

    # --- what they share ---

    def _of(self, instruction: Instruction) -> Participant:
        """This site's part in the sum that an instruction is about, if it still has it."""
        participant = self._participant
        if participant is None or (participant.terms.round_number, participant.terms.attempt) != (
            instruction.round_number,
            instruction.attempt,
        ):
            raise VoteRefusedError("This site has no part in this sum (any more): it was started again")
        return participant

    def _here(self) -> Participant:
        if self._participant is None:
            raise VoteRefusedError("This site has no part in a sum")
        return self._participant
