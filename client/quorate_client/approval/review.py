"""The studies that the server offers to this site: reading them, checking them, answering them.

The commands call the server themselves, with the site's certificate, so they work whether or not the daemon runs. The
server is not trusted with what a study says: its digest is computed here, the roster's keys are compared with the
study's, and the answer is signed by the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

from quorate.errors import (
    IdentityError,
    KeyMismatchError,
    QuorateError,
)
from quorate.identity import Member
from quorate.study.approval import AnswerWord
from quorate.study.study import Study
from quorate.study.task_digest import task_reference
from quorate_client.approval.answers import Answer, Answers, NodeConfig
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.installed_tasks import InstalledTasks
from quorate_client.approval.offers import Offer, OffersClient, _is_meant, find_offer
from quorate_client.approval.policy_file import check_policy_now, policy_now
from quorate_client.approval.usable import look_at, require_usable
from quorate_client.site.agreement import Dataset
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Identity, SiteKeys, load_identity, load_keys


@dataclass(frozen=True, slots=True)
class Assessment:
    """How a study stands at this site. The refusals are None where nothing is to be said against it.

    Args:
        installed: The digest (hex) of its task here, where that is a version that the study accepts.
    """

    offer: Offer
    answer: AnswerWord | None
    installed: str | None
    roster: QuorateError | None
    task: QuorateError | None
    policy: QuorateError | None

    @property
    def may_be_approved(self) -> bool:
        return self.roster is None and self.task is None and self.policy is None


class StudyReview:
    """Reading and answering studies at one site."""

    def __init__(self, folder: SiteFolder, answers: Answers, datasets: Datasets, tasks: InstalledTasks) -> None:
        self._folder = folder
        self._answers = answers
        self._datasets = datasets
        self._tasks = tasks
        self._identity: Identity = load_identity(folder.keys)
        self._keys: SiteKeys = load_keys(folder.keys)

    def assess(self, offer: Offer) -> Assessment:
        answer, now = self._answers.find(offer.digest), datetime.now(UTC)
        installed, task = None, None
        try:
            installed = self._tasks.check(offer.study.task, now)
        except QuorateError as error:
            task = error
        return Assessment(
            offer,
            answer.answer if answer else None,
            installed,
            refusal_of(lambda: check_roster(offer.study, self._identity, self._keys)),
            task,
            refusal_of(lambda: check_policy_now(self._folder, offer.study, now)),
        )

    def is_new_key(self, member: Member) -> bool:
        """Whether this site knew the member under another key in a study that it approved before."""
        known = self._answers.pinned_keys(member.name)
        return bool(known) and member.signing_key not in known

    def approve(self, client: OffersClient, offer: Offer, dataset: str | None, node_config: NodeConfig) -> Answer:
        """Approve a study: check it, tell the server, pin the roster. Nothing counts before the server was told.

        Raises:
            QuorateError: what is against it.
        """
        assessment = self.assess(offer)
        for refusal in (assessment.roster, assessment.task, assessment.policy):
            if refusal is not None:
                raise refusal
        needs_one = dataset is not None or offer.study.kind != "guest"
        chosen = self._datasets.choose(offer.study, dataset) if needs_one else None
        if chosen is not None:
            found = look_at(chosen, self._datasets.find)
            require_usable(chosen, offer.study, policy_now(self._folder), found)
            check_dataset(offer.study, chosen)
        signature = self._keys.sign_answer("approved", offer.digest)
        client.answer(offer.digest, "approved", signature)
        answer = Answer(
            offer.study,
            offer.digest,
            "approved",
            signature,
            chosen.name if chosen else None,
            node_config,
            offer.members,
        )
        self._answers.record(answer)
        return answer

    def reject(self, client: OffersClient, text: str) -> Answer:
        """Reject a study, or take an approval back. Counts here at once, even if the server cannot be told.

        For one that was approved the server is not asked what it offers: it must not be able to hide it.
        """
        approved = [
            answer
            for answer in self._answers.all()
            if answer.answer == "approved" and _is_meant(text, answer.study.name, answer.digest)
        ]
        if len(approved) == 1:
            study, digest = approved[0].study, approved[0].digest
        else:
            offer = find_offer(client.offers(), text)
            study, digest = offer.study, offer.digest
        signature = self._keys.sign_answer("rejected", digest)
        answer = Answer(study, digest, "rejected", signature)
        self._answers.record(answer)
        client.answer(digest, "rejected", signature)
        return answer


def check_roster(study: Study, identity: Identity, keys: SiteKeys) -> None:
    """This site must be in the roster once, with the key that it really has.

    Raises:
        IdentityError: the study is another consortium's, or leaves this site out. KeyMismatchError: it names another
            key for this site, so somebody else would speak in its name.
    """
    if study.consortium != identity.consortium:
        raise IdentityError(
            f"The study {study.name} belongs to another consortium",
            expected=identity.consortium,
            got=study.consortium,
        )
    own_key = keys.signing.public_key().public_bytes_raw().hex()
    named = [site.signing_key for site in study.sites if site.name == identity.site]
    if len(named) != 1 or [site.signing_key for site in study.sites].count(own_key) > 1:
        raise IdentityError(f"The study {study.name} does not list {identity.site} exactly once")
    if named[0] != own_key:
        raise KeyMismatchError(
            f"The study {study.name} names another signing key for {identity.site} than this site has",
            action="If this site joined again, have the study published anew; if not, tell the operator: "
            "somebody may pretend to be this site",
        )


def check_dataset(study: Study, dataset: Dataset) -> None:
    """The data set must have what the study reads. The task's code runs for this, after its digest was checked.

    Raises:
        StudyError: the parameters are wrong. SchemaError: the data set does not fit.
    """
    from quorate_client.tasks.data.schema import ImageSchema, TabularSchema, parse_schema
    from quorate_client.tasks.data.schema_fit import require_fit
    from quorate_client.tasks.loading import load_task

    if study.task.is_guest:
        return
    task = load_task(task_reference(study.task.name))
    task.check(study.task.parameters)
    offered = parse_schema(dataset.schema, f"The schema of the data set {dataset.name}")
    match task.schema(study.task.parameters):
        case TabularSchema() as wanted:
            require_fit(offered, wanted, dataset.name)
        case ImageSchema() as wanted:
            require_fit(offered, wanted, dataset.name)
        case unknown:
            assert_never(unknown)


def differences(old: Study, new: Study) -> list[tuple[str, Any, Any]]:
    """Each key, with dots, whose value is not the same, with both values; None where there is none.

    The operator's mark, which follows from all the rest, is not among them.
    """
    told = (
        {"training_data": study.training_data} | study.model_dump(mode="json", exclude={"release": {"operator_mark"}})
        for study in (old, new)
    )
    left, right = (dict(_flat(each)) for each in told)
    return [(key, left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)]


def _flat(value: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield within, value
        return
    for key, each in value.items():
        yield from _flat(each, f"{within}.{key}" if within else key)


def refusal_of(check: Callable[[], object]) -> QuorateError | None:
    """What a check raises, if it refuses."""
    try:
        check()
    except QuorateError as error:
        return error
    return None
