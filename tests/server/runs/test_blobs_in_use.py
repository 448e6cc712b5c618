"""A blob leaves the spool when the last run that needs it is done with it, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.identity import RunId
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import MessageId, Reply
from quorate.rounds.spool import Spool
from quorate_server.runs.blobs_in_use import BlobsInUse

OURS, THEIRS = RunId("malignancy-1"), RunId("sepsis-1")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


@pytest.fixture
def blobs(spool: Spool) -> BlobsInUse:
    return BlobsInUse(spool)


@pytest.fixture
def update(spool: Spool) -> Blob:
    return spool.put([b"an update"])


def a_reply(*blobs: Blob) -> Reply:
    return Reply(MessageId(bytes(32)), blobs=blobs)


async def test_an_answer_is_discarded_once_a_step_was_made_of_it(spool: Spool, blobs: BlobsInUse, update: Blob) -> None:
    blobs.hold_answers(OURS, [a_reply(update)])
    assert blobs.all() == {update.id}
    blobs.hold_progress(OURS, set())
    await blobs.discard(OURS, {update.id})
    assert not spool.has(update)


@pytest.mark.parametrize("holds", ["answer", "progress", "message"])
async def test_what_another_run_needs_is_not_discarded(
    spool: Spool, blobs: BlobsInUse, update: Blob, holds: str
) -> None:
    match holds:
        case "answer":
            blobs.hold_answers(THEIRS, [a_reply(update)])
        case "progress":
            blobs.hold_progress(THEIRS, {update.id})
        case "message":
            blobs.keep(THEIRS, a_reply(update))
    blobs.hold_answers(OURS, [a_reply(update)])
    blobs.hold_progress(OURS, {update.id})
    await blobs.discard(OURS, {update.id})
    await blobs.release(OURS)
    assert spool.has(update)


async def test_what_a_run_committed_is_not_discarded_though_it_was_an_answer_too(
    spool: Spool, blobs: BlobsInUse, update: Blob
) -> None:
    blobs.hold_progress(OURS, {update.id})
    await blobs.discard(OURS, {update.id})
    assert spool.has(update)
    blobs.hold_progress(OURS, set())
    assert blobs.all() == set()


async def test_a_run_that_is_over_leaves_nothing(spool: Spool, blobs: BlobsInUse, update: Blob) -> None:
    blobs.hold_answers(OURS, [a_reply(update)])
    blobs.keep(OURS, a_reply(update))
    blobs.drop_answers(OURS)
    await blobs.release(OURS)
    assert not spool.has(update)
    assert blobs.all() == set()


def test_what_lies_in_the_message_itself_is_not_in_the_spool(blobs: BlobsInUse) -> None:
    blobs.keep(OURS, a_reply(Blob.of(b"small")))
    assert blobs.all() == set()
