"""Spawning and talking to the process of one run, from the daemon's side."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from quorate_server.rounds.pipe import Note, read_note

LEAVE_S = 5.0


class WorkerProcess:
    """One spawned worker. Its output goes to ``worker.log`` in the run's folder, which is its working directory."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, folder: Path) -> WorkerProcess:
        """Spawned, never forked: a fork beside live gRPC threads hangs or dies."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        with (folder / "worker.log").open("ab") as output, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "quorate_server.runs.worker_main",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                cwd=folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, note: Note) -> None:
        """Nothing is sent to a worker that is gone: its successor is told anew."""
        if not self._writer.is_closing():
            self._writer.write(note.to_bytes())

    async def receive(self) -> Note | None:
        return await read_note(self._reader)

    async def kill(self) -> None:
        """End it now. Everything that counts is committed."""
        if self._process.returncode is None:
            self._process.kill()
        self._writer.close()
        await self._process.wait()

    async def wait(self) -> None:
        """It said how the run ended: let it exit, and kill it if it does not."""
        self._writer.close()
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
