"""A run under secure aggregation at a site: what it answers in each exchange.

Sum 0 adds up record counts and statistics. Sum r adds the updates of round r, and beside them the counts of an
evaluation of the model that they start from. The last sum evaluates the final model only. Each sum starts from the
state that a site arrived at by itself (``catch_up.py``); what an instruction says beside the way to it reaches nothing.

With its reveal a site says hello for the next sum, whose upload can then begin at once. Who missed the reveal, or has
to begin a sum anew, is asked for a hello.

What the server sees of a site may not depend on its records. Only states that a quorum agreed on reach them, and from
the first one that is read, whatever goes wrong has one code and whatever is done leaves at one of few moments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from quorate.aggregation import one_time_pad
from quorate.aggregation.plain import weight_of
from quorate.aggregation.ring import DEGREE
from quorate.aggregation.weights import record_weight
from quorate.errors import (
    BaseModelMismatchError,
    FrameError,
    StudyKeyRefusedError,
    VoteRefusedError,
)
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import offload
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.rounds.spool import Spool
from quorate.secagg import share_boxes
from quorate.secagg.participant import Ballot, Member, Participant
from quorate.secagg.release import ReleaseTerms, released, seal_release
from quorate.secagg.sizes import require_bytes
from quorate.secagg.study_key import join_parts, make_parts, seal_stream
from quorate.secagg.terms import Hello, Layout, Terms, Vote, checkpointed
from quorate.study.study import Study
from quorate.wire.secure_messages import (
    SecureAnswer,
    SecureWork,
    secure_answer_to_bytes,
    secure_work_from_bytes,
    shares_from_bytes,
    shares_to_bytes,
    words_to_bytes,
)
from quorate_client.rounds.evaluation import Evaluator
from quorate_client.rounds.model.catch_up import Fetch, fetched
from quorate_client.rounds.model.plain_files import open_plain, store
from quorate_client.rounds.model.state import ModelState, StateFolder, content_of, theta_digest
from quorate_client.rounds.protect import protect_secretly
from quorate_client.rounds.secure.catch_up import SecureCatchUp, checkpoint_purpose
from quorate_client.rounds.secure.one_code import on_records, one_code
from quorate_client.rounds.secure.pooled_rates import OWN_COUNTS, PooledRates
from quorate_client.rounds.secure.query import query_of
from quorate_client.rounds.secure.site_keys import SiteSecrets, roster_of, rules_of
from quorate_client.rounds.secure.votes import Question
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.rounds.training import Trainer
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import RELEASED_MODEL
from quorate_client.workers.pool import TaskWorkers

log = structlog.get_logger()


class SecureRun:
    """One run of a study under secure aggregation at this site. One instruction at a time.

    Args:
        folder: Belongs to the run alone. The final model stays there as ``RELEASED_MODEL``.
        trainer: This run's.
    """

    def __init__(
        self,
        run: RunId,
        folder: Path,
        study: Study,
        secrets: SiteSecrets,
        workers: TaskWorkers,
        spool: Spool,
        clock: Callable[[], float],
        trainer: Trainer,
    ) -> None:
        self._run = run
        self._study = study
        self._secrets = secrets
        self._states = StateFolder(folder, run, study)
        self._rates = PooledRates(study)
        self._catch_up = SecureCatchUp(run, study, self._states, spool, secrets.votes, self._rates.learn)
        self._workers = workers
        self._spool = spool
        self._clock = clock
        self._trainer = trainer
        self._evaluator = Evaluator(study, trainer.accounting)
        self._participant: Participant | None = None
        self._state: ModelState | None = None
        self._query = b""
        self._digest = study.digest()

    async def perform(self, instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        """Answer one exchange.

        Raises:
            QuorateError: what keeps this site from it. Nothing is half-applied then.
        """
        if instruction.round_number > self._study.rounds.count + 1:
            raise FrameError("The server asks for a round beyond those of the study that was approved")
        work = secure_work_from_bytes(instruction.body)
        blobs: tuple[Blob, ...] = ()
        match instruction.phase:
            case Phase.KEYS:
                answer = self._make_parts(agreement)
            case Phase.HELLO:
                member = self._member(agreement, work)
                answer = SecureAnswer(hello=self._begin(instruction.round_number, instruction.attempt, member))
            case Phase.UPLOAD:
                answer, blobs = await self._upload(instruction, work, agreement, fetch)
            case Phase.VOTE:
                answer = SecureAnswer(vote=await self._vote(instruction, work, fetch))
            case Phase.REVEAL:
                answer = self._reveal(instruction, work)
            case Phase.CHECKPOINT:
                answer, blobs = await self._checkpoint(instruction)
            case Phase.RELEASE:
                answer, blobs = await self._release(work, agreement, fetch)
            case _:
                raise FrameError("The server asks for work that is not part of a study under secure aggregation")
        # Without the time for which the site worked: it grows with the number of records.
        return Reply(instruction.message_id, body=secure_answer_to_bytes(answer), blobs=blobs)

    # --- the exchanges ---

    def _make_parts(self, agreement: Agreement) -> SecureAnswer:
        signing, _ = self._secrets.keys()
        sealing_keys = self._secrets.sealing_keys(agreement.digest)
        parts = make_parts(agreement.digest, self._run, agreement.site, sealing_keys, signing.sign, SystemRandomness())
        return SecureAnswer(parts=parts)

    def _begin(self, number: int, attempt: int, member: Member) -> Hello:
        """Leave whatever sum this site was in, with all its secrets, for this one."""
        self._participant = Participant(Terms(self._digest, self._run, number, attempt), member, SystemRandomness())
        return self._participant.hello()

    async def _upload(
        self, instruction: Instruction, work: SecureWork, agreement: Agreement, fetch: Fetch
    ) -> tuple[SecureAnswer, tuple[Blob, ...]]:
        """Arrive at the state that the sum starts from; then what this site adds to it."""
        participant, number = self._of(instruction), instruction.round_number
        participant.check(work.hellos)
        self._state, theta = None, b""
        if number > 0:
            member = self._member(agreement, work)
            self._state = await self._arrive(work, number - 1, agreement, member, fetch)
            theta = await offload(self._state.size, theta_digest, self._state)
        self._query = query_of(self._study.task, theta)
        async with on_records(instruction, self._study, self._run, self._secrets.votes, self._clock):
            if self._state is None:
                task = TaskCalls(self._workers, agreement, (), self._clock)
                return await self._upload_statistics(task, participant, work)
            return await self._upload_update(self._state, participant, work, instruction, agreement)

    async def _upload_statistics(
        self, task: TaskCalls, participant: Participant, work: SecureWork
    ) -> tuple[SecureAnswer, tuple[Blob, ...]]:
        measure = await task.measure()
        self._trainer.admit(measure)
        self._secrets.votes.note_counted(self._run, measure.records)
        counts = (measure.records, *measure.statistics)
        participant.begin_upload(work.hellos, b"", Layout(0, len(counts)))
        answer, shares = await self._finish(participant, counts, measure.dimension)
        return answer, (shares,)

    async def _upload_update(
        self,
        state: ModelState,
        participant: Participant,
        work: SecureWork,
        instruction: Instruction,
        agreement: Agreement,
    ) -> tuple[SecureAnswer, tuple[Blob, ...]]:
        task = self._task(agreement, state)
        after = instruction.round_number - 1
        tally = await self._evaluator.evaluate(task, state, after, instruction, agreement)
        trains = instruction.round_number <= self._study.rounds.count
        polynomials = self._catch_up.packing.polynomials(state.dimension) if trains else 0
        participant.begin_upload(work.hellos, state.digest, Layout(polynomials, OWN_COUNTS + len(tally)))
        own: tuple[int, ...] = (0,) * OWN_COUNTS
        updates: tuple[Blob, ...] = ()
        if trains:
            own, ciphertext = await self._train(task, state, participant, instruction, agreement)
            updates = (ciphertext,)
        answer, shares = await self._finish(participant, (*own, *tally), has_ciphertext=trains)
        return answer, (*updates, shares)

    async def _finish(
        self, participant: Participant, counts: tuple[int, ...], dimension: int = 0, *, has_ciphertext: bool = False
    ) -> tuple[SecureAnswer, Blob]:
        """The counts, masked, and a share of what masks them for each of the others. None is so large that it would be
        refused: that would say something of the records."""
        largest = one_time_pad.MAX_VALUE // len(self._study.sites)
        counts = tuple(max(-largest, min(largest, count)) for count in counts)
        dealt_bytes = len(participant.member.roster) * share_boxes.message_bytes(len(counts) + DEGREE)
        masked, boxes = await offload(dealt_bytes, participant.finish_upload, counts)
        shares = await offload(dealt_bytes, store, shares_to_bytes(boxes), self._spool)
        answer = SecureAnswer(
            counts=words_to_bytes(masked),
            dimension=dimension,
            has_ciphertext=has_ciphertext,
            model=participant.model,
            metrics=self._rates.told(),
            opened=self._opened(),
        )
        return answer, shares

    def _opened(self) -> tuple[tuple[SiteName, ...], ...]:
        """The survivors for which this site voted on the same input, where all of them are in this study."""
        sets = (tuple(name for name, _ in members) for members in self._secrets.votes.survivors(self._query))
        return tuple(names for names in sets if set(names) <= set(self._study.site_names))

    async def _train(
        self,
        task: TaskCalls,
        state: ModelState,
        participant: Participant,
        instruction: Instruction,
        agreement: Agreement,
    ) -> tuple[tuple[int, ...], Blob]:
        """Train on the state; what leaves is made by ``protect_secretly``."""
        with self._states.scratch() as update:
            report = await self._trainer.train(task, state, update, instruction, agreement)
            weight = self._weight(participant.site, report.records, state)
            sent = await asyncio.to_thread(
                protect_secretly, update, state.dimension, weight, self._study, participant, self._spool
            )
        if sent.clipped:
            log.warning("update clipped", run=self._run, round=instruction.round_number, coordinates=sent.clipped)
        # How many were clipped is computed from records too.
        clipped = sent.clipped if self._study.privacy is None else 0
        return (sent.weight, report.records, report.loss, clipped), sent.blob

    def _weight(self, site: SiteName, records: int, state: ModelState) -> int:
        """This site's share in the average. Records that it got since it was counted do not raise it."""
        sites, pooled = len(self._study.sites), self._catch_up.pooled(state)
        if self._study.rounds.weights == "equal":
            return weight_of(1, sites)
        counted = self._secrets.votes.counted(self._run)
        if site in pooled.counted:  # who no longer knows with how many weighs as little as anybody may
            records = min(records, counted or 1)
        missing = sites - len(pooled.counted)
        return record_weight(records, pooled.statistics[0], sites, missing, is_counted=site in pooled.counted)

    async def _vote(self, instruction: Instruction, work: SecureWork, fetch: Fetch) -> Vote:
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
            self._state.digest if self._state is not None else b"",
            participant.member.roster,
            participant.member.rules.colluders,
        )

        def lock(ballot: Ballot) -> None:
            self._secrets.votes.lock(ballot, question)

        return participant.vote(work.survivors, work.digest, boxes, lock)

    def _reveal(self, instruction: Instruction, work: SecureWork) -> SecureAnswer:
        """This site's last word in the sum, and the first one in the next, if there is to be one."""
        participant = self._of(instruction)
        reveal = participant.reveal(work.votes)
        following = instruction.round_number + 1
        if following > self._study.rounds.count + 1:
            return SecureAnswer(reveal=reveal)
        return SecureAnswer(reveal=reveal, hello=self._begin(following, instruction.attempt, participant.member))

    async def _checkpoint(self, instruction: Instruction) -> tuple[SecureAnswer, tuple[Blob, ...]]:
        """The state before the one that this site uploaded from, sealed for the study's sites: those who join can see
        in the sum between the two that a quorum arrived there."""
        participant = self._of(instruction)
        state, key = self._state and self._states.before(self._state), self._secrets.study_key(self._run)
        if state is None or key is None:
            raise BaseModelMismatchError("This site does not hold the state of which a checkpoint is asked")
        number, purpose = state.round_number, checkpoint_purpose(state.round_number)
        sealed = await asyncio.to_thread(self._spool.put, seal_stream(content_of(state), key, purpose))
        signature = participant.member.signing_key.sign(checkpointed(self._digest, self._run, number, sealed.id))
        return SecureAnswer(vote=Vote(participant.site, signature)), (sealed,)

    async def _release(
        self, work: SecureWork, agreement: Agreement, fetch: Fetch
    ) -> tuple[SecureAnswer, tuple[Blob, ...]]:
        """The model in the form in which it is used. It is sent only where the study that was approved says so, sealed
        to the operator's key in it and signed. The last sum, which evaluated it, shows that it is the sites' model."""
        member = self._member(agreement, work)
        rounds = self._study.rounds.count
        evaluated = next((ref for ref in work.sums if ref.round_number == rounds + 1), None)
        if evaluated is None:
            raise FrameError("The server did not pass on the sum that starts from the final model")
        state = await self._arrive(work, rounds, agreement, member, fetch)
        opener = await self._catch_up.confirm(state, evaluated, member, fetch)
        if self._catch_up.pooled(state).may_tell(opener.survivors):
            self._rates.learn(rounds + 1, opener.counts())
        with self._states.scratch() as scratch:
            async with one_code():
                await self._task(agreement, state).export(state, scratch)
            model = scratch.rename(self._states.folder / RELEASED_MODEL)
        blobs: tuple[Blob, ...] = ()
        vote: Vote | None = None
        if self._study.is_release_sealed:
            terms = ReleaseTerms.of(self._study, self._run)
            sealed = await asyncio.to_thread(_sealed, model, member, terms, self._spool)
            vote = Vote(member.site, member.signing_key.sign(released(terms, sealed.id)))
            blobs = (sealed,)
        return SecureAnswer(model=member.study_key.model(state.digest), vote=vote, metrics=self._rates.told()), blobs

    # --- what the exchanges share ---

    def _member(self, agreement: Agreement, work: SecureWork) -> Member:
        """This site in this study. The study key is joined once and pinned: another one is not accepted later."""
        key = self._secrets.study_key(self._run)
        if key is None:
            if not work.parts:
                raise StudyKeyRefusedError("The server did not pass on the parts of the study key")
            _, sealing = self._secrets.keys()
            roster, rules = roster_of(self._study), rules_of(self._study)
            key = join_parts(work.parts, agreement.digest, self._run, agreement.site, sealing, roster, rules)
            self._secrets.keep_study_key(self._run, key)
        return self._secrets.member(self._study, agreement.site, key)

    async def _arrive(
        self, work: SecureWork, target: int, agreement: Agreement, member: Member, fetch: Fetch
    ) -> ModelState:
        async def make_initial(path: Path, statistics: tuple[int, ...]) -> None:
            async with one_code():
                await TaskCalls(self._workers, agreement, statistics[1:], self._clock).initial(path)

        return await self._catch_up.arrive(work, target, member, make_initial, fetch)

    def _task(self, agreement: Agreement, state: ModelState) -> TaskCalls:
        return TaskCalls(self._workers, agreement, self._catch_up.pooled(state).statistics[1:], self._clock)

    def _of(self, instruction: Instruction) -> Participant:
        """This site's part in the sum that an instruction is about, if it still has it."""
        participant = self._participant
        if participant is None or (participant.terms.round_number, participant.terms.attempt) != (
            instruction.round_number,
            instruction.attempt,
        ):
            raise VoteRefusedError("This site has no part in this sum (any more): it was started again")
        return participant


def _sealed(model: Path, member: Member, terms: ReleaseTerms, spool: Spool) -> Blob:
    with open_plain(model) as file:
        return spool.put(seal_release(file, member.study_key, terms))
