"""A run under secure aggregation at a site: what it answers in each exchange, and how it opens what comes back.

Sum 0 adds up record counts and statistics. Sum r adds the updates of round r, and beside them the counts of an
evaluation of the model that they start from. The last sum evaluates the final model only. What a site uploads is bound
to the model that it arrived at, so whoever arrived elsewhere is not in the sum.

With its reveal a site says hello for the next sum, whose upload can then begin at once. Who missed the reveal, or has
to begin a sum anew, is asked for a hello.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from quorate.blobs import Blob, BlobId, Spool
from quorate.errors import (
    BaseModelMismatchError,
    ContributionError,
    FrameError,
    StudyKeyRefusedError,
    SumRefusedError,
    VoteRefusedError,
)
from quorate.evaluation import LOSS_ONE, ClassificationTally
from quorate.exchange import Instruction, Phase, Reply, StudyWork, SumRef
from quorate.identity import RunId, SiteName
from quorate.privacy.events import Spending
from quorate.privacy.update_noise import update_noise
from quorate.schemes import packing_of
from quorate.secagg import sealing
from quorate.secagg.opening import Opener
from quorate.secagg.participant import Ballot, Member, Participant
from quorate.secagg.plain import WEIGHT_ONE, weight_of
from quorate.secagg.randomness import SystemRandomness
from quorate.secagg.release import ReleaseTerms, released, seal_release
from quorate.secagg.ring import DEGREE
from quorate.secagg.study_key import join_parts, make_parts, open_stream, seal_stream
from quorate.secagg.terms import Hello, Terms, Vote
from quorate.secure_messages import (
    SecureAnswer,
    SecureSumRef,
    SecureWork,
    opening_from_bytes,
    secure_answer_to_bytes,
    secure_work_from_bytes,
    shares_from_bytes,
    shares_to_bytes,
    words_to_bytes,
)
from quorate.study import Study
from quorate_client.agreement import Agreement
from quorate_client.folder import RELEASED_MODEL
from quorate_client.head import Fetch, Head
from quorate_client.model_state import ModelState, StateFolder, content_of
from quorate_client.offload import offload
from quorate_client.protect import open_plain, protect_secretly, store
from quorate_client.secure_site import SecureSite, roster_of, rules_of
from quorate_client.secure_sums import SecureSums
from quorate_client.task_calls import TaskCalls
from quorate_client.training import Trainer
from quorate_client.workers import TaskWorkers

log = structlog.get_logger()

OWN_COUNTS = 4
"""Weight, records, loss and clipped coordinates of a training; the counts of an evaluation follow."""
LEAST_RECORDS = 10
"""Rates over fewer test records than this are told to nobody."""
DIGITS = 3


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
        site: SecureSite,
        workers: TaskWorkers,
        spool: Spool,
        clock: Callable[[], float],
        trainer: Trainer,
    ) -> None:
        self._run = run
        self._study = study
        self._site = site
        self._states = StateFolder(folder, run, study)
        self._packing = packing_of(study)
        self._noise_steps = update_noise(study).average / self._packing.step
        self._workers = workers
        self._spool = spool
        self._clock = clock
        self._trainer = trainer
        self._participant: Participant | None = None
        self._state: ModelState | None = None
        self._statistics: tuple[int, ...] = ()
        self._counted: frozenset[SiteName] = frozenset()
        self._counted_in = BlobId(b"")
        self._learned: dict[int, tuple[int, ...]] = {}
        self._told_over: set[frozenset[SiteName]] = set()
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
        task: TaskCalls | None = None
        spending: Spending | None = None
        match instruction.phase:
            case Phase.KEYS:
                answer = self._make_parts(agreement)
            case Phase.HELLO:
                answer = self._greet(instruction, work, agreement)
            case Phase.UPLOAD:
                task, answer, blobs, spending = await self._upload(instruction, work, agreement, fetch)
            case Phase.VOTE:
                answer = SecureAnswer(vote=await self._vote(instruction, work, fetch))
            case Phase.REVEAL:
                answer = self._reveal(instruction, work)
            case Phase.CHECKPOINT:
                answer, blobs = SecureAnswer(), (await self._checkpoint(instruction),)
            case Phase.RELEASE:
                task, answer, blobs = await self._release(instruction, work, agreement, fetch)
            case _:
                raise FrameError("The server asks for work that is not part of a study under secure aggregation")
        body = secure_answer_to_bytes(answer)
        working_s = task.working_s if task else 0.0
        return Reply(instruction.message_id, body=body, blobs=blobs, working_s=working_s, spending=spending)

    # --- the exchanges ---

    def _make_parts(self, agreement: Agreement) -> SecureAnswer:
        signing, _ = self._site.keys()
        sealing_keys = self._site.sealing_keys(agreement.digest)
        parts = make_parts(agreement.digest, self._run, agreement.site, sealing_keys, signing.sign, SystemRandomness())
        return SecureAnswer(parts=parts)

    def _greet(self, instruction: Instruction, work: SecureWork, agreement: Agreement) -> SecureAnswer:
        member = self._member(agreement, work)
        return SecureAnswer(hello=self._begin(instruction.round_number, instruction.attempt, work.dimension, member))

    def _begin(self, number: int, attempt: int, dimension: int, member: Member) -> Hello:
        """Leave whatever sum this site was in, with all its secrets, for this one."""
        trains = 1 <= number <= self._study.rounds.count
        polynomials = self._packing.polynomials(dimension) if trains else 0
        terms = Terms(self._digest, self._run, number, attempt, polynomials)
        self._participant = Participant(terms, member, SystemRandomness())
        return self._participant.hello()

    async def _upload(
        self, instruction: Instruction, work: SecureWork, agreement: Agreement, fetch: Fetch
    ) -> tuple[TaskCalls, SecureAnswer, tuple[Blob, ...], Spending | None]:
        """Arrive at the model that the sum starts from; then what this site adds to it."""
        participant = self._of(instruction)
        participant.check(work.hellos)
        self._state = None
        if instruction.round_number > 0:
            member = self._member(agreement, work)
            task, self._state = await self._arrive(work, instruction.round_number - 1, agreement, member, fetch)
        else:
            task = TaskCalls(self._workers, agreement, (), self._clock)
        participant.begin_upload(work.hellos, self._state.digest if self._state else b"")
        dimension = 0
        ciphertext: Blob | None = None
        spending: Spending | None = None
        if self._state is None:
            measure = await task.measure()
            self._trainer.admit(measure)
            dimension, counts = measure.dimension, (measure.records, *measure.statistics)
            self._states.states()  # makes the folder
            self._measured.write_text(str(measure.records), encoding="ascii")
        else:
            own: tuple[int, ...] = (0,) * OWN_COUNTS
            tally = await task.evaluate(self._state)
            if participant.terms.polynomials:
                own, ciphertext, spending = await self._train(task, self._state, participant, instruction, agreement)
            counts = (*own, *tally)
        dealt_bytes = len(work.hellos) * sealing.message_bytes(len(counts) + DEGREE)
        masked, boxes = await offload(dealt_bytes, participant.finish_upload, counts)
        shares = await offload(dealt_bytes, store, shares_to_bytes(boxes), self._spool)
        answer = SecureAnswer(
            counts=words_to_bytes(masked),
            dimension=dimension,
            has_ciphertext=ciphertext is not None,
            model=participant.model,
            metrics=self._told(),
        )
        return task, answer, (shares,) if ciphertext is None else (ciphertext, shares), spending

    async def _train(
        self,
        task: TaskCalls,
        state: ModelState,
        participant: Participant,
        instruction: Instruction,
        agreement: Agreement,
    ) -> tuple[tuple[int, ...], Blob, Spending | None]:
        """Train on the state; what leaves is made by ``protect_secretly``."""
        update = self._states.scratch()
        try:
            report, spending = await self._trainer.train(task, state, update, instruction, agreement)
            weight = self._weight(participant.site, report.records)
            sent = await asyncio.to_thread(
                protect_secretly, update, state.dimension, weight, self._study, participant, self._spool
            )
        finally:
            update.unlink(missing_ok=True)
        if sent.clipped:
            log.warning("update clipped", run=self._run, round=instruction.round_number, coordinates=sent.clipped)
        # How many were clipped is computed from records too.
        clipped = sent.clipped if self._study.privacy is None else 0
        return (sent.weight, report.records, report.loss, clipped), sent.blob, spending

    def _weight(self, site: SiteName, records: int) -> int:
        """This site's share of all records. The weights of all sites may not be more than 1 together: no lane holds it.

        Who was not there when records were counted is in no total. Then those who were share one half, and the others
        share the other. Records that a site got since it was counted do not raise its weight.
        """
        if self._study.rounds.weights == "equal":
            return weight_of(1, len(self._study.sites))
        if self._measured.exists():
            records = min(records, int(self._measured.read_text(encoding="ascii")))
        missing = len(self._study.sites) - len(self._counted)
        if not missing:
            return weight_of(records, self._statistics[0])
        weight = weight_of(records, 2 * self._statistics[0])
        return weight if site in self._counted else min(weight, WEIGHT_ONE // (2 * missing))

    @property
    def _measured(self) -> Path:
        """Where this site keeps how many records it was counted with."""
        return self._states.folder / "records"

    async def _vote(self, instruction: Instruction, work: SecureWork, fetch: Fetch) -> Vote:
        participant = self._of(instruction)
        if work.shares is None:
            raise FrameError("The server asks for a vote and does not pass on the shares")
        boxes = shares_from_bytes(await self._content(work.shares, fetch))
        colluders = self._study.protection.colluders

        def lock(ballot: Ballot) -> None:
            self._site.ballots.lock(self._digest, self._run, instruction.round_number, ballot, colluders)

        return participant.vote(work.survivors, work.digest, boxes, lock)

    def _reveal(self, instruction: Instruction, work: SecureWork) -> SecureAnswer:
        """This site's last word in the sum, and the first one in the next, if there is to be one."""
        participant = self._of(instruction)
        reveal = participant.reveal(work.votes)
        following = instruction.round_number + 1
        if following > self._study.rounds.count + 1:
            return SecureAnswer(reveal=reveal)
        hello = self._begin(following, instruction.attempt, work.dimension, participant.member)
        return SecureAnswer(reveal=reveal, hello=hello)

    async def _checkpoint(self, instruction: Instruction) -> Blob:
        """The model that this site uploaded for, sealed for the study's sites."""
        self._of(instruction)  # refuses what is not that sum
        state, key = self._state, self._site.study_key(self._run)
        if state is None or key is None:
            raise BaseModelMismatchError("This site does not hold the model of which a checkpoint is asked")
        purpose = _checkpoint_purpose(state.round_number)
        return await asyncio.to_thread(self._spool.put, seal_stream(content_of(state), key, purpose))

    async def _unsealed(self, work: SecureWork, member: Member, fetch: Fetch) -> Blob | None:
        """The checkpoint as ``Head`` takes it, in the spool; None where there is none."""
        if work.checkpoint is None:
            return None
        if not self._spool.has(work.checkpoint):
            await fetch(work.checkpoint)
        purpose = _checkpoint_purpose(work.checkpoint_round)
        sealed = self._spool.path(work.checkpoint.id)

        def unseal() -> Blob:
            with open_plain(sealed) as file:
                return self._spool.put(open_stream(file, member.study_key, purpose))

        return await asyncio.to_thread(unseal)

    async def _release(
        self, instruction: Instruction, work: SecureWork, agreement: Agreement, fetch: Fetch
    ) -> tuple[TaskCalls, SecureAnswer, tuple[Blob, ...]]:
        """The model in the form in which it is used. It is sent only where the study that was approved says so, sealed
        to the operator's key in it and signed."""
        member = self._member(agreement, work)
        rounds = self._study.rounds.count
        task, state = await self._arrive(work, rounds, agreement, member, fetch)
        evaluated = next((ref for ref in work.sums if ref.round_number == rounds + 1), None)
        if evaluated is not None:
            opener = await self._opener(evaluated, 0, member, fetch)
            self._learn(rounds + 1, opener.survivors, opener.counts())
        scratch = self._states.scratch()
        try:
            await task.export(state, scratch)
            model = scratch.rename(self._states.folder / RELEASED_MODEL)
        finally:
            scratch.unlink(missing_ok=True)
        blobs: tuple[Blob, ...] = ()
        vote: Vote | None = None
        if self._study.is_release_sealed:
            terms = ReleaseTerms.of(self._study, self._run)
            sealed = await asyncio.to_thread(self._sealed, model, member, terms)
            vote = Vote(member.site, member.signing_key.sign(released(terms, sealed.id)))
            blobs = (sealed,)
        answer = SecureAnswer(model=member.study_key.model(state.digest), vote=vote, metrics=self._told())
        return task, answer, blobs

    def _sealed(self, model: Path, member: Member, terms: ReleaseTerms) -> Blob:
        with open_plain(model) as file:
            return self._spool.put(seal_release(file, member.study_key, terms))

    # --- arriving at a model ---

    def _member(self, agreement: Agreement, work: SecureWork) -> Member:
        """This site in this study. The study key is joined once and pinned: another one is not accepted later."""
        key = self._site.study_key(self._run)
        if key is None:
            if not work.parts:
                raise StudyKeyRefusedError("The server did not pass on the parts of the study key")
            _, sealing = self._site.keys()
            roster, rules = roster_of(self._study), rules_of(self._study)
            key = join_parts(work.parts, agreement.digest, self._run, agreement.site, sealing, roster, rules)
            self._site.keep_study_key(self._run, key)
        return self._site.member(self._study, agreement.site, key)

    async def _arrive(
        self, work: SecureWork, target: int, agreement: Agreement, member: Member, fetch: Fetch
    ) -> tuple[TaskCalls, ModelState]:
        refs = {ref.round_number: ref for ref in work.sums}
        if 0 not in refs:
            raise FrameError("The server did not pass on the sum of the statistics")
        if refs[0].opening.id != self._counted_in:  # it was not read yet, or was begun anew
            opener = await self._opener(refs[0], 0, member, fetch)
            statistics = opener.counts()
            if not statistics or statistics[0] < 1:
                raise ContributionError("All sites together have no records")
            self._statistics, self._counted = statistics, frozenset(opener.survivors)
            self._counted_in = refs[0].opening.id
        task = TaskCalls(self._workers, agreement, self._statistics[1:], self._clock)
        sums = tuple(
            SumRef(ref.round_number, ref.ciphertext, 0, 0)
            for ref in work.sums
            if ref.ciphertext is not None and ref.round_number <= target
        )

        async def opener_of(number: int, polynomials: int) -> Opener:
            return await self._opener(refs[number], polynomials, member, fetch)

        opened = SecureSums(self._packing, self._noise_steps, member.study_key, opener_of, self._learn)
        head = Head(self._states, self._spool, opened)
        known = self._states.known
        if known is None:
            known = await asyncio.to_thread(self._states.states)
        numbers = {ref.round_number for ref in sums}
        is_near = any(numbers >= set(range(state.round_number + 1, target + 1)) for state in known)
        try:
            return task, await self._travel(work, sums, target, head, task, None if is_near else member, fetch)
        except BaseModelMismatchError:
            if not is_near:
                raise
        log.warning("the model is not the one of the other sites and is built anew", run=self._run, round=target)
        await asyncio.to_thread(self._states.drop_all)
        return task, await self._travel(work, sums, target, head, task, member, fetch)

    async def _travel(
        self,
        work: SecureWork,
        sums: tuple[SumRef, ...],
        target: int,
        head: Head,
        task: TaskCalls,
        member: Member | None,
        fetch: Fetch,
    ) -> ModelState:
        """To the model of a round; from the checkpoint, if there is one, where ``member`` is given."""
        checkpoint = None if member is None else await self._unsealed(work, member, fetch)
        travel = StudyWork(
            checkpoint=checkpoint,
            checkpoint_round=work.checkpoint_round if checkpoint else 0,
            sums=sums,
            dimension=work.dimension,
        )
        try:
            return await head.advance(travel, target, task.initial, fetch)
        finally:
            if checkpoint is not None:
                self._spool.remove(checkpoint.id)

    async def _opener(self, ref: SecureSumRef, polynomials: int, member: Member, fetch: Fetch) -> Opener:
        """Everything about a sum but its ciphertext, checked."""
        content = await self._content(ref.opening, fetch)
        try:
            opening = opening_from_bytes(content)
        except FrameError as error:
            raise SumRefusedError("What opens a secure sum could not be read") from error
        ciphertext = ref.ciphertext.id if ref.ciphertext is not None else b""
        if opening.ciphertext != ciphertext:
            raise SumRefusedError("The sum that the server sent is not the one that the sites voted for")
        terms = Terms(self._digest, self._run, ref.round_number, ref.attempt, polynomials)
        return await offload(len(content), Opener, opening, terms, member.roster, member.rules, member.study_key)

    async def _content(self, blob: Blob, fetch: Fetch) -> bytes:
        if blob.inline is None and not self._spool.has(blob):
            await fetch(blob)
        return self._spool.content(blob)

    def _of(self, instruction: Instruction) -> Participant:
        """This site's part in the sum that an instruction is about, if it still has it."""
        participant = self._participant
        if participant is None or (participant.terms.round_number, participant.terms.attempt) != (
            instruction.round_number,
            instruction.attempt,
        ):
            raise VoteRefusedError("This site has no part in this sum (any more): it was started again")
        return participant

    def _learn(self, round_number: int, survivors: tuple[SiteName, ...], counts: tuple[int, ...]) -> None:
        """What a sum said beside the model. Its rates are told only if they are over the same sites as earlier ones, or
        over at least two others: the difference would be one site's rates."""
        told = frozenset(survivors)
        if any(len(told ^ earlier) == 1 for earlier in self._told_over):
            return
        self._told_over.add(told)
        self._learned[round_number] = counts
        for old in [number for number in self._learned if number < round_number - 2]:
            del self._learned[old]

    def _told(self) -> dict[int, dict[str, float]]:
        """What the operator is told of the last rounds: rates of all sites together, rounded, and no counts."""
        told: dict[int, dict[str, float]] = {}
        for number, counts in self._learned.items():
            _, records, loss, _ = counts[:OWN_COUNTS]
            if records >= LEAST_RECORDS and self._study.privacy is None:
                told.setdefault(number, {})["train_loss"] = round(loss / LOSS_ONE / records, DIGITS)
            if number > 1:
                with suppress(ContributionError):  # one site counted nonsense: the model is there all the same
                    tally = ClassificationTally.decode(counts[OWN_COUNTS:])
                    if tally.records >= LEAST_RECORDS:
                        rates = {name: round(value, DIGITS) for name, value in tally.metrics().items()}
                        told.setdefault(number - 1, {}).update(rates)
        return told


def _checkpoint_purpose(round_number: int) -> bytes:
    return b"checkpoint" + round_number.to_bytes(8, "big")
