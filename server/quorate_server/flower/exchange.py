"""Our transport over any Flower Grid: instructions and bulk data travel inside Flower messages."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import structlog
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from quorate.errors import (
    BlobMismatchError,
    BlobMissingError,
    FrameError,
    QuorateError,
    TaskFailedError,
)
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import RoundResult
from quorate.study.study import Study
from quorate.wire.messages import instruction_to_bytes, reply_from_bytes
from quorate_server.rounds.phases import Arrived, Presence, Status
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sum_figures import SumFigures

log = structlog.get_logger()

POLL_S = 0.2
LOOK_AGAIN_S = 1.0
GONE_FOR_GOOD_S = 1e9

FLOWER_KINDS = {Phase.UPLOAD: "train"}
"""What Flower calls the phases for which it has a word; the others are queries there."""


class FlowerExchange:
    """The study loop's transport over any Flower Grid. Nothing is committed: a stock run that dies starts again.

    Each node is asked once which site it is; a site's bulk data travels inside its messages. A node that comes when the
    run has begun is not in it.
    """

    def __init__(self, grid: Grid, study: Study, folder: Path) -> None:
        self._grid = grid
        self._folder = folder
        self._blobs: dict[BlobId, bytes] = {}
        self._open: dict[str, tuple[SiteName, MessageId]] = {}
        self._nodes = self._introduce(study)
        self._pending: list[Arrived | Presence] = [
            Presence({site: GONE_FOR_GOOD_S for site in study.site_names if site not in self._nodes})
        ]

    def _introduce(self, study: Study) -> dict[SiteName, int]:
        """Which node is which site. A quorum is waited for without end, as strategies do; the rest for the grace."""
        nodes: dict[SiteName, int] = {}
        enough_s = float("inf")
        while len(nodes) < len(study.sites) and time.monotonic() < enough_s + study.rounds.absent_grace_s:
            unknown = set(self._grid.get_node_ids()) - set(nodes.values())
            asked = [Message(RecordDict({"quorate": ConfigRecord({"who": True})}), node, "query") for node in unknown]
            for answer in self._grid.send_and_receive(asked, timeout=study.rounds.deadline_s) if asked else ():
                name = _site_of(answer)
                if name in study.site_names:
                    nodes.setdefault(name, answer.metadata.src_node_id)
            if len(nodes) >= study.rounds.quorum:
                enough_s = min(enough_s, time.monotonic())
            log.info("nodes introduced", study=study.name, sites=sorted(nodes), of=len(study.sites))
            if len(nodes) < len(study.sites):
                time.sleep(LOOK_AGAIN_S)
        return nodes

    def send(self, site: SiteName, instruction: Instruction) -> None:
        if site not in self._nodes:
            return
        kind = FLOWER_KINDS.get(instruction.phase, "query")
        content = RecordDict(
            {
                "quorate": ConfigRecord({"instruction": instruction_to_bytes(instruction)}),
                "blobs": ConfigRecord({blob.id.hex(): self._blobs[blob.id] for blob in instruction.blobs}),
            }
        )
        message = Message(content, self._nodes[site], kind, ttl=instruction.deadline_s)
        for name in self._grid.push_messages([message]):
            self._open[name] = (site, instruction.message_id)

    def withdraw(self, messages: Iterable[MessageId]) -> None:
        """Flower has no way to take a message back: it ends with its time to live, and nobody looks for its reply."""
        names = set(messages)
        self._open = {name: asked for name, asked in self._open.items() if asked[1] not in names}

    def next_event(self, timeout_s: float) -> Arrived | Presence | None:
        end_s = time.monotonic() + timeout_s
        while not self._pending:
            for message in self._grid.pull_messages(list(self._open)) if self._open else ():
                asked = self._open.pop(message.metadata.reply_to_message_id, None)
                if asked is not None:
                    self._pending.append(Arrived(asked[0], self._reply(message, asked[1])))
            if time.monotonic() >= end_s:
                break
            if not self._pending:
                time.sleep(min(POLL_S, max(0.0, end_s - time.monotonic())))
        return self._pending.pop(0) if self._pending else None

    def refuse(self, message: MessageId, code: str) -> None:
        del message, code  # a stock run is not resumed

    def _reply(self, message: Message, name: MessageId) -> Reply:
        if message.has_error():
            return Reply(name, TaskFailedError.code)
        try:
            records = message.content.config_records
            reply = reply_from_bytes(_bytes(records.get("quorate", ConfigRecord()).get("reply")))
            for text, content in records.get("blobs", ConfigRecord()).items():
                data = _bytes(content)
                if blob_id(data).hex() != text:
                    raise BlobMismatchError("A node's bulk data does not match its name")
                self._blobs[blob_id(data)] = data
        except QuorateError as error:
            return Reply(name, error.code)
        return reply

    def open(self, blob: Blob) -> BinaryIO:
        data = self._blobs.get(blob.id) if blob.inline is None else blob.inline
        if data is None or len(data) != blob.size:
            raise BlobMissingError("A node's reply refers to bulk data that it does not hold")
        return io.BytesIO(data)

    def put(self, content: Iterable[bytes]) -> Blob:
        data = b"".join(content)
        blob = Blob(blob_id(data), len(data))
        self._blobs[blob.id] = data
        return blob

    def keep_model(self, blob: Blob) -> None:
        (self._folder / "model.npz").write_bytes(self._blobs[blob.id])

    def free_bytes(self) -> int:
        return 2**62  # nothing is spooled here

    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        del progress, result
        for blob in obsolete:
            self._blobs.pop(blob, None)

    def report(self, status: Status) -> None:
        del status  # Flower's own log shows the run

    def measured(self, figures: SumFigures) -> None:
        del figures  # no daemon of ours is here to expose them


def _site_of(answer: Message) -> SiteName:
    """Which site a node says that it is; empty where it does not say so."""
    record = answer.content.config_records.get("quorate", ConfigRecord()) if answer.has_content() else ConfigRecord()
    return SiteName(str(record.get("site", "")))


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise FrameError("A node sent something else than bytes")
    return value
