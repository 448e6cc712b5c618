"""What a site remembers of instructions and replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, blob_id
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate_client.daemon.journal import Journal
from quorate_client.site.database import SiteDatabase
from tests.client.databases import made_state

DAY_S = 86_400.0


def instruction(round_number: int, run: str = "run-1") -> Instruction:
    name = message_id(RunId(run), round_number, Phase.UPLOAD, 0, SiteName("north"))
    return Instruction(name, RunId(run), round_number, Phase.UPLOAD, 0, b"d" * 32, 60.0)


def large(seed: int) -> Blob:
    """A reference to bytes that are too many to travel inline."""
    return Blob(blob_id(bytes([seed])), 10**6)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SiteDatabase]:
    opened = made_state(tmp_path / "state.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def journal(state: SiteDatabase, now: list[float]) -> Journal:
    return Journal(state, lambda: now[0])


def test_an_entry_goes_from_started_to_replied_to_settled(journal: Journal) -> None:
    one = instruction(1)
    assert journal.find(one.message_id) is None

    journal.start(one)
    entry = journal.find(one.message_id)
    assert entry is not None
    assert (entry.run, entry.round_number, entry.phase, entry.reply) == ("run-1", 1, Phase.UPLOAD, None)
    assert journal.owed() == []

    reply = Reply(one.message_id, body=b"done", blobs=(large(1),), working_s=1.5)
    journal.reply(one, reply)
    assert [entry.reply for entry in journal.owed()] == [reply]

    journal.settle(one.message_id)
    assert journal.owed() == []
    entry = journal.find(one.message_id)
    assert entry is not None
    assert entry.reply == reply
    assert entry.is_settled


def test_what_the_server_took_is_written_with_what_comes_next(journal: Journal, state: SiteDatabase) -> None:
    one, two = instruction(1), instruction(2)
    journal.reply(one, Reply(one.message_id))
    journal.settle(one.message_id)
    assert [entry.message_id for entry in Journal(state, lambda: 0.0).owed()] == [one.message_id]  # as after a kill

    journal.start(two)
    assert Journal(state, lambda: 0.0).owed() == []

    journal.reply(two, Reply(two.message_id))
    journal.settle(two.message_id)
    journal.close()
    assert Journal(state, lambda: 0.0).owed() == []


def test_a_settled_reply_is_owed_again_when_the_server_asks_again(journal: Journal) -> None:
    one = instruction(1)
    journal.reply(one, Reply(one.message_id))
    journal.settle(one.message_id)

    journal.reply(one, Reply(one.message_id))

    assert [entry.message_id for entry in journal.owed()] == [one.message_id]


def test_the_first_reply_is_final(journal: Journal) -> None:
    one = instruction(1)
    journal.reply(one, Reply(one.message_id, body=b"first"))
    journal.reply(one, Reply(one.message_id, body=b"second"))

    entry = journal.find(one.message_id)
    assert entry is not None
    assert entry.reply == Reply(one.message_id, body=b"first")


def test_what_was_begun_and_not_finished_is_answered_as_interrupted(journal: Journal) -> None:
    done, begun = instruction(1), instruction(2)
    journal.start(done)
    journal.reply(done, Reply(done.message_id))
    journal.start(begun)

    assert journal.interrupt() == [begun.message_id]
    assert [entry.reply for entry in journal.owed()] == [
        Reply(done.message_id),
        Reply(begun.message_id, "site_interrupted"),
    ]
    assert journal.interrupt() == []


def test_rounds_that_no_server_asks_for_again_are_forgotten_with_their_blobs(journal: Journal) -> None:
    for number in (1, 2):
        one = instruction(number)
        assert journal.start(one) == set()
        journal.needs(one.message_id, large(number).id)
        journal.needs(one.message_id, large(9).id)
        journal.reply(one, Reply(one.message_id))

    assert journal.start(instruction(3)) == {large(1).id}
    assert journal.find(instruction(1).message_id) is None
    assert journal.find(instruction(2).message_id) is not None
    assert journal.blobs() == {large(2).id, large(9).id}


def test_another_run_keeps_its_rounds(journal: Journal) -> None:
    other = instruction(1, run="run-2")
    journal.reply(other, Reply(other.message_id))

    journal.start(instruction(100))

    assert journal.find(other.message_id) is not None


def test_work_in_hand_is_never_forgotten(journal: Journal, now: list[float]) -> None:
    one = instruction(1)
    journal.start(one)
    now[0] += 100 * DAY_S

    journal.start(instruction(100))
    journal.forget_older_than(DAY_S)

    assert journal.find(one.message_id) is not None


def test_what_is_too_old_is_forgotten(journal: Journal, now: list[float]) -> None:
    old, young = instruction(1), instruction(1, run="run-2")
    journal.reply(old, Reply(old.message_id, blobs=(large(1),)))
    now[0] += 5 * DAY_S
    journal.reply(young, Reply(young.message_id))

    assert journal.forget_older_than(4 * DAY_S) == {large(1).id}
    assert journal.find(old.message_id) is None
    assert journal.find(young.message_id) is not None


def test_a_reply_whose_data_is_damaged_gives_way_to_a_refusal(journal: Journal) -> None:
    one = instruction(1)
    journal.reply(one, Reply(one.message_id, blobs=(large(1),)))
    journal.replace(Reply(one.message_id, "blob_missing"))

    assert [entry.reply for entry in journal.owed()] == [Reply(one.message_id, "blob_missing")]
