"""Bulk bytes in flight: blobs, their frames, and how they rest on disk.

A blob is cut into frames of ``FRAME_BYTES``. Each frame carries its SHA-256, and the blob's name is the SHA-256 over
its size and its frames' digests: one pass of hashing checks both each frame on arrival and the whole at the end, and a
broken transfer resumes at the first missing frame. The payload lies in one file, so it can be read in blocks without
ever being held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NewType

from quorate.errors import BlobMismatchError, FrameError

BlobId = NewType("BlobId", bytes)

FRAME_BYTES = 256 * 1024
INLINE_BYTES = 96 * 1024
MAX_BLOB_BYTES = 64 * 1024**3
_CONTEXT = b"quorate/blob/v1\x00"
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Frame:
    """One piece of a blob with its SHA-256."""

    index: int
    data: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Blob:
    """A reference to bytes, by content. ``inline`` holds the bytes themselves where they are few."""

    id: BlobId
    size: int
    inline: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.id) != DIGEST_BYTES or not 0 <= self.size <= MAX_BLOB_BYTES:
            raise FrameError("A reference to bulk data is malformed", expected=f"32 bytes and at most {MAX_BLOB_BYTES}")
        if self.inline is not None and (
            len(self.inline) != self.size or self.size > INLINE_BYTES or blob_id(self.inline) != self.id
        ):
            raise BlobMismatchError("Inline data does not match its name")

    @property
    def frames(self) -> int:
        return frame_count(self.size)

    @classmethod
    def of(cls, content: bytes) -> Blob:
        """A blob that travels inline. ``content`` has at most ``INLINE_BYTES`` bytes."""
        return cls(blob_id(content), len(content), content)


def frame_count(size: int) -> int:
    """How many frames ``size`` bytes make; an empty blob has none."""
    return -(-size // FRAME_BYTES)


def cut(content: Iterable[bytes]) -> Iterator[Frame]:
    """Cut a stream of byte strings of any lengths into frames."""
    pending = bytearray()
    index = 0
    for piece in content:
        pending += piece
        while len(pending) >= FRAME_BYTES:
            data = bytes(pending[:FRAME_BYTES])
            del pending[:FRAME_BYTES]
            yield Frame(index, data, hashlib.sha256(data).digest())
            index += 1
    if pending:
        data = bytes(pending)
        yield Frame(index, data, hashlib.sha256(data).digest())


def name_of(size: int, frame_digests: bytes) -> BlobId:
    """The name of a blob, from its size and the concatenation of its frames' digests."""
    return BlobId(hashlib.sha256(_CONTEXT + size.to_bytes(8, "big") + frame_digests).digest())


def blob_id(content: bytes) -> BlobId:
    """The name of a blob that is in memory."""
    return name_of(len(content), b"".join(frame.sha256 for frame in cut([content])))
