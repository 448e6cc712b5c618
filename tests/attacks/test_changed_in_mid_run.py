"""A data set that is not the one that is accounted for: approved anew with another one, registered anew, or counted by
the task.

A study that was approved again with another data set in mid-run used that one's records without an entry on the ledger.
One that was registered again per unit was charged per unit while a resting worker drew its rows, 771 of them for 167
patients. A task that balanced classes said how many records there were, and one that repeats records was believed.
"""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quorate.errors import PrivacyUnsupportedError, QuorateError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.entries import Account, Spent, Unbounded
from quorate_client.ledger.ledger import Ledger
from quorate_client.rounds.model.state import THETA_OFFSET
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.rounds.training import Accounting, Trainer
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.tasks.data.datasets import register, unchanged_index
from quorate_client.tasks.data.record_index import RecordIndex, write_index
from quorate_client.tasks.data.schema import named_unit
from quorate_client.tasks.training.sampling import Units
from tests.client.data_kit import a_site, an_index
from tests.client.engine_kit import (
    RUN,
    ServerPart,
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_study,
    site,
)
from tests.client.in_process import InProcessWorkers
from tests.client.ledger_kit import opened
from tests.client.rounds.test_training import RECORDS, TRAINING, Site, study
from tests.client.rounds.test_training import site as private_site

__all__ = ["private_site"]

SCHEMA: dict[str, Any] = {
    "kind": "tabular",
    "columns": [{"name": "age", "type": "number", "range": [0, 120]}],
    "label": {"name": "ill", "classes": ["no", "yes"]},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path) as made:
        yield made


def accounting(ledger: Ledger) -> Accounting:
    return Accounting(ledger, PrivacyPolicy, lambda: 1.7e9)


def used(ledger: Ledger) -> list[Account | None]:
    return [entry.content.account for entry in ledger.entries.all() if isinstance(entry.content, Unbounded)]


# --- approved anew ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
async def test_a_study_that_is_approved_with_another_data_set_in_mid_run_is_on_that_ones_account_too(
    tmp_path: Path, ledger: Ledger
) -> None:
    server = ServerPart(make_study(), tmp_path / "server")
    async with site(server, tmp_path / "site", accounting=accounting(ledger)) as north:
        first = north.agreement.dataset
        assert first is not None
        await north.sum_alone(0)
        numbers = RecordIndex(("a",), 0.2, "a key", np.arange(10_000, 10_300, dtype=np.uint64), None)
        archive = replace(first, name="archive", index=write_index(first.index.parent, numbers))
        for dataset in (archive, replace(archive, units=20), first):
            north.agreement = replace(north.agreement, dataset=dataset)
            await north.perform(server.instruction(Phase.UPLOAD, 1))
    trained_on = [account for account in used(ledger) if account is None or account.part == "training"]
    assert trained_on == [Account("records", "record"), Account("archive", "record")]  # either unit is one account


@pytest.mark.usefixtures("installed")
async def test_another_study_under_the_name_of_a_run_ends_nothing_of_the_run(tmp_path: Path, ledger: Ledger) -> None:
    server = ServerPart(make_study(), tmp_path / "server")
    async with site(server, tmp_path / "site", accounting=accounting(ledger)) as north:
        await north.do(Phase.UPLOAD)
        live = dict(north.engine._live)
        other = make_study(purpose="another")
        agreement = replace(north.agreement, study=other, digest=other.digest())
        asked = replace(server.instruction(Phase.UPLOAD), study_digest=other.digest())
        with pytest.raises(QuorateError, match="two studies"):
            await north.engine.perform(asked, agreement, north.fetch)
        assert north.engine._live == live


@pytest.mark.usefixtures("installed")
async def test_a_guest_app_counts_for_all_data_sets_whichever_it_was_approved_with(
    tmp_path: Path, ledger: Ledger
) -> None:
    server = ServerPart(make_study(guest=True), tmp_path / "server")
    name = message_id(RUN, 1, Phase.GUEST, 0, SiteName("north"))
    asked = Instruction(name, RUN, 1, Phase.GUEST, 0, server.study.digest(), 60.0, blobs=(Blob.of(b"?"),))
    async with site(server, tmp_path / "site", accounting=accounting(ledger)) as north:
        north.agreement = replace(
            north.agreement,
            dataset=Dataset("visits", "tabular", tmp_path, {}, 0.2, 500, index=an_index(tmp_path / "records", 500)),
        )
        with pytest.raises(QuorateError):  # it was no message of Flower's; the app was asked all the same
            await north.perform(asked)
    assert used(ledger) == [None]


# --- registered anew --------------------------------------------------------------------------------------------------


def test_a_data_set_that_is_registered_anew_per_unit_is_drawn_from_per_unit(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "visits.csv", a_site(tmp_path)
    rng = np.random.default_rng(1)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patient", "age", "ill"])
        for patient in range(200):
            for age in rng.uniform(0, 120, 5).tolist():
                table.writerow([patient, age, "no" if age < 60 else "yes"])
    per_record = register("visits", path, {**SCHEMA, "file": {"ignore": ["patient"]}}, 0.2, folder)
    per_unit = register("visits", path, named_unit({**SCHEMA, "file": {}}, "patient"), 0.2, folder)
    parameters = {"schema": SCHEMA, "standardise": "range"}
    task = TaskRef(name="tabular-classifier", digest=task_digest("tabular-classifier"), parameters=parameters)
    of = study(training=TRAINING).model_copy(update={"task": task})
    drawn: list[int] = []
    batch = Units.batch

    def watched(units: Units, *given: Any) -> Any:
        drawn.append(units.count)
        return batch(units, *given)

    monkeypatch.setattr(Units, "batch", watched)
    workers, trainer = InProcessWorkers(), Trainer(of, bytes, accounting(ledger))

    def calls(dataset: Dataset) -> tuple[TaskCalls, Agreement]:
        agreement = Agreement(of, of.digest(), SiteName("east"), dataset, {})
        return TaskCalls(workers, agreement, (), time.monotonic), agreement

    async def run() -> None:
        trainer.admit(await calls(per_record)[0].measure())
        theta = tmp_path / "theta"
        theta.write_bytes(bytes(THETA_OFFSET + 8))
        state: Any = SimpleNamespace(path=theta, dimension=2)
        task, agreement = calls(per_unit)
        name = message_id(RunId("run-1"), 1, Phase.UPLOAD, 0, SiteName("east"))
        asked = Instruction(name, RunId("run-1"), 1, Phase.UPLOAD, 0, of.digest(), 60.0, b"")
        await trainer.train(task, state, tmp_path / "update", asked, agreement)

    asyncio.run(run())
    units = unchanged_index(per_unit).counts[0]
    (paid,) = [entry.content for entry in ledger.entries.all() if isinstance(entry.content, Spent)]
    assert paid.account == Account("visits", "unit")
    assert paid.events[0].sampling_rate == TRAINING["batch_size"] / units
    assert set(drawn) == {units}


# --- counted by the task ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [RECORDS - 1, 2 * RECORDS])
def test_a_task_that_leaves_out_or_repeats_records_trains_nothing_with_privacy(
    private_site: Site, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = study(training=TRAINING)
    agreement = private_site.agreement(of)
    monkeypatch.setattr(private_site, "agreement", lambda _: agreement)
    private_site.task.records = said
    refusal = private_site.refused(of, PrivacyUnsupportedError)
    assert refusal.expected.startswith(f"{RECORDS} records")
