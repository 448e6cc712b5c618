"""The journal: a reply counts once, is there after a crash, and a lost waiter harms nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from quorate.identity import RunId, SiteName
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.run import RunState
from quorate_server.storage.journal import Journal
from tests.patience import PATIENCE_S
from tests.server.databases import made_database
from tests.server.study_kit import NAMES, RUN

EAST, NORTH, SOUTH, WEST = NAMES
DIGEST = bytes(range(32))


def instruction(site: SiteName, number: int = 1, phase: Phase = Phase.UPLOAD, attempt: int = 0) -> Instruction:
    name = message_id(RUN, number, phase, attempt, site)
    return Instruction(name, RUN, number, phase, attempt, DIGEST, 60.0)


def reply_to(asked: Instruction, code: str = "", body: bytes = b"") -> Reply:
    return Reply(asked.message_id, code, body)


class Opened:
    """A journal that can be closed and opened again, as a restart does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.now = 100.0
        self.journal = self._open()

    def _open(self) -> Journal:
        self.engine = made_database(self.url)
        return Journal(self.engine, lambda: self.now)

    def reopen(self) -> Journal:
        self.close()
        self.journal = self._open()
        return self.journal

    def close(self) -> None:
        self.journal.close()
        self.engine.dispose()


class Failing:
    """Lets no statement that begins so get through to the database."""

    def __init__(self, beginning: str) -> None:
        self._beginning = beginning
        self.failed = False

    def __call__(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(self._beginning):
            self.failed = True
            raise OSError("full")


@pytest.fixture
def opened(database_url: str) -> Iterator[Opened]:
    opened = Opened(database_url)
    opened.journal.create_run(RUN, DIGEST)
    yield opened
    opened.close()


# --- replies ---


async def test_a_reply_that_was_recorded_is_there_after_a_restart(opened: Opened) -> None:
    asked = instruction(EAST)
    await opened.journal.record_reply(EAST, asked, reply_to(asked, body=b"work"))
    journal = opened.reopen()
    assert journal.replies(RUN) == {asked.message_id: reply_to(asked, body=b"work")}
    assert journal.has_reply(EAST, asked.message_id)
    assert not journal.has_reply(WEST, asked.message_id)


async def test_the_first_reply_stays(opened: Opened) -> None:
    asked = instruction(EAST)
    first, second = reply_to(asked, body=b"first"), reply_to(asked, "task_failed")
    await opened.journal.record_reply(EAST, asked, first)
    await opened.journal.record_reply(EAST, asked, second)
    await asyncio.gather(*(opened.journal.record_reply(EAST, asked, second) for _ in range(3)))
    assert opened.journal.replies(RUN) == {asked.message_id: first}


async def test_replies_that_arrive_together_share_a_few_commits(opened: Opened) -> None:
    commits = 0

    @event.listens_for(opened.engine, "commit")
    def _(_: object) -> None:
        nonlocal commits
        commits += 1

    asked = [instruction(SiteName(f"site-{number}")) for number in range(200)]
    await asyncio.gather(*(opened.journal.record_reply(SiteName("x"), a, reply_to(a)) for a in asked))
    assert len(opened.journal.replies(RUN)) == 200
    assert commits <= 3


async def test_a_step_forward_takes_along_the_replies_that_wait(opened: Opened) -> None:
    asked = instruction(EAST)
    written = opened.journal.record_reply(EAST, asked, reply_to(asked))
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(opened.engine, "commit", count)
    await opened.journal.commit(RUN, "trained", None)
    assert written.done()
    assert commits == 1
    assert set(opened.journal.replies(RUN)) == {asked.message_id}
    assert opened.journal.has_reply(EAST, asked.message_id), "one that comes again is known"


async def test_a_step_forward_that_could_not_be_written_leaves_the_replies_to_be_written(opened: Opened) -> None:
    asked = instruction(EAST)
    written = opened.journal.record_reply(EAST, asked, reply_to(asked))
    event.listen(opened.engine, "before_cursor_execute", fail := Failing("UPDATE runs"))
    with pytest.raises(OSError, match="full"):
        await opened.journal.commit(RUN, "trained", None)
    assert fail.failed
    assert not written.done()
    assert opened.journal.replies(RUN) == {}, "half a step is none"
    await written
    assert set(opened.journal.replies(RUN)) == {asked.message_id}


async def test_a_waiter_that_gave_up_does_not_leave_the_others_waiting(opened: Opened) -> None:
    release = threading.Event()

    @event.listens_for(opened.engine, "begin")
    def _(_: object) -> None:
        release.wait(PATIENCE_S)

    asked = [instruction(site) for site in NAMES]
    waiting = [asyncio.ensure_future(opened.journal.record_reply(EAST, a, reply_to(a))) for a in asked]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.sleep(0)
    release.set()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*waiting[2:])
    assert set(opened.journal.replies(RUN)) == {a.message_id for a in asked}


async def test_whoever_waits_for_a_write_learns_that_it_failed(opened: Opened) -> None:
    stranger = replace(instruction(EAST), run=RunId("unknown"))
    with pytest.raises(Exception, match=r"(?i)foreign.?key"):
        await opened.journal.record_reply(EAST, stranger, reply_to(stranger))
    asked = instruction(EAST, 2)
    await opened.journal.record_reply(EAST, asked, reply_to(asked))
    assert set(opened.journal.replies(RUN)) == {asked.message_id}


async def test_replies_are_forgotten_with_their_round_and_with_their_run(opened: Opened) -> None:
    asked = [instruction(EAST, number) for number in (1, 2, 3)]
    for a in asked:
        await opened.journal.record_reply(EAST, a, reply_to(a))
    await opened.journal.commit(RUN, "trained", None)
    assert len(opened.journal.replies(RUN)) == 3
    await opened.journal.commit(RUN, "evaluated", (3, "{}"))
    assert set(opened.journal.replies(RUN)) == {asked[2].message_id}
    opened.journal.forget_replies(RUN)
    assert opened.journal.replies(RUN) == {}


# --- attempts ---


async def test_only_who_refused_and_was_forgiven_is_asked_under_another_attempt(opened: Opened) -> None:
    done, refused, unusable = instruction(EAST), instruction(NORTH), instruction(SOUTH)
    await opened.journal.record_reply(EAST, done, reply_to(done))
    await opened.journal.record_reply(NORTH, refused, reply_to(refused, "task_failed"))
    await opened.journal.record_reply(SOUTH, unusable, reply_to(unusable))
    opened.journal.refuse_reply(unusable.message_id, "bad_contribution")
    assert opened.journal.attempts(RUN) == {}
    opened.journal.forgive_refusals(RUN)
    assert opened.reopen().attempts(RUN) == {(1, "upload", NORTH): 1, (1, "upload", SOUTH): 1}


async def test_forgiven_messages_can_be_named(opened: Opened) -> None:
    refused, done = instruction(EAST), instruction(WEST)
    await opened.journal.record_reply(EAST, refused, reply_to(refused, "task_failed"))
    await opened.journal.record_reply(WEST, done, reply_to(done))
    assert opened.journal.forgiven(RUN) == set()
    opened.journal.forgive_refusals(RUN)
    assert opened.journal.forgiven(RUN) == {refused.message_id}


async def test_attempts_go_on_rising(opened: Opened) -> None:
    for attempt in range(3):
        asked = instruction(EAST, attempt=attempt)
        await opened.journal.record_reply(EAST, asked, reply_to(asked, "task_failed"))
        opened.journal.forgive_refusals(RUN)
        assert opened.journal.attempts(RUN) == {(1, "upload", EAST): attempt + 1}


def test_refusing_what_nobody_replied_changes_nothing(opened: Opened) -> None:
    opened.journal.refuse_reply(MessageId(bytes(32)), "bad_contribution")
    assert opened.journal.replies(RUN) == {}


# --- sessions ---


def test_a_session_number_is_used_once_even_across_restarts(opened: Opened) -> None:
    assert opened.journal.raise_session(EAST, 5, "0.1.0")
    assert not opened.journal.raise_session(EAST, 5, "0.1.0")
    assert not opened.journal.raise_session(EAST, 4, "0.1.0")
    assert opened.journal.raise_session(WEST, 4, "0.1.0")
    journal = opened.reopen()
    assert not journal.raise_session(EAST, 5, "0.1.0")
    assert journal.raise_session(EAST, 2**63 - 1, "0.1.0")
    assert not journal.raise_session(EAST, 6, "0.1.0")


def test_a_site_that_enrolled_anew_counts_from_one_again(opened: Opened) -> None:
    assert opened.journal.raise_session(EAST, 5, "0.1.0")
    opened.journal.forget_session(EAST)
    assert opened.journal.raise_session(EAST, 1, "0.1.0")


@pytest.mark.parametrize("known", [False, True])
async def test_of_two_that_show_the_same_number_at_the_same_moment_one_wins(opened: Opened, known: bool) -> None:
    if known:
        opened.journal.raise_session(EAST, 1, "0.1.0")
    for number in range(2, 12):
        visit = (opened.journal.raise_session, EAST, number, "0.1.0")
        won = await asyncio.gather(*(asyncio.to_thread(*visit) for _ in range(4)))
        assert sorted(won) == [False, False, False, True]


# --- runs ---


async def test_a_run_s_progress_and_result_are_one_step(opened: Opened) -> None:
    opened.now = 200.0
    await opened.journal.commit(RUN, "one", (1, '{"round_number": 1}'))
    await opened.journal.commit(RUN, "two", None)
    await opened.journal.commit(RUN, "three", (2, '{"round_number": 2}'))
    journal = opened.reopen()
    (record,) = journal.runs()
    assert (record.progress, record.state, record.changed_unix_s) == ("three", RunState.RUNNING, 200.0)
    assert journal.results(RUN) == [{"round_number": 1}, {"round_number": 2}]


async def test_a_result_that_is_written_again_takes_the_place_of_the_first(opened: Opened) -> None:
    await opened.journal.commit(RUN, "one", (1, '{"sites": 3}'))
    await opened.journal.commit(RUN, "one", (1, '{"sites": 4}'))
    assert opened.journal.results(RUN) == [{"sites": 4}]


def test_runs_are_listed_oldest_first_with_their_state_and_reason(opened: Opened) -> None:
    other = RunId("another-0a1b2c")
    opened.now = 50.0
    opened.journal.create_run(other, DIGEST)
    opened.journal.set_state(RUN, RunState.PAUSED, "why")
    assert [(r.run, r.state, r.reason) for r in opened.reopen().runs()] == [
        (other, RunState.RUNNING, ""),
        (RUN, RunState.PAUSED, "why"),
    ]
    assert [opened.journal.run(other), opened.journal.run(RUN)] == opened.journal.runs()
