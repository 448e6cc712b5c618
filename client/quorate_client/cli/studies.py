"""Commands about studies: what is offered, what it means, saying yes or no."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from quorate.attestation.appraisal import SOFTWARE
from quorate.attestation.evidence import Kind
from quorate.errors import InputError, QuorateError
from quorate.identity import SiteName
from quorate.privacy.statement import NEIGHBOURING_ROUNDS, evaluation_statement, privacy_statement
from quorate.privacy.training_data import IN_A_WORD, PAID_BEFORE, training_data_statement
from quorate.study.study import Study
from quorate_client.approval.answers import Answers, NodeConfig
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.installed_tasks import InstalledTasks
from quorate_client.approval.offers import OffersClient, Unsound, find_offer, open_offers
from quorate_client.approval.review import Assessment, StudyReview, differences
from quorate_client.cli.output import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    cell,
    out,
    say,
    show_json,
    table,
    warn,
)
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or the beginning of its digest.")]

UNPROTECTED = "Protection is none: the server can read every update of this site."
MODELS_OF_THE_SERVER = (
    "The server can make up the models that are tried on this site's held-out records, and gets exact counts: it can "
    "read values of those records."
)
NOT_PRIVATE = "none: the released model may tell of single records"
OF_TWO = "Of two sites each learns the other's updates from the sum, whatever the protection."


def studies(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the studies that the consortium offers to this site, and how they stand here."""
    with open_review(state) as opened:
        offers = opened.client.offers()
        found = [opened.review.assess(offer) for offer in offers.sound]
    if as_json:
        show_json([_summary(each) for each in found] + [_summary_of_unsound(each) for each in offers.unsound])
        return
    rows = table("study", "digest", "task", "protection", "answer", "stands")
    for each in found:
        study = each.offer.study
        mode = study.protection.mode
        rows.add_row(
            cell(study.name),
            each.offer.digest.hex()[:12],
            cell(study.task.name),
            cell(f"WARNING: {mode}", "bold yellow") if mode == "none" else cell(mode),
            cell(each.answer or "unanswered"),
            cell(_standing(each), "green" if each.may_be_approved else "yellow"),
        )
    for unsound in offers.unsound:
        problem = cell(unsound.problem.code, "red")
        rows.add_row(cell(unsound.name), unsound.digest.hex()[:12], "", "", "", problem)
    out().print(rows)
    for unsound in offers.unsound:
        warn(str(unsound.problem))
    if any(each.offer.study.protection.mode == "none" for each in found):
        warn("In a study with protection none the server can read every update of this site.")


def show(study: StudyArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Show everything that has to be read before a study is approved."""
    with open_review(state) as opened:
        assessment = opened.review.assess(find_offer(opened.client.offers(), study))
        new_keys = [m.name for m in assessment.offer.members if opened.review.is_new_key(m)]
    if as_json:
        show_json(
            _summary(assessment) | {"study": assessment.offer.study.model_dump(mode="json"), "new_keys": new_keys}
        )
        return
    _show_study(assessment)
    _show_roster(assessment, new_keys)
    say("What the model is trained on:", "bold")
    for sentence in training_data_statement(assessment.offer.study):
        say(f"- {sentence}")
    say("What the study promises about the people in the data:", "bold")
    for sentence in privacy_statement(assessment.offer.study).exact:
        say(f"- {sentence}")
    if assessment.offer.study.protection.mode != "none":
        say("What the sums tell:", "bold")
        say(f"- {NEIGHBOURING_ROUNDS}")
    if assessment.offer.study.attestation is not None:
        say("What the attested machine protects from:", "bold")
        for remark in assessment.offer.study.attestation.remarks:
            say(f"- {remark}", "bold red" if remark == SOFTWARE else "")
    say("What the evaluation tells:", "bold")
    for sentence in evaluation_statement(assessment.offer.study):
        say(f"- {sentence}")
    for warning in _warnings(assessment.offer.study):
        warn(warning)
    if assessment.offer.study.is_of_two:
        warn(OF_TWO)
    for refusal in _refusals(assessment):
        say(f"Cannot be approved [{refusal.code}]: {refusal}", "red")
    if assessment.may_be_approved and assessment.answer is None:
        say(f"To take part: quorate-client approve {assessment.offer.study.name} --dataset NAME", "bold")


def approve(
    study: StudyArgument,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="The registered data set to use.")] = None,
    node_config: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For a Flower app: part of its node_config.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Approve a study: from now on the daemon takes part in its runs. Take it back with `reject`."""
    settings = _node_config(node_config or [])
    with open_review(state) as opened:
        offer = find_offer(opened.client.offers(), study)
        answer = opened.review.approve(opened.client, offer, dataset, settings)
    if as_json:
        show_json(
            {"study": offer.study.name, "digest": offer.digest.hex(), "answer": "approved"}
            | {"dataset": answer.dataset, "protection": offer.study.protection.mode}
            | {"task_digests": _digests(offer.study)}
        )
        return
    on = f" on {answer.dataset}" if answer.dataset else ""
    say(f"Approved {offer.study.name} ({offer.digest.hex()[:12]}){on}.", "green")
    if offer.study.task.also is not None:
        for label, digest in _versions(offer.study):
            say(f"{label}: {digest[:16]}…")
    for warning in _warnings(offer.study):
        warn(warning)


def reject(study: StudyArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Reject a study, or take an approval back. Counts at this site at once."""
    with open_review(state) as opened:
        answer = opened.review.reject(opened.client, study)
    if as_json:
        show_json({"study": answer.study.name, "digest": answer.digest.hex(), "answer": "rejected"})
        return
    say(f"Rejected {answer.study.name} ({answer.digest.hex()[:12]}).")


def diff(
    old: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or the beginning of its digest.")],
    new: Annotated[str, typer.Argument(metavar="OTHER", help="The same, of the study to compare it with.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show in which arguments two studies differ. A changed argument is another study, to be approved anew."""
    with open_review(state) as opened:
        offers = opened.client.offers()
    changes = differences(find_offer(offers, old).study, find_offer(offers, new).study)
    if as_json:
        show_json([{"key": key, "old": before, "new": after} for key, before, after in changes])
        return
    rows = table("key", old, new)
    for key, before, after in changes:
        rows.add_row(cell(key), *(cell("-" if value is None else json.dumps(value)) for value in (before, after)))
    out().print(rows)


@dataclass(frozen=True, slots=True)
class OpenReview:
    """What the commands about studies need, while the connection is open."""

    review: StudyReview
    client: OffersClient


@contextmanager
def open_review(folder: Path) -> Iterator[OpenReview]:
    """Connect as the site in ``folder``."""
    site = SiteFolder(folder)
    with open_offers(site) as client, site_state(site.database) as state:
        answers, datasets = Answers(state, time.time), Datasets(state, time.time)
        yield OpenReview(StudyReview(site, answers, datasets, InstalledTasks(time.monotonic)), client)


def _show_study(assessment: Assessment) -> None:
    study = assessment.offer.study
    rows = table("", "")
    rows.add_row("study", cell(f"{study.name} in {study.consortium}", "bold"))
    rows.add_row("digest", assessment.offer.digest.hex())
    rows.add_row("purpose", cell(study.purpose))
    rows.add_row("kind", study.kind)
    rows.add_row("task", cell(study.task.name))
    for label, digest in _versions(study):
        state, style = _state_of_version(assessment, digest)
        rows.add_row(label, cell(f"{digest[:16]}…: {state}", style))
    rows.add_row("parameters", cell(json.dumps(study.task.parameters, sort_keys=True)))
    if study.guest is not None:
        rows.add_row("server app", cell(study.guest.server_app))
        rows.add_row("run config", cell(json.dumps(study.guest.run_config, sort_keys=True)))
    rounds = study.rounds
    rows.add_row(
        "rounds", f"{rounds.count}, each with at least {rounds.quorum} sites, at most {rounds.deadline_s:g} s a phase"
    )
    rows.add_row("optimiser", study.optimizer.name if study.guest is None else "the guest app's")
    rows.add_row("trained on", IN_A_WORD[study.training_data] if study.guest is None else "what the guest app takes")
    if study.synthetic is not None:
        rows.add_row("synthetic sets", cell(study.synthetic.summary))
    rows.add_row("protection", cell(study.protection_summary, "bold yellow" if study.protection.mode == "none" else ""))
    for version in study.attestation.policy.versions() if study.attestation is not None else ():
        rows.add_row("attested", cell(str(version), "bold red" if version.kind is Kind.SOFTWARE else ""))
    rows.add_row("privacy", _privacy(study))
    rows.add_row("approvals", f"{study.needed_approvals} of {len(study.sites)} sites before any works")
    rows.add_row("expires", study.expires.isoformat() if study.expires else "never")
    who = "the sites and the operator" if study.released_to == "operator" else "the sites only"
    rows.add_row("final model", f"for {who}")
    if study.release.operator_key is not None:
        rows.add_row("sealed to", f"{study.release.operator_fingerprint}, the operator's key: compare it")
    rows.add_row("answer", cell(assessment.answer or "unanswered"))
    out().print(rows)


def _privacy(study: Study) -> Text:
    if study.privacy is not None:
        return cell(study.privacy.summary)
    return cell(PAID_BEFORE) if study.training_data == "synthetic" else cell(NOT_PRIVATE, "bold yellow")


def _versions(study: Study) -> Iterator[tuple[str, str]]:
    """The digests that sites may have, each with what there is to say of it."""
    yield "task digest", study.task.digest
    if study.task.also is not None:
        yield f"or, until {study.task.also.until} (UTC)", study.task.also.digest


def _state_of_version(assessment: Assessment, digest: str) -> tuple[str, str]:
    if assessment.task is not None:
        return f"NOT the installed one ({assessment.task.code})", "red"
    return ("the installed one", "") if assessment.installed == digest else ("another one is installed", "")


def _show_roster(assessment: Assessment, new_keys: list[SiteName]) -> None:
    rows = table("site", "fingerprint", "", title="Sites: compare the fingerprints with them over another channel")
    for member in assessment.offer.members:
        note = "another key than in a study approved before" if member.name in new_keys else ""
        rows.add_row(cell(member.name), member.fingerprint, cell(note, "bold yellow"))
    out().print(rows)


def _warnings(study: Study) -> list[str]:
    """What the server can do where a study does not protect from it."""
    if study.protection.mode != "none":
        return []
    return [UNPROTECTED, MODELS_OF_THE_SERVER] if study.tells_exact_counts else [UNPROTECTED]


def _summary(assessment: Assessment) -> dict[str, Any]:
    study = assessment.offer.study
    return {
        "name": study.name,
        "digest": assessment.offer.digest.hex(),
        "purpose": study.purpose,
        "kind": study.kind,
        "task": study.task.name,
        "task_is_installed": assessment.task is None,
        "task_digests": _digests(study),
        "protection": study.protection.mode,
        "attestation": study.attestation.told() if study.attestation is not None else None,
        "training_data": study.training_data,
        "synthetic": study.synthetic.limits if study.synthetic else None,
        "privacy": study.privacy.summary if study.privacy else None,
        "expires": study.expires.isoformat() if study.expires else None,
        "approvals": study.needed_approvals,
        "warnings": _warnings(study),
        "evaluation": list(evaluation_statement(study)),
        "release": study.release.model,
        "release_key": study.release.operator_fingerprint or None,
        "answer": assessment.answer,
        "may_be_approved": assessment.may_be_approved,
        "refusals": [{"code": refusal.code, "text": str(refusal)} for refusal in _refusals(assessment)],
        "roster": [{"site": m.name, "fingerprint": m.fingerprint} for m in assessment.offer.members],
    }


def _digests(study: Study) -> list[dict[str, str | None]]:
    also = [] if study.task.also is None else [(study.task.also.digest, study.task.also.until.isoformat())]
    return [{"digest": digest, "until": until} for digest, until in ((study.task.digest, None), *also)]


def _summary_of_unsound(offer: Unsound) -> dict[str, Any]:
    refusals = [{"code": offer.problem.code, "text": str(offer.problem)}]
    return {"name": offer.name, "digest": offer.digest.hex(), "may_be_approved": False, "refusals": refusals}


def _refusals(assessment: Assessment) -> list[QuorateError]:
    return [each for each in (assessment.roster, assessment.task, assessment.policy) if each is not None]


def _standing(assessment: Assessment) -> str:
    return ", ".join(refusal.code for refusal in _refusals(assessment)) or "can be approved"


def _node_config(pairs: list[str]) -> NodeConfig:
    """``KEY=VALUE`` pairs; a value that reads as a number, true or false is one."""
    found: NodeConfig = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise InputError("A setting of node_config is malformed", expected="KEY=VALUE", got=pair[:80])
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[key] = value if isinstance(value, int | float | bool | str) else text
    return found
