"""The server as a witness of the sites' privacy ledgers: it keeps the newest head that a site signed and repeats it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event

from quorate.errors import FrameError
from quorate.privacy.ledger_head import SignedHead, sign_head
from quorate.rounds.instruction import Reply
from quorate.v1 import rounds_pb2
from quorate.wire.messages import head_from_proto, head_to_proto, reply_to_proto
from tests.server.services.test_rounds_service import Client, Server, Stream, open_server
from tests.server.storage.test_journal import DIGEST, EAST, Failing, Opened, instruction, reply_to
from tests.server.study_kit import RUN

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
PUBLIC, OTHERS = (key.public_key().public_bytes_raw() for key in (KEY, OTHER))


def head(number: int, key: Ed25519PrivateKey = KEY, content: bytes = b"h") -> SignedHead:
    return sign_head(key, number, content * 32)


@pytest.fixture
def opened(database_url: str) -> Iterator[Opened]:
    opened = Opened(database_url)
    opened.journal.create_run(RUN, DIGEST)
    yield opened
    opened.close()


# --- what is remembered ---


async def test_the_newest_head_of_each_key_is_there_after_a_restart(opened: Opened) -> None:
    for number in (2, 5, 3):
        opened.journal.record_ledger_head(PUBLIC, head(number))
        opened.journal.record_ledger_head(OTHERS, head(number + 10, OTHER))
        await opened.journal.written()
    journal = opened.reopen()
    assert journal.ledger_head(PUBLIC) == head(5)
    assert journal.ledger_head(OTHERS) == head(15, OTHER)
    assert journal.ledger_head(bytes(32)) is None


async def test_of_two_heads_with_one_number_the_first_stays(opened: Opened) -> None:
    """A site that was put back comes to the same number with another entry: that is what it is told of."""
    opened.journal.record_ledger_head(PUBLIC, head(5))
    await opened.journal.written()
    opened.journal.record_ledger_head(PUBLIC, head(5, content=b"x"))
    await opened.journal.written()
    assert opened.journal.ledger_head(PUBLIC) == head(5)


async def test_a_head_survives_a_site_that_is_invited_again_with_its_keys(opened: Opened) -> None:
    opened.journal.record_ledger_head(PUBLIC, head(5))
    await opened.journal.written()
    opened.journal.forget_session(EAST)
    assert opened.journal.ledger_head(PUBLIC) == head(5)


async def test_a_head_that_comes_again_is_known_by_its_signature_too(opened: Opened) -> None:
    """Each reply brings it. Whoever repeats number and hash has not signed them."""
    assert not opened.journal.has_ledger_head(PUBLIC, head(5))
    opened.journal.record_ledger_head(PUBLIC, head(5))
    for _ in ("waits", "is written"):
        assert opened.journal.has_ledger_head(PUBLIC, head(5))
        assert not opened.journal.has_ledger_head(PUBLIC, replace(head(5), signature=bytes(64)))
        assert not opened.journal.has_ledger_head(PUBLIC, head(6))
        assert not opened.journal.has_ledger_head(OTHERS, head(5))
        await opened.journal.written()


async def test_a_head_that_could_not_be_written_is_taken_when_it_comes_again(opened: Opened) -> None:
    fail = Failing("INSERT INTO ledger_heads")
    event.listen(opened.engine, "before_cursor_execute", fail)
    opened.journal.record_ledger_head(PUBLIC, head(5))
    await opened.journal.written()
    event.remove(opened.engine, "before_cursor_execute", fail)
    assert not opened.journal.has_ledger_head(PUBLIC, head(5))
    opened.journal.record_ledger_head(PUBLIC, head(5))
    await opened.journal.commit(RUN, "trained", None)
    assert opened.journal.has_ledger_head(PUBLIC, head(5))
    assert opened.journal.ledger_head(PUBLIC) == head(5)


async def test_a_head_is_written_with_the_reply_that_brought_it(opened: Opened) -> None:
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(opened.engine, "commit", count)
    asked = instruction(EAST)
    opened.journal.record_ledger_head(PUBLIC, head(5))
    await opened.journal.record_reply(EAST, asked, reply_to(asked))
    await opened.journal.written()
    assert commits == 1
    assert opened.journal.ledger_head(PUBLIC) == head(5)


async def test_a_step_forward_takes_along_the_heads_that_wait_and_puts_them_back_if_it_fails(opened: Opened) -> None:
    fail = Failing("UPDATE runs")
    opened.journal.record_ledger_head(PUBLIC, head(5))
    event.listen(opened.engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="full"):
        await opened.journal.commit(RUN, "trained", None)
    assert opened.journal.ledger_head(PUBLIC) is None
    event.remove(opened.engine, "before_cursor_execute", fail)
    await opened.journal.commit(RUN, "trained", None)
    assert opened.journal.ledger_head(PUBLIC) == head(5)


# --- what is said on the line ---


@pytest.mark.parametrize(
    "proto",
    [
        rounds_pb2.LedgerHead(),
        rounds_pb2.LedgerHead(number=2**63, hash=bytes(32), signature=bytes(64)),
        rounds_pb2.LedgerHead(number=1, hash=bytes(31), signature=bytes(64)),
        rounds_pb2.LedgerHead(number=1, hash=bytes(32), signature=bytes(65)),
    ],
)
def test_a_malformed_head_is_refused(proto: rounds_pb2.LedgerHead) -> None:
    with pytest.raises(FrameError):
        head_from_proto(proto)


def test_a_head_comes_back_as_it_went() -> None:
    assert head_from_proto(head_to_proto(head(7))) == head(7)


async def welcomed(client: Client, session: int) -> tuple[Stream, rounds_pb2.Welcome]:
    stream = Stream(client.stub.Connect())
    await stream.say(hello=rounds_pb2.SiteHello(session=session, version="0.1.0"))
    return stream, (await stream.hear()).welcome


async def reply_with(server: Server, stream: Stream, number: int, proto: Any) -> None:
    """Answer the round with this number; until that is acknowledged."""
    asked = server.ask(EAST, number)
    await stream.hear()
    reply = reply_to_proto(Reply(asked))
    if proto is not None:
        reply.ledger_head.CopyFrom(proto)
    await stream.say(reply=reply)
    assert (await stream.hear()).ack.message_ids == [asked]


async def test_the_server_repeats_the_newest_head_that_came_with_a_reply(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        east = server.client("east")
        stream, welcome = await welcomed(east, 1)
        assert not welcome.HasField("ledger_head")
        await reply_with(server, stream, 1, None)
        for number, newest in ((2, 4), (3, 4), (4, 3)):
            await reply_with(server, stream, number, head_to_proto(head(newest, east.keys.signing)))
        _, welcome = await welcomed(east, 2)
        assert head_from_proto(welcome.ledger_head) == head(4, east.keys.signing)
        west = server.client("west")
        _, welcome = await welcomed(west, 1)
        assert not welcome.HasField("ledger_head")


async def test_a_head_that_the_site_s_signing_key_did_not_sign_is_not_kept(tmp_path: Path) -> None:
    """Who has only its certificate could put a number there that no true head comes after."""
    async with open_server(tmp_path) as server:
        east = server.client("east")
        stream, _ = await welcomed(east, 1)
        await reply_with(server, stream, 1, head_to_proto(head(2**62, OTHER)))
        await reply_with(server, stream, 2, head_to_proto(head(4, east.keys.signing)))
        _, welcome = await welcomed(east, 2)
        assert head_from_proto(welcome.ledger_head) == head(4, east.keys.signing)


async def test_a_malformed_head_ends_the_connection(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        stream, _ = await welcomed(server.client("east"), 1)
        reply = reply_to_proto(Reply(server.ask(EAST)))
        reply.ledger_head.number = 5
        await stream.hear()
        await stream.say(reply=reply)
        assert await stream.refusal() == FrameError.code
