"""Patients with many rows: a promise per row says little to them, and their rows lay on both sides of the split.

With five rows of a patient "epsilon 3" was 20.7 for the patient, with ten 52.8. Where a data set names the unit of each
record, a unit is what is split, drawn, clipped and accounted for, and the name of its column stays at the site.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from quorate.errors import PrivacyUnsupportedError, StudyError
from quorate.identity import RunId, SiteName
from quorate.privacy.events import Event
from quorate.privacy.plan import training_plan
from quorate.process.randomness import Randomness, SystemRandomness
from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.study.privacy_section import Privacy, TrainingPrivacy
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.entries import Account, Spent
from quorate_client.rounds.training import Accounting, Trainer
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.data.datasets import load_images, load_table, unchanged_index
from quorate_client.tasks.data.schema import ImageSchema, TabularSchema, parse_schema
from quorate_client.tasks.tabular import NAME, TASK
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.tasks.training.sampling import Units
from quorate_client.tasks.training.sgd import LocalSettings, log_loss
from quorate_client.workers.compared_code import ComparedCode
from quorate_client.workers.host import TaskHost
from tests.attacks.records_kit import RecordsSite
from tests.client.cli.test_privacy import DELTA, TRAINING, offer
from tests.client.command_kit import Result, runner
from tests.client.consortium import Server
from tests.client.rounds.test_training import Task, study

COLUMN = "patient number"
SCHEMA: dict[str, Any] = {
    "kind": "tabular",
    "columns": [{"name": "age", "type": "number", "range": [0, 120]}],
    "label": {"name": "ill", "classes": ["no", "yes"]},
}
FILE = """
kind = "tabular"
[[columns]]
name = "age"
type = "number"
range = [0, 120]
[label]
name = "ill"
classes = ["no", "yes"]
"""
PARAMETERS = {"schema": SCHEMA, "standardise": "range"}
PATIENTS = 200


class Target(RecordsSite):
    def add(self, name: str, patients: Sequence[str], *more: str, seed: int = 1) -> Result:
        """Register a row for each of these, with an age that no other row has."""
        ages = np.random.default_rng(seed).uniform(0, 120, len(patients)).tolist()
        rows = [(p, age, "no" if age < 60 else "yes") for p, age in zip(patients, ages, strict=True)]
        return self.register(name, (COLUMN, "age", "ill"), rows, FILE, *(more or ("--unit", COLUMN)))


@pytest.fixture
def target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, joined: SiteFolder, tmp_path: Path
) -> Target:
    files = tmp_path / "files"
    files.mkdir()
    return Target(joined, files, runner(capsys, monkeypatch, joined))


def visits(patients: int = PATIENTS, each: int = 5) -> list[str]:
    """Numbers of patients, a row for each of their visits, in the order of time."""
    return [f"{1000 + patient}" for _ in range(each) for patient in range(patients)]


def wanted() -> TabularSchema:
    parsed = parse_schema(SCHEMA, "The study")
    assert isinstance(parsed, TabularSchema)
    return parsed


# --- split and account ------------------------------------------------------------------------------------------------


def test_all_rows_of_a_unit_are_on_one_side(target: Target) -> None:
    assert target.add("visits", visits()).code == 0
    training, test = load_table(target.get("visits"), wanted())
    assert training.units is not None
    assert test.units is not None
    assert not {*training.units.tolist()} & {*test.units.tolist()}
    assert training.records == 5 * len({*training.units.tolist()})
    assert 20 < test.records / 5 < 60


def test_a_unit_stays_on_its_side_whatever_its_rows_say(target: Target) -> None:
    target.add("visits", visits())
    target.add("again", visits(each=2)[::-1], seed=2)
    sides = []
    for name in ("visits", "again"):
        index = unchanged_index(target.get(name))
        assert index.units is not None
        sides.append({*zip(index.units.tolist(), index.held_out.tolist(), strict=True)})
    assert sides[0] == sides[1]


def test_the_same_units_in_another_table_have_one_account(target: Target) -> None:
    target.add("visits", visits())
    target.spend("visits")
    few = visits(30, 1)
    assert "shares the privacy account of visits" in target.add("laboratory", [f"{p}.0" for p in few], seed=2).out
    assert "an account of its own" in target.add("others", [f"x{p}" for p in few], seed=3).out
    with target.ledger() as ledger:
        assert ledger.events(Account("laboratory", "unit")) == [Event(2.0, 0.1, 50)]
        assert ledger.events(Account("others", "unit")) == []


def test_leaving_the_unit_out_begins_no_account(target: Target) -> None:
    """One registration per unit, one per record: they are compared by their records, and have one budget."""
    target.add("visits", visits())
    target.spend("visits")
    schema = target.files / "visits.toml"
    schema.write_text(f'{FILE}\n[file]\nignore = ["{COLUMN}"]\n')
    again = target.run("data", "add", "again", target.files / "visits.csv", "--schema", schema)
    assert "shares the privacy account of visits" in again.out
    target.spend("again")
    (statement,) = target.run("ledger", "show", "--json").json()["accounts"]
    assert (statement["datasets"], statement["unit"]) == (["again", "visits"], "record")


def test_noise_and_sampling_follow_from_the_number_of_units(target: Target, services: Server) -> None:
    """A thousand rows of two hundred patients are two hundred, in the plan as in the account."""
    target.add("visits", visits())
    offer(services, task=TaskRef(name=NAME, digest=task_digest(NAME), parameters=PARAMETERS))
    plan = target.run("privacy", "plan", "hearts", "--json").json()
    training, _ = load_table(target.get("visits"), wanted())
    assert (plan["unit"], plan["units"]) == ("unit", training.records // 5)
    assert plan["sampling_rate"] == TRAINING["batch_size"] / plan["units"]
    privacy = Privacy(delta=DELTA, training=TrainingPrivacy(**TRAINING))
    assert privacy.training is not None
    made = training_plan(privacy, privacy.training, plan["units"], 4)
    assert plan["noise_multiplier"] == made.noise_multiplier
    assert "per unit" in target.run("privacy", "plan", "hearts").out


def test_a_round_is_paid_for_and_drawn_by_units(target: Target) -> None:
    target.add("visits", visits())
    dataset, task, of = target.get("visits"), Task(records=5 * PATIENTS), study(training=TRAINING)
    with target.ledger() as ledger:
        trainer = Trainer(of, bytes, Accounting(ledger, PrivacyPolicy, lambda: 1.7e9))
        name = message_id(RunId("run-1"), 1, Phase.UPLOAD, 0, SiteName("east"))
        instruction = Instruction(name, RunId("run-1"), 1, Phase.UPLOAD, 0, of.digest(), 60.0, b"")
        agreement = Agreement(of, of.digest(), SiteName("east"), dataset, {})
        asyncio.run(trainer.train(cast(Any, task), cast(Any, None), target.files / "update", instruction, agreement))
        paid = [entry.content for entry in ledger.entries.all() if isinstance(entry.content, Spent)]
    batch = float(TRAINING["batch_size"])
    rate = batch / unchanged_index(dataset).counts[0]
    assert [(each.account, each.events[0].sampling_rate) for each in paid] == [(Account("visits", "unit"), rate)]
    assert task.settings is not None
    assert (task.settings.sampling_rate, task.settings.expected_batch) == (rate, pytest.approx(batch))


def test_the_ledger_says_what_the_promise_is_about(target: Target) -> None:
    target.add("visits", visits())
    target.spend("visits")
    assert "visits, per unit" in target.run("ledger", "show", "visits").out


# --- training ---------------------------------------------------------------------------------------------------------

MANY = 50
CPU = torch.device("cpu")


def test_a_step_draws_one_row_of_each_drawn_unit() -> None:
    """Each unit as often as any other, however many rows it has, and each of its rows as often as the others."""
    of_row = np.array([0] + [1] * 5 + [2] * MANY + [0])[::-1].copy()
    units, randomness = Units(len(of_row), of_row), SystemRandomness()
    assert units.count == 3
    times, rows = np.zeros(3), np.zeros(len(of_row))
    steps = 4_000
    for _ in range(steps):
        drawn = units.batch(randomness, 0.25).numpy()
        of_drawn = of_row[drawn]
        assert len({*of_drawn.tolist()}) == len(drawn)
        times[of_drawn] += 1
        rows[drawn] += 1
    sigma = np.sqrt(steps * 0.25 * 0.75)
    assert (np.abs(times - steps * 0.25) < 5 * sigma).all()
    for unit in range(3):
        of_unit = rows[of_row == unit]
        expected = times[unit] / len(of_unit)
        assert ((of_unit - expected) ** 2 / expected).sum() < len(of_unit) + 5 * np.sqrt(2 * len(of_unit))


class AllDrawn(Randomness):
    """Words so low that each unit is drawn, and its first row."""

    def draw(self, size: int) -> bytes:
        return bytes(size)


def moved(rows: int, of_row: np.ndarray[Any, np.dtype[np.int64]] | None) -> float:
    """How far one step moves a model whose only data are so many extreme rows, in clips."""
    settings = LocalSettings(epochs=1, batch_size=1, learning_rate=1.0, weight_decay=0.0, optimizer="sgd")
    features, labels = torch.full((rows, 3), 100.0), torch.ones(rows, dtype=torch.int64)
    training = PrivateTraining(Trainable(torch.nn.Linear(3, 1), features, labels, log_loss, settings, of_row))
    units = rows if of_row is None else len({*of_row.tolist()})
    private = PrivateSettings(clip=0.5, noise_multiplier=1e-9, sampling_rate=0.5, steps=1, units=units)
    updates = [training.train(np.zeros(4, np.float32), private, 0.0) for _ in range(20)]
    return max(float(np.linalg.norm(update)) for update in updates) * private.expected_batch / private.clip


def test_a_unit_moves_a_step_by_one_clip_however_many_rows_it_has() -> None:
    assert moved(MANY, None) > 5
    assert moved(MANY, np.zeros(MANY, np.int64)) == pytest.approx(1.0, rel=1e-4)


def test_the_shipped_task_trains_on_units(target: Target) -> None:
    target.add("visits", visits())
    session = TASK.open(PARAMETERS, target.get("visits"), 1)
    session.begin(())
    theta = session.initial()
    units = unchanged_index(target.get("visits")).counts[0]
    settings = PrivateSettings(clip=1.0, noise_multiplier=1e-9, sampling_rate=0.5, steps=1, units=units)
    training = PrivateTraining(session.trainable())
    updates = [training.train(theta, settings, 0.0) for _ in range(5)]
    longest = max(np.linalg.norm(update) for update in updates) * settings.expected_batch
    assert session.records > 700
    assert longest < 0.1 * PATIENTS  # a tenth is the learning rate


def test_a_task_that_knows_no_units_does_not_train_privately() -> None:
    class Unaware:
        records = 10

        def trainable(self) -> Trainable:
            settings = LocalSettings(epochs=1, batch_size=1, learning_rate=1.0, weight_decay=0.0, optimizer="sgd")
            return Trainable(torch.nn.Linear(3, 1), torch.zeros(10, 3), torch.zeros(10), log_loss, settings)

    host = TaskHost(ComparedCode())
    host._has_units = True
    host._session = Unaware()  # type: ignore[assignment]
    with pytest.raises(PrivacyUnsupportedError, match="of units"):
        host._train_privately({}, "", {}, 0.0)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_name_of_the_column_is_no_part_of_what_others_see(target: Target, services: Server, tmp_path: Path) -> None:
    target.add("visits", visits())
    target.spend("visits")
    session = TASK.open(PARAMETERS, target.get("visits"), 1)
    session.begin(())
    target.run("ledger", "export", tmp_path / "ledger.jsonl")
    told = [str(session.export(session.initial())), (tmp_path / "ledger.jsonl").read_text()]
    offer(services, task=TaskRef(name=NAME, digest=task_digest(NAME), parameters=PARAMETERS))
    told += [target.run("privacy", "plan", "hearts").out, target.run("ledger", "show").out]
    assert all(COLUMN not in text for text in told)
    assert '"unit":"unit"' in told[1].replace(" ", "")


def test_a_unit_is_never_a_feature(target: Target) -> None:
    refused = target.add("visits", visits(), "--unit", "age")
    assert refused.code != 0
    assert "distinct" in refused.err
    assert target.run("data", "list", "--json").json() == []


def test_a_study_that_names_the_column_is_refused() -> None:
    named = {**SCHEMA, "file": {"unit": COLUMN}}
    with pytest.raises(StudyError, match="each site names its own column"):
        TASK.check({**PARAMETERS, "schema": named})


def test_a_record_of_nobody_is_refused_by_its_number(target: Target) -> None:
    refused = target.add("visits", [*visits(), "", *visits(3)])
    assert refused.code != 0
    assert "row 1001" in refused.err
    assert "1002" not in refused.err.replace("row 1001", "")


def test_too_few_units_are_refused_however_many_rows_they_have(target: Target) -> None:
    refused = target.add("visits", visits(3, each=100))
    assert refused.code != 0
    assert "units" in refused.err


# --- pictures ---------------------------------------------------------------------------------------------------------

PICTURES = 'kind = "images"\nheight = 4\nwidth = 4\nchannels = 1\nclasses = ["a", "b"]\n'


def test_pictures_have_units_in_an_array(target: Target) -> None:
    rng = np.random.default_rng(1)
    (target.files / "pictures.toml").write_text(PICTURES)
    path = target.files / "pictures.npz"
    whose = np.arange(120) // 3
    np.savez(path, images=rng.integers(0, 256, (120, 4, 4)).astype(np.uint8), labels=np.arange(120) % 2, whose=whose)
    added = target.run("data", "add", "pictures", path, "--schema", target.files / "pictures.toml", "--unit", "whose")
    assert added.code == 0, added.err
    parsed = parse_schema(
        {"kind": "images", "height": 4, "width": 4, "channels": 1, "classes": ["a", "b"]}, "The study"
    )
    assert isinstance(parsed, ImageSchema)
    training, test = load_images(target.get("pictures"), parsed)
    assert training.units is not None
    assert test.units is not None
    assert training.records == 3 * len({*training.units.tolist()})
    assert not {*training.units.tolist()} & {*test.units.tolist()}


def test_a_folder_of_pictures_with_a_unit_is_refused_with_the_way_out(target: Target) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (target.files / "folder" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (4, 4), number).save(target.files / "folder" / name / f"{number}.png")
    (target.files / "pictures.toml").write_text(PICTURES)
    arguments = ("data", "add", "pictures", target.files / "folder", "--schema", target.files / "pictures.toml")
    refused = target.run(*arguments, "--unit", "whose")
    assert refused.code != 0
    assert ".npz" in refused.err
    assert target.run(*arguments).code == 0
