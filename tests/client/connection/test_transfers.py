"""Bulk data between a site and its server: resumed, checked, given up on where it must be."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from quorate.rounds.blobs import FRAME_BYTES, Blob
from quorate.rounds.instruction import Instruction, Reply
from quorate_client.rounds.model.fetch import Fetch
from quorate_client.site.agreement import Agreement

from ..conftest import Talk
from ..consortium import RunningServer

CONTENT = bytes(range(256)) * (5 * FRAME_BYTES // 256) + b"the end"
FRAMES = 6


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk without room: the system refuses to let any file of this process grow beyond ``size``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def large(server: RunningServer) -> Blob:
    """A blob that the server has."""
    return server.services.spool.put([CONTENT])


def answer_with(talk: Talk, content: bytes = CONTENT, spoil: Callable[[Blob], None] = lambda _: None) -> None:
    """The engine answers the next instruction with a blob, to which ``spoil`` happens then."""

    async def perform(instruction: Instruction, *_: object) -> Reply:
        blob = talk.site.spool.put([content])
        spoil(blob)
        return Reply(instruction.message_id, blobs=(blob,))

    talk.engine.perform_next.append(perform)


# --- up ---


async def test_a_large_reply_is_uploaded_before_it_is_sent(talk: Talk) -> None:
    answer_with(talk)
    reply = await talk.ask()
    assert talk.services.spool.content(reply.blobs[0]) == CONTENT
    assert talk.site.metric("quorate_client_sent_bytes_total", kind="guest") == len(CONTENT)


async def test_an_upload_that_is_cut_goes_on_where_it_was_cut(talk: Talk) -> None:
    answer_with(talk)
    talk.services.faults.uploads_cut = 1
    reply = await talk.ask()
    assert talk.services.spool.content(reply.blobs[0]) == CONTENT
    assert talk.services.frames_taken == list(range(FRAMES))
    assert talk.site.metric("quorate_client_transfers_broken_total", direction="up") == 1
    assert talk.site.metric("quorate_client_frames_resumed_total", direction="up") == 2


async def test_an_upload_goes_on_at_the_next_connection(talk: Talk) -> None:
    answer_with(talk)
    talk.services.faults.uploads_cut = 1
    talk.instruct()
    await talk.hang_up()
    reply = await talk.ask()
    assert talk.services.spool.content(reply.blobs[0]) == CONTENT


async def test_what_the_server_already_has_is_not_sent(talk: Talk, large: Blob) -> None:
    answer_with(talk)
    await talk.ask()
    assert talk.services.frames_taken == []


async def test_a_server_that_stopped_before_it_named_the_whole_gets_the_last_frame_again(talk: Talk) -> None:
    content = CONTENT[: 3 * FRAME_BYTES]
    blob = talk.site.spool.put([content])
    answer_with(talk, content)
    writer = talk.services.spool.writer(blob)
    for frame in talk.site.spool.read(blob):
        writer.take(frame)
    writer.close()
    await talk.ask()
    assert talk.services.frames_taken == [2]
    assert talk.services.spool.content(blob) == content


async def test_a_reply_that_came_too_late_is_let_go(talk: Talk) -> None:
    answer_with(talk)
    talk.services.wanted = set()
    asked = talk.instruct(1)
    while (entry := talk.site.daemon.journal.find(asked.message_id)) is None or not entry.is_settled:
        await talk.visit.next("heartbeat")
    second = talk.instruct(2)
    assert (await talk.reply()).message_id == second.message_id
    assert talk.owed() == [2]


async def test_a_reply_whose_bulk_data_is_gone_from_the_spool_becomes_a_refusal(talk: Talk) -> None:
    answer_with(talk, spoil=lambda blob: talk.site.spool.remove(blob.id))
    reply = await talk.ask()
    assert (reply.code, reply.blobs) == ("blob_missing", ())


async def test_a_reply_whose_bulk_data_rotted_in_the_spool_becomes_a_refusal(talk: Talk) -> None:
    def rot(blob: Blob) -> None:
        path = talk.site.spool.path(blob.id)
        path.write_bytes(b"!" + path.read_bytes()[1:])

    answer_with(talk, spoil=rot)
    reply = await talk.ask()
    assert (reply.code, reply.blobs) == ("bad_frame", ())
    assert talk.services.frames_taken == []


# --- down ---


async def test_what_an_instruction_refers_to_is_fetched(talk: Talk, large: Blob) -> None:
    assert (await talk.ask(blobs=(large,))).code == ""
    assert talk.site.spool.content(large) == CONTENT
    assert talk.site.metric("quorate_client_received_bytes_total") == len(CONTENT)


async def test_a_download_that_is_cut_goes_on_where_it_was_cut(talk: Talk, large: Blob) -> None:
    talk.services.faults.downloads_cut = 1
    assert (await talk.ask(blobs=(large,))).code == ""
    assert talk.site.spool.content(large) == CONTENT
    assert talk.services.frames_sent == list(range(FRAMES))
    assert talk.site.metric("quorate_client_transfers_broken_total", direction="down") == 1
    assert talk.site.metric("quorate_client_frames_resumed_total", direction="down") == 2


async def test_a_download_outlives_the_connection(talk: Talk, large: Blob) -> None:
    talk.services.faults.downloads_cut = 1
    talk.instruct(blobs=(large,))
    await talk.hang_up()
    assert (await talk.ask(blobs=(large,))).code == ""
    assert talk.site.spool.content(large) == CONTENT
    assert talk.services.frames_sent == list(range(FRAMES))


async def test_a_download_goes_on_when_a_server_that_was_started_again_has_asked_again(talk: Talk, large: Blob) -> None:
    """Before that it would hear that there is no such work, which is final."""
    talk.services.faults.downloads_cut = 1
    asked = talk.instruct(blobs=(large,))
    talk.services.given_out = set()
    await talk.hang_up()
    await talk.visit.next("heartbeat")
    await talk.visit.next("heartbeat")
    assert talk.owed() == []
    talk.services.given_out = {large.id}
    talk.visit.instruct(asked)
    assert (await talk.reply()).code == ""
    assert talk.site.spool.content(large) == CONTENT


async def test_a_download_that_was_closed_while_the_site_was_away_does_not_hold_up_the_next_round(
    talk: Talk, large: Blob
) -> None:
    """A server that went on without this site never asks for that round again."""
    talk.services.faults.downloads_cut = 1
    talk.instruct(blobs=(large,))
    talk.services.given_out = set()
    await talk.hang_up()
    talk.instruct(2)
    assert [(await talk.reply()).code for _ in range(2)] == ["blob_missing", ""]


@pytest.mark.parametrize("fault", ["downloads_corrupted", "downloads_truncated"])
async def test_a_damaged_frame_is_asked_for_again(talk: Talk, large: Blob, fault: str) -> None:
    setattr(talk.services.faults, fault, 1)
    assert (await talk.ask(blobs=(large,))).code == ""
    assert talk.site.spool.content(large) == CONTENT


async def test_a_server_that_only_sends_damaged_frames_is_refused_and_nothing_is_kept(talk: Talk, large: Blob) -> None:
    talk.services.faults.downloads_corrupted = 1000
    assert (await talk.ask(blobs=(large,))).code == "bad_frame"
    assert not talk.site.spool.has(large)


async def test_a_full_disk_at_the_site_is_a_refusal_and_the_site_goes_on(talk: Talk, large: Blob) -> None:
    async def fetch_on_a_full_disk(instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        with files_no_larger_than(3 * FRAME_BYTES):
            await fetch(large)
        raise AssertionError("there was room")

    talk.engine.perform_next.append(fetch_on_a_full_disk)
    assert (await talk.ask(1)).code == "disk_full"
    assert not talk.site.spool.has(large)

    assert (await talk.ask(2, blobs=(large,))).code == ""
    assert talk.site.spool.content(large) == CONTENT
    assert talk.services.frames_sent.count(0) == 1


async def test_blobs_of_rounds_that_are_over_are_removed(talk: Talk, large: Blob) -> None:
    await talk.ask(1, blobs=(large,))
    await talk.ask(2)
    assert talk.site.spool.has(large)
    await talk.ask(3)
    assert not talk.site.spool.has(large)
