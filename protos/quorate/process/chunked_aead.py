"""Bytes of any length under a key that seals nothing else: chunks of ``CHUNK_BYTES``, each with its tag.

The nonce counts chunks and marks the last one, so that chunks cannot be swapped, left out or cut off (as in STREAM,
Hoang et al. 2015). A key that came here twice with two contents would give both away: whoever calls this sees to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from quorate.errors import FrameError

CHUNK_BYTES: Final = 1024 * 1024
TAG_BYTES: Final = 16


def seal_chunks(content: Iterable[bytes], key: bytes) -> Iterator[bytes]:
    """Sealed chunks. Nothing is one empty chunk.

    Args:
        content: In pieces of any lengths.
        key: 32 bytes.
    """
    cipher = ChaCha20Poly1305(key)
    for nonce, chunk in _numbered(content, CHUNK_BYTES):
        yield cipher.encrypt(nonce, chunk, None)


def sealed_bytes(size_bytes: int) -> int:
    """How long so many bytes are when they are sealed."""
    return size_bytes + TAG_BYTES * max(1, -(-size_bytes // CHUNK_BYTES))


def content_bytes(size_bytes: int) -> int:
    """How long that is which is so long when it is sealed."""
    return max(0, size_bytes - TAG_BYTES * max(1, -(-size_bytes // (CHUNK_BYTES + TAG_BYTES))))


def open_chunks(sealed: Iterable[bytes], key: bytes) -> Iterator[bytes]:
    """What was sealed. Nothing that came out counts before the end is reached.

    Args:
        sealed: In pieces of any lengths.
        key: 32 bytes.

    Raises:
        FrameError: it was not sealed so, or is not whole.
    """
    cipher = ChaCha20Poly1305(key)
    for nonce, chunk in _numbered(sealed, CHUNK_BYTES + TAG_BYTES):
        try:
            yield cipher.decrypt(nonce, chunk, None)
        except (InvalidTag, ValueError) as error:
            raise FrameError("What arrived is not what was sealed, or is not whole") from error


def _numbered(pieces: Iterable[bytes], size: int) -> Iterator[tuple[bytes, bytes]]:
    """The same bytes in chunks of one size, each with its nonce; the last chunk may be shorter, and one there is."""
    chunks = _regrouped(pieces, size)
    number, chunk = 0, next(chunks, b"")
    while (following := next(chunks, None)) is not None:
        yield chunk_nonce(number, is_last=False), chunk
        number, chunk = number + 1, following
    yield chunk_nonce(number, is_last=True), chunk


def _regrouped(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of one size; the last one may be shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def chunk_nonce(number: int, *, is_last: bool) -> bytes:
    """12 bytes: which chunk it is, and whether it is the last."""
    return number.to_bytes(11, "big") + bytes([is_last])
