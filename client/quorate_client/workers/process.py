"""One task worker process: started by exec and confined, called over a socket, ended, and seen gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from quorate.errors import (
    DiskFullError,
    FrameError,
    PolicyError,
    SiteRefusalError,
    TaskCrashedError,
    TaskFailedError,
    TaskMismatchError,
    error_classes,
)
from quorate.process.frames import read_frame
from quorate_client.workers.host import OUT_OF_MEMORY
from quorate_client.workers.isolation import Confinement, IsolationLevel
from quorate_client.workers.main import MAX_ANSWER_BYTES, pack, unpack

log = structlog.get_logger()

# What a worker may know of the daemon's environment: no proxy, no credential, nothing that is not listed.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")
_PASSED_ON_PREFIXES = ("OMP_", "MKL_", "CUDA_", "NVIDIA_")
# Flower reports home unless told not to.
_ALWAYS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    # Plugins of these two run code of any installed package, before the worker has confined itself.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}
_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How task workers are run.

    Args:
        folder: Their working folder.
        log_path: Where the output of tasks goes; it may hold records and never leaves the site.
        temporary: Where the task's temporary files go; None leaves them where the daemon's go.
        require_isolation: Whether a worker must reach ``IsolationLevel.FULL``; asked for each use, for the site's
            administrator may change it at any time.
        most: Most workers alive at a time.
        idle_s: After how long without work one is ended, so that its memory comes back.
        start_s: Most time until one is ready.
    """

    folder: Path
    log_path: Path
    confinement: Confinement = field(default_factory=Confinement)
    temporary: Path | None = None
    require_isolation: Callable[[], bool] = lambda: False
    most: int = 4
    idle_s: float = 600.0
    start_s: float = 60.0


class ProcessWorker:
    """One worker process."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.ready_for = b""
        self.alive = True
        self.level = IsolationLevel.LIMITS_ONLY
        self._process = process
        self._reader = reader
        self._writer = writer
        self._watch = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls, settings: WorkerSettings) -> ProcessWorker:
        """A fresh, confined process that has nothing open yet.

        Raises:
            PolicyError: the site demands more isolation than this machine permits. TaskCrashedError: it did not start.
        """
        ours, theirs = socket.socketpair()
        with theirs, settings.log_path.open("ab") as output:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "quorate_client.workers.main", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(),),
                    env=_environment(settings.temporary),
                    cwd=settings.folder,
                    start_new_session=True,
                )
            except BaseException:
                writer.transport.abort()
                raise
        worker = cls(process, reader, writer)
        try:
            async with asyncio.timeout(settings.start_s):
                hello = await worker.exchange({"confinement": settings.confinement.to_json(), "parent": os.getpid()})
            worker.level = IsolationLevel(hello["isolation"])
            log.info("task worker started", pid=worker.pid, isolation=worker.level.value)
            worker.require_isolation(settings)
        except TimeoutError as error:
            await worker.end()
            raise TaskCrashedError("A task's process did not start in time") from error
        except BaseException:
            await worker.end()
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def require_isolation(self, settings: WorkerSettings) -> None:
        """Whether what the process could do to confine itself is enough.

        Raises:
            PolicyError: it is not.
        """
        if self.level is not IsolationLevel.FULL and settings.require_isolation():
            raise PolicyError(
                "This site runs tasks only without network and without sight of its keys, which the system refused",
                expected="user namespaces for the daemon's user",
                action="Permit them (user.max_user_namespaces, the container's seccomp profile), "
                "or have the site's policy accept resource limits only",
            )

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self.exchange({"verb": verb, **arguments})
        if answer.get("code") in (OUT_OF_MEMORY, TaskMismatchError.code):
            await self.end()  # the next one begins with all of its memory, and with what is installed then
        return result_of(answer)

    async def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and take the answer."""
        try:
            self._writer.write(pack(message))
            body = await read_frame(self._reader, MAX_ANSWER_BYTES)
            if body is None:
                raise FrameError("A task worker is gone")
            return unpack(body)
        except asyncio.CancelledError:
            self.kill()
            raise
        except (ConnectionError, FrameError) as error:
            await self.end()
            raise TaskCrashedError("A task's process ended while it worked") from error

    def kill(self) -> None:
        """End the process and what it started, now."""
        self.alive = False
        if self._watch.done():
            return  # its number may be somebody else's by now
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """End the process and see it gone."""
        self.kill()
        await asyncio.shield(self._watch)

    async def _reap(self) -> None:
        """Once the process is gone, so is the connection, whoever else may still hold its other end."""
        status = await self._process.wait()
        self.kill()
        log.info("task worker ended", pid=self.pid, status=status)
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


def _environment(temporary: Path | None) -> dict[str, str]:
    passed_on = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    for name in _SEARCHED:
        if name in passed_on:
            passed_on[name] = _absolute_parts(passed_on[name])
    return passed_on | _ALWAYS | ({"TMPDIR": str(temporary)} if temporary is not None else {})


def _absolute_parts(searched: str) -> str:
    """An empty or relative part would mean the worker's own folder, where a task may write what the next worker then
    runs before it is confined."""
    return os.pathsep.join(part for part in searched.split(os.pathsep) if Path(part).is_absolute())


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, or the refusal that it stands for. Only codes of refusals pass: a task cannot make up others."""
    code = answer.get("code")
    if code is None:
        return answer
    if code == OUT_OF_MEMORY:
        raise TaskCrashedError("The task ran out of memory", action="Raise the site's memory limit for tasks")
    if code == DiskFullError.code:
        raise DiskFullError("The task had no room on the site's disk", action="Free some space for the site's folder")
    cls = error_classes().get(str(code), TaskFailedError)
    raise (cls if issubclass(cls, SiteRefusalError) else TaskFailedError)(
        "The task refused or failed", action="Read the site's task log; it holds what the task said"
    )
