"""How good a model gets at several epsilons: a study's training, on one site's records alone, in this process.

Nothing of it goes on the ledger, and nothing of it may leave the site: what comes out was computed from the records
without an account. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quorate.errors import InputError, PrivacyUnsupportedError
from quorate.privacy.plan import TrainingPlan, training_plan
from quorate.study.study import Study
from quorate.study.task_digest import task_reference
from quorate_client.site.agreement import Dataset
from quorate_client.tasks import PrivateSession, PrivateSettings, TaskSession
from quorate_client.tasks.data.datasets import units_trained_on
from quorate_client.tasks.loading import load_task

if TYPE_CHECKING:
    from quorate_client.tasks.training.dp_sgd import PrivateTraining

FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True, slots=True)
class Point:
    """The AUC on the site's test records after all rounds, over the repetitions; epsilon None is without privacy."""

    epsilon: float | None
    noise_multiplier: float | None
    auc: float
    lowest: float
    highest: float


def explore_study(study: Study, dataset: Dataset, epsilons: Sequence[float], repeat: int) -> list[Point]:
    """Train as the study says, once without privacy and ``repeat`` times at each epsilon.

    Raises:
        PrivacyUnsupportedError: the task, the model or the data do not allow it. PrivacyRefusedError: no noise reaches
            an epsilon.
    """
    if study.privacy is None or study.privacy.training is None:
        raise InputError(f"The study {study.name} has no [privacy.training]")
    session = load_task(task_reference(study.task.name)).open(study.task.parameters, dataset, study.seed)
    if not isinstance(session, PrivateSession) or session.statistics():
        raise PrivacyUnsupportedError("The task cannot train with differential privacy as the study sets it")
    session.begin(())
    from quorate_client.tasks.training.dp_sgd import PrivateTraining  # imports torch and Opacus

    private = PrivateTraining(session.trainable())
    training = study.privacy.training
    units = units_trained_on(dataset, session.records)
    points = [_point(None, None, [_train_openly(study, session)])]
    for epsilon in epsilons:
        wanted = training.model_copy(update={"epsilon": epsilon, "noise_multiplier": None})
        plan = training_plan(study.privacy, wanted, units, study.rounds.count)
        found = [_train_privately(study, session, private, training.clip, plan, units) for _ in range(repeat)]
        points.append(_point(epsilon, plan.noise_multiplier, found))
    return points


def draw(points: Sequence[Point], title: str, file: Path) -> None:
    """A plot of AUC against epsilon.

    Raises:
        InputError: not a format that can be drawn.
    """
    if file.suffix not in FORMATS:
        raise InputError("A plot cannot be written in this format", expected=" or ".join(FORMATS), got=file.suffix)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    private = [(point.epsilon, point) for point in points if point.epsilon is not None]
    x = [epsilon for epsilon, _ in private]
    axes.fill_between(x, [p.lowest for _, p in private], [p.highest for _, p in private], alpha=0.2, linewidth=0)
    axes.plot(x, [p.auc for _, p in private], marker="o", label="with differential privacy: mean and range")
    for point in points:
        if point.epsilon is None:
            axes.axhline(point.auc, linestyle="--", color="0.4", label="without")
    axes.set(
        xscale="log",
        xticks=x,
        xlabel="epsilon per record or unit",
        ylabel="AUC on the site's test records",
        title=title,
    )
    axes.set_xticks(x, labels=[f"{epsilon:g}" for epsilon in x])
    axes.minorticks_off()
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(file)


def _train_privately(
    study: Study, session: TaskSession, private: PrivateTraining, clip: float, plan: TrainingPlan, units: int
) -> float:
    theta = session.initial()
    settings = PrivateSettings(clip, plan.noise_multiplier, plan.sampling_rate, plan.steps, units)
    for _ in range(study.rounds.count):
        theta = theta + private.train(theta, settings, 0.0)
    return session.evaluate(theta).metrics(least=1)["auc"]


def _train_openly(study: Study, session: TaskSession) -> float:
    theta = session.initial()
    for number in range(1, study.rounds.count + 1):
        update, _ = session.train(theta, number, number, 0.0)
        theta = theta + update
    return session.evaluate(theta).metrics(least=1)["auc"]


def _point(epsilon: float | None, noise: float | None, found: Sequence[float]) -> Point:
    return Point(epsilon, noise, sum(found) / len(found), min(found), max(found))
