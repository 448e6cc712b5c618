"""Task workers for tests: in this very process, where nothing ends a task that does not end by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from quorate_client.workers.compared_code import ComparedCode
from quorate_client.workers.host import TaskHost
from quorate_client.workers.pool import TaskWorker, WorkerKey
from quorate_client.workers.process import result_of


class InProcessWorkers:
    """As ``ProcessWorkers``, without processes."""

    def __init__(self) -> None:
        self._workers: dict[WorkerKey, _InProcessWorker] = {}

    @asynccontextmanager
    async def lease(self, key: WorkerKey) -> AsyncIterator[TaskWorker]:
        yield self._workers.setdefault(key, _InProcessWorker())

    async def close(self) -> None:
        self._workers.clear()


class _InProcessWorker:
    def __init__(self) -> None:
        self.ready_for = b""
        self._host = TaskHost(ComparedCode())

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return result_of(self._host.answer({"verb": verb, **arguments}))
