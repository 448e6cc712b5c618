"""Runs with real worker processes and sites in this process: what is killed is started again, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry

from quorate.errors import InputError, NotFoundError, StudyError, WrongStateError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import RunState, RunView, SumOutcome
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.wire.messages import instruction_from_proto
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.registry import Registry
from quorate_server.reporting.metrics import ServerMetrics
from quorate_server.rounds.pipe import Note, Verb
from quorate_server.rounds.sum_figures import SumFigures
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.runs import Runs
from quorate_server.runs.sessions import Sessions
from quorate_server.storage.journal import Journal
from tests.patience import PATIENCE_S
from tests.server.databases import made_database
from tests.server.sites_kit import SimulatedSite
from tests.server.study_kit import MemoryBlobs, a_study

Handle = Callable[[SiteName, Instruction, Reply], "Reply | None"]


class Line(dict[BlobId, bytes]):
    """What a site holds of bulk data; what it lacks it downloads."""

    def __init__(self, spool: Spool, held: dict[BlobId, bytes]) -> None:
        super().__init__(held)
        self._spool = spool

    def __missing__(self, blob: BlobId) -> bytes:
        return self._spool.path(blob).read_bytes()


class Daemon:
    """All that the server's daemon has around its runs, and sites that are connected to it."""

    def __init__(self, state_dir: Path, study: Study) -> None:
        self.study = study
        self.config = ServerConfig.read(state_dir)
        self.engine = made_database(self.config.engine_url)
        self.registry = Registry(self.engine)
        self.registry.publish(study)
        self.journal = Journal(self.engine)
        self.spool = Spool(self.config.spool_dir)
        self.sessions = Sessions(self.journal, 3600.0)
        self.mailbox = Mailbox(self.sessions, self.journal, self.spool)
        self.prometheus = CollectorRegistry()
        self.runs = Runs(
            config=self.config,
            registry=self.registry,
            journal=self.journal,
            mailbox=self.mailbox,
            sessions=self.sessions,
            spool=self.spool,
            metrics=ServerMetrics(self.prometheus),
        )
        self.handle: Handle = lambda _, __, reply: reply
        self.heard: list[tuple[SiteName, Instruction]] = []
        self.withdrawn: list[tuple[SiteName, MessageId]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, sites: dict[SiteName, SimulatedSite], session: int = 1) -> None:
        for site in sites.values():
            site.blobs = MemoryBlobs(Line(self.spool, site.blobs.content))
            opened = await self.sessions.attach(site.name, session, "0.1.0")
            self._tasks.append(asyncio.create_task(self._be(site, opened)))

    async def _be(self, site: SimulatedSite, session: Any) -> None:
        while (event := await session.outgoing.get()) is not None:
            match event.WhichOneof("event"):
                case "withdraw":
                    self.withdrawn.append((site.name, MessageId(event.withdraw.message_id)))
                case "instruction":
                    instruction = instruction_from_proto(event.instruction)
                    self.heard.append((site.name, instruction))
                    reply = self.handle(site.name, instruction, site.answer(instruction))
                    for blob in reply.blobs if reply else ():
                        self.spool.put([site.blobs.content[blob.id]])
                    if reply is not None:
                        await self.mailbox.take(site.name, reply)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # what is waited for happens in another process
                await asyncio.sleep(0.01)

    async def ended(self, run: RunId) -> RunView:
        """The run when it has stopped to move."""
        async with asyncio.timeout(PATIENCE_S):
            await self.until(lambda: self.runs.view(run).state is not RunState.RUNNING)
        return self.runs.view(run)

    async def close(self) -> None:
        await self.runs.close()
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        self.journal.close()
        self.engine.dispose()


def worker_pids() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it may end while we look
            if "quorate_server.runs.worker_main" in child.cmdline():
                found.append(child.pid)
    return found


@asynccontextmanager
async def daemon_in(state_dir: Path, study: Study) -> AsyncIterator[Daemon]:
    daemon = Daemon(state_dir, study)
    try:
        yield daemon
    finally:
        await daemon.close()
        assert worker_pids() == []


def new_state(tmp_path: Path, **settings: Any) -> Path:
    folder = tmp_path / "server"
    ServerConfig.create(folder, consortium="north-sea", address="localhost:8443", listen="127.0.0.1:0")
    with (folder / "server.toml").open("a") as file:
        file.writelines(f"{key} = {value!r}\n".replace("'", '"') for key, value in settings.items())
    return folder


def sites_of(study: Study) -> dict[SiteName, SimulatedSite]:
    counts = (30, 20, 40, 10)
    return {n: SimulatedSite(n, c, MemoryBlobs(), study) for n, c in zip(study.site_names, counts, strict=False)}


STUDY = a_study(rounds={"count": 2, "deadline_s": 300.0, "absent_grace_s": 300.0})


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with daemon_in(new_state(tmp_path), STUDY) as daemon:
        yield daemon


# --- a run's life ---


async def test_a_run_goes_to_its_end_and_leaves_its_model_and_nothing_else(daemon: Daemon) -> None:
    sites = sites_of(STUDY)
    await daemon.connect(sites)
    run = (await daemon.runs.start(STUDY)).run
    states = [view.state async for view in daemon.runs.changes(run)]
    view = daemon.runs.view(run)
    assert states[-1] is view.state is RunState.COMPLETED
    assert [result.round_number for result in view.results] == [1, 2]
    assert all(result.contributed == STUDY.site_names for result in view.results)
    assert view.model_available
    assert daemon.runs.model(run).read_bytes() == next(iter(sites.values())).state()
    assert all(site.trained == [(1, 0), (2, 0)] for site in sites.values())
    assert list(daemon.spool.folder.iterdir()) == []
    assert daemon.journal.replies(run) == {}
    assert daemon.prometheus.get_sample_value("quorate_server_rounds_total", {"outcome": "full"}) == 2
    timed = daemon.prometheus.get_sample_value("quorate_server_aggregation_seconds_count", {"step": "add"})
    assert timed == 4, "statistics, two rounds, the final model"
    assert b'"auc"' in await daemon.runs.report(run, "json")
    with pytest.raises(InputError):
        await daemon.runs.report(run, "pdf")
    for act in (daemon.runs.pause, daemon.runs.resume, daemon.runs.stop):
        with pytest.raises(WrongStateError):
            await act(run)


async def test_a_worker_that_is_killed_is_started_again_and_nobody_trains_twice(daemon: Daemon) -> None:
    sites = sites_of(STUDY)
    killed: list[int] = []

    def kill_once(site: SiteName, instruction: Instruction, reply: Reply) -> Reply:
        if not killed and site == "south" and (instruction.phase, instruction.round_number) == (Phase.UPLOAD, 2):
            killed.extend(worker_pids())
            os.kill(killed[0], signal.SIGKILL)
        return reply

    daemon.handle = kill_once
    await daemon.connect(sites)
    view = await daemon.ended((await daemon.runs.start(STUDY)).run)
    assert len(killed) == 1
    assert view.state is RunState.COMPLETED
    assert [result.round_number for result in view.results] == [1, 2]
    assert all(result.contributed == STUDY.site_names for result in view.results)
    assert all(site.trained == [(1, 0), (2, 0)] for site in sites.values())
    assert daemon.withdrawn == []


async def test_a_worker_gets_its_order_before_any_news(daemon: Daemon) -> None:
    await daemon.connect(sites_of(STUDY))
    session = daemon.sessions.session(STUDY.site_names[0])
    assert session is not None
    run = (await daemon.runs.start(STUDY)).run
    while daemon.runs.view(run).state is RunState.RUNNING and not daemon.runs.view(run).results:
        daemon.sessions.heard(session, paused=not session.paused)  # which is told to all workers
        await asyncio.sleep(0.001)
    assert (await daemon.ended(run)).state is RunState.COMPLETED
    assert "Traceback" not in (daemon.config.runs_dir / run / "worker.log").read_text()


async def test_three_deaths_without_a_step_forward_fail_the_run(daemon: Daemon) -> None:
    killed: set[int] = set()

    def kill_always(_: SiteName, __: Instruction, ___: Reply) -> None:
        for pid in worker_pids():
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    daemon.handle = kill_always
    await daemon.connect(sites_of(STUDY))
    view = await daemon.ended((await daemon.runs.start(STUDY)).run)
    assert len(killed) == 3
    assert view.state is RunState.FAILED
    assert view.reason is not None
    assert view.reason.code == "run_worker_failed"
    assert "worker.log" in view.reason.action
    asked = {(site, instruction.message_id) for site, instruction in daemon.heard}
    assert asked, "how many were asked before the worker died is up to the machine"
    await daemon.until(lambda: set(daemon.withdrawn) == asked)
    assert daemon.prometheus.get_sample_value("quorate_server_rounds_total", {"outcome": "abandoned"}) == 1


async def test_a_paused_run_stops_its_sites_and_goes_on_with_what_was_there(daemon: Daemon) -> None:
    sites = sites_of(STUDY)
    daemon.handle = lambda site, i, reply: None if (site, i.round_number) == ("west", 1) else reply
    await daemon.connect(sites)
    run = (await daemon.runs.start(STUDY)).run
    await daemon.until(lambda: len([r for r in daemon.journal.replies(run).values() if r.blobs]) == 3)
    view = await daemon.runs.pause(run)
    assert (view.run, view.state) == (run, RunState.PAUSED)
    await daemon.until(lambda: daemon.withdrawn)
    assert [site for site, _ in daemon.withdrawn] == ["west"]
    assert worker_pids() == []

    daemon.handle = lambda _, __, reply: reply
    daemon.heard.clear()
    assert (await daemon.runs.resume(run)).state is RunState.RUNNING
    view = await daemon.ended(run)
    assert view.state is RunState.COMPLETED
    first = [(site, i.attempt) for site, i in daemon.heard if (i.phase, i.round_number) == (Phase.UPLOAD, 1)]
    assert first == [("west", 1)]
    assert [result.round_number for result in view.results] == [1, 2]
    assert all(result.contributed == STUDY.site_names for result in view.results)


async def test_a_run_without_its_quorum_pauses_with_the_reason_and_can_be_resumed(daemon: Daemon) -> None:
    def refuse(site: SiteName, instruction: Instruction, reply: Reply) -> Reply:
        refusing = site in ("south", "west") and instruction.phase is Phase.UPLOAD
        return Reply(reply.message_id, "policy_refused") if refusing else reply

    daemon.handle = refuse
    await daemon.connect(sites_of(STUDY))
    view = await daemon.ended((await daemon.runs.start(STUDY)).run)
    assert view.state is RunState.PAUSED
    assert view.reason is not None
    assert view.reason.code == "quorum_missing"
    assert "south (policy_refused)" in str(view.reason)
    assert view.results == ()
    daemon.handle = lambda _, __, reply: reply
    await daemon.runs.resume(view.run)
    assert (await daemon.ended(view.run)).state is RunState.COMPLETED


async def test_a_stopped_run_leaves_nothing_behind(daemon: Daemon) -> None:
    daemon.handle = lambda _, i, reply: None if (i.phase, i.round_number) == (Phase.UPLOAD, 3) else reply
    await daemon.connect(sites_of(STUDY))
    run = (await daemon.runs.start(STUDY)).run
    await daemon.until(lambda: daemon.runs.view(run).results)
    await daemon.until(lambda: len([i for _, i in daemon.heard if i.round_number == 3]) == 4)
    assert (await daemon.runs.stop(run)).state is RunState.STOPPED
    await daemon.until(lambda: len(daemon.withdrawn) == 4)
    assert daemon.journal.replies(run) == {}
    assert worker_pids() == []
    assert [r.round_number for r in daemon.runs.view(run).results] == [1]
    with pytest.raises(WrongStateError):
        daemon.runs.model(run)
    assert list(daemon.spool.folder.iterdir()) == []


async def test_of_two_starts_of_one_study_at_the_same_moment_one_is_refused(daemon: Daemon) -> None:
    results = await asyncio.gather(*(daemon.runs.start(STUDY) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results].count(WrongStateError) == 2
    assert len(daemon.runs.list()) == 1
    (view,) = daemon.runs.list()
    await daemon.runs.stop(view.run)


async def test_of_two_resumptions_at_the_same_moment_one_is_refused(daemon: Daemon) -> None:
    run = (await daemon.runs.start(STUDY)).run
    await daemon.runs.pause(run)
    results = await asyncio.gather(*(daemon.runs.resume(run) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results].count(WrongStateError) == 2
    await daemon.until(worker_pids)
    assert len(worker_pids()) == 1
    await daemon.runs.stop(run)


async def test_nothing_is_done_about_a_run_that_there_is_not(daemon: Daemon) -> None:
    for act in (daemon.runs.pause, daemon.runs.resume, daemon.runs.stop):
        with pytest.raises(NotFoundError):
            await act(RunId("no-such-run"))
    for look in (daemon.runs.view, daemon.runs.model):
        with pytest.raises(NotFoundError):
            look(RunId("no-such-run"))
    with pytest.raises(NotFoundError):
        await anext(daemon.runs.changes(RunId("no-such-run")))


# --- the daemon starts again ---


async def test_a_server_that_stops_in_a_round_goes_on_at_its_next_start(tmp_path: Path) -> None:
    state_dir, sites = new_state(tmp_path), sites_of(STUDY)
    async with daemon_in(state_dir, STUDY) as daemon:
        daemon.handle = lambda site, i, reply: (
            None if site == "west" and (i.phase, i.round_number) == (Phase.UPLOAD, 3) else reply
        )
        await daemon.connect(sites)
        run = (await daemon.runs.start(STUDY)).run
        await daemon.until(lambda: any((i.phase, i.round_number) == (Phase.UPLOAD, 3) for _, i in daemon.heard))
    assert daemon.withdrawn == [], "a restart must not cost the sites their work"

    async with daemon_in(state_dir, STUDY) as daemon:
        await daemon.runs.recover()
        assert [result.round_number for result in daemon.runs.view(run).results] == [1]
        await daemon.connect(sites, session=2)
        view = await daemon.ended(run)
    assert view.state is RunState.COMPLETED
    assert [result.round_number for result in view.results] == [1, 2]
    assert all(result.contributed == STUDY.site_names for result in view.results)
    assert all(site.trained == [(1, 0), (2, 0)] for site in sites.values())


async def test_a_start_tidies_the_spool_and_leaves_paused_runs_alone(tmp_path: Path) -> None:
    state_dir, sites = new_state(tmp_path), sites_of(STUDY)
    async with daemon_in(state_dir, STUDY) as daemon:
        daemon.handle = lambda _, i, reply: None if (i.phase, i.round_number) == (Phase.UPLOAD, 3) else reply
        await daemon.connect(sites)
        run = (await daemon.runs.start(STUDY)).run
        await daemon.until(lambda: daemon.runs.view(run).results)
        await daemon.runs.pause(run)
        stray = daemon.spool.put([b"nobody's"])
    async with daemon_in(state_dir, STUDY) as daemon:
        await daemon.runs.recover()
        view = daemon.runs.view(run)
        assert view.state is RunState.PAUSED
        assert view.reason is not None
        assert view.reason.code == "wrong_state"
        assert worker_pids() == []
        assert not daemon.spool.has(stray)
        needed = {blob for _, i in daemon.heard for blob in i.blobs}
        assert all(daemon.spool.has(blob) for blob in needed)
        await daemon.connect(sites, session=2)
        await daemon.runs.resume(run)
        assert (await daemon.ended(run)).state is RunState.COMPLETED


# --- guest apps ---

GUEST = {"task": {"name": "flower:hospital_app:client", "digest": "cd" * 32}, "release": {"model": "sites"}}


def a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Study:
    (tmp_path / "hospital_app.py").write_text(
        f"import os, sys\nfrom flwr.serverapp import ServerApp\nserver = ServerApp()\n\n"
        f"@server.main()\ndef main(grid, context):\n    {body}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return a_study(guest={"server_app": "hospital_app:server"}, **GUEST)


async def test_a_guest_app_that_the_administrator_did_not_allow_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_guest(tmp_path, monkeypatch, "pass")
    async with daemon_in(new_state(tmp_path), study) as daemon:
        with pytest.raises(StudyError, match="hospital_app:server"):
            await daemon.runs.start(study)
        assert daemon.runs.list() == []


async def test_an_app_that_raises_fails_its_run_and_its_text_stays_in_the_worker_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_guest(tmp_path, monkeypatch, "raise ValueError('a patient name')")
    async with daemon_in(new_state(tmp_path, guest_apps=["hospital_app:server"]), study) as daemon:
        view = await daemon.ended((await daemon.runs.start(study)).run)
        assert view.state is RunState.FAILED
        assert view.reason is not None
        assert view.reason.code == "run_worker_failed"
        assert "patient" not in str(view.reason)
        assert "a patient name" in (daemon.config.runs_dir / view.run / "worker.log").read_text()


@pytest.mark.parametrize(
    "note",
    [Note(Verb.COMMIT, b"null"), Note(Verb.FIGURES, SumFigures((SumOutcome.NOT_OPENED,)).to_json())],
    ids=["a commit of nothing", "figures of sums that nobody made"],
)
async def test_an_app_that_writes_nonsense_on_the_pipe_fails_its_run_and_harms_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Note
) -> None:
    written = f"os.write(int(sys.argv[1]), {note.to_bytes()!r})"
    study = a_guest(tmp_path, monkeypatch, written + "; import time; time.sleep(60)")
    async with daemon_in(new_state(tmp_path, guest_apps=["hospital_app:server"]), study) as daemon:
        view = await daemon.ended((await daemon.runs.start(study)).run)
        assert view.state is RunState.FAILED
        assert view.reason is not None
        assert view.reason.code == "run_worker_failed"
        assert worker_pids() == []
        told = daemon.prometheus.get_sample_value("quorate_server_secure_sums_total", {"outcome": "not_opened"})
        assert told == 0, "it would have called somebody"
