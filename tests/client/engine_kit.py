"""What tests of the site's engine share: a task that is really installed, sites, and a server's part in a few lines."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.rounds.spool import Spool
from quorate.study.study import Guest, Optimizer, Protection, Release, Rounds, Site, Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate.wire.sum_messages import (
    PlainOpening,
    SumAnswer,
    SumRef,
    SumWork,
    plain_opening_from_bytes,
    plain_opening_to_bytes,
    sum_answer_from_bytes,
    sum_work_to_bytes,
)
from quorate_client.rounds.engine import Engine
from quorate_client.rounds.training import Accounting
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.workers.isolation import Confinement
from quorate_client.workers.pool import ProcessWorkers, TaskWorkers
from quorate_client.workers.process import WorkerSettings
from tests.client.data_kit import an_index
from tests.client.in_process import InProcessWorkers

RUN = RunId("run-1")
SITES = ("east", "north", "south")


@pytest.fixture(name="installed")
def installed_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tests' task and Flower app, installed in this process and in those it starts."""
    folder = tmp_path / "site-packages"
    info = folder / "linear_task-1.0.dist-info"
    info.mkdir(parents=True)
    for name in ("linear_task.py", "guest_app.py"):
        shutil.copy(Path(__file__).parent / name, folder)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quorate.tasks]\nlinear = linear_task:TASK\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    sys.modules.pop("linear_task", None)
    sys.modules.pop("guest_app", None)


def make_study(*, guest: bool = False, sites: tuple[str, ...] = SITES, **changes: Any) -> Study:
    """A study of the tests' task. ``parameters`` are the task's, other changes are fields."""
    name = "flower:guest_app:app" if guest else "linear"
    task = TaskRef(name=name, digest=task_digest(name), parameters=changes.pop("parameters", {}))
    fields: dict[str, Any] = {
        "consortium": "tests",
        "name": "study",
        "purpose": "to be tested",
        "seed": 7,
        "task": task,
        "rounds": Rounds(count=3, quorum=1),
        "optimizer": Optimizer(),
        "protection": Protection(mode="none"),
        "release": Release(),
        "guest": Guest(server_app="guest:server", run_config={"rate": 0.5}) if guest else None,
        "sites": tuple(Site(name=site, signing_key=f"{index:064x}") for index, site in enumerate(sites)),
    }
    return Study(**fields | changes)


def records_of(site: str, count: int = 40, features: int = 3) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(sum(site.encode()))
    x = rng.normal(loc=1.0, size=(count + sorted({*SITES, site}).index(site), features))
    return x, (x @ np.arange(1.0, features + 1) + rng.normal(size=len(x)) > features).astype(np.int64)


def make_agreement(study: Study, folder: Path, site: str = "north", **node_config: str) -> Agreement:
    """What a site's administrator approved, with its records on disk."""
    dataset = None
    if study.kind == "study":
        x, y = records_of(site)
        path = folder / f"{site}.npz"
        np.savez(path, x=x, y=y)
        dataset = Dataset("records", "tabular", path, {}, 0.2, len(x), index=an_index(folder / "records", len(x)))
    return Agreement(study, study.digest(), SiteName(site), dataset, dict(node_config))


@dataclass
class SiteUnderTest:
    """An engine with a spool, and the server whose blobs it fetches."""

    engine: Engine
    agreement: Agreement
    spool: Spool
    folder: Path
    server: ServerPart
    workers: TaskWorkers
    fetched: list[BlobId] = field(default_factory=list)

    async def fetch(self, blob: Blob) -> None:
        self.fetched.append(blob.id)
        writer = self.spool.writer(blob)
        for frame in self.server.spool.read(blob):
            writer.take(frame)
        writer.finish()

    async def perform(self, instruction: Instruction) -> Reply:
        return await self.engine.perform(instruction, self.agreement, self.fetch)

    async def do(self, phase: Phase, round_number: int = 0) -> SumAnswer:
        """One exchange as the server has it; what the site sends is kept at the server."""
        reply = await self.perform(self.server.instruction(phase, round_number))
        return self.server.take(reply, self.spool, self.agreement.site)

    async def sum_alone(self, number: int) -> SumAnswer:
        """A sum of this site's upload only."""
        answer = await self.do(Phase.UPLOAD, number)
        self.server.close(number)
        return answer

    def restarted(self) -> SiteUnderTest:
        """The same site after its daemon ended in whatever way and started again."""
        engine = Engine(self.workers, self.spool, self.folder, time.monotonic, lambda count: b"\x01" * count)
        return replace(self, engine=engine, fetched=[])


class ServerPart:
    """The server's part of a study without protection: it adds words and counts, and remembers sums."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.spool = Spool(folder)
        self.work = SumWork()
        self.inline_sums = False
        self.uploads: dict[SiteName, tuple[SumAnswer, Blob | None]] = {}

    def instruction(self, phase: Phase, round_number: int = 0, work: SumWork | None = None) -> Instruction:
        name = message_id(RUN, round_number, phase, 0, SiteName("north"))
        body = sum_work_to_bytes(work or self.work)
        return Instruction(name, RUN, round_number, phase, 0, self.study.digest(), 60.0, body)

    def take(self, reply: Reply, spool: Spool, site: str = "north") -> SumAnswer:
        answer = sum_answer_from_bytes(reply.body)
        stored = [self.spool.put([spool.content(blob)]) for blob in reply.blobs]
        assert [blob.id for blob in stored] == [blob.id for blob in reply.blobs]
        if answer.plain_counts:
            self.uploads[SiteName(site)] = answer, stored[0] if stored else None
        return answer

    def close(self, number: int) -> SumRef:
        """Add up what came in, and offer the sum."""
        answers = [answer for answer, _ in self.uploads.values()]
        counts = tuple(sum(column) for column in zip(*(answer.plain_counts for answer in answers), strict=True))
        parts = [np.frombuffer(self.spool.content(blob), np.uint32) for _, blob in self.uploads.values() if blob]
        updates = self._stored(sum(parts[1:], start=parts[0].copy()).tobytes()) if parts else None
        survivors, name = tuple(sorted(self.uploads)), updates.id if updates else b""
        opening = Blob.of(plain_opening_to_bytes(PlainOpening(survivors, counts, name, answers[0].model)))
        self.uploads.clear()
        ref = SumRef(number, 0, updates, opening)
        self.work = replace(self.work, sums=(*self.work.sums, ref))
        return ref

    def _stored(self, content: bytes) -> Blob:
        return Blob.of(content) if self.inline_sums else self.spool.put([content])

    def counts(self, number: int) -> tuple[int, ...]:
        """Of a closed sum."""
        (ref,) = [ref for ref in self.work.sums if ref.round_number == number]
        return plain_opening_from_bytes(ref.opening.inline or b"").counts


async def gone(descriptor: int) -> None:
    """Wait until the process behind a descriptor of ``os.pidfd_open`` is gone."""
    readable, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], 10)
    os.close(descriptor)
    assert readable


def process_settings(folder: Path, **changes: Any) -> WorkerSettings:
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    return WorkerSettings(folder / "tasks", folder / "tasks.log", **changes)


@asynccontextmanager
async def site(
    server: ServerPart,
    folder: Path,
    name: str = "north",
    *,
    processes: bool = False,
    confinement: Confinement | None = None,
    randomness: Callable[[int], bytes] = lambda count: b"\x01" * count,
    node_config: dict[str, str] | None = None,
    accounting: Accounting | None = None,
) -> AsyncIterator[SiteUnderTest]:
    """A site with the tests' task: in this process, or in worker processes."""
    folder.mkdir(parents=True, exist_ok=True)
    workers: TaskWorkers = InProcessWorkers()
    if processes:
        workers = ProcessWorkers(process_settings(folder, confinement=confinement or Confinement()))
    spool = Spool(folder / "spool")
    engine = Engine(workers, spool, folder, time.monotonic, randomness, accounting=accounting)
    agreement = make_agreement(server.study, folder, name, **(node_config or {}))
    try:
        yield SiteUnderTest(engine, agreement, spool, folder, server, workers)
    finally:
        await engine.close()
