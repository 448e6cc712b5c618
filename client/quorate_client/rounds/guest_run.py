"""Messages of a guest app: a stock Flower ClientApp in a task worker, behind our transport.

The daemon passes bytes on and reads none of them. What the app keeps in its context lasts for the run, in a file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path

from quorate.errors import FrameError, TaskFailedError
from quorate.rounds.instruction import MAX_BODY_BYTES, Instruction, Phase, Reply
from quorate.rounds.spool import Spool
from quorate_client.rounds.model.fetch import Fetch
from quorate_client.rounds.model.plain_files import store_file
from quorate_client.site.agreement import Agreement
from quorate_client.workers.pool import TaskWorkers, WorkerKey

_STATE = "context.bin"


class GuestRun:
    """One run of a guest app at this site. One instruction at a time. ``folder`` belongs to the run alone."""

    def __init__(self, folder: Path, workers: TaskWorkers, spool: Spool, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._workers = workers
        self._spool = spool
        self._clock = clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in folder.glob("new-*"):
            leftover.unlink()

    async def perform(self, instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        """Have the app handle one message.

        Raises:
            TaskFailedError: it raised; the text is in the site's task log. FrameError: not a guest app's message.
        """
        study = agreement.study
        if study.guest is None or instruction.phase is not Phase.GUEST or len(instruction.blobs) != 1:
            raise FrameError("The server sent something that is not a guest app's message")
        blob = instruction.blobs[0]
        inline, reply = self._scratch(), self._scratch()
        try:
            if blob.inline is not None:
                inline.write_bytes(blob.inline)
            elif not self._spool.has(blob):
                await fetch(blob)
            content = inline if blob.inline is not None else self._spool.path(blob.id).absolute()
            async with self._workers.lease(WorkerKey(agreement.digest, "")) as worker:
                started = self._clock()
                answer = await worker.call(
                    "guest",
                    {
                        "task": study.task.model_dump(mode="json"),
                        "body": base64.b64encode(instruction.body).decode(),
                        "content": str(content),
                        "reply": str(reply),
                        "state": str(self._folder / _STATE),
                        "run_config": study.guest.run_config,
                        "node_config": agreement.node_config,
                    },
                )
                working_s = self._clock() - started
            sent = await asyncio.to_thread(store_file, reply, self._spool)
        finally:
            inline.unlink(missing_ok=True)
            reply.unlink(missing_ok=True)
        return Reply(instruction.message_id, body=_body(answer.get("body")), blobs=(sent,), working_s=working_s)

    def _scratch(self) -> Path:
        return self._folder / f"new-{os.urandom(8).hex()}"


def _body(value: object) -> bytes:
    try:
        body = base64.b64decode(str(value), validate=True)
    except binascii.Error as error:
        raise TaskFailedError("The task answered something that is not of the agreed form") from error
    if len(body) > MAX_BODY_BYTES:
        raise TaskFailedError("The app's reply has too much metadata", expected=f"at most {MAX_BODY_BYTES} bytes")
    return body
