"""Task workers as the engine sees them: warm processes that are leased, called, and replaced when they break.

One worker belongs to one study and one data set. It is started by exec and never by a bare fork (gRPC and torch do not
survive one), confined (``isolation.py``), and ended after some idle time. Whatever happens to it - a signal, a
segmentation fault, no memory, silence - ends the job with a coded error; the next job gets a fresh worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from quorate.errors import PolicyError
from quorate_client.workers.process import ProcessWorker, WorkerSettings


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """What a worker is for. ``dataset`` says which one (``Dataset.identity``); it is empty for a guest app."""

    study: bytes
    dataset: str


class TaskWorker(Protocol):
    """A leased worker."""

    ready_for: bytes
    """What the engine has set up in it; empty in a fresh one."""

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Have the task do something. Being cancelled ends the worker at once.

        Raises:
            TaskCrashedError: its process is gone or out of memory. SiteRefusalError: the task refused or raised.
        """
        ...


class TaskWorkers(Protocol):
    def lease(self, key: WorkerKey) -> AbstractAsyncContextManager[TaskWorker]:
        """The worker for ``key``, for the caller alone; started if there is none."""
        ...

    async def close(self) -> None: ...


class ProcessWorkers:
    """Warm worker processes. For one event loop, whose thread must live as long: the workers die with it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._resting: dict[WorkerKey, tuple[ProcessWorker, asyncio.TimerHandle]] = {}  # the longest first
        self._leased: dict[WorkerKey, ProcessWorker | None] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._returned = asyncio.Event()

    @asynccontextmanager
    async def lease(self, key: WorkerKey) -> AsyncIterator[TaskWorker]:
        while key in self._leased or len(self._leased) >= self._settings.most:
            await self._returned.wait()
        self._leased[key] = None
        try:
            self._leased[key] = worker = await self._take(key)
            yield worker
        finally:
            self._give_back(key)

    async def close(self) -> None:
        """End all workers, leased ones included."""
        for key in list(self._resting):
            self._retire(key)
        leased = [worker.end() for worker in self._leased.values() if worker is not None]
        await asyncio.gather(*self._ending, *leased)

    async def _take(self, key: WorkerKey) -> ProcessWorker:
        if key in self._resting:
            worker, retirement = self._resting.pop(key)
            retirement.cancel()
            if worker.alive:
                try:
                    worker.require_isolation(self._settings)
                except PolicyError:
                    self._see_gone(worker)
                    raise
                return worker
            self._see_gone(worker)
        while len(self._resting) + len(self._leased) > self._settings.most:
            self._retire(next(iter(self._resting)))
        return await ProcessWorker.start(self._settings)

    def _give_back(self, key: WorkerKey) -> None:
        worker = self._leased.pop(key)
        if worker is not None and worker.alive:
            loop = asyncio.get_running_loop()
            self._resting[key] = worker, loop.call_later(self._settings.idle_s, self._retire, key)
        elif worker is not None:
            self._see_gone(worker)
        # Those who wait look again; and a new event, for those who will wait.
        self._returned.set()
        self._returned = asyncio.Event()

    def _retire(self, key: WorkerKey) -> None:
        worker, retirement = self._resting.pop(key)
        retirement.cancel()
        self._see_gone(worker)

    def _see_gone(self, worker: ProcessWorker) -> None:
        task = asyncio.create_task(worker.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
