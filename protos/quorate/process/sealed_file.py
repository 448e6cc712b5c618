"""A sealed file (``chunked_aead``) as one that is read: any part of it, and nothing of it in the clear on a disk."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from quorate.errors import FrameError
from quorate.process.chunked_aead import CHUNK_BYTES, TAG_BYTES, chunk_nonce, sealed_bytes


class SealedFile(io.RawIOBase):
    """Reads what was sealed; holds one chunk at a time.

    Args:
        read_at: Bytes of the sealed file: from where, how many.
        size: Of what was sealed.
        key: 32 bytes.

    Reading raises FrameError where a chunk is not what was sealed in its place.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, key: bytes) -> None:
        self._read_at = read_at
        self._size = size
        self._cipher = ChaCha20Poly1305(key)
        self._chunks = max(1, -(-size // CHUNK_BYTES))
        self._place = 0
        self._held: tuple[int, bytes] = -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer has no length
        """As much as was asked for, unless the file ends: who adds in blocks counts on whole ones."""
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and self._place < self._size:
            number, start = divmod(self._place, CHUNK_BYTES)
            piece = memoryview(self._chunk(number))[start : start + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._place += len(piece)
        return done

    def _chunk(self, number: int) -> bytes:
        if self._held[0] != number:
            start = number * (CHUNK_BYTES + TAG_BYTES)
            is_last = number == self._chunks - 1
            length = sealed_bytes(self._size) - start if is_last else CHUNK_BYTES + TAG_BYTES
            sealed = self._read_at(start, length)
            try:
                if len(sealed) != length:  # a whole chunk that is shorter would open, and reading never end
                    raise ValueError("another length than was said")
                opened = self._cipher.decrypt(chunk_nonce(number, is_last=is_last), sealed, None)
            except (InvalidTag, ValueError) as error:
                raise FrameError("What arrived is not what was sealed, or is not whole") from error
            self._held = number, opened
        return self._held[1]
