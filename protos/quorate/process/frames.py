"""Messages between two processes of one machine, over a socket: eight bytes of length, then the body.

One of the two may run somebody else's code, a task or a guest app: a length is held against what the reader takes
before any memory is, and nothing is unpickled. What a body says is the business of those who send and read it.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from quorate.errors import FrameError

_LENGTH = struct.Struct("!Q")
_PIECE_BYTES = 1024 * 1024


def header(size_bytes: int) -> bytes:
    """What goes before a body of so many bytes."""
    return _LENGTH.pack(size_bytes)


def framed(body: bytes) -> bytes:
    """A message as it travels."""
    return header(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, max_bytes: int) -> bytes | None:
    """The next body, or None when the other end is gone.

    Raises:
        FrameError: it is longer than ``max_bytes``; nothing more can be read from this stream.
    """
    try:
        return await reader.readexactly(_size(await reader.readexactly(_LENGTH.size), max_bytes))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive_frame(sock: socket.socket, max_bytes: int) -> bytes | None:
    """The same from a socket that blocks."""
    head = _receive_exactly(sock, _LENGTH.size)
    return None if head is None else _receive_exactly(sock, _size(head, max_bytes))


def find_dead_paths(sock: socket.socket) -> None:
    """A machine that is gone without a word is found out within a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _size(head: bytes, max_bytes: int) -> int:
    (size,) = _LENGTH.unpack(head)
    if size > max_bytes:
        raise FrameError(
            "A process of this machine sent a message that is too long", expected=f"at most {max_bytes}", got=f"{size}"
        )
    return int(size)


def _receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        try:
            piece = sock.recv(min(count - len(received), _PIECE_BYTES))
        except ConnectionError:  # the other end was killed with unread messages
            return None
        if not piece:
            return None
        received += piece
    return bytes(received)
