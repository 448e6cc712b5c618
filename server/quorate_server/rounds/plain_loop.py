"""The study loop: rounds of a study over any transport, one accumulator of memory, a commit after every step.

Phases: ``prepare`` once (record counts and statistics, summed), then per round ``train`` (updates are added as they
arrive) and ``evaluate`` (every site opens the sum, applies the federated optimiser, evaluates the model that it then
has), every few rounds a ``checkpoint`` of the model state from one site, at the end the ``release``. The loop never
opens a sum: whether it could is the protection's matter, not the loop's. How a phase runs is in ``phases.py``.

Everything is decided from what is committed, so a new process goes on where the last one was killed: instructions have
the same names again, and replies that are already here are taken instead of asking twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import structlog

from quorate.aggregation import plain
from quorate.errors import (
    BaseModelMismatchError,
    ContributionError,
)
from quorate.identity import RunId, SiteName
from quorate.privacy.evaluation import tally_form
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Phase, Reply, StudyContribution, StudyWork
from quorate.rounds.run import RoundResult
from quorate.study.study import Study
from quorate.tally import LOSS_ONE, MIN_RECORDS, ClassificationTally, TallyForm
from quorate.wire.messages import contribution_from_bytes, work_to_bytes
from quorate_server.rounds.aggregate import Adder, noised
from quorate_server.rounds.phases import Exchange, Phases, Status, Take, Work, inlined, require_room, settled
from quorate_server.rounds.progress import StoredSum, StudyProgress, result_from_json, result_to_json

log = structlog.get_logger()

Use = Callable[[SiteName, StudyContribution, Blob | None], None]
"""Uses a site's contribution and the one blob that came with it. Raises QuorateError to refuse them."""


class StudyLoop:
    """Runs one study to its end.

    Args:
        attempts: As for ``Phases``.

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
        self._exchange = exchange
        self._phases = Phases(run, study, exchange, attempts, monotonic)
        self._progress = progress
        self._newest_sum: bytes | None = None
        self._holders = set(study.site_names)

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

        done = self._phases.open(Phase.PREPARE, 0, _same_for_all(StudyWork()), _parsed(take))
        # Whoever answers first does not decide for the others.
        forms = {site: (answer.dimension, len(answer.extras)) for site, answer in answers.items()}
        (dimension, _), agreeing = self._phases.agreement(forms, done)
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
        require_room(self._exchange, progress.dimension * plain.WORD_BYTES, len(self._study.sites))
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

        done = self._phases.open(Phase.TRAIN, round_number, self._work(), _parsed(take))
        if not agreed:
            # The first round: which model they all trained on is known when all have spoken. Until then the updates
            # lie in the spool; whoever answers first does not decide for the others.
            digests = {site: contribution.model_digest for site, (contribution, _) in held.items()}
            _, agreeing = self._phases.agreement(digests, done)
            for site in sorted(agreeing):
                fold(*held[site])
        blob = self._exchange.put(noised(adder.blocks(), self._study))
        self._newest_sum = inlined(self._exchange, blob).inline
        records, loss, clipped = adder.extras or (0, 0, 0)
        # What was computed from training records beside the update is not told where privacy is promised.
        is_told = records >= MIN_RECORDS and self._study.privacy is None
        metrics = {"train_loss": loss / LOSS_ONE / records} if is_told else {}
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
        """Every site arrives at the new model and, if the study says so after this round, evaluates it; the round is
        done."""
        answers: dict[SiteName, StudyContribution] = {}
        form = tally_form(self._study) if self._study.evaluates(round_number) else None

        def take(site: SiteName, contribution: StudyContribution, _: Blob | None) -> None:
            if not contribution.model_digest:
                raise ContributionError("A site does not say which model it evaluated")
            _tally([contribution], form)
            answers[site] = contribution

        done = self._phases.open(Phase.EVALUATE, round_number, self._work(), _parsed(take))
        # The number of counts tells that of classes. Whoever answers first does not decide it for the others.
        claims = {site: (answer.model_digest, len(answer.extras)) for site, answer in answers.items()}
        (digest, _), agreeing = self._phases.agreement(claims, done)
        result = result_from_json(self._progress.open_result or {})
        diverged = {str(site): code for site, code in done.left_out.items()}
        result = RoundResult(
            round_number=round_number,
            contributed=result.contributed,
            metrics={**result.metrics, **_pooled_metrics([answers[site] for site in sorted(agreeing)], form)},
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
        found: list[Blob] = []

        def take(site: SiteName, _: StudyContribution, blob: Blob | None) -> None:
            if blob is None or blob.id != self._progress.agreed_digest:
                raise BaseModelMismatchError(f"{site} gave another model state than the one agreed on")
            found.append(settled(self._exchange, blob))

        candidates = sorted(self._holders)
        self._phases.ask_one(Phase.CHECKPOINT, round_number, self._work(), _parsed(take), candidates=candidates)
        if not found:
            log.warning("no site could upload a checkpoint", run=self._run_id, round=round_number)
            return
        progress = self._progress.after(checkpoint=found[0], checkpoint_round=round_number, sums=())
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

        done = self._phases.open(Phase.RELEASE, self._progress.evaluated, self._work(), _parsed(take))
        obsolete = done.reply_blobs
        if to_operator:
            _, agreeing = self._phases.agreement({site: blob.id for site, blob in sent.items()}, done)
            chosen = settled(self._exchange, sent[min(agreeing)])
            self._exchange.keep_model(chosen)
            obsolete = obsolete | {chosen.id}
        self._commit(self._progress.after(released=True), obsolete=obsolete)

    # --- what the steps share ---

    def _adder(self, dimension: int) -> Adder:
        return Adder(dimension, len(self._study.sites))

    def _work(self) -> Work:
        return _same_for_all(self._progress.work(self._newest_sum))

    def _commit(
        self, progress: StudyProgress, result: RoundResult | None = None, obsolete: Iterable[BlobId] = ()
    ) -> None:
        # Not what is still needed: a site may send back as its update what it downloaded as a sum.
        self._exchange.commit(progress, result, set(obsolete) - progress.blobs())
        self._progress = progress


def _same_for_all(work: StudyWork) -> Work:
    """What all sites are asked, made once. Blobs are named without their content: what is small lies in the body."""
    body = work_to_bytes(work)
    blobs = [work.checkpoint] if work.checkpoint else []
    blobs += [ref.blob for ref in work.sums]
    references = tuple(Blob(blob.id, blob.size) for blob in blobs)
    return lambda _: (body, references)


def _parsed(use: Use) -> Take:
    """Reads a reply as a contribution; FrameError refuses one that is none."""

    def take(site: SiteName, reply: Reply) -> None:
        use(site, contribution_from_bytes(reply.body), reply.blobs[0] if reply.blobs else None)

    return take


def _check_train(contribution: StudyContribution) -> None:
    """Counts of a training: records, their summed loss, clipped coordinates."""
    records, _, clipped = contribution.extras if len(contribution.extras) == 3 else (0, 0, 0)
    if records < 1 or clipped < 0 or not contribution.model_digest:
        raise ContributionError("What a site tells of its training is malformed")


def _pooled_metrics(answers: list[StudyContribution], form: TallyForm | None) -> dict[str, float]:
    """Metrics of the whole consortium, from sums of counts; none without an evaluation."""
    tally = _tally(answers, form)
    return tally.metrics() if tally else {}


def _tally(answers: list[StudyContribution], form: TallyForm | None) -> ClassificationTally | None:
    """What sites counted, all together. Raises ContributionError: it is no tally, or not to be told."""
    summed = [sum(column) for column in zip(*(answer.extras for answer in answers), strict=True)]
    if form is not None:
        return ClassificationTally.decode(summed, form)
    if summed:
        raise ContributionError("A site told counts after a round that the study does not evaluate")
    return None
