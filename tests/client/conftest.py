"""What the tests of a site share: a consortium, a server, a site that has joined, a study that it approved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from quorate.identity import Role, RunId, SiteName, Subject
from quorate.process.cancellation import cancel
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.spool import Spool
from quorate.study.approval import AnswerWord
from quorate.study.study import Guest, Protection, Rounds, Site, Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate.wire.messages import reply_from_proto
from quorate_client.approval.answers import Answer, Answers
from quorate_client.daemon.daemon import Daemon, assemble
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.agreement import Agreement
from quorate_client.site.config import Config
from quorate_client.site.database import ConnectionReport, SiteDatabase, make_state, open_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Identity, load_keys, make_or_load_keys, save_identity
from tests.patience import PATIENCE_S

from .consortium import NAME, Authority, RunningServer, Server, Visit, blocking_server, start_server
from .data_kit import fix_split

SITE = SiteName("north")
OTHERS = ("east", "south", "west")
RUN = RunId("run-1")
# A package of Python itself stands for an app: it is installed everywhere and does not change while tests run.
APP = "flower:json:JSONDecoder"

POLICY = f"""
protection = ["none"]
evaluation_without_protection = true
release = ["operator", "sites"]
minimum_sites = 3
tasks = ["{APP}", "tabular-classifier"]
"""


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def services(authority: Authority, tmp_path: Path) -> Server:
    return Server(authority, tmp_path / "server-spool")


@pytest.fixture
async def server(services: Server) -> AsyncIterator[RunningServer]:
    running = await start_server(services)
    yield running
    await running.stop()


@pytest.fixture
def address(services: Server) -> Iterator[str]:
    """A server for tests of commands, which block."""
    with blocking_server(services) as where:
        yield where


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder(tmp_path / "site")


def enrol(
    folder: SiteFolder, services: Server, address: str, name: str = SITE, life: tuple[float, float] = (-1, 86_400)
) -> None:
    """A site that has joined; its certificate is valid from and to so many seconds from now."""
    folder.create()
    make_state(folder.database)
    keys = make_or_load_keys(folder.keys)
    subject = Subject(services.authority.consortium, Role.SITE, name)
    certificate = services.authority.issue(subject, keys.tls.public_key(), *life)
    identity = Identity(services.authority.consortium, SiteName(name), address)
    save_identity(folder.keys, identity, services.authority.pem, certificate)
    services.members[name] = keys.member(SiteName(name))
    folder.policy.write_text(POLICY)
    fix_split(folder)


@pytest.fixture
def joined(folder: SiteFolder, services: Server, address: str, tmp_path: Path) -> SiteFolder:
    """A site that joined at the blocking server, in a consortium with three others."""
    enrol(folder, services, address)
    add_others(services, tmp_path)
    return folder


def add_others(services: Server, tmp_path: Path) -> None:
    for name in OTHERS:
        keys = tmp_path / "others" / name
        keys.mkdir(parents=True)
        made = make_or_load_keys(keys)
        services.members[name] = made.member(SiteName(name))
        services.sign_as[SiteName(name)] = made.sign_answer


def make_study(services: Server, **changes: Any) -> Study:
    """A study of all members, with a stock app unless ``task`` says otherwise."""
    content: dict[str, Any] = {
        "consortium": NAME,
        "name": "hearts",
        "purpose": "To see whether it works",
        "task": TaskRef(name=APP, digest=task_digest(APP)),
        "rounds": Rounds(count=3, quorum=3),
        "protection": Protection(mode="none"),
        "guest": Guest(server_app="json:JSONEncoder"),
        "approvals": 1,
        "sites": [Site(name=m.name, signing_key=m.signing_key.hex()) for _, m in sorted(services.members.items())],
    }
    return Study.model_validate(content | changes)


Perform = Callable[[Instruction, Agreement, Callable[[Blob], Awaitable[None]]], Awaitable[Reply]]


@dataclass
class ScriptedEngine:
    """An engine that does what a test says; by default it fetches the blobs and answers with the body reversed."""

    perform_next: list[Perform] = field(default_factory=list)
    performed: list[MessageId] = field(default_factory=list)
    forgotten: list[RunId] = field(default_factory=list)

    async def perform(
        self, instruction: Instruction, agreement: Agreement, fetch: Callable[[Blob], Awaitable[None]]
    ) -> Reply:
        self.performed.append(instruction.message_id)
        if self.perform_next:
            return await self.perform_next.pop(0)(instruction, agreement, fetch)
        for blob in instruction.blobs:
            await fetch(blob)
        return Reply(instruction.message_id, body=instruction.body[::-1], working_s=0.5)

    async def forget(self, run: RunId) -> None:
        self.forgotten.append(run)

    async def close(self) -> None: ...


class Gate:
    """Work that goes on when the test lets it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.stopped = False

    async def perform(self, instruction: Instruction, *_: object) -> Reply:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        return Reply(instruction.message_id, body=b"done")


class WatchedState(SiteDatabase):
    """The site's database, which also tells the test how the connection stands."""

    def __init__(self, state: SiteDatabase) -> None:
        super().__init__(state.database)
        self._reports: asyncio.Queue[ConnectionReport] = asyncio.Queue()

    def report_connection(self, report: ConnectionReport) -> None:
        super().report_connection(report)
        self._reports.put_nowait(report)

    async def until(self, state: str) -> ConnectionReport:
        """Wait until the connection is reported in that state."""
        async with asyncio.timeout(PATIENCE_S):
            while (report := await self._reports.get()).state != state:
                pass
        return report


@dataclass
class RunningSite:
    """One life of a site's daemon."""

    daemon: Daemon
    state: WatchedState
    spool: Spool
    engine: ScriptedEngine
    registry: CollectorRegistry
    running: asyncio.Task[None]

    async def stop(self) -> None:
        self.daemon.stream.stop()
        async with asyncio.timeout(PATIENCE_S):
            await self.running

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def live(
    folder: SiteFolder, engine: ScriptedEngine, config: Config | None = None, wall: Callable[[], float] | None = None
) -> AsyncIterator[RunningSite]:
    """Run a daemon's parts on a folder. Leaving the block is like a kill: nothing is said to the server."""
    state = WatchedState(open_state(folder.database))
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    spool = Spool(folder.spool)
    clock = {} if wall is None else {"wall": wall}
    signing = load_keys(folder.keys).signing
    ledger = open_ledger(folder.ledger, folder.database, signing, shipped_accountants())
    daemon = assemble(folder, config or Config(), state, ledger, metrics, spool, engine, **clock)
    daemon.instructions.recover()
    running = asyncio.create_task(daemon.stream.run(daemon.instructions))
    try:
        yield RunningSite(daemon, state, spool, engine, registry, running)
    finally:
        await cancel({running})
        ledger.close()
        state.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def site(
    folder: SiteFolder, server: RunningServer, engine: ScriptedEngine, tmp_path: Path
) -> AsyncIterator[RunningSite]:
    """A running site that has approved the study that ``instruct`` is about."""
    enrol(folder, server.services, server.address)
    add_others(server.services, tmp_path)
    approve(folder, make_study(server.services))
    async with live(folder, engine) as running:
        yield running


@pytest.fixture
async def visit(server: RunningServer, site: RunningSite) -> Visit:
    """The running site's connection, as the server sees it."""
    return await server.services.visit()


@dataclass
class Talk:
    """A running site and its server in conversation: what one says and what the other makes of it."""

    services: Server
    site: RunningSite
    visit: Visit
    folder: SiteFolder

    @property
    def engine(self) -> ScriptedEngine:
        return self.site.engine

    def instruct(self, round_number: int = 1, **changes: Any) -> Instruction:
        asked = instruct(self.services, round_number, **changes)
        self.visit.instruct(asked)
        return asked

    async def reply(self) -> Reply:
        return reply_from_proto(await self.visit.next("reply"))

    async def ask(self, round_number: int = 1, **changes: Any) -> Reply:
        """Instruct, and what came of it."""
        self.instruct(round_number, **changes)
        return await self.reply()

    async def hold(self, round_number: int = 1) -> tuple[Instruction, Gate]:
        """Instruct; the work is begun, and goes on when the gate lets it."""
        gate = Gate()
        self.engine.perform_next.append(gate.perform)
        asked = self.instruct(round_number)
        await gate.begun.wait()
        return asked, gate

    async def hang_up(self) -> None:
        """And wait until the site is back."""
        self.visit.hang_up()
        self.visit = await self.services.visit()

    def owed(self) -> list[int]:
        """The rounds of the replies that the site has yet to bring to the server."""
        return [entry.round_number for entry in self.site.daemon.journal.owed()]


@pytest.fixture
def talk(server: RunningServer, site: RunningSite, visit: Visit, folder: SiteFolder) -> Talk:
    return Talk(server.services, site, visit, folder)


def approve(folder: SiteFolder, study: Study, answer: AnswerWord = "approved") -> None:
    keys = load_keys(folder.keys)
    state = open_state(folder.database)
    signature = keys.sign_answer(answer, study.digest())
    Answers(state, lambda: 0.0).record(Answer(study, study.digest(), answer, signature))
    state.close()


def instruct(services: Server, round_number: int = 1, **changes: Any) -> Instruction:
    """An instruction of the approved study."""
    content: dict[str, Any] = {
        "message_id": message_id(RUN, round_number, Phase.GUEST, 0, SITE),
        "run": RUN,
        "round_number": round_number,
        "phase": Phase.GUEST,
        "attempt": 0,
        "study_digest": make_study(services).digest(),
        "deadline_s": 600.0,
        "body": b"abc",
    }
    return Instruction(**(content | changes))


def write_invitation(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path
