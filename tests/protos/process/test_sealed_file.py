"""A sealed file that is read: any part of it, each chunk in its place or not at all."""

from __future__ import annotations

import os
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import FrameError
from quorate.process.chunked_aead import CHUNK_BYTES, TAG_BYTES, seal_chunks
from quorate.process.sealed_file import SealedFile

KEY = b"k" * 32
CONTENT = os.urandom(3 * CHUNK_BYTES + 1234)
SEALED = b"".join(seal_chunks([CONTENT], KEY))
CHUNK = CHUNK_BYTES + TAG_BYTES


def at(sealed: bytes, start: int, length: int) -> bytes:
    return sealed[start : start + length]


def opened(sealed: bytes = SEALED, size: int = len(CONTENT), key: bytes = KEY) -> SealedFile:
    return SealedFile(partial(at, sealed), size, key)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_it_holds_what_was_sealed(size: int) -> None:
    sealed = b"".join(seal_chunks([CONTENT[:size]], KEY))
    with opened(sealed, size) as file:
        assert file.read() == CONTENT[:size]
        assert file.read(1) == b""


@settings(max_examples=30)
@given(start=st.integers(0, len(CONTENT) + 10), length=st.integers(0, 2 * CHUNK_BYTES))
def test_any_part_can_be_read(start: int, length: int) -> None:
    with opened() as file:
        assert file.seek(start) == start == file.tell()
        assert file.read(length) == CONTENT[start : start + length]
    with opened() as file:
        file.seek(-100, os.SEEK_END)
        file.seek(10, os.SEEK_CUR)
        assert file.read() == CONTENT[-90:]
        assert file.seek(-1) == 0


def test_blocks_come_whole_across_chunks() -> None:
    with opened() as file:
        block = bytearray(CHUNK_BYTES + 7)
        assert file.readinto(memoryview(block)) == len(block)
        assert block == CONTENT[: len(block)]


def test_one_chunk_at_a_time_is_asked_for_and_each_once() -> None:
    asked: list[tuple[int, int]] = []

    def watched(start: int, length: int) -> bytes:
        asked.append((start, length))
        return at(SEALED, start, length)

    with SealedFile(watched, len(CONTENT), KEY) as file:
        while file.read(100_000):
            pass
    assert asked == [(number * CHUNK, CHUNK) for number in range(3)] + [(3 * CHUNK, 1234 + TAG_BYTES)]


SWAPPED = SEALED[CHUNK : 2 * CHUNK] + SEALED[:CHUNK] + SEALED[2 * CHUNK :]
WRONG = {
    "another key": opened(key=b"x" * 32),
    "chunks swapped": opened(SWAPPED),
    "a chunk twice": opened(SEALED[:CHUNK] * 2 + SEALED[2 * CHUNK :]),
    "the last chunk left out": opened(SEALED[: 3 * CHUNK]),
    "said to be shorter": opened(size=3 * CHUNK_BYTES),
    "said to be longer": opened(size=len(CONTENT) + 1),
    "said to be huge": opened(size=2**60),
    "nothing": opened(b""),
    "a byte changed": opened(SEALED[:-1] + bytes([SEALED[-1] ^ 1])),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_what_was_sealed_is_refused(wrong: str) -> None:
    with pytest.raises(FrameError):
        WRONG[wrong].read()


def test_a_size_that_is_made_up_costs_no_memory() -> None:
    with opened(size=2**60) as file:
        file.seek(2**59)
        with pytest.raises(FrameError):
            file.read(10)
