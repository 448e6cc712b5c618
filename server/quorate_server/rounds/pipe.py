"""The pipe between the daemon and a run's worker process: small framed messages; bulk data goes through the spool.

A frame is 4 bytes of length, one byte of verb, one byte of length of a site's name, the name, and the payload. Both
ends are ours, but the worker may run a guest app: what it sends is parsed as strictly as anything from outside, and
nothing is unpickled.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from quorate.errors import FrameError

_HEADER = struct.Struct("!IBB")
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024


class Verb(IntEnum):
    """Daemon to worker: BEGIN, REPLY, PRESENCE. Worker to daemon: the rest. The content is JSON but for protos
    (REPLY, SEND), message ids one after the other (WITHDRAW) and a message id with a code behind it (REFUSE)."""

    BEGIN = 1
    REPLY = 2
    PRESENCE = 3
    SEND = 4
    WITHDRAW = 5
    STATUS = 6
    COMMIT = 7
    DONE = 8
    REFUSE = 9


_VERBS = {verb.value: verb for verb in Verb}


@dataclass(frozen=True, slots=True)
class Note:
    """One message on the pipe."""

    verb: Verb
    payload: bytes = b""
    site: str = ""

    def to_bytes(self) -> bytes:
        name = self.site.encode()
        return _HEADER.pack(len(self.payload), self.verb, len(name)) + name + self.payload


def _parse_header(header: bytes) -> tuple[int, Verb, int]:
    length, verb, name_length = _HEADER.unpack(header)
    if length > MAX_PAYLOAD_BYTES or verb not in _VERBS:
        raise FrameError("The run's worker sent something that is not a message")
    return length, _VERBS[verb], name_length


def _note(verb: Verb, name_length: int, rest: bytes) -> Note:
    try:
        return Note(verb, rest[name_length:], rest[:name_length].decode())
    except UnicodeDecodeError as error:
        raise FrameError("The run's worker named something that is not a name") from error


async def read_note(reader: asyncio.StreamReader) -> Note | None:
    """The next message, or None when the other end is gone."""
    try:
        length, verb, name_length = _parse_header(await reader.readexactly(_HEADER.size))
        rest = await reader.readexactly(name_length + length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return _note(verb, name_length, rest)


def receive_note(sock: socket.socket) -> Note | None:
    """The same for the worker, which blocks."""
    header = _receive_exactly(sock, _HEADER.size)
    if header is None:
        return None
    length, verb, name_length = _parse_header(header)
    rest = _receive_exactly(sock, name_length + length)
    return None if rest is None else _note(verb, name_length, rest)


def _receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        try:
            piece = sock.recv(count - len(received))
        except ConnectionError:  # the other end was killed with unread messages
            return None
        if not piece:
            return None
        received += piece
    return bytes(received)
