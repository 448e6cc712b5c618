"""Under secure aggregation: what a site sends opens only as a sum of enough sites, on which enough of them voted.

With its reveal a site says hello for the next sum, whose upload can then begin at once. Who missed the reveal, or has
to begin a sum anew, is asked for a hello.

What the server sees of a site may not depend on its records. Only states that a quorum agreed on reach them, and from
the first one that is read, whatever goes wrong has one code and whatever is done leaves at one of few moments.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from quorate.aggregation import one_time_pad, words
from quorate.aggregation.ring import DEGREE
from quorate.aggregation.schemes import packing_of
from quorate.errors import (
    BaseModelMismatchError,
    FrameError,
    StudyKeyRefusedError,
    SumRefusedError,
    VoteRefusedError,
)
from quorate.identity import RunId, SiteName
from quorate.privacy.update_noise import update_noise
from quorate.process.cancellation import offload
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase
from quorate.rounds.spool import Spool
from quorate.secagg import share_boxes
from quorate.secagg.opening import Opener
from quorate.secagg.participant import Ballot, Member, Participant
from quorate.secagg.release import ReleaseTerms, released, seal_release
from quorate.secagg.sizes import most_opening_bytes, require_at_most, require_bytes
from quorate.secagg.study_key import join_parts, make_parts, open_stream, seal_stream, stream_bytes
from quorate.secagg.terms import Hello, Layout, Terms, Vote, checkpointed, is_signed
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
from quorate_client.rounds.model.plain_files import open_plain, store
from quorate_client.rounds.model.state import ModelState, content_of, state_bytes, theta_digest
from quorate_client.rounds.protect import Protected, protect_secretly
from quorate_client.rounds.schemes.encrypted_sum import EncryptedSum
from quorate_client.rounds.sums.one_code import on_records, one_code
from quorate_client.rounds.sums.pooled import PooledRates
from quorate_client.rounds.sums.query import query_of
from quorate_client.rounds.sums.scheme import Answered, FirstModel
from quorate_client.rounds.sums.site_keys import SiteSecrets, roster_of, rules_of
from quorate_client.rounds.sums.votes import Question
from quorate_client.site.agreement import Agreement


class SecaggScheme:
    """The sums of one run under secure aggregation, at this site."""

    def __init__(
        self, run: RunId, study: Study, secrets: SiteSecrets, spool: Spool, clock: Callable[[], float]
    ) -> None:
        self._run = run
        self._study = study
        self._digest = study.digest()
        self._secrets = secrets
        self._spool = spool
        self._clock = clock
        self._packing = packing_of(study)
        self._noise_steps = update_noise(study).average / self._packing.step
        self._rates = PooledRates(study)
        self._participant: Participant | None = None
        self._joined: Member | None = None
        self._query = b""

    @property
    def _member(self) -> Member:
        """This site in what it entered last."""
        if self._joined is None:
            raise VoteRefusedError("This site has no part in this run yet")
        return self._joined

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

    def told_s(self, working_s: float) -> float:
        """Nothing: it grows with the number of records."""
        del working_s
        return 0.0

    def _make_parts(self, agreement: Agreement) -> SumAnswer:
        signing, _ = self._secrets.keys()
        sealing_keys = self._secrets.sealing_keys(agreement.digest)
        memory = self._secrets.votes.memory
        parts = make_parts(
            agreement.digest, self._run, agreement.site, sealing_keys, signing.sign, SystemRandomness(), memory
        )
        return SumAnswer(parts=parts)

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
        question = Question(
            self._run,
            instruction.round_number,
            self._query,
            state.digest if state is not None else b"",
            participant.member.roster,
            participant.member.rules.colluders,
        )

        def lock(ballot: Ballot) -> None:
            self._secrets.votes.lock(ballot, question)

        return participant.vote(work.survivors, work.digest, boxes, lock)

    def _reveal(self, instruction: Instruction, work: SumWork) -> SumAnswer:
        """This site's last word in the sum, and the first one in the next, if there is to be one."""
        participant = self._of(instruction)
        reveal = participant.reveal(work.votes)
        following = instruction.round_number + 1
        if following > self._study.rounds.count + 1:
            return SumAnswer(reveal=reveal)
        return SumAnswer(reveal=reveal, hello=self._begin(following, instruction.attempt, participant.member))

    # --- an upload ---

    @asynccontextmanager
    async def on_records(self, instruction: Instruction, state: ModelState | None) -> AsyncIterator[None]:
        theta = b"" if state is None else await offload(state.size, theta_digest, state)
        self._query = query_of(self._study.task, theta)
        async with on_records(instruction, self._study, self._run, self._secrets.votes, self._clock):
            yield

    def one_code(self) -> AbstractAsyncContextManager[None]:
        return one_code()

    def note_counted(self, records: int) -> None:
        self._secrets.votes.note_counted(self._run, records)

    def counted(self, records: int) -> int:
        """Records that it got since it was counted do not raise its weight; who no longer knows with how many it was
        weighs as little as anybody may."""
        return min(records, self._secrets.votes.counted(self._run) or 1)

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

    def _opened(self) -> tuple[tuple[SiteName, ...], ...]:
        """The survivors for which this site voted on the same input, where all of them are in this study."""
        sets = (tuple(name for name, _ in members) for members in self._secrets.votes.survivors(self._query))
        return tuple(names for names in sets if set(names) <= set(self._study.site_names))

    # --- the way to a model ---

    def name_of(self, model: bytes) -> bytes:
        return self._member.study_key.model(model)

    def require_believed(self, round_number: int, model: bytes) -> None:
        self._secrets.votes.require_believed(self._run, round_number, model)

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

    def learn(self, number: int, counts: tuple[int, ...]) -> None:
        self._rates.learn(number, counts)

    # --- checkpoints and the release ---

    async def check_checkpoint(self, way: SumWork, checkpoint: Blob, updates: Blob, first: FirstModel) -> None:
        """The votes on the sum that starts from it say its size, too."""
        del first
        member, sealer = self._member, way.checkpoint_sealer
        values = updates.size // words.POLYNOMIAL_BYTES * self._packing.lanes * DEGREE
        signed = checkpointed(self._digest, self._run, way.checkpoint_round, checkpoint.id)
        if (
            checkpoint.size > stream_bytes(state_bytes(self._study, values)[-1])
            or sealer is None
            or sealer.site not in member.roster
            or not is_signed(member.roster[sealer.site], sealer.signature, signed)
        ):
            raise BaseModelMismatchError(
                "The checkpoint that the server sent is too large, or no site of the study signed it"
            )

    def checkpoint_content(self, way: SumWork, content: BinaryIO, size: int) -> Iterable[bytes]:
        del size
        return open_stream(content, self._member.study_key, _checkpoint_purpose(way.checkpoint_round))

    async def checkpoint(self, instruction: Instruction, state: ModelState) -> Answered:
        """Sealed for the study's sites: those who join can see in the sum after it that a quorum arrived there."""
        participant, key = self._of(instruction), self._secrets.study_key(self._run)
        if key is None:
            raise BaseModelMismatchError("This site does not hold the key of the run")
        number, purpose = state.round_number, _checkpoint_purpose(state.round_number)
        sealed = await asyncio.to_thread(self._spool.put, seal_stream(content_of(state), key, purpose))
        signature = participant.member.signing_key.sign(checkpointed(self._digest, self._run, number, sealed.id))
        return SumAnswer(vote=Vote(participant.site, signature)), (sealed,)

    async def release(self, model: Path) -> Answered:
        """Sealed to the operator's key in the study, and signed."""
        answer = SumAnswer(metrics=self._rates.told())
        if not self._study.is_release_sealed:
            return answer, ()
        member, terms = self._member, ReleaseTerms.of(self._study, self._run)
        sealed = await asyncio.to_thread(_sealed, model, member, terms, self._spool)
        vote = Vote(member.site, member.signing_key.sign(released(terms, sealed.id)))
        return SumAnswer(vote=vote, metrics=answer.metrics), (sealed,)

    # --- what they share ---

    def _join(self, agreement: Agreement, work: SumWork) -> Member:
        """This site in this study. The study key is joined once and pinned: another one is not accepted later."""
        key = self._secrets.study_key(self._run)
        if key is None:
            if not work.parts:
                raise StudyKeyRefusedError("The server did not pass on the parts of the study key")
            _, sealing = self._secrets.keys()
            roster, rules = roster_of(self._study), rules_of(self._study)
            memory = self._secrets.votes.memory
            key = join_parts(work.parts, agreement.digest, self._run, agreement.site, sealing, roster, rules, memory)
            self._secrets.keep_study_key(self._run, key)
        return self._secrets.member(self._study, agreement.site, key)

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


def _checkpoint_purpose(round_number: int) -> bytes:
    """What a state is sealed for."""
    return b"checkpoint" + round_number.to_bytes(8, "big")


def _sealed(model: Path, member: Member, terms: ReleaseTerms, spool: Spool) -> Blob:
    with open_plain(model) as file:
        return spool.put(seal_release(file, member.study_key, terms))
