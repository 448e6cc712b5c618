"""The commands with which an administrator plans: what a study costs, what the policy says, what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.privacy.accounting import adaptive_epsilon, epsilon
from quorate.privacy.events import Event
from quorate.study.study import Protection, Rounds, Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.cli import explore, privacy
from quorate_client.cli.explore import Point, draw
from quorate_client.ledger.entries import Account, Charge, Limits, Registered
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys

from ..command_kit import Run
from ..conftest import POLICY, make_study
from ..consortium import Server
from ..ledger_kit import opened
from .test_cli import SCHEMA, TABULAR, run

__all__ = ["run"]

RECORDS = 500
DELTA = 5e-4
TRAINING = {"clip": 1.0, "batch_size": 40, "steps": 5, "epsilon": 3.0}


@pytest.fixture
def registered(run: Run, joined: SiteFolder, tmp_path: Path) -> SiteFolder:
    """A site with a data set in which the older are ill."""
    ages = np.random.default_rng(3).integers(0, 121, RECORDS)
    table = tmp_path / "patients.csv"
    table.write_text("age,ill\n" + "".join(f"{age},{'yes' if age > 60 else 'no'}\n" for age in ages))
    schema = tmp_path / "schema.toml"
    schema.write_text(SCHEMA)
    assert run("data", "add", "patients", table, "--schema", schema).code == 0
    return joined


def offer(services: Server, name: str = "hearts", **changes: Any) -> Study:
    parameters = {"schema": _SCHEMA, "standardise": "range", "learning_rate": 0.5}
    content: dict[str, Any] = {
        "name": name,
        "task": TaskRef(name=TABULAR, digest=task_digest(TABULAR), parameters=parameters),
        "guest": None,
        "rounds": Rounds(count=4, quorum=3),
        "protection": Protection(mode="none"),
        "privacy": {"delta": DELTA, "training": TRAINING},
    }
    study = make_study(services, **content | changes)
    services.studies.append(study)
    return study


_SCHEMA: dict[str, Any] = {
    "kind": "tabular",
    "columns": [{"name": "age", "type": "integer", "range": [0.0, 120.0]}],
    "label": {"name": "ill", "classes": ["no", "yes"]},
}


def spend(folder: SiteFolder, *events: Event) -> None:
    with opened(folder.root, key=load_keys(folder.keys).signing) as ledger:
        charge = Charge(Account("patients", "record"), "earlier", b"e" * 32, "run-0", 1, 0, events)
        ledger.spend(ledger.reserve(charge, Limits(DELTA), 1.7e9), events)


@pytest.mark.parametrize("command", ["plan", "explore"])
def test_no_code_of_a_task_runs_that_is_not_what_the_study_means_or_that_the_policy_does_not_name(
    run: Run, registered: SiteFolder, services: Server, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (privacy, explore):
        monkeypatch.setattr(module, "load_task", lambda _: pytest.fail("code of the task was loaded"))
    other = TaskRef(name=TABULAR, digest="0" * 64, parameters={"schema": _SCHEMA, "standardise": "range"})
    offer(services, "other", task=other)
    refused = run("privacy", command, "other")
    assert (refused.code, "is not the one" in refused.err) == (3, True)
    offer(services)
    policy = registered.policy
    policy.write_text(policy.read_text().replace(', "tabular-classifier"', ""))
    refused = run("privacy", command, "hearts")
    assert (refused.code, "does not allow" in refused.err) == (3, True)


# --- plan ---


def test_a_plan_says_what_the_study_costs_and_leaves(run: Run, registered: SiteFolder, services: Server) -> None:
    offer(services)
    earlier = Event(2.0, 0.1, 50)
    spend(registered, earlier)
    registered.policy.write_text(POLICY + f"[privacy]\ndelta = {DELTA}\nepsilon_per_run = 3.5\nepsilon_ever = 9.0\n")

    plan = run("privacy", "plan", "hearts", "--json").json()

    made = Event(plan["noise_multiplier"], plan["sampling_rate"], 5 * 5)
    assert plan["sampling_rate"] == 40 / plan["units"]
    assert (plan["steps_per_round"], plan["rounds"]) == (5, 5)
    assert plan["epsilon_of_study"] == pytest.approx(epsilon([made], DELTA))
    assert 2.9 < plan["epsilon_of_study"] <= 3.0
    assert plan["epsilon_before"] == pytest.approx(adaptive_epsilon([earlier], DELTA))
    assert plan["epsilon_after"] == pytest.approx(adaptive_epsilon([earlier, made], DELTA))
    assert (plan["limits"], plan["refused_by"]) == ({"epsilon_per_run": 3.5, "epsilon_ever": 9.0}, [])
    of_rounds = [Event(made.noise_multiplier, made.sampling_rate, 5 * more) for more in (0, 1)]
    left = plan["rounds_left"] * 5
    affordable = [earlier, Event(made.noise_multiplier, made.sampling_rate, left)]
    assert adaptive_epsilon(affordable, DELTA) <= 9.0 < adaptive_epsilon([*affordable, of_rounds[1]], DELTA)
    shown = run("privacy", "plan", "hearts")
    assert (shown.code, "within" in shown.out, "REFUSED" in shown.out) == (0, True, False)


def test_a_plan_is_held_at_the_policy_s_delta_and_states_the_study_s(
    run: Run, registered: SiteFolder, services: Server
) -> None:
    offer(services)
    registered.policy.write_text(POLICY + "[privacy]\ndelta = 1e-7\nepsilon_per_run = 3.5\n")
    plan = run("privacy", "plan", "hearts", "--json").json()
    made = Event(plan["noise_multiplier"], plan["sampling_rate"], 5 * 5)
    assert plan["epsilon_of_study"] == pytest.approx(epsilon([made], DELTA))
    assert plan["epsilon_after"] == pytest.approx(adaptive_epsilon([made], 1e-7))
    assert plan["refused_by"] == ["epsilon_per_run"]


def test_a_plan_says_that_records_were_released_without_a_bound(
    run: Run, registered: SiteFolder, services: Server
) -> None:
    offer(services)
    with opened(registered.root, key=load_keys(registered.keys).signing) as ledger:
        ledger.record_unbounded(Account("patients", "record"), "plain", b"p" * 32, "run-0")
    assert "runs that released these records: 1" in run("privacy", "plan", "hearts").out
    registered.policy.write_text(POLICY + "[privacy]\nepsilon_ever = 1e6\n")
    plan = run("privacy", "plan", "hearts", "--json").json()
    assert (plan["unbounded_runs"], plan["refused_by"], plan["rounds_left"]) == (1, ["epsilon_ever"], 0)
    registered.policy.write_text(POLICY + '[privacy]\nepsilon_ever = 1e6\nunbounded = "set_aside"\n')
    assert run("privacy", "plan", "hearts", "--json").json()["refused_by"] == []


def test_a_plan_shows_which_limit_will_refuse_the_study(run: Run, registered: SiteFolder, services: Server) -> None:
    offer(services)
    registered.policy.write_text(POLICY + "[privacy]\nepsilon_ever = 2.0\n")
    assert run("privacy", "plan", "hearts", "--json").json()["refused_by"] == ["epsilon_ever"]
    assert "REFUSED" in run("privacy", "plan", "hearts").out


def test_planning_spends_nothing(run: Run, registered: SiteFolder, services: Server) -> None:
    offer(services)
    assert run("privacy", "plan", "hearts").code == 0
    with opened(registered.root, key=load_keys(registered.keys).signing) as ledger:
        assert [type(entry.content) for entry in ledger.entries.all()] == [Registered]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"privacy": None}, 2, "nothing per record to plan"),
        ({"privacy": {"delta": 0.05, "training": TRAINING}}, 3, "privacy.delta = 0.05"),
        ({"privacy": {"delta": DELTA, "training": TRAINING | {"batch_size": 400}}}, 3, "too few records"),
    ],
    ids=["no privacy", "delta", "batch"],
)
def test_a_plan_that_cannot_be_made_says_why(
    run: Run, registered: SiteFolder, services: Server, changes: dict[str, Any], code: int, said: str
) -> None:
    offer(services, **changes)
    result = run("privacy", "plan", "hearts")
    assert (result.code, said in result.err) == (code, True), result.err


# --- policy check and diff ---


def test_a_study_is_held_against_the_policy_rule_by_rule(run: Run, registered: SiteFolder, services: Server) -> None:
    offer(services)
    assert run("policy", "check", "hearts").code == 0
    registered.policy.write_text(POLICY + "[privacy]\nlargest_clip = 0.5\nleast_noise = 1.0\n")
    refused = run("policy", "check", "hearts", "--json")
    assert refused.code == 3
    verdicts = {rule["policy"]: rule["code"] for rule in refused.json()["rules"]}
    assert verdicts["privacy.largest_clip = 0.5"] == "privacy_refused"
    assert [code for code in verdicts.values() if code] == ["privacy_refused"]
    assert "refused (privacy_refused)" in run("policy", "check", "hearts").out


def test_two_studies_are_compared_key_by_key(run: Run, registered: SiteFolder, services: Server) -> None:
    offer(services)
    offer(services, "hearts-2", privacy={"delta": DELTA, "training": TRAINING | {"epsilon": 8.0}}, approvals=2)
    changes = {each["key"]: (each["old"], each["new"]) for each in run("diff", "hearts", "hearts-2", "--json").json()}
    assert changes == {
        "approvals": (1, 2),
        "name": ("hearts", "hearts-2"),
        "privacy.training.epsilon": (3.0, 8.0),
    }
    assert "privacy.training.epsilon" in run("diff", "hearts", "hearts-2").out


# --- explore ---


def test_exploring_shows_what_privacy_costs_in_accuracy_and_spends_nothing(
    run: Run, registered: SiteFolder, services: Server, tmp_path: Path
) -> None:
    offer(services)
    plot = tmp_path / "explored.png"
    result = run("privacy", "explore", "hearts", "--epsilons", "0.1,8", "--repeat", "2", "--plot", plot, "--json")
    openly, strict, loose = result.json()
    assert (openly["epsilon"], strict["epsilon"], loose["epsilon"]) == (None, 0.1, 8.0)
    assert strict["noise_multiplier"] > loose["noise_multiplier"]
    assert openly["auc"] > 0.99
    assert loose["auc"] > 0.9
    assert strict["lowest"] <= strict["auc"] <= strict["highest"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    with opened(registered.root, key=load_keys(registered.keys).signing) as ledger:
        assert [type(entry.content) for entry in ledger.entries.all()] == [Registered]


@pytest.mark.parametrize("text", ["", "0", "one", "1,,2", "-1", "1e9", "nan"])
def test_epsilons_that_are_none_are_a_mistake_of_input(run: Run, joined: SiteFolder, text: str) -> None:
    assert run("privacy", "explore", "hearts", "--epsilons", text).code == 2


def test_a_plot_in_another_format_is_a_mistake_of_input(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"\.svg or \.png or \.pdf"):
        draw([Point(1.0, 1.0, 0.9, 0.8, 1.0)], "hearts", tmp_path / "plot.xls")
