"""The pipe between the daemon and a run's worker process: small framed messages; bulk data goes through the spool.

The body of a frame is one byte of verb, one byte of length of a site's name, the name, and the payload. Both ends are
ours, but the worker may run a guest app: what it sends is parsed as strictly as anything from outside.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from quorate.errors import FrameError
from quorate.process.frames import framed, read_frame, receive_frame
from quorate.rounds.blobs import DIGEST_BYTES, Blob, BlobId

_HEADER = struct.Struct("!BB")
MAX_NOTE_BYTES = 64 * 1024 * 1024


class Verb(IntEnum):
    """Daemon to worker: BEGIN, REPLY, PRESENCE. Worker to daemon: the rest. The content is JSON but for protos
    (REPLY, SEND), message ids one after the other (WITHDRAW), one (AGAIN), one with a code behind it (REFUSE), and a
    reference to a blob (KEEP).

    From 20 on only between the daemon and an aggregator on another machine. It asks for bulk data: READ, PUT and STORE,
    ROOM; the daemon answers: PIECE, STORED, ROOM, or FAILED with an error. The daemon asks for evidence: ATTEST,
    ATTESTED."""

    BEGIN = 1
    REPLY = 2
    PRESENCE = 3
    SEND = 4
    WITHDRAW = 5
    STATUS = 6
    COMMIT = 7
    DONE = 8
    REFUSE = 9
    FIGURES = 10
    KEEP = 11
    AGAIN = 12
    READ = 20
    PIECE = 21
    PUT = 22
    STORE = 23
    STORED = 24
    ROOM = 25
    FAILED = 26
    ATTEST = 27
    ATTESTED = 28


_VERBS = {verb.value: verb for verb in Verb}


@dataclass(frozen=True, slots=True)
class Note:
    """One message on the pipe."""

    verb: Verb
    payload: bytes = b""
    site: str = ""

    def to_bytes(self) -> bytes:
        name = self.site.encode()
        return framed(_HEADER.pack(self.verb, len(name)) + name + self.payload)


async def read_note(reader: asyncio.StreamReader) -> Note | None:
    """The next message, or None when the other end is gone. Raises FrameError when it is none."""
    return _note(await read_frame(reader, MAX_NOTE_BYTES))


def receive_note(sock: socket.socket) -> Note | None:
    """The same for the worker, which blocks."""
    return _note(receive_frame(sock, MAX_NOTE_BYTES))


def _note(body: bytes | None) -> Note | None:
    if body is None:
        return None
    if len(body) < _HEADER.size or body[0] not in _VERBS:
        raise FrameError("The run's worker sent something that is not a message")
    verb, name_length = _HEADER.unpack_from(body)
    name, payload = body[_HEADER.size :][:name_length], body[_HEADER.size + name_length :]
    if len(name) < name_length:
        raise FrameError("The run's worker sent something that is not a message")
    try:
        return Note(_VERBS[verb], payload, name.decode())
    except UnicodeDecodeError as error:
        raise FrameError("The run's worker named something that is not a name") from error


def reference(blob: Blob) -> bytes:
    """A blob by name and size."""
    return blob.id + struct.pack("!Q", blob.size)


def referred_to(payload: bytes) -> Blob:
    """Raises FrameError."""
    if len(payload) != DIGEST_BYTES + 8:
        raise FrameError("The run's worker refers to nothing")
    return Blob(BlobId(payload[:DIGEST_BYTES]), int.from_bytes(payload[DIGEST_BYTES:], "big"))
