"""Telling the server whether this site would work for the studies that it offers, before anybody starts a run.

Looked at when the site connects, when the studies change and now and then; told is what differs from what was told on
this connection. What leaves is a code and no figure: with the noise known, and it is in the study, what a study costs
tells the number of records. Nothing is trained, nothing spent, no record read and no code of a task run: nobody here
has approved most of these studies.

What passes by itself (the policy's hours, a pause) is not said, nor what only the records themselves can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

import grpc
import structlog

from quorate.errors import (
    BudgetExhaustedError,
    DatasetMissingError,
    QuorateError,
    StudyNotApprovedError,
    TransportError,
    WrongRoleError,
)
from quorate.messages import readiness_to_proto
from quorate.privacy.evaluation import evaluation_plan
from quorate.privacy.events import Event
from quorate.privacy.plan import TrainingPlan
from quorate.readiness import Readiness
from quorate.study import Study
from quorate.v1 import rounds_pb2
from quorate_client.agreement import Dataset
from quorate_client.approvals import Answers, Datasets
from quorate_client.channel import translated
from quorate_client.deliveries import wait_for_event
from quorate_client.folder import SiteFolder
from quorate_client.installed import InstalledTasks
from quorate_client.keys import load_identity, load_keys
from quorate_client.ledger import Ledger
from quorate_client.ledger_entries import Account
from quorate_client.link import Connection
from quorate_client.policy import PrivacyPolicy, check_policy_now
from quorate_client.privacy_plan import Outlook, account_of, account_of_test_part, outlook_of, plan_training
from quorate_client.studies import CALL_TIMEOUT_S, Offer, Unsound, check_roster, read_offers

log = structlog.get_logger()

LOOK_EVERY_S = 60.0
"""An answer, the policy, a data set or the ledger may change without a word of the server."""
MOST_STUDIES = 100
"""The newest. A study may cost seconds of computing, and anybody who is an operator can publish one."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Question:
    """What only the privacy ledger and an accountant can answer.

    Args:
        dataset: On which the study would train.
    """

    study: Study
    digest: bytes
    dataset: Dataset
    policy: PrivacyPolicy


class Assessor:
    """Holds studies against this site as it is at this moment. Lives in the event loop, but for ``answer``."""

    def __init__(
        self,
        folder: SiteFolder,
        answers: Answers,
        datasets: Datasets,
        tasks: InstalledTasks,
        ledger: Ledger,
        wall: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._answers = answers
        self._datasets = datasets
        self._tasks = tasks
        self._ledger = ledger
        self._wall = wall
        self._identity = load_identity(folder.keys)
        self._keys = load_keys(folder.keys)

    def look(self, study: Study, digest: bytes) -> Question | None:
        """All but the sums: roster, policy, expiry, task, data set. Gives the question that is left, if there is one.

        Raises:
            QuorateError: what is against the study here.
        """
        check_roster(study, self._identity, self._keys)
        # The policy before the task: only a task that it names is looked for on this machine.
        now = datetime.fromtimestamp(self._wall()).astimezone()
        policy = check_policy_now(self._folder, study, now)
        self._tasks.check(study.task)
        if study.guest is not None:
            return None
        try:
            dataset = self._answers.agreement(digest, self._identity.site).dataset
        except StudyNotApprovedError:
            # Codes alone would tell the budget, and the number of records: with one study after another, each a little
            # dearer, whoever may publish them would find both. Of an approved study a run tells the same code.
            if not self._datasets.all():
                raise DatasetMissingError("No data set is registered at this site") from None
            return None
        if dataset is None or study.privacy is None:
            return None
        return Question(study, digest, dataset, policy.privacy)

    def answer(self, question: Question) -> None:
        """Whether the budget allows a run. Takes seconds, and imports numpy, for ``[privacy.training]``.

        Raises:
            QuorateError: the policy, the budget or the ledger is against it.
        """
        study, dataset = question.study, question.dataset
        self._ledger.require_newest()
        training = plan_training(study, question.policy, about(training_units(dataset)))
        if training is not None:
            self._require_room(question, account_of(dataset), training, study.rounds.count)
        evaluation = evaluation_plan(study)
        if evaluation is not None:
            self._require_room(question, account_of_test_part(dataset), evaluation, study.evaluations)

    def _require_room(self, question: Question, account: Account, plan: TrainingPlan, rounds: int) -> None:
        """For so many rounds of a plan. Raises BudgetExhaustedError."""
        study = question.study
        of_study = self._ledger.events_of_study(account, question.digest)
        others, unbounded = self._ledger.committed(account, question.digest), self._ledger.unbounded(account)
        # All runs of a study stay within its plan together; what the earlier ones spent is part of its cost.
        if sum(event.count for event in of_study) + plan.steps * rounds > plan.study_event.count:
            raise BudgetExhaustedError(f"Earlier runs spent what another run of the study {study.name} would need")
        delta = study.privacy.delta if study.privacy is not None else question.policy.delta
        outlook = _remembered(plan, tuple(others), len(unbounded), delta, question.policy)
        if outlook.refused_by:
            raise BudgetExhaustedError(
                f"The study {study.name} would spend more of the privacy budget of {account} than this site's policy "
                "allows",
                expected=", ".join(outlook.refused_by),
            )


@dataclass(slots=True)
class ReadinessReports:
    """Looks at the offered studies and tells the server, for as long as a connection lasts."""

    assessor: Assessor
    look_every_s: float = LOOK_EVERY_S
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    # One thread of its own: a computation outlives the connection that it was for, and the next one must wait for it
    # rather than take a thread from the work of rounds.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "readiness"))

    def studies_changed(self) -> None:
        """The server says so."""
        self._changed.set()

    async def run(self, connection: Connection) -> None:
        """Tell the server at once, and again what changes. A server that does not know the call is left alone."""
        told: dict[bytes, Readiness] = {}
        offers: list[Offer | Unsound] = []
        self._changed.set()
        while True:
            try:
                if self._changed.is_set():
                    self._changed.clear()
                    offers = await self._offers(connection)
                for offer in offers:
                    readiness = await self._assess(offer)
                    if told.get(offer.digest) != readiness:
                        await _tell(connection, offer.digest, readiness)
                        told[offer.digest] = readiness
            except QuorateError as error:
                log.debug("readiness not told", code=error.code, reason=str(error))
                if _is_unknown_call(error):
                    return
            await wait_for_event(self._changed, self.look_every_s)

    async def _offers(self, connection: Connection) -> list[Offer | Unsound]:
        with translated(connection.address):
            reply = await connection.stub.ListStudies(rounds_pb2.SiteStudiesRequest(), timeout=CALL_TIMEOUT_S)
        return await self._aside(read_offers, rounds_pb2.SiteStudiesReply(studies=reply.studies[-MOST_STUDIES:]))

    async def _assess(self, offer: Offer | Unsound) -> Readiness:
        try:
            if isinstance(offer, Unsound):
                raise offer.problem
            question = self.assessor.look(offer.study, offer.digest)
            if question is not None:
                await self._aside(self.assessor.answer, question)
        except QuorateError as error:
            log.debug("a study would be refused", study=offer.digest.hex()[:12], code=error.code, reason=str(error))
            return Readiness(error.code)
        return Readiness()

    async def _aside(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


async def _tell(connection: Connection, digest: bytes, readiness: Readiness) -> None:
    request = rounds_pb2.ReportReadinessRequest(digest=digest, readiness=readiness_to_proto(readiness))
    with translated(connection.address):
        await connection.stub.ReportReadiness(request, timeout=CALL_TIMEOUT_S)
    log.debug("readiness told", study=digest.hex()[:12], code=readiness.code)


def _is_unknown_call(error: QuorateError) -> bool:
    """A server of an older version has a guard that offers the call to nobody; without one, gRPC says so itself."""
    cause = error.__cause__
    is_unimplemented = isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED
    return isinstance(error, WrongRoleError) or (isinstance(error, TransportError) and is_unimplemented)


def training_units(dataset: Dataset) -> int:
    """From how many records or units a study would draw, but for the luck of the lots that split the data set."""
    return round((dataset.records if dataset.units is None else dataset.units) * (1 - dataset.test_fraction))


def about(records: int) -> int:
    """The number to two digits, rounded down: what leaves here must not count a site's records, and with fewer of them
    a study costs rather more than less."""
    scale = int(10 ** max(0, len(str(records)) - 2))
    return records // scale * scale


@lru_cache(maxsize=2 * MOST_STUDIES)
def _remembered(
    plan: TrainingPlan, begun: tuple[Event, ...], unbounded: int, delta: float, policy: PrivacyPolicy
) -> Outlook:
    """Nothing is computed twice while nothing has changed."""
    return outlook_of(plan, begun, unbounded, delta, policy)
