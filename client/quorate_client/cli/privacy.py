"""Commands that plan what privacy costs before it is spent."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.errors import InputError
from quorate.privacy.plan import TrainingPlan
from quorate.study.study import Study
from quorate.study.task_digest import task_reference
from quorate_client.approval.installed_tasks import InstalledTasks
from quorate_client.approval.offers import find_offer
from quorate_client.approval.policy import Policy, PrivacyPolicy
from quorate_client.approval.policy_file import policy_now
from quorate_client.approval.privacy_cost import Outlook, account_of, outlook_of, plan_training
from quorate_client.cli.data import site_datasets
from quorate_client.cli.ledger import site_ledger
from quorate_client.cli.output import DEFAULT_STATE, JsonOption, StateOption, cell, out, say, show_json, table
from quorate_client.cli.studies import StudyArgument, open_review
from quorate_client.site.agreement import Dataset, for_study
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.loading import load_task

app = typer.Typer(help="Plan what privacy costs before it is spent.", no_args_is_help=True)

KEEP_HERE = "Computed from the records without any account of privacy: keep these figures at the site."
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", metavar="NAME", help="The registered data set; needed if there are several.")
]


@app.command()
def plan(
    study: StudyArgument,
    dataset: DatasetOption = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show what a study would do and cost on a data set here. Trains nothing and spends nothing."""
    with open_review(state) as opened:
        offered = find_offer(opened.client.offers(), study).study
    if offered.privacy is None or offered.privacy.training is None:
        raise InputError(
            f"The study {offered.name} has no [privacy.training], so there is nothing per record to plan",
            action="`quorate-client policy check STUDY` shows whether this site's policy allows it",
        )
    policy = require_meant(state, offered).privacy
    chosen = choose_dataset(state, offered, dataset)
    units = training_units(offered, chosen)
    made = plan_training(offered, policy, units)
    if made is None:
        raise InputError(f"The study {offered.name} plans no private training")
    account = account_of(chosen)
    with site_ledger(state) as ledger:
        begun, unbounded = ledger.committed(account, offered.digest()), ledger.unbounded(account)
    outlook = outlook_of(made, begun, len(unbounded), offered.privacy.delta, policy)
    if as_json:
        show_json(_as_json(offered, chosen, units, made, outlook))
    else:
        _print(offered, chosen, units, made, outlook, policy)


@app.command()
def explore(
    study: StudyArgument,
    dataset: DatasetOption = None,
    epsilons: Annotated[
        str, typer.Option(metavar="LIST", help="The epsilons to try, with commas between them.")
    ] = "0.5,1,2,4,8",
    repeat: Annotated[int, typer.Option(min=1, max=100, help="How often each is tried.")] = 3,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it too: .svg, .png or .pdf.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Try a study's training on a data set here, alone, at several epsilons: how good does the model get?

    The figures are computed from the records without any account of privacy. Keep them at the site.
    """
    tried = parse_epsilons(epsilons)
    with open_review(state) as opened:
        offered = find_offer(opened.client.offers(), study).study
    if offered.privacy is None or offered.privacy.training is None:
        raise InputError(f"The study {offered.name} has no [privacy.training], so there is nothing to try")
    require_meant(state, offered)
    from quorate_client.cli.explore import draw, explore_study  # imports torch

    points = explore_study(offered, choose_dataset(state, offered, dataset), tried, repeat)
    if plot is not None:
        draw(points, f"{offered.name}, trained at this site alone", plot)
    if as_json:
        show_json([asdict(point) for point in points])
        return
    rows = table("epsilon", "AUC", "lowest", "highest", "noise")
    for point in points:
        label = "none" if point.epsilon is None else f"{point.epsilon:g}"
        noise = "-" if point.noise_multiplier is None else f"{point.noise_multiplier:.3g}"
        rows.add_row(label, f"{point.auc:.4f}", f"{point.lowest:.4f}", f"{point.highest:.4f}", noise)
    out().print(rows)
    say(KEEP_HERE, "yellow")
    if plot is not None:
        say(f"Drawn in {plot}.")


def require_meant(state: Path, study: Study) -> Policy:
    """Before any code of a study's task runs in this process: nobody here may have approved it yet.

    Returns:
        The site's policy, as it is on disk at this moment.

    Raises:
        PolicyError: the site's policy does not name the task. TaskMissingError, TaskMismatchError: what is installed is
            not what the study means.
    """
    policy = policy_now(SiteFolder(state))
    policy.check_task(study)
    InstalledTasks(time.monotonic).check(study.task, datetime.now(UTC))
    return policy


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Numbers above 0 with commas between them."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(0 < epsilon < 100 for epsilon in found):
        raise InputError("The epsilons to try are malformed", expected="numbers like 0.5,1,2", got=text[:80])
    return found


def choose_dataset(state: Path, study: Study, name: str | None) -> Dataset:
    """The registered data set of that name, or the only one of the study's kind."""
    with site_datasets(state) as datasets:
        return for_study(datasets.choose(study, name), study)


def training_units(study: Study, dataset: Dataset) -> int:
    """From how many records or units of a data set a study would draw. The task's code reads it."""
    from quorate_client.tasks.data.datasets import units_trained_on  # imports numpy

    task = load_task(task_reference(study.task.name))
    return units_trained_on(dataset, task.open(study.task.parameters, dataset, study.seed).records)


def _as_json(study: Study, dataset: Dataset, units: int, made: TrainingPlan, outlook: Outlook) -> dict[str, Any]:
    return {
        "study": study.name,
        "dataset": dataset.name,
        "unit": dataset.unit,
        "units": units,
        "sampling_rate": made.sampling_rate,
        "noise_multiplier": made.noise_multiplier,
        "steps_per_round": made.steps,
        "rounds": made.rounds,
        "epsilon_of_study": outlook.stated,
        "epsilon_before": outlook.before,
        "epsilon_after": outlook.after,
        "unbounded_runs": outlook.unbounded,
        "limits": {name: limit for name, (limit, _) in outlook.limits.items()},
        "refused_by": outlook.refused_by,
        "rounds_left": outlook.rounds_left,
    }


def _print(
    study: Study, dataset: Dataset, units: int, made: TrainingPlan, outlook: Outlook, policy: PrivacyPolicy
) -> None:
    delta = study.privacy.delta if study.privacy else 0.0
    rows = table("", "", title=f"{study.name} on {dataset.name}: {units} training {dataset.unit}s, delta {delta:g}")
    rows.add_row("promised to", _unit_in_words(dataset))
    rows.add_row("each step", f"a {dataset.unit} is in it with chance {made.sampling_rate:.4f}")
    rows.add_row("noise", f"{made.noise_multiplier:.4g} x the clipping norm on the sum of a step's gradients")
    rows.add_row("all of it", f"{made.rounds} rounds of {made.steps} steps, spare rounds included")
    rows.add_row("the study costs", f"epsilon {outlook.stated:.3f} per {dataset.unit} (PLD: a fixed plan)")
    at = f"at the policy's delta {policy.delta:g}"
    rows.add_row("begun so far", f"epsilon {outlook.before:.3f} {at} (RDP: whole studies)")
    rows.add_row("with the study", f"epsilon {outlook.after:.3f} {at}")
    if outlook.unbounded:
        rows.add_row("without bound", cell(f"runs that released these records: {outlook.unbounded}", "bold yellow"))
    for name, (limit, epsilon) in outlook.limits.items():
        verdict = cell("within", "green") if epsilon <= limit else cell("REFUSED", "bold red")
        rows.add_row(cell(f"{name} = {limit:g}"), verdict)
    if outlook.rounds_left is not None:
        rows.add_row("rounds left", f"{outlook.rounds_left} like these until the policy's limit")
    out().print(rows)
    if not outlook.limits:
        say("The policy has no limit on what this data set may spend.", "yellow")


def _unit_in_words(dataset: Dataset) -> str:
    if dataset.unit == "record":
        return "one record; a person with several is promised less"
    return "one unit, with all its records"
