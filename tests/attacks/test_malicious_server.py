"""The consortium's own server, certificate and all, against a site that connected to it."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from quorate.errors import (
    BaseModelMismatchError,
    DiskFullError,
    FrameError,
    KeyMismatchError,
    QuorateError,
    StudyNotApprovedError,
)
from quorate.identity import Member, RunId, SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import MessageId, Phase, Reply
from quorate.rounds.spool import Spool
from quorate.study.study import Rounds
from quorate.v1 import common_pb2, operator_pb2, rounds_pb2, rounds_pb2_grpc
from quorate.wire.messages import instruction_to_proto, member_to_proto, run_from_proto
from quorate.wire.refusal import MAX_TEXT_CHARACTERS, error_of
from quorate.wire.sum_messages import PlainOpening, SumRef, SumWork, plain_opening_to_bytes
from quorate_client.approval.answers import Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.installed_tasks import InstalledTasks
from quorate_client.approval.offers import Unsound, find_offer, open_offers
from quorate_client.approval.review import StudyReview
from quorate_client.connection.current import CurrentConnection
from quorate_client.connection.transfers import Downloads
from quorate_client.daemon.instructions import MAX_OPEN
from quorate_client.daemon.journal import Journal
from quorate_client.daemon.outbox import MAX_AT_A_TIME
from quorate_client.site.database import open_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import make_or_load_keys
from tests.client import engine_kit
from tests.client.conftest import SITE, RunningSite, ScriptedEngine, Talk, approve, enrol, instruct, live, make_study
from tests.client.consortium import NAME, Authority, RunningServer, Server, Visit, server_credentials, start_server
from tests.client.databases import made_state
from tests.patience import PATIENCE_S


def rows(site: RunningSite) -> int:
    return int(site.state.database.execute("SELECT count(*) FROM journal").fetchone()[0])


# --- instructions ---


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../../keys"},
        {"run": "a/b"},
        {"run": "."},
        {"run": "a\x00b"},
        {"run": "b" * 3_000_000},
        {"run": ""},
        {"deadline_s": math.nan},
        {"deadline_s": math.inf},
        {"deadline_s": -1.0},
        {"phase": "destroy"},
        {"study_digest": b""},
    ],
    ids=lambda change: "-".join(f"{key} {str(value)[:10]!a}" for key, value in change.items()),
)
async def test_an_instruction_that_cannot_be_is_refused_and_leaves_nothing(talk: Talk, change: dict[str, Any]) -> None:
    """A run's name is a folder's, and was written to the site's database whatever it was."""
    hostile = instruction_to_proto(instruct(talk.services))
    for key, value in change.items():
        setattr(hostile, key, value)
    talk.visit.send(instruction=hostile)
    assert (await talk.visit.next("reply")).code == FrameError.code
    assert (rows(talk.site), talk.engine.performed) == (0, [])
    assert (await talk.ask()).code == ""


@pytest.fixture
def slow_heartbeat(services: Server) -> None:
    """While the site is kept busy it must not take the server for silent."""
    services.heartbeat_s = PATIENCE_S


async def test_instructions_without_end_do_not_fill_the_memory(
    slow_heartbeat: None, server: RunningServer, site: RunningSite, engine: ScriptedEngine, visit: Visit
) -> None:
    async def never(*_: object) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    engine.perform_next = [never] * (MAX_OPEN + 50)
    for number in range(MAX_OPEN + 50):
        name = MessageId(number.to_bytes(32, "big"))
        visit.instruct(instruct(server.services, message_id=name, run=RunId(f"run-{number}")))
    assert (await site.state.until("waiting")).code == FrameError.code
    assert site.metric("quorate_client_instructions_open") == MAX_OPEN
    await server.services.visit()  # it comes back


async def test_large_instructions_do_not_fill_the_memory_either(slow_heartbeat: None, talk: Talk) -> None:
    async def never(*_: object) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    talk.engine.perform_next = [never] * 200
    for number in range(200):
        name = MessageId(number.to_bytes(32, "big"))
        talk.instruct(message_id=name, run=RunId(f"run-{number}"), body=bytes(2**20))
    assert (await talk.site.state.until("waiting")).code == FrameError.code
    assert talk.site.metric("quorate_client_instructions_open") == 128


async def test_names_of_blobs_without_end_do_not_fill_it_either(
    server: RunningServer, site: RunningSite, engine: ScriptedEngine
) -> None:
    """They were not counted: a hundred thousand go into one message, and a thousand messages were kept."""

    async def never(*_: object) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    engine.perform_next = [never] * 16
    named = (Blob(BlobId(bytes(32)), 1),) * 2**15
    for number in range(15):
        name = MessageId(number.to_bytes(32, "big"))
        site.daemon.instructions.take(
            instruct(server.services, message_id=name, run=RunId(f"run-{number}"), blobs=named)
        )
    with pytest.raises(FrameError):
        site.daemon.instructions.take(instruct(server.services, blobs=named))


class DeafServer:
    """Welcomes a site, says what it likes, and reads nothing."""

    def __init__(self, events: Callable[[], AsyncIterator[bytes]]) -> None:
        self._events = events
        self.left = asyncio.Event()

    async def connect(self, _: object, context: Any) -> None:
        welcome = rounds_pb2.Welcome(consortium=NAME, heartbeat_s=5.0, server_unix_s=1.0)
        await context.write(rounds_pb2.ServerEvent(welcome=welcome).SerializeToString())
        try:
            async for event in self._events():
                await context.write(event)
            await asyncio.Event().wait()
        finally:
            self.left.set()


@pytest.fixture
async def deaf(authority: Authority, services: Server, folder: SiteFolder) -> AsyncIterator[Callable[..., Any]]:
    """Starts one and enrols the site there."""
    opened = []

    async def start(events: Callable[[], AsyncIterator[bytes]]) -> DeafServer:
        deaf = DeafServer(events)
        door = grpc.aio.server(options=[("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)])
        handler = grpc.stream_stream_rpc_method_handler(deaf.connect)
        door.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("quorate.v1.Rounds", {"Connect": handler}),)
        )
        port = door.add_secure_port("127.0.0.1:0", server_credentials(authority))
        await door.start()
        opened.append(door)
        enrol(folder, services, f"127.0.0.1:{port}")
        return deaf

    yield start
    for door in opened:
        await door.stop(None)


async def test_answers_that_the_server_does_not_take_do_not_fill_the_memory(
    deaf: Callable[..., Any], services: Server, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    """Each instruction that cannot be understood is answered at once, and the answer waits until the server reads."""

    async def nonsense() -> AsyncIterator[bytes]:
        instruction = rounds_pb2.Instruction(message_id=bytes(32), phase="nonsense")
        event = rounds_pb2.ServerEvent(instruction=instruction).SerializeToString()
        for _ in range(50 * MAX_AT_A_TIME):
            yield event

    hostile = await deaf(nonsense)
    async with live(folder, engine) as site, asyncio.timeout(PATIENCE_S):
        assert (await site.state.until("waiting")).code == FrameError.code
        await hostile.left.wait()
        assert not site.running.done()


async def test_bytes_that_are_no_message_end_the_connection_and_not_the_daemon(
    deaf: Callable[..., Any], folder: SiteFolder, engine: ScriptedEngine
) -> None:
    async def garbage() -> AsyncIterator[bytes]:
        yield b"\xff\xff\xff\xff"

    await deaf(garbage)
    async with live(folder, engine) as site, asyncio.timeout(PATIENCE_S):
        await site.state.until("waiting")
        await site.state.until("connected")
        assert not site.running.done()


@pytest.mark.parametrize("clock", [math.inf, -math.inf, math.nan])
async def test_a_clock_that_shows_no_time_does_not_end_the_daemon(
    services: Server, folder: SiteFolder, engine: ScriptedEngine, clock: float
) -> None:
    """Rounding the difference of the clocks for the log raised, and the daemon was gone."""
    services.clock = lambda: clock
    running = await start_server(services)
    enrol(folder, services, running.address)
    async with live(folder, engine) as site, asyncio.timeout(PATIENCE_S):
        assert (await site.state.until("waiting")).code == FrameError.code
        assert not site.running.done()
    await running.stop()


async def test_acknowledging_what_was_never_said_leaves_nothing_in_memory(talk: Talk) -> None:
    journal = talk.site.daemon.journal
    talk.visit.send(ack=rounds_pb2.ReplyAck(message_ids=[os.urandom(32) for _ in range(1000)]))
    for _ in range(100):
        talk.visit.send(withdraw=rounds_pb2.Withdraw(message_id=os.urandom(32)))
    talk.instruct()
    await talk.visit.next("reply")
    assert not journal._settled


def test_a_server_that_goes_on_asking_does_not_fill_the_disk(services: Server, tmp_path: Path) -> None:
    """Every refusal is written down, and was kept for a week."""
    state = made_state(tmp_path / "state.sqlite")
    journal = Journal(state, lambda: 0.0, most_entries=20)
    for number in range(100):
        name = MessageId(number.to_bytes(32, "big"))
        asked = instruct_plainly(name, f"run-{number}")
        journal.reply(asked, Reply(name, StudyNotApprovedError.code))
    assert state.database.execute("SELECT count(*) FROM journal").fetchone() == (20,)
    assert journal.find(MessageId((99).to_bytes(32, "big"))) is not None
    state.close()


def instruct_plainly(name: MessageId, run: str) -> Any:
    return engine_kit.Instruction(name, RunId(run), 1, Phase.UPLOAD, 0, bytes(32), 60.0)


def test_the_text_of_a_servers_error_is_cut_and_steers_no_terminal() -> None:
    """It goes to the site's log and database, and to the administrator's and the operator's terminals."""
    for code in ("disk_full", "\x1b[2Jof_tomorrow", "x" * 10_000):
        detail = common_pb2.ErrorDetail(code=code, what="x" * 3_000_000, got="\x1b]0;owned\x07\nError: all is well")
        error = error_of(detail)
        assert len(str(error)) < 5 * MAX_TEXT_CHARACTERS
        assert str(error).isprintable()
        Reply(MessageId(bytes(32)), error.code)  # can be sent on


@pytest.mark.parametrize("run", ["../../../home/operator/.profile", "/etc/cron.d/x", "", "a\nb"])
def test_a_run_whose_name_is_a_path_is_none(run: str) -> None:
    """The operator's command names the report after it."""
    with pytest.raises(FrameError):
        run_from_proto(operator_pb2.RunStatus(run=run, state="completed"))


# --- a study's work ---


@pytest.mark.parametrize("phase", [Phase.UPLOAD, Phase.CHECKPOINT, Phase.RELEASE])
@pytest.mark.parametrize("number", [5, 2**32 - 1])
async def test_more_rounds_than_were_approved_are_refused_at_once(
    installed: Path, tmp_path: Path, phase: Phase, number: int
) -> None:
    """Looking for the way to the last of four billion rounds stopped the daemon for minutes."""
    server = engine_kit.ServerPart(engine_kit.make_study(rounds=Rounds(count=3, quorum=1)), tmp_path / "server")
    async with engine_kit.site(server, tmp_path / "site") as alone:
        await alone.sum_alone(0)
        with pytest.raises(FrameError):
            async with asyncio.timeout(PATIENCE_S):
                await alone.perform(server.instruction(phase, number))
        assert not list((tmp_path / "site").rglob("*.state"))


async def test_a_checkpoint_that_is_larger_than_the_model_is_not_fetched(installed: Path, tmp_path: Path) -> None:
    """The server says how large a sum is, and so how large a checkpoint may be: up to 64 GiB."""
    server = engine_kit.ServerPart(engine_kit.make_study(), tmp_path / "server")
    async with engine_kit.site(server, tmp_path / "site") as alone:
        await alone.sum_alone(0)
        dimension = 10**10
        size = engine_kit_state_size(dimension)
        greed = Blob(BlobId(os.urandom(32)), size)
        updates = Blob(BlobId(os.urandom(32)), 4 * dimension)
        north = (SiteName("north"),)
        opening = Blob.of(plain_opening_to_bytes(PlainOpening(north, (2**30, 1, 0, 0), updates.id, greed.id)))
        for work in (
            replace(server.work, checkpoint=greed, checkpoint_round=1),
            SumWork(checkpoint=greed, checkpoint_round=1, sums=(SumRef(2, 0, updates, opening),)),
            replace(server.work, sums=(*server.work.sums, *(SumRef(n, 0, updates, opening) for n in (1, 2)))),
        ):
            with pytest.raises(BaseModelMismatchError):
                await alone.perform(server.instruction(Phase.UPLOAD, 3, work))
        assert alone.fetched == []


def engine_kit_state_size(dimension: int) -> int:
    from quorate_client.rounds.model.state import THETA_OFFSET

    return THETA_OFFSET + 4 * dimension


async def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path: Path) -> None:
    """Of a guest app's messages nobody knows how large they may be."""
    spool = Spool(tmp_path / "spool")
    downloads = Downloads(CurrentConnection(), spool, lambda: 0.5, lambda _: None, lambda: 10**6)
    with pytest.raises(DiskFullError):
        async with asyncio.timeout(PATIENCE_S):
            await downloads.fetch(RunId("run-1"), Blob(BlobId(os.urandom(32)), 10**6 + 1))
    assert list(spool.folder.iterdir()) == []


async def test_a_study_does_no_guest_apps_work_nor_the_reverse(installed: Path, tmp_path: Path) -> None:
    for guest, phases in ((False, [Phase.GUEST]), (True, [phase for phase in Phase if phase is not Phase.GUEST])):
        folder = tmp_path / str(guest)
        server = engine_kit.ServerPart(engine_kit.make_study(guest=guest), folder / "server")
        async with engine_kit.site(server, folder / "site") as alone:
            for phase in phases:
                with pytest.raises(FrameError):
                    await alone.perform(server.instruction(phase, 1))


async def test_names_of_runs_without_end_do_not_fill_the_memory(installed: Path, tmp_path: Path) -> None:
    server = engine_kit.ServerPart(engine_kit.make_study(guest=True), tmp_path / "server")
    async with engine_kit.site(server, tmp_path / "site") as alone:
        for number in range(110):
            with pytest.raises(FrameError):
                await alone.perform(replace(server.instruction(Phase.UPLOAD, 1), run=RunId(f"run-{number}")))
        assert len(alone.engine._live) < 100


# --- what it offers ---


@pytest.fixture
def review(joined: SiteFolder) -> Any:
    state = open_state(joined.database)
    answers, datasets = Answers(state, lambda: 0.0), Datasets(state, lambda: 0.0)
    yield StudyReview(joined, answers, datasets, InstalledTasks(lambda: 0.0))
    state.close()


def test_one_study_that_is_wrong_does_not_hide_the_others(
    joined: SiteFolder, review: StudyReview, services: Server, tmp_path: Path
) -> None:
    """A site that joined again has another key than an old study says: nobody could read or answer any study."""
    (tmp_path / "again").mkdir()
    old = make_study(services, name="old")
    services.members["east"] = make_or_load_keys(tmp_path / "again").member(SiteName("east"))
    services.studies += [old, make_study(services, name="new")]
    with open_offers(joined) as client:
        offers = client.offers()
        assert [(unsound.name, unsound.problem.code) for unsound in offers.unsound] == [("old", "key_mismatch")]
        with pytest.raises(KeyMismatchError):
            find_offer(offers, "old")
        assert review.approve(client, find_offer(offers, "new"), None, {}).answer == "approved"


def test_a_server_cannot_keep_an_approval_alive_by_hiding_the_study(
    joined: SiteFolder, review: StudyReview, services: Server
) -> None:
    """`reject` looked for the study among those that the server offers."""
    study = make_study(services)
    approve(joined, study)
    services.studies.clear()
    services.faults.answers_refused = DiskFullError("No")
    with open_offers(joined) as client, pytest.raises(DiskFullError):
        review.reject(client, "hearts")
    state = open_state(joined.database)
    with pytest.raises(StudyNotApprovedError):
        Answers(state, lambda: 0.0).agreement(study.digest(), SITE)
    state.close()


@pytest.mark.parametrize("how", ["twice", "missing", "foreign", "swapped"])
def test_a_roster_with_other_members_than_the_study_is_refused(
    joined: SiteFolder, review: StudyReview, authority: Authority, services: Server, how: str
) -> None:
    study = make_study(services)
    members = [services.members[name] for name in study.site_names]
    east, north = members[0], members[1]
    swapped = Member(east.name, north.signing_key, north.sealing_key, north.sealing_proof)
    shown = {
        "twice": [*members, east],
        "missing": members[1:],
        "foreign": [*members, replace(east, name=SiteName("evil"))],
        "swapped": [swapped, *members[1:]],
    }[how]

    class Liar(rounds_pb2_grpc.RoundsServicer):
        def ListStudies(self, request: object, context: object) -> rounds_pb2.SiteStudiesReply:  # noqa: N802
            offer = rounds_pb2.SiteStudy(
                digest=study.digest(), canonical=study.canonical(), members=map(member_to_proto, shown)
            )
            return rounds_pb2.SiteStudiesReply(studies=[offer])

    with ThreadPoolExecutor(2) as pool:
        door = grpc.server(pool)
        rounds_pb2_grpc.add_RoundsServicer_to_server(Liar(), door)  # type: ignore[no-untyped-call]
        port = door.add_secure_port("127.0.0.1:0", server_credentials(authority))
        door.start()
        joined.config.write_text(f'address = "127.0.0.1:{port}"\n')
        with open_offers(joined) as opened:
            (unsound,) = opened.offers().unsound
        door.stop(None).wait()
    assert isinstance(unsound, Unsound)
    assert isinstance(unsound.problem, KeyMismatchError)
    assert isinstance(unsound.problem, QuorateError)
