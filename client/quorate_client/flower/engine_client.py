"""How a short-lived program at a site (a ClientApp) asks the site's engine, which is a process of its own.

A question and its answer are lists of byte strings on a UNIX socket. It lies in the site's keys folder, which is the
site's user's alone and which tasks do not see: who reaches it may already read the keys.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from quorate.errors import FrameError, IdentityError, TaskCrashedError, WrongStateError
from quorate.process.frames import framed, header, receive_frame
from quorate.rounds.blobs import MAX_BLOB_BYTES
from quorate_client.site.folder import SiteFolder

SOCKET_NAME = "engine.socket"
COUNT_BYTES = 4
MAX_PART_BYTES = MAX_BLOB_BYTES
START_S = 60.0
TRY_AGAIN_S = 0.2
HELD = 75
"""The exit status of an engine that found the folder held by another process."""


def ask(folder: SiteFolder, question: Sequence[bytes], start_s: float = START_S) -> list[bytes]:
    """What the site's engine answers; it is started if it does not run.

    Args:
        start_s: Most time until it listens. How long it may work, the instruction says.

    Raises:
        IdentityError: others may reach the keys folder. TaskCrashedError: the engine did not start, or ended meanwhile.
        WrongStateError: a daemon holds the folder.
    """
    with _connected(folder, start_s) as connection:
        try:
            for piece in packed(question):
                connection.sendall(piece)
            count = count_in(receive_frame(connection, COUNT_BYTES))
            return [whole(receive_frame(connection, MAX_PART_BYTES)) for _ in range(count)]
        except (ConnectionError, FrameError) as error:
            raise TaskCrashedError("The site's engine ended while it worked") from error


def packed(parts: Sequence[bytes]) -> Iterator[bytes]:
    """A list of byte strings as it travels: how many follow, and then each."""
    yield framed(len(parts).to_bytes(COUNT_BYTES, "big"))
    for part in parts:
        yield header(len(part))
        yield part


def count_in(frame: bytes | None) -> int:
    """How many byte strings follow. Raises FrameError when it does not say so."""
    if frame is None or len(frame) != COUNT_BYTES:
        raise FrameError("A message between a ClientApp and the site's engine does not say how long it is")
    return int.from_bytes(frame, "big")


def whole(frame: bytes | None) -> bytes:
    """One of them. Raises FrameError when it did not come."""
    if frame is None:
        raise FrameError("A message between a ClientApp and the site's engine ended too early")
    return frame


@contextmanager
def address(folder: SiteFolder) -> Iterator[str]:
    """The socket's address. The kernel takes 107 bytes at most, so it does not begin with the folder's own path.

    Raises:
        IdentityError: other users may reach it.
    """
    descriptor = os.open(folder.keys, os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstat(descriptor)
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise IdentityError(
                f"Others on this machine may reach the keys in {folder.keys}",
                expected="a folder of this user with mode 0700",
                got=f"mode {status.st_mode & 0o777:04o}, user {status.st_uid}",
                action=f"Run `chmod 700 {folder.keys}` as the site's user",
            )
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


@contextmanager
def _connected(folder: SiteFolder, start_s: float) -> Iterator[socket.socket]:
    folder.create()
    end_s = time.monotonic() + start_s
    with socket.socket(socket.AF_UNIX) as connection, address(folder) as name:
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):  # nobody listens, or nobody does any more
                connection.connect(name)
                break
            _start(folder.root)
            if time.monotonic() > end_s:
                raise WrongStateError(
                    f"Another process holds the site's folder {folder.root} and does not answer",
                    action="Stop the site's own daemon; it and a Flower node cannot share a folder",
                )
        yield connection


def _start(folder: Path) -> None:
    """Returns when the engine listens, or a moment after the folder was found held: by one that begins or ends."""
    command = (sys.executable, "-P", "-m", "quorate_client.daemon.engine_process", str(folder))
    # Flower's tokens are not the engine's business.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, timeout=START_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TaskCrashedError("The site's engine did not start in time") from error
    if done.returncode == HELD:
        time.sleep(TRY_AGAIN_S)
    elif done.returncode:
        raise TaskCrashedError("The site's engine did not start", got=f"exit status {done.returncode}")
