"""The process that runs a task: confined first, then one request after the other over an inherited socket.

Nothing of a task and nothing heavy is imported before the process is confined. Requests and answers are small JSON
objects; bulk data goes through files. What the task prints goes to the site's log.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from quorate.errors import FrameError
from quorate.process.frames import framed, receive_frame
from quorate_client.workers.isolation import Confinement, confine

MAX_REQUEST_BYTES = 64 * 1024 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""What the daemon takes of a worker, which a task may have taken over."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as it travels between the daemon and a worker."""
    return framed(json.dumps(message, separators=(",", ":")).encode())


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
        from quorate_client.workers.compared_code import ComparedCode

        code = ComparedCode()
        code.install()
        from quorate_client.workers.host import TaskHost

        host = TaskHost(code)
        while (request := _receive(control)) is not None:
            answer = host.answer(request)
            control.sendall(pack(answer))


def _receive(control: socket.socket) -> dict[str, Any] | None:
    """The next message, or None when the daemon is gone."""
    body = receive_frame(control, MAX_REQUEST_BYTES)
    return None if body is None else unpack(body)


if __name__ == "__main__":
    main(int(sys.argv[1]))
