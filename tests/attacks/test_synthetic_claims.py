"""Records that claim to be what they are not: real where synthetic ones were agreed on, and the other way round.

A study on synthetic records is approved more easily than one on people's, so it pays to publish the one and get the
other. And a set that was found to tell too much of its source, or too little, pays to be used all the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import DataError, StudyNotApprovedError, SyntheticRefusedError
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.study.readiness import Readiness
from quorate.study.study import Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate.wire.messages import instruction_to_bytes, reply_from_bytes
from quorate_client.approval.datasets import Datasets
from quorate_client.daemon.engine_server import EngineServer
from quorate_client.flower.site_file import NodeSite
from quorate_client.ledger.entries import Refused
from quorate_client.site.agreement import Agreement, Dataset, for_study
from quorate_client.site.config import Config
from quorate_client.site.database import open_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys
from quorate_client.tasks.data.datasets import load_table, register
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.workers.compared_code import ComparedCode
from quorate_client.workers.host import TaskHost
from tests.client.approval.test_readiness import TABULAR, approve, told
from tests.client.approval.test_readiness import joined as joined  # the fixture
from tests.client.conftest import POLICY, RUN, SITE, ScriptedEngine, Talk, instruct, live, make_study
from tests.client.consortium import RunningServer, Server
from tests.client.ledger_kit import opened
from tests.client.synthetic_sets import made_from

SCHEMA: dict[str, Any] = {
    "kind": "tabular",
    "columns": [{"name": "age", "type": "integer", "range": [0.0, 120.0]}],
    "label": {"name": "ill", "classes": ["no", "yes"]},
}
REAL, MADE = 200, 40
PARAMETERS = {"schema": SCHEMA, "standardise": "range"}


def rows(count: int) -> str:
    return "age,ill\n" + "".join(f"{20 + n % 80},{'yes' if n % 2 else 'no'}\n" for n in range(count))


def published(services: Server, training_data: str = "synthetic", **changes: Any) -> Study:
    content: dict[str, Any] = {
        "task": TaskRef(name=TABULAR, digest=task_digest(TABULAR), parameters=PARAMETERS),
        "guest": None,
        "training_data": training_data,
    }
    return make_study(services, **content | changes)


@dataclass
class Target:
    """A site with real records and a set that was made from them, both registered."""

    folder: SiteFolder
    real: Dataset
    made: Dataset
    seen: list[Agreement] = field(default_factory=list)

    async def note(self, instruction: Instruction, agreement: Agreement, *_: object) -> Reply:
        self.seen.append(agreement)
        return Reply(instruction.message_id, body=b"done")

    @asynccontextmanager
    async def asked_by(self, server: RunningServer) -> AsyncIterator[Talk]:
        """The site at work for a server, with an engine that notes what it would train on."""
        engine = ScriptedEngine([self.note] * 9)
        async with live(self.folder, engine) as running:
            yield Talk(server.services, running, await server.services.visit(), self.folder)


@pytest.fixture
def target(joined: SiteFolder, tmp_path: Path) -> Target:
    path = tmp_path / "patients.csv"
    path.write_text(rows(REAL))
    real = register("patients", path, SCHEMA, 0.2, joined)
    made = made_from(real, joined.root / "synthetic" / "patients-made", rows(MADE))
    with registry(joined) as datasets:
        datasets.add(real)
        datasets.add(made)
    return Target(joined, real, made)


@contextmanager
def registry(folder: SiteFolder) -> Iterator[Datasets]:
    state = open_state(folder.database)
    yield Datasets(state, lambda: 0.0)
    state.close()


async def ask(talk: Talk, of: Study, number: int = 1, body: bytes = b"abc") -> Reply:
    name = message_id(RUN, number, Phase.UPLOAD, 0, SITE)
    talk.visit.instruct(
        instruct(talk.services, number, message_id=name, phase=Phase.UPLOAD, study_digest=of.digest(), body=body)
    )
    return await talk.reply()


def trained_on(agreement: Agreement) -> int:
    """How many records a worker trains on that gets what the engine gives it."""
    assert agreement.dataset is not None
    host, task = TaskHost(ComparedCode()), agreement.study.task.model_dump(mode="json")
    described = json.loads(json.dumps(agreement.dataset.to_plain()))
    assert host.answer({"verb": "open", "task": task, "dataset": described, "seed": 0}) == {}
    return int(host.answer({"verb": "measure"})["records"])


# --- a server or operator that publishes the one and instructs for the other ---


async def test_what_was_agreed_on_is_trained_on_whatever_the_server_says(target: Target, server: RunningServer) -> None:
    synthetic, twin = (published(server.services, kind) for kind in ("synthetic", "real"))
    approve(target.folder, synthetic, "patients-made")
    async with target.asked_by(server) as talk:
        for number, body in enumerate((b"", b'{"training_data": "real", "dataset": "patients"}'), 1):
            assert (await ask(talk, synthetic, number, body)).code == ""
        # The same but for the word: nobody here approved it.
        assert (await ask(talk, twin, 3)).code == StudyNotApprovedError.code
    assert [trained_on(agreement) for agreement in target.seen] == [MADE, MADE]


async def test_a_real_set_under_the_name_of_the_made_one_is_not_trained_on(
    target: Target, server: RunningServer
) -> None:
    """Whatever an administrator registers later under the name that was approved."""
    synthetic = published(server.services)
    approve(target.folder, synthetic, "patients-made")
    with registry(target.folder) as datasets:
        datasets.remove("patients-made")
        datasets.add(replace(target.real, name="patients-made"))
    async with target.asked_by(server) as talk:
        assert (await ask(talk, synthetic)).code == SyntheticRefusedError.code
    assert target.seen == []


async def test_a_made_set_is_not_passed_off_as_people_s(target: Target, server: RunningServer) -> None:
    real = published(server.services, "real")
    approve(target.folder, real, "patients-made")
    async with target.asked_by(server) as talk:
        assert (await ask(talk, real)).code == SyntheticRefusedError.code
    assert target.seen == []


# --- a set that is not what it was found to be ---


async def test_a_report_that_is_exchanged_stops_the_next_instruction(target: Target, server: RunningServer) -> None:
    synthetic = published(server.services)
    approve(target.folder, synthetic, "patients-made")
    async with target.asked_by(server) as talk:
        assert (await ask(talk, synthetic)).code == ""
        (target.made.path.parent / "report.json").write_text('{"risks": {"membership": 0.0}}')
        reply = await ask(talk, synthetic, 2)
        assert (reply.code, reply.body, reply.blobs) == (SyntheticRefusedError.code, b"", ())  # and no figure
        (target.made.path.parent / "report.json").unlink()
        assert (await ask(talk, synthetic, 3)).code == SyntheticRefusedError.code
    assert len(target.seen) == 1
    with opened(target.folder.root, key=load_keys(target.folder.keys).signing) as ledger:
        refused = [each.content for each in ledger.entries.all() if isinstance(each.content, Refused)]
    assert [each.code for each in refused] == [SyntheticRefusedError.code] * 2


STRICT = pytest.mark.parametrize(
    "strict", ["largest_epsilon = 2.0", "largest_risk = 0.02", "largest_utility_loss = 0.03"]
)
LOOSE = {"largest_epsilon": 1000.0, "largest_risk": 1.0, "largest_utility_loss": 1.0}


@STRICT
async def test_a_study_cannot_loosen_what_the_policy_says_of_a_set(
    target: Target, server: RunningServer, strict: str
) -> None:
    synthetic = published(server.services, synthetic=LOOSE)
    approve(target.folder, synthetic, "patients-made")
    async with target.asked_by(server) as talk:
        assert (await ask(talk, synthetic)).code == ""
        target.folder.policy.write_text(f"{POLICY}\n[synthetic]\n{strict}\n")
        assert (await ask(talk, synthetic, 2)).code == SyntheticRefusedError.code
    assert len(target.seen) == 1


@STRICT
async def test_before_a_run_a_site_tells_no_figure_of_its_set(
    target: Target, server: RunningServer, strict: str
) -> None:
    synthetic = published(server.services, synthetic=LOOSE)
    approve(target.folder, synthetic, "patients-made")
    target.folder.policy.write_text(f"{POLICY}\n[synthetic]\n{strict}\n")
    assert await told(target.folder, server, synthetic) == [Readiness(SyntheticRefusedError.code)]


async def test_of_a_study_that_nobody_approved_a_site_does_not_tell_how_good_its_set_is(
    target: Target, server: RunningServer
) -> None:
    """One study after the other, each a little stricter, would read the figures of its report."""
    strict = [published(server.services, synthetic={"largest_risk": risk}) for risk in (0.0, 0.05)]
    assert await told(target.folder, server, *strict) == [Readiness()] * 2


async def test_a_source_that_was_registered_anew_makes_the_set_useless(target: Target, server: RunningServer) -> None:
    """With another split the made records could come from what is held out now."""
    synthetic = published(server.services)
    approve(target.folder, synthetic, "patients-made")
    again = register("patients", target.real.path, SCHEMA, 0.5, target.folder)
    state = open_state(target.folder.database)
    state.database.execute("DELETE FROM datasets WHERE name = 'patients'")
    Datasets(state, lambda: 0.0).add(again)
    state.close()
    async with target.asked_by(server) as talk:
        assert (await ask(talk, synthetic)).code == SyntheticRefusedError.code
    assert target.seen == []


# --- a site file, where nobody keeps approvals ---


def site_file(target: Target, of: Study, file: Path, dataset: Dataset, **changes: Any) -> Path:
    """A site file with one word or another of its data set changed afterwards."""
    NodeSite(Agreement(of, of.digest(), SITE, for_study(dataset, of), {}), target.folder.root).write(file)
    content = json.loads(file.read_text())
    content["dataset"] |= changes
    file.write_text(json.dumps(content))
    return file


def test_a_site_file_does_not_say_what_is_trained_on(target: Target, services: Server, tmp_path: Path) -> None:
    file = site_file(target, published(services), tmp_path / "site.json", target.made, training="mixed")
    assert trained_on(NodeSite.read(file).agreement) == MADE


def test_a_site_file_cannot_name_a_made_set_for_a_study_on_real_records(
    target: Target, services: Server, tmp_path: Path
) -> None:
    of = published(services)
    file = site_file(target, of, tmp_path / "site.json", target.made)
    content = json.loads(file.read_text()) | {"study": published(services, "real").canonical().decode()}
    file.write_text(json.dumps(content))
    with pytest.raises(SyntheticRefusedError):
        NodeSite.read(file)


def test_a_made_file_whose_origin_is_left_out_has_no_account_and_no_test_part(
    target: Target, services: Server, tmp_path: Path
) -> None:
    of = published(services, "real")
    file = site_file(target, of, tmp_path / "site.json", target.real, path=str(target.made.path))
    lying = NodeSite.read(file).agreement.dataset
    assert lying is not None
    schema = parse_schema(SCHEMA, "The study")
    assert isinstance(schema, TabularSchema)
    with pytest.raises(DataError, match="has changed since it was registered"):
        load_table(lying, schema)
    with pytest.raises(DataError, match="no fingerprints"):
        load_table(replace(lying, content=target.made.content, index=None), schema)


async def test_where_flower_runs_a_set_is_held_against_its_report_and_the_policy_too(
    target: Target, services: Server, tmp_path: Path
) -> None:
    of = published(services)
    file = site_file(target, of, tmp_path / "site.json", target.made)
    # Of another study: whoever comes past the door is refused for that, and nothing is trained.
    asked = instruct(services, study_digest=bytes(32), phase=Phase.UPLOAD)

    async def code() -> str:
        with closing(EngineServer(target.folder, Config(), time.monotonic)) as server:
            reply, *_ = await server.answer([str(file).encode(), instruction_to_bytes(asked)])
            await server.stop()
        return reply_from_bytes(reply).code

    assert await code() == StudyNotApprovedError.code
    target.folder.policy.write_text(f"{POLICY}\n[synthetic]\nlargest_epsilon = 2.0\n")
    assert await code() == SyntheticRefusedError.code
    target.folder.policy.write_text(POLICY)
    (target.made.path.parent / "report.json").write_text("{ }")
    assert await code() == SyntheticRefusedError.code


@pytest.mark.parametrize("is_known", [True, False], ids=["under a name that is taken", "under another name"])
async def test_where_flower_runs_real_records_are_not_called_synthetic(
    target: Target, services: Server, tmp_path: Path, is_known: bool
) -> None:
    """All of them would be trained on, held-out ones too, and the ledger would not show it."""
    assert target.made.origin is not None
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "report.json").write_text("{}")
    (forged / "records.csv").write_bytes(target.real.path.read_bytes())
    origin = replace(target.made.origin, report=hashlib.sha256(b"{}").hexdigest())
    lying = replace(
        target.made,
        name=target.made.name if is_known else "forged",
        path=forged / "records.csv",
        content=target.real.content,
        records=target.real.records,
        origin=origin,
    )
    file = site_file(target, published(services), tmp_path / "site.json", lying)
    asked = instruct(services, study_digest=bytes(32), phase=Phase.UPLOAD)
    with closing(EngineServer(target.folder, Config(), time.monotonic)) as server:
        reply, *_ = await server.answer([str(file).encode(), instruction_to_bytes(asked)])
        await server.stop()
    assert reply_from_bytes(reply).code == SyntheticRefusedError.code
