"""A site with a real certificate, against the server and through it against the other sites."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from quorate.aggregation.plain import weight_of
from quorate.errors import FrameError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.rates import OWN_COUNTS
from quorate.rounds.run import RunState, RunView
from quorate.study.study import Study
from quorate.tally import BINS
from quorate.v1 import operator_pb2, rounds_pb2
from quorate.wire.messages import instruction_from_proto, reply_to_proto
from quorate.wire.sum_messages import SumAnswer, sum_answer_from_bytes, sum_answer_to_bytes
from quorate_server.runs.sessions import MAX_WAITING
from tests.attacks.server_kit import (
    PATIENCE_S,
    Consortium,
    HandSite,
    frames_of,
    impatient_door,
    open_consortium,
    reference,
    refusal,
    until,
)
from tests.server import door
from tests.server.sites_kit import a_consortium
from tests.server.study_kit import a_tally, with_answer

BULK = 100_000
DIMENSION = BULK // 4
"""Of a model whose updates are too large to travel inline."""


@pytest.fixture
async def consortium(tmp_path: Path) -> AsyncIterator[Consortium]:
    async with open_consortium(tmp_path / "server") as consortium:
        yield consortium


# --- against the server's memory and the operator's view ---


@pytest.mark.parametrize("version", ["v" * 3_000_000, "0.1\x1b]0;owned\x07", "0.1\n"], ids=["long", "escape", "line"])
async def test_a_site_cannot_put_what_it_likes_in_place_of_its_version(consortium: Consortium, version: str) -> None:
    """The operator's list of sites shows it: two of 3 MB made a list that no message could carry."""
    for name in ("east", "west"):
        site = consortium.site(name)
        error = await refusal(site.connect(version=version))
        assert error.code == "bad_frame"
    listed = await consortium.operator().ListSites(operator_pb2.ListSitesRequest())
    assert [site.version for site in listed.sites] == ["", ""]


async def test_a_site_that_asks_and_does_not_read_cannot_fill_the_servers_memory(consortium: Consortium) -> None:
    """Each reply to nobody's question is answered by a refusal, which waits until the site reads it."""
    async with impatient_door(consortium):
        east = consortium.site("east")
        await east.connect()
        session = consortium.server.sessions.session(east.name)
        assert session is not None
        nonsense = reply_to_proto(Reply(MessageId(bytes(32))))
        async with asyncio.timeout(PATIENCE_S):
            while consortium.server.sessions.session(east.name) is session:
                await east.say(reply=nonsense)
                assert session.outgoing.qsize() <= MAX_WAITING + 1


async def test_streams_that_say_nothing_are_closed(consortium: Consortium) -> None:
    """One certificate can open any number of them."""
    async with impatient_door(consortium):
        east = consortium.site("east")
        silent = [east.stub.Connect(timeout=PATIENCE_S) for _ in range(50)]
        for call in silent:
            assert (await refusal(call.read())).code == "bad_frame"


@pytest.mark.parametrize("code", ["\x1b]0;owned\x07", "task_failed\nrun completed", "x\x00y", "<script>", "Ünfair"])
async def test_the_code_of_a_reply_is_a_code(consortium: Consortium, code: str) -> None:
    """It is stored, and shown on the operator's terminal and in the report."""
    east = consortium.site("east")
    taken: list[Reply] = []
    message = consortium.ask(east.name, taken=taken)
    await east.connect()
    await east.say(reply=rounds_pb2.Reply(message_id=message, code=code))
    assert (await east.next("refused")).code == FrameError.code
    assert taken == []
    assert [owed.message_id for owed in consortium.server.mailbox.owed_by(east.name)] == [message]


# --- against the spool, and what other sites have there ---


async def test_a_slow_site_does_not_hold_all_slots_for_uploads(consortium: Consortium) -> None:
    """One frame each half a minute kept as many uploads open as the server takes at a time."""
    east, west = consortium.site("east"), consortium.site("west")
    message = consortium.ask(east.name)

    async def begun(content: bytes) -> AsyncIterator[rounds_pb2.UploadFrame]:
        for frame in frames_of(content)[:1]:
            yield frame
        await asyncio.Event().wait()

    slow = []
    for _ in range(16):
        content = os.urandom(1_400_000)
        await east.announce(message, reference(content))
        slow.append(east.stub.Upload(begun(content), timeout=PATIENCE_S))
    await until(lambda: any(consortium.server.spool.folder.glob("*.east.part")))
    mine = consortium.ask(west.name)
    async with asyncio.timeout(PATIENCE_S / 2):
        blob = await west.upload(mine, os.urandom(600_000))
    assert consortium.has(blob)
    for call in slow:
        call.cancel()


async def test_what_a_site_uploads_beside_its_reply_does_not_stay(consortium: Consortium) -> None:
    """Whole or in part: it would lie in the spool until the server starts again."""
    east = consortium.site("east")
    message = consortium.ask(east.name)
    await east.connect()
    useful = await east.upload(message, os.urandom(BULK))
    for _ in range(3):
        await east.upload(message, os.urandom(BULK))
    content = os.urandom(600_000)
    await east.announce(message, reference(content))
    with pytest.raises(grpc.aio.AioRpcError):
        await east.stub.Upload(iter(frames_of(content)[:1]), timeout=PATIENCE_S)
    await east.reply(Reply(message, body=b"work", blobs=(useful,)))
    await east.next("ack")
    names = {path.name for path in consortium.server.spool.folder.iterdir()}
    assert names == {useful.id.hex(), f"{useful.id.hex()}.frames"}


class HonestSite:
    """Does a study's phases by hand; a released model is the same at all sites."""

    def __init__(self, site: HandSite, model: bytes) -> None:
        self.site = site
        self.model = model
        self.sent: list[Blob] = []

    async def next_work(self) -> Instruction:
        return instruction_from_proto(await self.site.next("instruction"))

    async def do(self, asked: Instruction) -> None:
        """The phase that was asked for, as everybody does it."""
        await self.site.reply(await self.answer(asked))

    async def answer(self, asked: Instruction) -> Reply:
        blobs: tuple[Blob, ...] = ()
        state = bytes([asked.round_number]) * 32
        match asked.phase, asked.round_number:
            case Phase.UPLOAD, 0:
                answer = SumAnswer(plain_counts=(10,), dimension=DIMENSION)
            case Phase.UPLOAD, 1:
                blobs = (await self.upload(asked.message_id, bytes(4 * DIMENSION - 1) + self.site.name[:1].encode()),)
                answer = SumAnswer(plain_counts=(weight_of(10, 20), 10, 0, 0), has_update=True, model=state)
            case Phase.UPLOAD, _:
                answer = SumAnswer(plain_counts=(0, 0, 0, 0, *a_tally(10)), model=state)
            case _:
                blobs = (await self.upload(asked.message_id, self.model),)
                answer = SumAnswer(model=state)
        return Reply(asked.message_id, body=sum_answer_to_bytes(answer), blobs=blobs)

    async def upload(self, message: MessageId, content: bytes) -> Blob:
        self.sent.append(await self.site.upload(message, content))
        return self.sent[-1]


async def start(consortium: Consortium, name: str, sites: Iterable[HandSite], **rounds: Any) -> tuple[Study, RunView]:
    ordered = sorted((site.keys for site in sites), key=lambda keys: keys.name)
    settings = {"count": 1, "quorum": 1, "absent_grace_s": 60.0} | rounds
    study = door.a_study(*ordered, name=name, rounds=settings, release={"model": "operator"})
    consortium.server.registry.publish(study)
    return study, await consortium.server.runs.start(study)


async def ended(consortium: Consortium, view: RunView) -> RunView:
    async with asyncio.timeout(PATIENCE_S):
        async for news in consortium.server.runs.changes(view.run):
            if news.state is not RunState.RUNNING:
                return news
    raise AssertionError("the run does not end")


async def test_a_silent_site_cannot_take_the_model_that_another_one_released_out_of_the_spool(
    consortium: Consortium,
) -> None:
    """It uploads the very same bytes first and never replies. When its work was withdrawn, what it had uploaded was
    removed, the other site's model with it: the run could never be completed. On the way it asks for room without end.
    """
    model = os.urandom(BULK)
    thief, honest = (HonestSite(consortium.site(name), model) for name in ("east", "west"))
    for each in (thief, honest):
        await each.site.connect()
    _, view = await start(consortium, "malignancy", (thief.site, honest.site), deadline_s=8.0)
    for _ in range(3):
        for each in (thief, honest):
            await each.do(await each.next_work())
    asked = await thief.next_work()
    assert asked.phase is Phase.RELEASE
    greed = Blob(BlobId(os.urandom(32)), 10 * 1024**3)
    assert (await refusal(thief.site.announce(asked.message_id, greed))).code == "bad_frame"
    await thief.upload(asked.message_id, model)
    await honest.do(await honest.next_work())
    view = await ended(consortium, view)
    assert view.state is RunState.COMPLETED, view.reason
    assert consortium.server.runs.model(view.run).read_bytes() == model
    assert list(consortium.server.spool.folder.iterdir()) == []


async def test_the_updates_of_a_run_that_is_stopped_do_not_stay_at_the_server(consortium: Consortium) -> None:
    """Not an attack of a site, but of whoever reads the server's disk afterwards."""
    sites = [HonestSite(consortium.site(name), b"") for name in ("east", "west")]
    for each in sites:
        await each.site.connect()
    _, view = await start(consortium, "stopped", (each.site for each in sites), deadline_s=600.0)
    for each in sites:
        await each.do(await each.next_work())
    await sites[0].do(await sites[0].next_work())
    await sites[0].site.next("ack")
    assert consortium.has(sites[0].sent[0])
    await consortium.server.runs.stop(view.run)
    assert list(consortium.server.spool.folder.iterdir()) == []


# --- against a study ---


def a_tally_of_three_classes(records: int) -> tuple[int, ...]:
    rest = [records, *[0] * (BINS - 1)]
    none = [0] * BINS
    return (0, records, *[0] * 8, *rest, *none, *none, *rest, *none, *rest)


def test_the_site_that_evaluates_first_does_not_decide_for_how_many_classes() -> None:
    """The counts of the others were refused as being of another form, round after round."""
    exchange = a_consortium()

    def first_and_wrong(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        if site == "east" and instruction.phase is Phase.UPLOAD and instruction.round_number > 1:
            own = sum_answer_from_bytes(reply.body).plain_counts[:OWN_COUNTS]
            return (with_answer(reply, plain_counts=(*own, *a_tally_of_three_classes(30))),)
        return (reply,)

    exchange.tamper = first_and_wrong
    exchange.loop().run()
    assert sorted(exchange.results) == [1, 2, 3]
    for number, result in exchange.results.items():
        assert result.metrics["accuracy"] == 1.0
        assert result.missing == ({"east": "base_model_mismatch"} if number > 1 else {})
