"""Bulk data between a site and its server: resumed, checked, given up on where it must be."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quorate.rounds.blobs import FRAME_BYTES, Blob
from quorate.rounds.instruction import Instruction, Reply
from quorate.wire.messages import reply_from_proto
from quorate_client.daemon.instructions import Fetch
from quorate_client.site.agreement import Agreement

from ..conftest import RunningSite, ScriptedEngine, instruct
from ..consortium import RunningServer, Visit

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


@pytest.fixture
def uploads(site: RunningSite, engine: ScriptedEngine) -> ScriptedEngine:
    """The engine answers the next instruction with a large blob."""

    async def perform(instruction: Instruction, *_: object) -> Reply:
        return Reply(instruction.message_id, blobs=(site.spool.put([CONTENT]),))

    engine.perform_next.append(perform)
    return engine


# --- up ---


async def test_a_large_reply_is_uploaded_before_it_is_sent(
    server: RunningServer, site: RunningSite, visit: Visit, uploads: ScriptedEngine
) -> None:
    visit.instruct(instruct(server.services))
    reply = reply_from_proto(await visit.next("reply"))

    assert server.services.spool.content(reply.blobs[0]) == CONTENT
    assert site.metric("quorate_client_sent_bytes_total", kind="guest") == len(CONTENT)


async def test_an_upload_that_is_cut_goes_on_where_it_was_cut(
    server: RunningServer, site: RunningSite, visit: Visit, uploads: ScriptedEngine
) -> None:
    server.services.faults.uploads_cut = 1
    visit.instruct(instruct(server.services))
    reply = reply_from_proto(await visit.next("reply"))

    assert server.services.spool.content(reply.blobs[0]) == CONTENT
    assert server.services.frames_taken == list(range(FRAMES))
    assert site.metric("quorate_client_transfers_broken_total", direction="up") == 1
    assert site.metric("quorate_client_frames_resumed_total", direction="up") == 2


async def test_an_upload_goes_on_at_the_next_connection(
    server: RunningServer, visit: Visit, uploads: ScriptedEngine
) -> None:
    server.services.faults.uploads_cut = 1
    visit.instruct(instruct(server.services))
    visit.hang_up()
    again = await server.services.visit()
    again.instruct(instruct(server.services))
    reply = reply_from_proto(await again.next("reply"))

    assert server.services.spool.content(reply.blobs[0]) == CONTENT


async def test_what_the_server_already_has_is_not_sent(
    server: RunningServer, visit: Visit, uploads: ScriptedEngine, large: Blob
) -> None:
    visit.instruct(instruct(server.services))
    await visit.next("reply")

    assert server.services.frames_taken == []


async def test_a_server_that_stopped_before_it_named_the_whole_gets_the_last_frame_again(
    server: RunningServer, site: RunningSite, visit: Visit, engine: ScriptedEngine
) -> None:
    content = CONTENT[: 3 * FRAME_BYTES]
    blob = site.spool.put([content])

    async def perform(instruction: Instruction, *_: object) -> Reply:
        return Reply(instruction.message_id, blobs=(blob,))

    engine.perform_next.append(perform)
    writer = server.services.spool.writer(blob)
    for frame in site.spool.read(blob):
        writer.take(frame)
    writer.close()
    visit.instruct(instruct(server.services))
    await visit.next("reply")

    assert server.services.frames_taken == [2]
    assert server.services.spool.content(blob) == content


async def test_a_reply_that_came_too_late_is_let_go(
    server: RunningServer, site: RunningSite, visit: Visit, uploads: ScriptedEngine
) -> None:
    server.services.wanted = set()
    visit.instruct(instruct(server.services, 1))
    while (entry := site.daemon.journal.find(instruct(server.services, 1).message_id)) is None or not entry.is_settled:
        await visit.next("heartbeat")
    visit.instruct(instruct(server.services, 2))

    assert reply_from_proto(await visit.next("reply")).message_id == instruct(server.services, 2).message_id
    assert [entry.round_number for entry in site.daemon.journal.owed()] == [2]


async def test_a_reply_whose_bulk_data_is_gone_from_the_spool_becomes_a_refusal(
    server: RunningServer, site: RunningSite, visit: Visit, engine: ScriptedEngine
) -> None:
    async def lose(instruction: Instruction, *_: object) -> Reply:
        blob = site.spool.put([CONTENT])
        site.spool.remove(blob.id)
        return Reply(instruction.message_id, blobs=(blob,))

    engine.perform_next.append(lose)
    visit.instruct(instruct(server.services))
    reply = reply_from_proto(await visit.next("reply"))

    assert (reply.code, reply.blobs) == ("blob_missing", ())


async def test_a_reply_whose_bulk_data_rotted_in_the_spool_becomes_a_refusal(
    server: RunningServer, site: RunningSite, visit: Visit, engine: ScriptedEngine
) -> None:
    async def rot(instruction: Instruction, *_: object) -> Reply:
        blob = site.spool.put([CONTENT])
        path = site.spool.path(blob.id)
        path.write_bytes(b"!" + path.read_bytes()[1:])
        return Reply(instruction.message_id, blobs=(blob,))

    engine.perform_next.append(rot)
    visit.instruct(instruct(server.services))
    reply = reply_from_proto(await visit.next("reply"))

    assert (reply.code, reply.blobs) == ("bad_frame", ())
    assert server.services.frames_taken == []


# --- down ---


async def test_what_an_instruction_refers_to_is_fetched(
    server: RunningServer, site: RunningSite, visit: Visit, large: Blob
) -> None:
    visit.instruct(instruct(server.services, blobs=(large,)))

    assert (await visit.next("reply")).code == ""
    assert site.spool.content(large) == CONTENT
    assert site.metric("quorate_client_received_bytes_total") == len(CONTENT)


async def test_a_download_that_is_cut_goes_on_where_it_was_cut(
    server: RunningServer, site: RunningSite, visit: Visit, large: Blob
) -> None:
    server.services.faults.downloads_cut = 1
    visit.instruct(instruct(server.services, blobs=(large,)))

    assert (await visit.next("reply")).code == ""
    assert site.spool.content(large) == CONTENT
    assert server.services.frames_sent == list(range(FRAMES))
    assert site.metric("quorate_client_transfers_broken_total", direction="down") == 1
    assert site.metric("quorate_client_frames_resumed_total", direction="down") == 2


async def test_a_download_outlives_the_connection(
    server: RunningServer, site: RunningSite, visit: Visit, large: Blob
) -> None:
    server.services.faults.downloads_cut = 1
    visit.instruct(instruct(server.services, blobs=(large,)))
    visit.hang_up()
    again = await server.services.visit()

    assert (await again.next("reply")).code == ""
    assert site.spool.content(large) == CONTENT


@pytest.mark.parametrize("fault", ["downloads_corrupted", "downloads_truncated"])
async def test_a_damaged_frame_is_asked_for_again(
    server: RunningServer, site: RunningSite, visit: Visit, large: Blob, fault: str
) -> None:
    setattr(server.services.faults, fault, 1)
    visit.instruct(instruct(server.services, blobs=(large,)))

    assert (await visit.next("reply")).code == ""
    assert site.spool.content(large) == CONTENT


async def test_a_server_that_only_sends_damaged_frames_is_refused_and_nothing_is_kept(
    server: RunningServer, site: RunningSite, visit: Visit, large: Blob
) -> None:
    server.services.faults.downloads_corrupted = 1000
    visit.instruct(instruct(server.services, blobs=(large,)))

    assert (await visit.next("reply")).code == "bad_frame"
    assert not site.spool.has(large)


async def test_a_full_disk_at_the_site_is_a_refusal_and_the_site_goes_on(
    server: RunningServer, site: RunningSite, visit: Visit, engine: ScriptedEngine, large: Blob
) -> None:
    async def fetch_on_a_full_disk(instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        with files_no_larger_than(3 * FRAME_BYTES):
            await fetch(large)
        raise AssertionError("there was room")

    engine.perform_next.append(fetch_on_a_full_disk)
    visit.instruct(instruct(server.services, 1))
    assert (await visit.next("reply")).code == "disk_full"
    assert not site.spool.has(large)

    visit.instruct(instruct(server.services, 2, blobs=(large,)))
    assert (await visit.next("reply")).code == ""
    assert site.spool.content(large) == CONTENT
    assert server.services.frames_sent.count(0) == 1


async def test_blobs_of_rounds_that_are_over_are_removed(
    server: RunningServer, site: RunningSite, visit: Visit, large: Blob
) -> None:
    visit.instruct(instruct(server.services, 1, blobs=(large,)))
    await visit.next("reply")
    visit.instruct(instruct(server.services, 2))
    await visit.next("reply")
    assert site.spool.has(large)
    visit.instruct(instruct(server.services, 3))
    await visit.next("reply")

    assert not site.spool.has(large)
