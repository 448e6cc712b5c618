"""Attacks on the people in the test part: what an evaluation tells a curious site, and a server that chooses models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.schemes import plain_scheme_of
from quorate.errors import ContributionError, ProtectionRefusedError
from quorate.identity import RunId, SiteName
from quorate.privacy.accounting import noise_multiplier_for
from quorate.privacy.evaluation import tally_form
from quorate.privacy.noise import SeededRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.rounds.rates import OWN_COUNTS
from quorate.study.study import Rounds, Study
from quorate.tally import LOG_ODDS_SCALE, ClassificationTally
from quorate.wire.sum_messages import PlainOpening, SumRef, SumWork, plain_opening_to_bytes, sum_answer_from_bytes
from quorate_client.approval.policy import Policy, PrivacyPolicy
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.rounds.evaluation import Evaluator
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.rounds.training import Accounting
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.site.database import make_state
from quorate_client.tasks.models.scoring import tally
from tests.attacks.test_privacy_server import TRAINING, agreed, target
from tests.client.conftest import POLICY
from tests.client.engine_kit import (
    ServerPart,
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_study,
    records_of,
    site,
)
from tests.client.ledger_kit import KEY

Floats = npt.NDArray[np.float64]
SITES, ROUNDS, EACH, FEATURES = 4, 20, 50, 8

# --- a curious site under secure aggregation, which knows what some people's records say ------------------------------


def secret_study(evaluate: str | None = None, **privacy: Any) -> Study:
    return Study.model_validate(
        {
            "consortium": "testers",
            "name": "hearts",
            "purpose": "To see whether it works",
            "task": {"name": "tabular-classifier", "digest": "0" * 64},
            "rounds": {"count": ROUNDS, "quorum": 3, "evaluate": evaluate},
            "privacy": {"delta": 1e-3, "training": TRAINING} | privacy,
            "sites": [{"name": f"site-{i}", "signing_key": f"{i:064x}"} for i in range(SITES)],
        }
    )


@dataclass(frozen=True)
class People:
    """Features (n, FEATURES) and labels (n,)."""

    x: Floats
    y: npt.NDArray[np.int64]

    @classmethod
    def born(cls, rng: np.random.Generator, count: int) -> People:
        x = rng.normal(size=(count, FEATURES))
        return cls(x, (x[:, 0] + x[:, 1] + rng.normal(size=count) > 0).astype(np.int64))

    def counted(self, model: Floats) -> ClassificationTally:
        odds = self.x @ model
        return tally(odds[:, None], np.logaddexp(0, np.where(self.y == 1, -odds, odds)), self.y)


@dataclass
class Task:
    """What a site's worker does: counts its own held-out people with the model that it is given."""

    people: People
    model: Floats = field(default_factory=lambda: np.zeros(FEATURES))

    async def evaluate(self, state: ModelState) -> tuple[int, ...]:
        return self.people.counted(self.model).encode()


def trajectory(rng: np.random.Generator) -> list[Floats]:
    """Models as private training gives them: towards the truth, with noise that changes in every round."""
    truth = np.array([1.5, 1.5, *[0.0] * (FEATURES - 2)])
    return [truth * number / ROUNDS + rng.normal(scale=0.3, size=FEATURES) for number in range(1, ROUNDS + 1)]


def opened(folder: Path, study: Study, sites: Sequence[People], models: Sequence[Floats]) -> list[tuple[int, ...]]:
    """The sums of what sites tell of each model, as every site of the study opens them; empty where none is told."""
    by_site: list[list[tuple[int, ...]]] = []
    for index, people in enumerate(sites):
        (folder / str(index)).mkdir()
        make_state(folder / f"{index}/state")
        ledger = open_ledger(folder / f"{index}/ledger", folder / f"{index}/state", KEY, shipped_accountants())
        accounting = Accounting(ledger, PrivacyPolicy, lambda: 1.7e9)
        evaluator, task = Evaluator(study, accounting, partial(SeededRandomness, bytes([index] * 32))), Task(people)
        agreement = Agreement(
            study, study.digest(), SiteName(f"site-{index}"), Dataset("visits", "tabular", folder, {}, 0.2, EACH), {}
        )
        told = []
        for number, task.model in enumerate(models, start=1):
            run, name = RunId("run-1"), SiteName(f"site-{index}")
            work = message_id(run, number + 1, Phase.UPLOAD, 0, name)
            instruction = Instruction(work, run, number + 1, Phase.UPLOAD, 0, study.digest(), 60.0, b"")
            answer = evaluator.evaluate(cast(TaskCalls, task), cast(ModelState, None), number, instruction, agreement)
            told.append(asyncio.run(answer))
        ledger.close()
        by_site.append(told)
    return [tuple(map(sum, zip(*words, strict=True))) for words in zip(*by_site, strict=True)]


def best_advantage(folder: Path, study: Study) -> float:
    """How much more often members than others are called members, by the best of two simple rules and thresholds.

    The attacker looks up in every sum how many people of the known label are in the known person's bin. Whoever is
    there is never alone with nobody.
    """
    rng = np.random.default_rng(11)
    sites = [People.born(rng, EACH) for _ in range(SITES)]
    strangers, models = People.born(rng, SITES * EACH), trajectory(rng)
    members = People(np.concatenate([site.x for site in sites]), np.concatenate([site.y for site in sites]))
    form = tally_form(study)
    seen: dict[str, list[Floats]] = {"members": [], "strangers": []}
    for model, words in zip(models, opened(folder, study, sites, models), strict=True):
        if not words:
            continue
        others, positives = np.reshape(ClassificationTally.decode(words, form).histograms, (2, form.bins))[::-1]
        for name, people in (("members", members), ("strangers", strangers)):
            bins = (form.bins / (1 + np.exp(-(people.x @ model) / LOG_ODDS_SCALE))).astype(int)
            seen[name].append(np.where(people.y == 1, positives[bins], others[bins]) / form.one)
    rules = (np.min, np.mean)
    return max(_advantage(rule(seen["members"], axis=0), rule(seen["strangers"], axis=0)) for rule in rules)


def _advantage(members: Floats, strangers: Floats) -> float:
    thresholds = np.unique(np.concatenate([members, strangers]))
    return max(float((members >= t).mean() - (strangers >= t).mean()) for t in thresholds)


def test_exact_histograms_of_each_round_say_who_is_held_out(tmp_path: Path) -> None:
    """What a study has to ask for, and what its statement says. Without it the refusals below would mean nothing."""
    asked_for = secret_study("each").model_copy(update={"privacy": None})
    assert best_advantage(tmp_path, asked_for) > 0.9


def test_a_curious_site_cannot_tell_who_is_held_out_in_a_private_study(tmp_path: Path) -> None:
    assert best_advantage(tmp_path, secret_study()) < 0.25


def test_a_curious_site_cannot_tell_from_noisy_histograms_of_each_round(tmp_path: Path) -> None:
    noise = noise_multiplier_for(3.0, 1e-3, 1.0, ROUNDS + 1)
    assert best_advantage(tmp_path, secret_study("each", evaluation={"noise_multiplier": noise})) < 0.25


# --- a server that makes up the models -------------------------------------------------------------------------------


def a_sum(number: int, updates: Blob | None, opening: PlainOpening) -> SumRef:
    return SumRef(number, 0, updates, Blob.of(plain_opening_to_bytes(opening)))


async def most_of_a_feature(server: ServerPart, folder: Path) -> float:
    """A server without protection reads the largest value of a site's first feature, a question a bit.

    It makes up the statistics, so that nothing is centred, and the sum of the first round, which takes the model from
    the public first one to ``(x[0] - threshold) / 2``. The counts say how many people lie above the threshold.
    """
    scheme, north = plain_scheme_of(server.study), (SiteName("north"),)
    first = np.random.default_rng(server.study.seed).normal(size=4).astype(np.float32)
    low, high = 0.0, 8.0
    async with site(server, folder) as victim:
        asked = SumWork(sums=(a_sum(0, None, PlainOpening(north, (1, 1, 0, 0, 0), b"", b"")),))
        start = sum_answer_from_bytes((await victim.perform(server.instruction(Phase.UPLOAD, 1, asked))).body).model
        for _ in range(24):
            threshold = (low + high) / 2
            words, _ = scheme.encode(np.array([0.5, 0.0, 0.0, -threshold / 2]) - first, WEIGHT_ONE)
            updates = Blob.of(words.astype("<u4").tobytes())
            statistics = PlainOpening(north, (1, 1, 0, 0, 0), b"", b"")
            made_up = PlainOpening(north, (WEIGHT_ONE, 1, 0, 0), updates.id, start)
            work = SumWork(sums=(a_sum(0, None, statistics), a_sum(1, updates, made_up)))
            reply = await victim.perform(server.instruction(Phase.UPLOAD, 2, work))
            counts = sum_answer_from_bytes(reply.body).plain_counts
            counted = ClassificationTally.decode(counts[OWN_COUNTS:])
            is_somebody_above = counted.confusion[1] + counted.confusion[3] > 0
            low, high = (threshold, high) if is_somebody_above else (low, threshold)
    return high


@pytest.mark.usefixtures("installed")
async def test_a_server_that_chooses_the_models_reads_values_where_a_policy_lets_it(tmp_path: Path) -> None:
    """What ``evaluation_without_protection`` is for."""
    study = make_study(rounds=Rounds(count=3, quorum=3))
    read = await most_of_a_feature(ServerPart(study, tmp_path / "server"), tmp_path / "site")
    assert read == pytest.approx(records_of("north")[0][:, 0].max(), abs=1e-5)
    with pytest.raises(ProtectionRefusedError):
        Policy(protection=frozenset({"none"}), tasks=frozenset({"linear"})).check(study)


async def test_a_site_whose_policy_says_nothing_of_it_touches_no_record_for_a_server_that_reads_counts(
    tmp_path: Path,
) -> None:
    closed = POLICY.replace("evaluation_without_protection = true\n", "")
    async with target(tmp_path, agreed, closed) as site:
        for number in range(3):
            assert await site.answer(agreed(site.services), Phase.UPLOAD, number) == "protection_refused"
        assert site.engine.performed == []
        assert {code for _, code in site.refusals()} == {"protection_refused"}


@pytest.mark.usefixtures("installed")
async def test_a_site_counts_nothing_for_a_server_that_asks_after_another_round_than_was_agreed(tmp_path: Path) -> None:
    study = make_study(rounds=Rounds(count=3, quorum=3, evaluate="last"))
    with pytest.raises(ContributionError):  # there are no counts to read
        await most_of_a_feature(ServerPart(study, tmp_path / "server"), tmp_path / "site")
