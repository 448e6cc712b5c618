"""Messages between two processes: what is sent arrives, and what is too long takes no memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import FrameError
from quorate.process.frames import framed, header, read_frame, receive_frame

MAX = 300
Receive = Callable[..., list[bytes]]


def by_socket(data: bytes, max_bytes: int = MAX) -> list[bytes]:
    """Every body that the blocking reader makes of these bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        return list(iter(lambda: receive_frame(theirs, max_bytes), None))


def by_stream(data: bytes, max_bytes: int = MAX) -> list[bytes]:
    async def read() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        found = []
        while (body := await read_frame(reader, max_bytes)) is not None:
            found.append(body)
        return found

    return asyncio.run(read())


READERS = pytest.mark.parametrize("receive", [by_socket, by_stream])


@READERS
@given(sent=st.lists(st.binary(max_size=MAX), max_size=5))
def test_what_is_sent_arrives(receive: Receive, sent: list[bytes]) -> None:
    assert receive(b"".join(map(framed, sent))) == sent


@READERS
@given(data=st.binary(max_size=100))
def test_bytes_that_mean_nothing_are_refused_or_incomplete(receive: Receive, data: bytes) -> None:
    with contextlib.suppress(FrameError):
        receive(data)


@READERS
@given(sent=st.binary(max_size=MAX), cut=st.integers(1, 1000))
def test_a_message_that_is_cut_off_is_none(receive: Receive, sent: bytes, cut: int) -> None:
    data = framed(sent)
    assert receive(data[: max(0, len(data) - cut)]) == []


@READERS
@pytest.mark.parametrize("size", [MAX + 1, 2**40, 2**64 - 1])
def test_a_message_that_is_too_long_is_refused_by_its_length_alone(receive: Receive, size: int) -> None:
    """A process that claims 2^40 bytes and sends none must not have them taken."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="too long"):
            receive(header(size))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@READERS
def test_a_long_message_is_read_in_pieces_as_it_comes(receive: Receive) -> None:
    """It was promised and does not come: no memory is taken for what is missing."""
    tracemalloc.start()
    try:
        assert receive(header(2**40) + bytes(1000), max_bytes=2**40) == []
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_bytes_of_a_message() -> None:
    assert framed(b"body") == b"\x00\x00\x00\x00\x00\x00\x00\x04body"


def test_an_end_that_was_killed_with_unread_messages_is_gone_and_no_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(framed(b"unread"))
        ours.close()
        assert receive_frame(theirs, MAX) is None
