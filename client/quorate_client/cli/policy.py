"""Commands about the site's policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.attestation.evidence import Kind
from quorate.attestation.policy import AttestationPolicy
from quorate.study.study import Study
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.offers import find_offer
from quorate_client.approval.policy import Policy, Rule
from quorate_client.approval.policy_file import own_attestation_policy, policy_now
from quorate_client.approval.review import refusal_of
from quorate_client.approval.usable import look_at, require_usable
from quorate_client.cli.output import DEFAULT_STATE, JsonOption, StateOption, cell, out, say, show_json, table
from quorate_client.cli.studies import StudyArgument, open_review
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder

app = typer.Typer(help="What this site lets happen, whatever the consortium publishes.", no_args_is_help=True)


@app.command()
def check(
    study: StudyArgument,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Hold this data set against study and policy, too.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Hold a study against policy.toml, rule by rule. Exits with 3 if one refuses it."""
    with open_review(state) as opened:
        offered = find_offer(opened.client.offers(), study).study
    folder = SiteFolder(state)
    policy = policy_now(folder)
    own = own_attestation_policy(folder, policy)
    rules = list(policy.rules(offered))
    refusal = refusal_of(lambda: policy.check(offered))
    if refusal is None and dataset is not None:
        refusal = refusal_of(lambda: _check_dataset(state, offered, policy, dataset))
    if as_json:
        show_json(
            {"study": offered.name, "allowed": refusal is None, "rules": [_as_json(rule) for rule in rules]}
            | {"attestation": offered.attestation.told() if offered.attestation is not None else None}
            | {"own_attestation_policy": own.digest().hex() if own is not None else None}
        )
    else:
        rows = table("policy", "study", "")
        for rule in rules:
            verdict = cell("allowed", "green") if rule.is_met else cell(f"refused ({rule.refusal.code})", "bold red")
            rows.add_row(cell(rule.demand), cell(rule.found), verdict)
        out().print(rows)
        _say_attestation(offered, policy, own)
        if refusal is None:
            say(
                "The policy allows this study. What depends on a data set is checked with --dataset, and what it costs "
                "by `quorate-client privacy plan`."
            )
    if refusal is not None:
        raise refusal


def _say_attestation(study: Study, policy: Policy, own: AttestationPolicy | None) -> None:
    """What evidence has to meet: the study's policy, and the site's own."""
    if study.attestation is None:
        return
    demands = [("The study", study.attestation.policy)]
    if own is not None:
        demands.append((f"This site's {policy.attestation.file}", own))
    for whose, demand in demands:
        say(f"{whose} accepts evidence of: {', '.join(demand.kinds) or 'no kind at all'}.")
        for version in demand.versions():
            say(f"- {version}", "bold red" if version.kind is Kind.SOFTWARE else "")
    if own is not None and not set(own.kinds) & set(study.attestation.policy.kinds):
        say("No kind of evidence meets both: every machine will be refused.", "bold red")


def _check_dataset(state: Path, study: Study, policy: Policy, name: str) -> None:
    with site_state(SiteFolder(state).database) as database:
        datasets = Datasets(database, time.time)
        chosen = datasets.get(name)
        require_usable(chosen, study, policy, look_at(chosen, datasets.find))


def _as_json(rule: Rule) -> dict[str, Any]:
    code = "" if rule.is_met else rule.refusal.code
    return {"policy": rule.demand, "study": rule.found, "allowed": rule.is_met, "code": code}
