"""The mailbox: at most one reply to each instruction, from the site that was asked, acknowledged when it is durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from quorate.errors import BlobMissingError, FrameError, MessageUnknownError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import FRAME_BYTES, Blob, BlobId, blob_id, cut
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.spool import Spool
from quorate_server.runs.mailbox import MAX_UPLOADS, Mailbox
from quorate_server.runs.sessions import Session, Sessions
from quorate_server.storage.journal import Journal
from tests.server.databases import made_database
from tests.server.study_kit import RUN

EAST, WEST = SiteName("east"), SiteName("west")
NOTHING: frozenset[BlobId] = frozenset()


class Kit:
    def __init__(self, folder: Path) -> None:
        self.engine = made_database(f"sqlite:///{folder / 'server.sqlite'}")
        self.journal = Journal(self.engine)
        self.journal.create_run(RUN, bytes(32))
        self.spool = Spool(folder / "spool")
        self.sessions = Sessions(self.journal, 6.0)
        self.mailbox = Mailbox(self.sessions, self.journal, self.spool)
        self.taken: list[tuple[SiteName, Reply]] = []

    def ask(self, site: SiteName, number: int = 1, refers_to: frozenset[BlobId] = NOTHING) -> MessageId:
        asked = instruction(site, number)
        self.mailbox.send(site, asked, refers_to, lambda site, reply: self.taken.append((site, reply)))
        return asked.message_id

    def close(self) -> None:
        self.journal.close()
        self.engine.dispose()


def instruction(site: SiteName, number: int = 1) -> Instruction:
    name = message_id(RUN, number, Phase.UPLOAD, 0, site)
    return Instruction(name, RUN, number, Phase.UPLOAD, 0, bytes(32), 60.0)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    kit = Kit(tmp_path)
    yield kit
    kit.close()


def said(session: Session) -> list[Any]:
    events = []
    while not session.outgoing.empty():
        events.append(session.outgoing.get_nowait())
    return events


# --- asking ---


async def test_an_instruction_goes_out_at_once_and_again_to_whoever_connects_while_it_is_owed(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    message = kit.ask(EAST)
    kit.ask(WEST)
    (event,) = said(session)
    assert event.instruction.message_id == message
    assert [owed.message_id for owed in kit.mailbox.owed_by(EAST)] == [message]
    await kit.mailbox.take(EAST, Reply(message))
    assert kit.mailbox.owed_by(EAST) == []


async def test_withdrawing_tells_the_site_and_is_written_down_as_a_refusal(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    messages = [kit.ask(EAST), kit.ask(WEST)]
    said(session)
    await kit.mailbox.withdraw([*messages, MessageId(b"\x09" * 32)])
    (event,) = said(session)
    assert event.withdraw.message_id == messages[0]
    assert kit.mailbox.owed_by(EAST) == kit.mailbox.owed_by(WEST) == []
    assert {reply.code for reply in kit.journal.replies(RUN).values()} == {"work_withdrawn"}
    kit.journal.forgive_refusals(RUN)
    assert set(kit.journal.attempts(RUN).values()) == {1}


# --- replies ---


async def test_a_reply_is_handed_on_at_once_and_acknowledged_when_it_is_durable(kit: Kit) -> None:
    message = kit.ask(EAST)
    written = kit.mailbox.take(EAST, Reply(message, body=b"work"))
    assert kit.taken == [(EAST, Reply(message, body=b"work"))]
    assert not written.done()
    assert not kit.journal.has_reply(EAST, message)
    await written
    assert kit.journal.has_reply(EAST, message)


async def test_a_reply_that_could_not_be_written_is_not_acknowledged(kit: Kit) -> None:
    stranger = replace(instruction(EAST), run=RunId("unknown"))
    kit.mailbox.send(EAST, stranger, NOTHING, lambda *_: None)
    with pytest.raises(IntegrityError):
        await kit.mailbox.take(EAST, Reply(stranger.message_id))
    with pytest.raises(MessageUnknownError):
        await kit.mailbox.take(EAST, Reply(stranger.message_id))


async def test_a_repeated_reply_is_acknowledged_and_counts_once(kit: Kit) -> None:
    message = kit.ask(EAST)
    first = Reply(message, body=b"first")
    await kit.mailbox.take(EAST, first)
    await kit.mailbox.take(EAST, Reply(message, body=b"second"))
    assert kit.taken == [(EAST, first)]
    assert kit.journal.replies(RUN) == {message: first}


async def test_two_replies_at_the_same_moment_count_once(kit: Kit) -> None:
    message = kit.ask(EAST)
    replies = [Reply(message, body=bytes([number])) for number in range(5)]
    await asyncio.gather(*(kit.mailbox.take(EAST, reply) for reply in replies))
    assert kit.taken == [(EAST, replies[0])]
    assert kit.journal.replies(RUN) == {message: replies[0]}


async def test_another_site_cannot_reply_and_the_one_that_was_asked_still_can(kit: Kit) -> None:
    message = kit.ask(EAST)
    with pytest.raises(MessageUnknownError):
        await kit.mailbox.take(WEST, Reply(message, body=b"stolen"))
    assert kit.taken == []
    assert kit.journal.replies(RUN) == {}
    await kit.mailbox.take(EAST, Reply(message))
    with pytest.raises(MessageUnknownError):
        await kit.mailbox.take(WEST, Reply(message, body=b"stolen"))
    assert len(kit.taken) == 1


async def test_a_reply_to_what_nobody_asked_is_refused(kit: Kit) -> None:
    kit.ask(EAST)
    with pytest.raises(MessageUnknownError):
        await kit.mailbox.take(EAST, Reply(MessageId(b"\x07" * 32)))
    assert kit.taken == []
    assert kit.journal.replies(RUN) == {}


async def test_a_reply_after_the_withdrawal_is_acknowledged_so_that_the_site_can_forget_it(kit: Kit) -> None:
    message = kit.ask(EAST)
    await kit.mailbox.withdraw([message])
    await kit.mailbox.take(EAST, Reply(message, body=b"late"))
    assert kit.taken == []
    assert kit.journal.replies(RUN)[message].code == "work_withdrawn"


async def test_a_reply_without_its_upload_is_refused_and_taken_once_it_is_there(kit: Kit) -> None:
    message = kit.ask(EAST)
    content = b"update" * 1000
    reply = Reply(message, blobs=(Blob(blob_id(content), len(content)),))
    with pytest.raises(BlobMissingError):
        await kit.mailbox.take(EAST, reply)
    assert kit.taken == []
    assert kit.journal.replies(RUN) == {}
    kit.spool.put([content])
    await kit.mailbox.take(EAST, reply)
    assert kit.taken == [(EAST, reply)]


async def test_a_reply_that_lies_about_the_size_of_its_upload_is_refused(kit: Kit) -> None:
    message = kit.ask(EAST)
    blob = kit.spool.put([b"short"])
    with pytest.raises(BlobMissingError):
        await kit.mailbox.take(EAST, Reply(message, blobs=(Blob(blob.id, 4000),)))
    assert kit.taken == []


async def test_a_worker_that_asks_again_gets_the_reply_even_if_it_came_for_its_predecessor(kit: Kit) -> None:
    message = kit.ask(EAST)
    heard: list[Reply] = []
    kit.mailbox.send(EAST, instruction(EAST), NOTHING, lambda _, reply: heard.append(reply))
    await kit.mailbox.take(EAST, Reply(message))
    assert kit.taken == []
    assert [reply.message_id for reply in heard] == [message]


# --- bulk data ---


async def test_a_site_uploads_only_for_what_it_owes(kit: Kit) -> None:
    message = kit.ask(EAST)
    blob = Blob(blob_id(b"update"), 6)
    with pytest.raises(MessageUnknownError):
        kit.mailbox.announce(WEST, message, blob)
    with pytest.raises(MessageUnknownError):
        kit.mailbox.announce(EAST, MessageId(b"\x07" * 32), blob)
    with pytest.raises(MessageUnknownError):
        kit.mailbox.announced(EAST, blob.id)
    kit.mailbox.announce(EAST, message, blob)
    assert kit.mailbox.announced(EAST, blob.id) == (message, blob)
    with pytest.raises(MessageUnknownError):
        kit.mailbox.announced(WEST, blob.id)


async def test_a_site_cannot_announce_uploads_without_end(kit: Kit) -> None:
    message = kit.ask(EAST)
    blobs = [Blob(blob_id(bytes([number])), 1) for number in range(MAX_UPLOADS + 1)]
    for blob in blobs[:MAX_UPLOADS]:
        kit.mailbox.announce(EAST, message, blob)
    with pytest.raises(FrameError):
        kit.mailbox.announce(EAST, message, blobs[-1])
    kit.mailbox.announce(EAST, message, blobs[0])


async def test_an_announcement_outlives_the_worker_that_asked(kit: Kit) -> None:
    message = kit.ask(EAST)
    blob = Blob(blob_id(b"update"), 6)
    kit.mailbox.announce(EAST, message, blob)
    kit.ask(EAST)
    assert kit.mailbox.announced(EAST, blob.id) == (message, blob)


async def test_what_was_uploaded_for_withdrawn_work_is_removed(kit: Kit) -> None:
    message = kit.ask(EAST)
    blob = kit.spool.put([b"update"])
    kit.mailbox.announce(EAST, message, blob)
    kit.mailbox.uploaded(EAST, message, blob.id)
    await kit.mailbox.withdraw([message])
    assert not kit.spool.has(blob)


async def test_a_site_cannot_remove_what_others_need_by_announcing_it_as_its_own(kit: Kit) -> None:
    needed = kit.spool.put([b"the newest sum"])
    message = kit.ask(EAST, refers_to=frozenset({needed.id}))
    kit.mailbox.announce(EAST, message, needed)
    await kit.mailbox.withdraw([message])
    assert kit.spool.has(needed)


async def test_what_was_still_arriving_for_withdrawn_work_is_removed_and_another_site_s_part_is_not(kit: Kit) -> None:
    content = bytes(2 * FRAME_BYTES)
    blob = Blob(blob_id(content), len(content))
    message = kit.ask(EAST)
    kit.mailbox.announce(EAST, message, blob)
    for site in (EAST, WEST):
        writer = kit.spool.writer(blob, site)
        writer.take(next(cut([content])))
        writer.close()
    await kit.mailbox.withdraw([message])
    assert [kit.spool.writer(blob, site).next_frame for site in (EAST, WEST)] == [0, 1]


async def test_an_upload_that_ends_after_the_withdrawal_is_removed(kit: Kit) -> None:
    message = kit.ask(EAST)
    blob = kit.spool.put([b"update"])
    await kit.mailbox.withdraw([message])
    with pytest.raises(MessageUnknownError):
        kit.mailbox.uploaded(EAST, message, blob.id)
    assert not kit.spool.has(blob)


async def test_a_site_downloads_only_what_its_work_refers_to_while_it_owes_the_reply(kit: Kit) -> None:
    mine, other = kit.spool.put([b"my sum"]), kit.spool.put([b"another sum"])
    gone = blob_id(b"a sum that is gone")
    message = kit.ask(EAST, refers_to=frozenset({mine.id, gone}))
    kit.ask(WEST, refers_to=frozenset({other.id}))
    assert kit.mailbox.check_download(EAST, mine.id) == mine
    for site, blob in ((EAST, other.id), (WEST, mine.id), (EAST, gone), (EAST, BlobId(b"")), (EAST, BlobId(b".."))):
        with pytest.raises(BlobMissingError):
            kit.mailbox.check_download(site, blob)
    await kit.mailbox.take(EAST, Reply(message))
    with pytest.raises(BlobMissingError):
        kit.mailbox.check_download(EAST, mine.id)
