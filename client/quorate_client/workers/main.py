"""The process that runs a task: confined first, then one request after the other over an inherited socket.

Nothing of a task and nothing heavy is imported before the process is confined. Requests and answers are small JSON
objects behind a length of four bytes; bulk data goes through files. What the task prints goes to the site's log.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from typing import Any

from quorate.errors import FrameError
from quorate_client.workers.isolation import Confinement, confine

LENGTH = struct.Struct("!I")
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


def pack(message: dict[str, Any]) -> bytes:
    """A message as it travels between the daemon and a worker."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """Raises FrameError when it is not a message."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise FrameError("A task worker sent something that is not a message") from error
    if not isinstance(message, dict):
        raise FrameError("A task worker sent something that is not a message")
    return message


def main(descriptor: int) -> None:
    """Serve the daemon at the other end until it closes the socket."""
    with socket.socket(fileno=descriptor) as control:
        settings = _receive(control)
        if settings is None:
            return
        level = confine(Confinement.from_json(settings["confinement"]), settings["parent"])
        control.sendall(pack({"isolation": level.value}))
        # Only now: what a task brings along runs under confinement from its import on.
        from quorate_client.workers.host import TaskHost

        host = TaskHost()
        while (request := _receive(control)) is not None:
            answer = host.answer(request)
            control.sendall(pack(answer))


def _receive(control: socket.socket) -> dict[str, Any] | None:
    """The next message, or None when the daemon is gone."""
    head = _exactly(control, LENGTH.size)
    body = _exactly(control, LENGTH.unpack(head)[0]) if head is not None else None
    return None if body is None else unpack(body)


def _exactly(control: socket.socket, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        try:
            piece = control.recv(count - len(received))
        except ConnectionError:
            return None
        if not piece:
            return None
        received += piece
    return bytes(received)


if __name__ == "__main__":
    main(int(sys.argv[1]))
