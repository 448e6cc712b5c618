"""The server's spool, as the aggregator reaches it: over the connection, and never believed.

Bulk data is named by a digest of its content. What was sealed is checked by its seal when it is opened, everything else
against its name before anything is made of it.
"""

from __future__ import annotations

import io
import queue
from collections.abc import Callable, Iterable
from typing import BinaryIO

from quorate.errors import BlobMismatchError, RunWorkerError
from quorate.rounds.blobs import Blob, blob_id, cut, name_of
from quorate.wire.refusal import error_from_text
from quorate_server.rounds.pipe import Note, Verb, referred_to

PIECE_BYTES = 4 * 1024 * 1024
ANSWER_S = 120.0


class RemoteStore:
    """Bulk data behind a connection. One question at a time.

    Args:
        post: Says something to the daemon.
    """

    def __init__(self, post: Callable[[Note], None]) -> None:
        self._post = post
        self._answers: queue.SimpleQueue[Note] = queue.SimpleQueue()

    def heed(self, note: Note) -> bool:
        """Take an answer of the daemon; says whether it is one. For the thread that listens."""
        if note.verb not in (Verb.PIECE, Verb.STORED, Verb.ROOM, Verb.FAILED):
            return False
        self._answers.put(note)
        return True

    def open(self, blob: Blob) -> BinaryIO:
        """A blob that was stored from here, whole and checked. For what is small, or leaves the machine anyway.

        Raises:
            BlobMissingError: it is gone. BlobMismatchError: it is another one.
        """
        content = b"".join(self.read_at(blob, start, PIECE_BYTES) for start in range(0, blob.size, PIECE_BYTES))
        if len(content) != blob.size or blob_id(content) != blob.id:
            raise BlobMismatchError("The server gave the aggregator other bytes than those that were stored")
        return io.BytesIO(content)

    def read_at(self, blob: Blob, start: int, length: int) -> bytes:
        """Some bytes of a blob, unchecked; fewer where the server has no more. Raises BlobMissingError."""
        pieces, end = [], min(blob.size, start + length)
        while start < end:
            count = min(PIECE_BYTES, end - start)
            place = blob.id + start.to_bytes(8, "big") + count.to_bytes(4, "big")
            piece = self._ask(Note(Verb.READ, place), Verb.PIECE)[:count]
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put(self, content: Iterable[bytes]) -> Blob:
        """Store bytes at the server. Raises DiskFullError. BlobMismatchError: it kept others."""
        size, digests = 0, bytearray()
        for frame in cut(content):
            self._post(Note(Verb.PUT, frame.data))
            digests += frame.sha256
            size += len(frame.data)
        blob = Blob(name_of(size, bytes(digests)), size)
        if referred_to(self._ask(Note(Verb.STORE), Verb.STORED)) != blob:
            raise BlobMismatchError("The server stored other bytes than those that the aggregator gave it")
        return blob

    def free_bytes(self) -> int:
        return int.from_bytes(self._ask(Note(Verb.ROOM), Verb.ROOM), "big")

    def _ask(self, question: Note, wanted: Verb) -> bytes:
        self._post(question)
        try:
            answer = self._answers.get(timeout=ANSWER_S)
        except queue.Empty as error:
            raise RunWorkerError("The server does not answer the aggregator") from error
        if answer.verb is Verb.FAILED:
            raise error_from_text(answer.payload.decode())
        if answer.verb is not wanted:
            raise RunWorkerError("The server answered the aggregator something else than it asked")
        return answer.payload
