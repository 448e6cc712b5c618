"""A site's engine in a process of its own, behind its door: who gets in, for which site it works, and when it ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path

import psutil
import pytest

from quorate.errors import IdentityError, TaskCrashedError, WrongStateError
from quorate.identity import SiteName
from quorate.rounds.instruction import Phase, Reply
from quorate.study.study import Protection, Release, Rounds
from quorate.study.study import Site as StudySite
from quorate.wire.messages import instruction_to_bytes, reply_from_bytes
from quorate_client.approval.answers import Answer, Answers
from quorate_client.daemon.engine_server import IDLE_S, EngineServer
from quorate_client.flower import engine_client
from quorate_client.flower.engine_client import HELD, ask, packed
from quorate_client.flower.site_file import NodeSite
from quorate_client.site.config import Config
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import make_or_load_keys
from tests.client.databases import state_made
from tests.client.engine_kit import (
    SITES,
    ServerPart,
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_agreement,
    make_study,
)
from tests.client.engine_processes import end_engines, engines
from tests.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def _ended(tmp_path: Path) -> Iterator[None]:
    yield
    end_engines(tmp_path)


class Place:
    """Three sites' folders with their keys, a study of theirs, and a site file for each."""

    def __init__(self, root: Path, mode: str = "none", deadline_s: float = 600.0, **changes: object) -> None:
        self.root = root
        self.folders = {name: SiteFolder(root / name) for name in SITES}
        for folder in self.folders.values():
            folder.create()
        self.members = tuple(make_or_load_keys(self.folders[name].keys).member(SiteName(name)) for name in SITES)
        sites = tuple(StudySite(name=member.name, signing_key=member.signing_key.hex()) for member in self.members)
        rounds = Rounds(count=3, quorum=3, deadline_s=deadline_s)
        study = make_study(protection=Protection(mode=mode), release=Release(model="sites"), rounds=rounds, **changes)
        self.study = study.model_copy(update={"sites": sites})
        self.server = ServerPart(self.study, root / "server")
        for name in SITES:
            self.write(name)

    def file(self, site: str) -> Path:
        return self.root / f"{site}.json"

    def write(self, site: str, **changes: object) -> None:
        """The site's file, with something in it that should not be there."""
        honest = NodeSite(make_agreement(self.study, self.root, site), self.folders[site].root, self.members)
        replace(honest, **changes).write(self.file(site))  # type: ignore[arg-type]  # a test's field by name

    def question(self, phase: Phase, file: str = "north") -> list[bytes]:
        return [str(self.file(file)).encode(), instruction_to_bytes(self.server.instruction(phase))]

    def ask(self, phase: Phase, site: str = "north", file: str = "") -> Reply:
        return reply_from_bytes(ask(self.folders[site], self.question(phase, file or site))[0])


@pytest.fixture
def place(installed: Path, tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def secret(installed: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, "secagg")


# --- who gets in ---


def test_one_engine_answers_all_messages_of_a_site_and_each_site_has_its_own(place: Place) -> None:
    for site in ("north", "south"):
        assert place.ask(Phase.UPLOAD, site).code == ""
    first = {process.pid for process in engines(place.root)}
    assert place.ask(Phase.UPLOAD).code == ""
    assert {process.pid for process in engines(place.root)} == first
    assert len(first) == 2


def test_the_socket_is_the_users_alone_and_out_of_the_tasks_sight(place: Place) -> None:
    place.ask(Phase.UPLOAD)
    keys = place.folders["north"].keys
    assert [path.parent for path in place.folders["north"].root.rglob("*.socket")] == [keys]
    assert stat.S_IMODE((keys / engine_client.SOCKET_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_a_folder_whose_keys_others_may_reach_has_no_engine(place: Place) -> None:
    place.folders["north"].keys.chmod(0o750)
    with pytest.raises(IdentityError, match="chmod 700"):
        place.ask(Phase.UPLOAD)
    assert engines(place.root) == []


def test_a_second_engine_for_a_folder_is_refused_and_the_first_goes_on(place: Place) -> None:
    place.ask(Phase.UPLOAD)
    (first,) = engines(place.root)
    command = [sys.executable, "-m", "quorate_client.daemon.engine_process", str(place.folders["north"].root)]
    assert subprocess.run(command, check=False).returncode == HELD
    assert place.ask(Phase.UPLOAD).code == ""
    assert engines(place.root) == [first]


def test_a_folder_that_a_daemon_holds_has_no_engine(place: Place) -> None:
    folder = place.folders["north"]
    with folder.held_by_this_daemon(), pytest.raises(WrongStateError, match="Another process holds"):
        ask(folder, place.question(Phase.UPLOAD), start_s=0.0)
    assert engines(place.root) == []


# --- for which site it works ---


def test_a_message_for_another_sites_folder_is_refused_and_nothing_is_done_there(place: Place) -> None:
    assert place.ask(Phase.UPLOAD, "north", file="south").code == "bad_study"
    assert not (place.folders["north"].work / "runs").exists()
    assert list(place.folders["south"].root.rglob("*.sqlite")) == []


def agreed_to(folder: SiteFolder) -> list[Answer]:
    with site_state(folder.database) as state:
        return Answers(state, float).all()


def test_a_site_file_that_names_another_sites_folder_is_refused_by_its_keys(secret: Place) -> None:
    secret.write("north", folder=secret.folders["south"].root)
    assert secret.ask(Phase.KEYS, "south", file="north").code == "key_mismatch"
    assert agreed_to(secret.folders["south"]) == []


def test_a_secret_study_without_the_keys_of_its_sites_is_refused(secret: Place) -> None:
    for members in ((), secret.members[:2]):
        secret.write("north", members=members)
        assert secret.ask(Phase.KEYS).code == "key_mismatch"
    assert agreed_to(secret.folders["north"]) == []


def test_the_keys_that_were_pinned_first_stay(secret: Place) -> None:
    """A site file that is changed during a study does not have shares sealed to somebody else's key."""
    assert secret.ask(Phase.KEYS).code == ""
    (secret.folders["east"].keys / "sealing.pem").unlink()
    forged = make_or_load_keys(secret.folders["east"].keys).member(SiteName("east"))
    secret.write("north", members=(forged, *secret.members[1:]))
    assert secret.ask(Phase.KEYS).code == ""
    with site_state(secret.folders["north"].database) as state:
        pinned = Answers(state, float).sealing_keys(secret.study.digest())
    assert pinned == {member.name: member.sealing_key for member in secret.members}


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ('protection = ["secagg"]\n', "protection_refused"),
        ('protection = ["none"]\nrelease = ["sites"]\nminimum_sites = 3\ntasks = ["linear"]\n', "protection_refused"),
        ('protection = ["none"]\nevaluation_without_protection = true\ntasks = ["linear"]\n', ""),
        ("not = 'a policy'\n", "policy_refused"),
    ],
)
def test_a_policy_in_the_folder_counts(place: Place, policy: str, code: str) -> None:
    path = place.folders["north"].policy
    path.write_text(policy)
    path.chmod(0o600)
    assert place.ask(Phase.UPLOAD).code == code


def test_an_expired_study_is_refused(installed: Path, tmp_path: Path) -> None:
    assert Place(tmp_path, expires=date(2020, 1, 1)).ask(Phase.UPLOAD).code == "study_expired"


def test_a_pause_and_a_rejection_in_the_folder_go_before_the_site_file(place: Place) -> None:
    """The folder may have been a daemon's before."""
    digest = place.study.digest()
    with state_made(place.folders["north"].database) as state:
        state.pause(True)
    assert place.ask(Phase.UPLOAD).code == "site_paused"
    with site_state(place.folders["north"].database) as state:
        state.pause(False)
        Answers(state, lambda: 0.0).record(Answer(place.study, digest, "rejected", b""))
    assert place.ask(Phase.UPLOAD).code == "study_not_approved"
    assert place.ask(Phase.UPLOAD, site="south").code == ""


# --- when it ends ---


async def test_a_message_that_waited_beyond_its_deadline_is_not_worked_on(installed: Path, tmp_path: Path) -> None:
    """Work goes on one message after the other, and each in time only."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = Place(tmp_path, parameters={"trouble": "hang", "signal": str(pipe)})
    with closing(EngineServer(place.folders["north"], Config(), lambda: 0.0)) as server:
        place.server.take(reply_from_bytes((await server.answer(place.question(Phase.UPLOAD)))[0]), place.server.spool)
        place.server.close(0)
        long = [str(place.file("north")).encode(), instruction_to_bytes(place.server.instruction(Phase.UPLOAD, 1))]
        working = asyncio.create_task(server.answer(long))
        await asyncio.to_thread(pipe.read_text)
        hurried = replace(place.server.instruction(Phase.UPLOAD), deadline_s=0.000001)
        waiting = server.answer([str(place.file("north")).encode(), instruction_to_bytes(hurried)])
        async with asyncio.timeout(PATIENCE_S):
            assert reply_from_bytes((await waiting)[0]).code == "site_interrupted"
        working.cancel()
        assert reply_from_bytes((await working)[0]).code == "work_withdrawn"
        await server.stop()


def prepared(place: Place) -> None:
    place.server.take(place.ask(Phase.UPLOAD), place.server.spool)
    place.server.close(0)


def test_work_that_nobody_waits_for_any_more_is_stopped(installed: Path, tmp_path: Path) -> None:
    """Flower ends a run's ClientApps when the run is stopped."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = Place(tmp_path, parameters={"trouble": "hang", "signal": str(pipe)})
    prepared(place)
    folder = place.folders["north"]
    instruction = place.server.instruction(Phase.UPLOAD, 1)
    with socket.socket(socket.AF_UNIX) as connection, engine_client.address(folder) as name:
        connection.connect(name)
        connection.sendall(b"".join(packed([str(place.file("north")).encode(), instruction_to_bytes(instruction)])))
        task = psutil.Process(int(pipe.read_text()))
    assert psutil.wait_procs([task], PATIENCE_S)[1] == []
    assert place.ask(Phase.UPLOAD).code == ""


@pytest.mark.parametrize("cut", [lambda whole: whole[:3], lambda whole: whole[:-1]])
def test_a_question_that_breaks_off_harms_nobody(place: Place, cut: Callable[[bytes], bytes]) -> None:
    place.ask(Phase.UPLOAD)
    with socket.socket(socket.AF_UNIX) as connection, engine_client.address(place.folders["north"]) as name:
        connection.connect(name)
        connection.sendall(cut(b"".join(packed(place.question(Phase.UPLOAD)))))
    assert place.ask(Phase.UPLOAD).code == ""


def test_an_engine_that_dies_at_work_is_a_crash_and_the_next_message_starts_another(
    installed: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = Place(tmp_path, parameters={"trouble": "hang", "signal": str(pipe)})
    prepared(place)
    (engine,) = engines(place.root)
    instruction = instruction_to_bytes(place.server.instruction(Phase.UPLOAD, 1))
    killer = subprocess.Popen(["sh", "-c", f"cat {pipe} && kill -9 {engine.pid}"], stdout=subprocess.DEVNULL)
    with pytest.raises(TaskCrashedError, match="ended while it worked"):
        ask(place.folders["north"], [str(place.file("north")).encode(), instruction])
    killer.wait(PATIENCE_S)
    psutil.wait_procs([engine], PATIENCE_S)
    assert place.ask(Phase.UPLOAD).code == ""


def test_work_is_stopped_at_the_studys_deadline_and_at_that_of_the_instruction(installed: Path, tmp_path: Path) -> None:
    assert Place(tmp_path / "study", deadline_s=0.000001).ask(Phase.UPLOAD).code == "site_interrupted"
    place = Place(tmp_path / "instruction")
    hurried = replace(place.server.instruction(Phase.UPLOAD), deadline_s=0.000001)
    question = [str(place.file("north")).encode(), instruction_to_bytes(hurried)]
    assert reply_from_bytes(ask(place.folders["north"], question)[0]).code == "site_interrupted"
    assert place.ask(Phase.UPLOAD).code == ""


def test_an_engine_that_is_told_to_stop_stops_its_work_and_says_so(installed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = Place(tmp_path, parameters={"trouble": "hang", "signal": str(pipe)})
    prepared(place)
    (engine,) = engines(place.root)
    stopper = subprocess.Popen(["sh", "-c", f"cat {pipe} && kill {engine.pid}"], stdout=subprocess.DEVNULL)
    instruction = instruction_to_bytes(place.server.instruction(Phase.UPLOAD, 1))
    answer = ask(place.folders["north"], [str(place.file("north")).encode(), instruction])
    stopper.wait(PATIENCE_S)
    assert reply_from_bytes(answer[0]).code == "work_withdrawn"
    assert psutil.wait_procs([engine], PATIENCE_S)[1] == []


def test_an_engine_whose_folder_is_gone_ends(place: Place) -> None:
    place.ask(Phase.UPLOAD)
    running = engines(place.root)
    shutil.rmtree(place.folders["north"].root)
    assert psutil.wait_procs(running, PATIENCE_S)[1] == []


async def test_an_engine_stays_for_as_long_as_a_message_can_come(place: Place) -> None:
    """From one message to the next of a site all others may take the round's time."""
    now = [0.0]
    with closing(EngineServer(place.folders["north"], Config(), lambda: now[0])) as server:
        now[0] = IDLE_S - 1
        assert not server.is_over
        reply = reply_from_bytes((await server.answer(place.question(Phase.UPLOAD)))[0])
        assert reply.code == ""
        now[0] += place.study.rounds.deadline_s + IDLE_S - 1
        assert not server.is_over
        now[0] += 1
        assert server.is_over
        await server.stop()


def test_nothing_of_a_question_stays_in_the_spool(place: Place) -> None:
    question = [*place.question(Phase.UPLOAD), bytes(32), b"something that is not asked for"]
    assert reply_from_bytes(ask(place.folders["north"], question)[0]).code == ""
    assert list(place.folders["north"].spool.iterdir()) == []


def test_what_is_not_an_instruction_is_no_answer(place: Place) -> None:
    with pytest.raises(TaskCrashedError):
        ask(place.folders["north"], [str(place.file("north")).encode(), b"\xff"])
    assert place.ask(Phase.UPLOAD).code == ""
