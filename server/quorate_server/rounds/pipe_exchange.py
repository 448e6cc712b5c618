"""The study loop's transport on our own server: control over the pipe, bulk data in the daemon's spool."""

from __future__ import annotations

import io
import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Protocol

import structlog

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId
from quorate.rounds.run import RoundResult
from quorate.wire.messages import instruction_to_bytes, reply_from_bytes
from quorate_server.rounds.phases import Arrived, Presence, Status
from quorate_server.rounds.pipe import Note, Verb, receive_note, reference
from quorate_server.rounds.progress import StudyProgress, result_to_json
from quorate_server.rounds.sum_figures import SumFigures

log = structlog.get_logger()


def _exit_now() -> None:
    """The daemon is gone: nothing that this process does would be heard."""
    os._exit(0)


class Store(Protocol):
    """Bulk data, as a worker needs it (``Spool``)."""

    def open(self, blob: Blob) -> BinaryIO: ...
    def put(self, content: Iterable[bytes]) -> Blob: ...
    def free_bytes(self) -> int: ...


class PipeExchange:
    """The worker's end of the pipe, as the study loop and the Grid use it. ``start`` begins to listen.

    Args:
        store: Where bulk data is: the daemon's spool, or a way to it.
        hung_up: Called by the listening thread when the daemon is gone.
        heed: Takes, in that thread, what only some workers are told; says whether it is one of them.
    """

    def __init__(
        self,
        sock: socket.socket,
        store: Store,
        hung_up: Callable[[], None] = _exit_now,
        heed: Callable[[Note], bool] = lambda _: False,
    ) -> None:
        self._sock = sock
        self._store = store
        self._hung_up = hung_up
        self._heed = heed
        self._events: queue.SimpleQueue[Arrived | Presence] = queue.SimpleQueue()
        self._writing = threading.Lock()  # a guest app may have threads
        self._reader = threading.Thread(target=self._read, daemon=True, name="pipe")

    def start(self) -> None:
        self._reader.start()

    def note(self, verb: Verb, value: Any) -> None:
        self.post(Note(verb, json.dumps(value).encode()))

    def post(self, note: Note) -> None:
        with self._writing:
            self._sock.sendall(note.to_bytes())

    # --- Exchange ---

    def send(self, site: SiteName, instruction: Instruction) -> None:
        self.post(Note(Verb.SEND, instruction_to_bytes(instruction), site))

    def withdraw(self, messages: Iterable[MessageId]) -> None:
        names = b"".join(messages)
        if names:
            self.post(Note(Verb.WITHDRAW, names))

    def refuse(self, message: MessageId, code: str) -> None:
        self.post(Note(Verb.REFUSE, message + code.encode()))

    def again(self, message: MessageId) -> None:
        """The reply to this cannot be read here: it is forgotten, and the site brings it once more when it is asked."""
        self.post(Note(Verb.AGAIN, message))

    def next_event(self, timeout_s: float) -> Arrived | Presence | None:
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def open(self, blob: Blob) -> BinaryIO:
        if blob.inline is not None:
            return io.BytesIO(blob.inline)
        return self._store.open(blob)

    def put(self, content: Iterable[bytes]) -> Blob:
        return self._store.put(content)

    def keep_model(self, blob: Blob) -> None:
        """The released model leaves the spool for the run's folder."""
        self.post(Note(Verb.KEEP, reference(blob)))

    def free_bytes(self) -> int:
        return self._store.free_bytes()

    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        self.note(
            Verb.COMMIT,
            {
                "progress": progress.model_dump_json(),
                "result": result_to_json(result) if result else None,
                "evaluated": progress.evaluated,
                "obsolete": sorted(blob.hex() for blob in obsolete),
            },
        )

    def report(self, status: Status) -> None:
        sites = [[s.site, s.state.value, s.code] for s in status.sites]
        self.note(Verb.STATUS, {"round": status.round_number, "phase": status.phase, "sites": sites})

    def measured(self, figures: SumFigures) -> None:
        self.post(Note(Verb.FIGURES, figures.to_json()))

    def _read(self) -> None:
        try:
            while (note := receive_note(self._sock)) is not None:
                match note.verb:
                    case Verb.REPLY:
                        self._events.put(Arrived(SiteName(note.site), reply_from_bytes(note.payload)))
                    case Verb.PRESENCE:
                        self._events.put(Presence({SiteName(k): v for k, v in json.loads(note.payload).items()}))
                    case _ if self._heed(note):
                        pass
                    case _:
                        break
        except Exception:  # who says what cannot be read is no daemon; nobody would hear of anything any more
            log.exception("what the daemon said could not be read")
        self._hung_up()
