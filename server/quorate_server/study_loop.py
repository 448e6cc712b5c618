"""The study loop: rounds of a study over any transport, one accumulator of memory, a commit after every step.

Phases: ``prepare`` once (record counts and statistics, summed), then per round ``train`` (updates are added as they
arrive) and ``evaluate`` (every site opens the sum, applies the federated optimiser, evaluates the model that it then
has), every few rounds a ``checkpoint`` of the model state from one site, at the end the ``release``. The loop never
opens a sum: whether it could is the protection's matter, not the loop's.

Everything is decided from what is committed, so a new process goes on where the last one was killed: instructions have
the same names again, and replies that are already here are taken instead of asking twice.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, TypeVar, assert_never

import structlog

from quorate.blobs import INLINE_BYTES, Blob, BlobId
from quorate.errors import (
    BaseModelMismatchError,
    ContributionError,
    DiskFullError,
    ModelDisagreementError,
    QuorateError,
)
from quorate.evaluation import LOSS_ONE, ClassificationTally
from quorate.exchange import (
    Instruction,
    MessageId,
    Phase,
    Reply,
    StudyContribution,
    StudyWork,
    message_id,
)
from quorate.identity import RunId, SiteName
from quorate.messages import contribution_from_bytes, work_to_bytes
from quorate.runs import Progress, RoundResult, SiteProgress
from quorate.secagg import plain
from quorate.study import Study
from quorate_server.aggregate import Adder
from quorate_server.progress import StoredSum, StudyProgress, result_from_json, result_to_json
from quorate_server.rounds import Close, GiveUp, Rule, Standing, Wait

log = structlog.get_logger()

STATUS_EVERY_S = 0.1

Claim = TypeVar("Claim", bytes, tuple[int, int], tuple[bytes, int])


@dataclass(frozen=True, slots=True)
class Arrived:
    site: SiteName
    reply: Reply


@dataclass(frozen=True, slots=True)
class Presence:
    """For each site that is not there, how many seconds it has been gone."""

    gone_for_s: Mapping[SiteName, float]


@dataclass(frozen=True, slots=True)
class Status:
    """Where the loop is, for those who watch."""

    round_number: int
    phase: str
    sites: tuple[SiteProgress, ...] = ()


class Exchange(Protocol):
    """What the loop needs of a transport. Implementations: our pipe to the daemon, and any Flower Grid."""

    def send(self, site: SiteName, instruction: Instruction) -> None: ...
    def withdraw(self, messages: Iterable[MessageId]) -> None: ...
    def next_event(self, timeout_s: float) -> Arrived | Presence | None: ...
    def open(self, blob: Blob) -> BinaryIO: ...
    def put(self, content: Iterable[bytes]) -> Blob: ...
    def keep_model(self, blob: Blob) -> None: ...
    def free_bytes(self) -> int: ...
    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None: ...
    def report(self, status: Status) -> None: ...

    def refuse(self, message: MessageId, code: str) -> None:
        """This reply could not be used: when the run is resumed, its site is asked again."""
        ...


@dataclass(slots=True)
class _Phase:
    """Tallies of one phase while it is open. ``left_out`` are those whose contributions came and do not count."""

    standing: Standing
    asked: dict[SiteName, Instruction] = field(default_factory=dict)
    left_out: dict[SiteName, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    reply_blobs: set[BlobId] = field(default_factory=set)
    started_s: float = 0.0
    seconds: float = 0.0

    @property
    def contributed(self) -> tuple[SiteName, ...]:
        return tuple(sorted(self.standing.contributed - set(self.left_out)))

    def missing(self) -> dict[str, str]:
        return {**self.standing.missing(), **{str(site): code for site, code in self.left_out.items()}}


class StudyLoop:
    """Runs one study to its end.

    Args:
        attempts: Under which attempt a site is asked, where it is not the first: (round, phase, site) -> attempt.

    ``run`` raises QuorateError when it has to pause (a missing quorum, a disagreement, a full disk): what was committed
    stays committed.
    """

    def __init__(
        self,
        run: RunId,
        study: Study,
        exchange: Exchange,
        progress: StudyProgress,
        attempts: Mapping[tuple[int, str, SiteName], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run
        self._study = study
        self._digest = study.digest()
        self._exchange = exchange
        self._progress = progress
        self._attempts = attempts
        self._now = monotonic
        self._gone_since_s: dict[SiteName, float] = {}
        self._newest_sum: bytes | None = None
        self._holders = set(study.site_names)
        self._reported_s = 0.0
        self._report_due_s = math.inf

    def run(self) -> None:
        """All that is left to do, in order."""
        if not self._progress.prepared:
            self._prepare()
        self._checkpoint_if_due()
        while self._progress.evaluated < self._study.rounds.count:
            if self._progress.trained == self._progress.evaluated:
                self._train(self._progress.trained + 1)
            self._evaluate(self._progress.trained)
            self._checkpoint_if_due()
        if not self._progress.released:
            self._release()
        self._exchange.report(Status(self._progress.evaluated, ""))

    # --- the steps ---

    def _prepare(self) -> None:
        """Record counts and statistics of all sites that are there; they fix the weights for the whole run."""
        answers: dict[SiteName, StudyContribution] = {}

        def take(site: SiteName, contribution: StudyContribution, _: Blob | None) -> None:
            if (
                contribution.dimension < 1
                or contribution.weight
                or not contribution.extras
                or contribution.extras[0] < 1
            ):
                raise ContributionError("A site has no model or no records to train on")
            self._adder(0).admit(contribution, 0)
            answers[site] = contribution

        done = self._open_phase(Phase.PREPARE, 0, StudyWork(), take)
        # Whoever answers first does not decide for the others.
        forms = {site: (answer.dimension, len(answer.extras)) for site, answer in answers.items()}
        (dimension, _), agreeing = self._agreement(forms, done)
        adder = self._adder(0)
        for site in sorted(agreeing):
            adder.admit(answers[site], 0)
            adder.fold(answers[site], None)
        statistics = adder.extras or ()
        self._commit(
            self._progress.after(prepared=True, dimension=dimension, total_weight=statistics[0], statistics=statistics),
            obsolete=done.reply_blobs,
        )

    def _train(self, round_number: int) -> None:
        """Sites train on the last model; their updates are added up; the sum is committed."""
        progress = self._progress
        self._require_disk(progress.dimension * plain.WORD_BYTES)
        adder = self._adder(progress.dimension)
        agreed = progress.agreed_digest if progress.agreed_round == round_number - 1 else b""
        held: dict[SiteName, tuple[StudyContribution, Blob]] = {}

        def fold(contribution: StudyContribution, update: Blob) -> None:
            with self._exchange.open(update) as content:
                adder.fold(contribution, content)

        def take(site: SiteName, contribution: StudyContribution, update: Blob | None) -> None:
            _check_train(contribution)
            if agreed and contribution.model_digest != agreed:
                raise BaseModelMismatchError("A site trained on another model than the others")
            if update is None:
                raise ContributionError("A site sent no update")
            adder.admit(contribution, update.size)
            if agreed:
                fold(contribution, update)
                return
            with self._exchange.open(update):  # refused now if it is not there
                held[site] = (contribution, update)

        done = self._open_phase(Phase.TRAIN, round_number, self._work(), take)
        if not agreed:
            # The first round: which model they all trained on is known when all have spoken. Until then the updates
            # lie in the spool; whoever answers first does not decide for the others.
            digests = {site: contribution.model_digest for site, (contribution, _) in held.items()}
            _, agreeing = self._agreement(digests, done)
            for site in sorted(agreeing):
                fold(*held[site])
        blob = self._exchange.put(adder.blocks())
        self._newest_sum = b"".join(adder.blocks()) if blob.size <= INLINE_BYTES else None
        records, loss, clipped = adder.extras or (0, 0, 0)
        metrics = {"train_loss": loss / LOSS_ONE / records} if records else {}
        if clipped:
            metrics["clipped_coordinates"] = float(clipped)
        result = RoundResult(
            round_number=round_number,
            contributed=done.contributed,
            metrics=metrics,
            phase_seconds={Phase.TRAIN.value: done.seconds},
            bytes_up=done.bytes_up,
            bytes_down=done.bytes_down,
            missing=done.missing(),
        )
        added = StoredSum(round_number=round_number, blob=blob, weight=adder.weight, contributors=adder.contributors)
        self._commit(
            progress.after(trained=round_number, sums=(*progress.sums, added), open_result=result_to_json(result)),
            obsolete=done.reply_blobs,
        )

    def _evaluate(self, round_number: int) -> None:
        """Every site arrives at the new model and evaluates it; the round is done."""
        answers: dict[SiteName, StudyContribution] = {}

        def take(site: SiteName, contribution: StudyContribution, _: Blob | None) -> None:
            if not contribution.model_digest:
                raise ContributionError("A site does not say which model it evaluated")
            ClassificationTally.decode(contribution.extras)
            answers[site] = contribution

        done = self._open_phase(Phase.EVALUATE, round_number, self._work(), take)
        # The number of counts tells that of classes. Whoever answers first does not decide it for the others.
        claims = {site: (answer.model_digest, len(answer.extras)) for site, answer in answers.items()}
        (digest, _), agreeing = self._agreement(claims, done)
        result = result_from_json(self._progress.open_result or {})
        diverged = {str(site): code for site, code in done.left_out.items()}
        result = RoundResult(
            round_number=round_number,
            contributed=result.contributed,
            metrics={**result.metrics, **_pooled_metrics([answers[site] for site in sorted(agreeing)])},
            phase_seconds={**result.phase_seconds, Phase.EVALUATE.value: done.seconds},
            bytes_up=result.bytes_up + done.bytes_up,
            bytes_down=result.bytes_down + done.bytes_down,
            missing={**diverged, **result.missing},
        )
        progress = self._progress.after(
            evaluated=round_number, agreed_digest=digest, agreed_round=round_number, open_result=None
        )
        self._commit(progress, result, obsolete=done.reply_blobs)
        log.info("round done", run=self._run_id, round=round_number, sites=len(result.contributed), **result.metrics)
        self._holders = agreeing

    def _checkpoint_if_due(self) -> None:
        """One site uploads the model state that all agreed on; older sums are then not needed any more."""
        round_number = self._progress.evaluated
        if (
            self._progress.trained > round_number
            or round_number - self._progress.checkpoint_round < self._study.rounds.checkpoint_every
        ):
            return
        digest = BlobId(self._progress.agreed_digest)
        blob = self._ask_one(Phase.CHECKPOINT, round_number, sorted(self._holders), digest)
        if blob is None:
            log.warning("no site could upload a checkpoint", run=self._run_id, round=round_number)
            return
        progress = self._progress.after(checkpoint=blob, checkpoint_round=round_number, sums=())
        self._commit(progress, obsolete=self._progress.blobs() - progress.blobs())

    def _release(self) -> None:
        """Every site makes the final model in the form in which it is used and keeps it; some studies have it sent.

        One site alone must not decide what is released: a quorum has to send the very same bytes.
        """
        sent: dict[SiteName, Blob] = {}
        to_operator = self._study.release.model == "operator"

        def take(site: SiteName, contribution: StudyContribution, blob: Blob | None) -> None:
            if contribution.model_digest != self._progress.agreed_digest:
                raise BaseModelMismatchError("A site released another model than the one agreed on")
            if to_operator:
                if blob is None:
                    raise ContributionError("A site sent no model though the study releases it")
                sent[site] = blob

        done = self._open_phase(Phase.RELEASE, self._progress.evaluated, self._work(), take)
        obsolete = done.reply_blobs
        if to_operator:
            _, agreeing = self._agreement({site: blob.id for site, blob in sent.items()}, done)
            chosen = self._settled(sent[min(agreeing)])
            self._exchange.keep_model(chosen)
            obsolete = obsolete | {chosen.id}
        self._commit(self._progress.after(released=True), obsolete=obsolete)

    # --- how a phase runs ---

    def _open_phase(
        self,
        phase: Phase,
        round_number: int,
        work: StudyWork,
        take: Callable[[SiteName, StudyContribution, Blob | None], None],
    ) -> _Phase:
        """Ask all sites and take what comes until the phase may close.

        Raises:
            QuorumMissingError: it cannot count.
        """
        rounds = self._study.rounds
        rule = Rule(phase, frozenset(self._study.site_names), rounds.quorum, rounds.deadline_s, rounds.absent_grace_s)
        state = _Phase(Standing(rule, self._now(), gone_since_s=self._gone_since_s), started_s=self._now())
        instruct = self._instructions(phase, round_number, work)
        for site in sorted(rule.invited):
            self._ask(site, instruct(site), state)
        self._report(state, round_number, force=True)
        while True:
            decision = state.standing.decide(self._now())
            match decision:
                case Wait(until_s):
                    until_s = min(until_s, self._report_due_s)
                    event = self._exchange.next_event(max(0.0, until_s - self._now()))
                    self._handle(event, state, take)
                    self._report(state, round_number)
                case Close():
                    break
                case GiveUp(reason):
                    self._withdraw(state)
                    raise reason
                case _:
                    assert_never(decision)
        self._withdraw(state)
        state.seconds = self._now() - state.started_s
        return state

    def _ask(self, site: SiteName, instruction: Instruction, state: _Phase) -> None:
        state.asked[site] = instruction
        state.bytes_down += len(instruction.body) + sum(blob.size for blob in instruction.blobs[-1:])
        self._exchange.send(site, instruction)

    def _withdraw(self, state: _Phase) -> None:
        outstanding = state.standing.outstanding & set(state.asked)
        self._exchange.withdraw(state.asked[site].message_id for site in sorted(outstanding))

    def _handle(
        self,
        event: Arrived | Presence | None,
        state: _Phase,
        take: Callable[[SiteName, StudyContribution, Blob | None], None],
    ) -> None:
        match event:
            case Arrived(site, reply) if site in state.asked and state.asked[site].message_id == reply.message_id:
                if site not in state.standing.outstanding:
                    return  # a reply is counted at most once
                state.bytes_up += len(reply.body) + sum(blob.size for blob in reply.blobs)
                state.reply_blobs |= {blob.id for blob in reply.blobs if blob.inline is None}
                state.standing = self._take_reply(site, reply, state.standing, take)
            case Presence():
                self._note_presence(event)
                state.standing = state.standing.with_presence(self._gone_since_s)
            case _:
                pass

    def _take_reply(
        self,
        site: SiteName,
        reply: Reply,
        standing: Standing,
        take: Callable[[SiteName, StudyContribution, Blob | None], None],
    ) -> Standing:
        if reply.code:
            log.warning("site refused", run=self._run_id, site=site, phase=standing.rule.phase.value, code=reply.code)
            return standing.with_refusal(site, reply.code)
        try:
            take(site, contribution_from_bytes(reply.body), reply.blobs[0] if reply.blobs else None)
        except QuorateError as error:
            log.warning("contribution refused", run=self._run_id, site=site, code=error.code, reason=str(error))
            self._exchange.refuse(reply.message_id, error.code)
            return standing.with_refusal(site, error.code)
        return standing.with_contribution(site)

    def _ask_one(
        self, phase: Phase, round_number: int, candidates: list[SiteName], expected: BlobId | None
    ) -> Blob | None:
        """One site after the other, until one of them gives the blob. None when none did by the deadline.

        The next one is asked when nobody who was asked can still answer, or when the last one takes too long.
        """
        found: list[Blob] = []

        def take(site: SiteName, _: StudyContribution, blob: Blob | None) -> None:
            if blob is None or (expected is not None and blob.id != expected):
                raise BaseModelMismatchError(f"{site} gave another model state than the one agreed on")
            found.append(self._settled(blob))

        deadline_s = self._study.rounds.deadline_s
        rule = Rule(phase, frozenset(candidates), 1, deadline_s, 0.0)
        state = _Phase(Standing(rule, self._now(), gone_since_s=self._gone_since_s), started_s=self._now())
        instruct = self._instructions(phase, round_number, self._work())
        asked_s = self._now()
        while not found and isinstance(decision := state.standing.decide(self._now()), Wait):
            here = [site for site in candidates if site not in self._gone_since_s]
            fresh = [site for site in here if site not in state.asked]
            impatient = self._now() - asked_s >= deadline_s / len(candidates)
            if fresh and (impatient or not any(site in state.standing.outstanding & set(state.asked) for site in here)):
                self._ask(fresh[0], instruct(fresh[0]), state)
                asked_s = self._now()
                self._report(state, round_number, force=True)
            self._handle(self._exchange.next_event(min(1.0, max(0.0, decision.until_s - self._now()))), state, take)
        self._withdraw(state)
        return found[0] if found else None

    def _settled(self, blob: Blob) -> Blob:
        """A blob that came inline is put into the spool, where checkpoints and models are kept."""
        return blob if blob.inline is None else self._exchange.put([blob.inline])

    def _adder(self, dimension: int) -> Adder:
        return Adder(dimension, len(self._study.sites))

    def _agreement(self, claims: Mapping[SiteName, Claim], done: _Phase) -> tuple[Claim, set[SiteName]]:
        """What most sites say, and who says it; the others are left out.

        Raises:
            ModelDisagreementError: fewer than a quorum agree.
        """
        counted = Counter(claims.values()).most_common()
        agreed, count = counted[0]
        if count < self._study.rounds.quorum:
            for site in claims:
                self._exchange.refuse(done.asked[site].message_id, ModelDisagreementError.code)
            raise ModelDisagreementError(
                f"The sites do not hold the same model in the phase {done.standing.rule.phase!s}",
                expected=f"at least {self._study.rounds.quorum} sites that agree",
                got=f"groups of {', '.join(str(size) for _, size in counted)}",
                action="Compare the versions of the sites' packages (torch, numpy, quorate); then `quorate run resume`",
            )
        agreeing = {site for site, claim in claims.items() if claim == agreed}
        done.left_out |= dict.fromkeys(set(claims) - agreeing, BaseModelMismatchError.code)
        return agreed, agreeing

    def _instructions(self, phase: Phase, round_number: int, work: StudyWork) -> Callable[[SiteName], Instruction]:
        """Makes the instruction for a site; what is the same for all of them is made once."""
        body = work_to_bytes(work)
        blobs = [work.checkpoint] if work.checkpoint else []
        blobs += [ref.blob for ref in work.sums]
        references = tuple(Blob(blob.id, blob.size) for blob in blobs)

        def instruct(site: SiteName) -> Instruction:
            attempt = self._attempts.get((round_number, phase.value, site), 0)
            return Instruction(
                message_id=message_id(self._run_id, round_number, phase, attempt, site),
                run=self._run_id,
                round_number=round_number,
                phase=phase,
                attempt=attempt,
                study_digest=self._digest,
                deadline_s=self._study.rounds.deadline_s,
                body=body,
                blobs=references,
            )

        return instruct

    def _work(self) -> StudyWork:
        return self._progress.work(self._newest_sum)

    def _commit(
        self, progress: StudyProgress, result: RoundResult | None = None, obsolete: Iterable[BlobId] = ()
    ) -> None:
        # Not what is still needed: a site may send back as its update what it downloaded as a sum.
        self._exchange.commit(progress, result, set(obsolete) - progress.blobs())
        self._progress = progress

    def _note_presence(self, presence: Presence) -> None:
        now = self._now()
        self._gone_since_s = {site: now - seconds for site, seconds in presence.gone_for_s.items()}

    def _require_disk(self, update_bytes: int) -> None:
        """Room for an update of every site and the sum, before anybody is asked to train for it."""
        needed = update_bytes * (len(self._study.sites) + 1)
        free = self._exchange.free_bytes()
        if free < needed:
            raise DiskFullError(
                "The server's disk has no room for this round's updates",
                expected=f"{needed} bytes free",
                got=f"{free}",
                action="Free some space at the server's spool folder, then `quorate run resume`",
            )

    def _report(self, state: _Phase, round_number: int, *, force: bool = False) -> None:
        now = self._now()
        if not force and now - self._reported_s < STATUS_EVERY_S:
            self._report_due_s = self._reported_s + STATUS_EVERY_S
            return
        self._reported_s, self._report_due_s = now, math.inf
        standing = state.standing

        def of(site: SiteName) -> SiteProgress:
            if site in standing.contributed:
                return SiteProgress(site, Progress.REPLIED)
            if site in standing.refused:
                return SiteProgress(site, Progress.REFUSED, standing.refused[site])
            return SiteProgress(site, Progress.ABSENT if site in standing.gone_since_s else Progress.WORKING)

        sites = tuple(of(site) for site in sorted(standing.rule.invited))
        self._exchange.report(Status(round_number, standing.rule.phase.value, sites))


def _check_train(contribution: StudyContribution) -> None:
    """Counts of a training: records, their summed loss, clipped coordinates."""
    records, _, clipped = contribution.extras if len(contribution.extras) == 3 else (0, 0, 0)
    if records < 1 or clipped < 0 or not contribution.model_digest:
        raise ContributionError("What a site tells of its training is malformed")


def _pooled_metrics(answers: list[StudyContribution]) -> dict[str, float]:
    """Metrics of the whole consortium, from sums of exact counts."""
    summed = [sum(column) for column in zip(*(answer.extras for answer in answers), strict=True)]
    return ClassificationTally.decode(summed).metrics()
