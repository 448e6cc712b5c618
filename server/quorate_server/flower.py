"""Everything of the server that touches Flower: our Grid, our ServerApp, guest apps.

``QuorateGrid`` implements Flower's ``Grid`` over our transport, so any ServerApp and strategy runs unchanged on it.
``app`` is our own ServerApp: the study loop. On our Grid it uses the spool directly (one accumulator of memory); on any
other Grid (a stock SuperLink, Flower's simulation) its instructions and bulk data travel inside Flower messages.

Private names of flwr that are used here, kept together: ``TaskIdentity`` (``Message`` needs it in a ServerApp), the
serialisers, and ``Metadata``'s dictionary (message ids are the grid's to assign).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr phones home by default
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import structlog
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from quorate.blobs import INLINE_BYTES, Blob, BlobId, blob_id
from quorate.errors import BlobMismatchError, BlobMissingError, FrameError, QuorateError, StudyError, TaskFailedError
from quorate.exchange import Instruction, MessageId, Phase, Reply, message_id
from quorate.identity import RunId, SiteName
from quorate.messages import instruction_to_bytes, reply_from_bytes
from quorate.runs import RoundResult
from quorate.study import Study
from quorate_server.pipe_exchange import PipeExchange
from quorate_server.progress import StudyProgress
from quorate_server.study_loop import Arrived, Presence, Status, StudyLoop

log = structlog.get_logger()

POLL_S = 0.05


def node_id(study: Study, site: SiteName) -> int:
    """A site's number in Flower's world: 63 bits of the hash of its signing key."""
    key = next(bytes.fromhex(member.signing_key) for member in study.sites if member.name == site)
    return int.from_bytes(hashlib.sha256(b"quorate/node/v1\x00" + key).digest()[:8], "big") >> 1


def run_number(run: RunId) -> int:
    """A run's number in Flower's world."""
    return int.from_bytes(hashlib.sha256(b"quorate/run/v1\x00" + run.encode()).digest()[:8], "big") >> 1


class QuorateGrid(Grid):
    """Flower's Grid over our transport, for one run in one process.

    A message's name is made from its content, so when a guest app starts again after a crash, messages that are equal
    to earlier ones get the replies that the journal holds, and only new ones cost work.
    """

    def __init__(self, run: RunId, study: Study, exchange: PipeExchange) -> None:
        self.exchange = exchange
        self._run_id = run
        self._study = study
        self._run = Run.create_empty(run_number(run))
        self._sites = {node_id(study, site): site for site in study.site_names}
        self._nodes = {site: node for node, site in self._sites.items()}
        self._gone: set[SiteName] = set(study.site_names)
        self._asked: dict[MessageId, Message] = {}
        self._arrived: dict[MessageId, Reply] = {}
        self._repeats: dict[bytes, int] = {}
        TaskIdentity.run_id = self._run.run_id
        TaskIdentity.task_id = self._run.run_id
        TaskIdentity.node_id = 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        self._pump(0.0)
        return sorted(self._nodes[site] for site in self._study.site_names if site not in self._gone)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        blobs: dict[int, Blob] = {}
        names: list[str] = []
        for message in messages:
            # One blob for a content that goes to many sites: strategies send the same record to all.
            content = message.content
            blob = blobs.get(id(content)) or blobs.setdefault(id(content), self._pack(content))
            names.append(self._push(message, blob).hex())
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._pump(0.0)
        wanted = [MessageId(bytes.fromhex(name)) for name in message_ids]
        return [self._unpack(name, self._arrived.pop(name)) for name in wanted if name in self._arrived]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = {MessageId(bytes.fromhex(name)) for name in self.push_messages(messages)}
        end_s = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end_s is None or time.monotonic() < end_s):
            for name in [name for name in waiting if name in self._arrived]:
                waiting.discard(name)
                replies.append(self._unpack(name, self._arrived.pop(name)))
            if waiting:
                self._pump(60.0 if end_s is None else min(60.0, max(0.0, end_s - time.monotonic())))
        self.exchange.withdraw(waiting)
        for name in waiting:
            del self._asked[name]
        return replies

    def _pack(self, content: RecordDict) -> Blob:
        data = recorddict_to_proto(content).SerializeToString(deterministic=True)
        return Blob.of(data) if len(data) <= INLINE_BYTES else self.exchange.put([data])

    def _push(self, message: Message, blob: Blob) -> MessageId:
        site = self._sites.get(message.metadata.dst_node_id)
        if site is None:
            raise ValueError(f"There is no node {message.metadata.dst_node_id} in this study")
        kind = message.metadata.message_type.encode()
        salt = hashlib.sha256(len(kind).to_bytes(2, "big") + kind + site.encode() + blob.id).digest()
        attempt = self._repeats.get(salt, 0)
        self._repeats[salt] = attempt + 1
        name = message_id(self._run_id, 0, Phase.GUEST, attempt, site, salt)
        message.metadata.__dict__["_message_id"] = name.hex()
        message.metadata.__dict__["_run_id"] = self._run.run_id
        envelope = MessageProto(metadata=metadata_to_proto(message.metadata))
        self._asked[name] = message
        self.exchange.send(
            site,
            Instruction(
                message_id=name,
                run=self._run_id,
                round_number=0,
                phase=Phase.GUEST,
                attempt=attempt,
                study_digest=self._study.digest(),
                deadline_s=message.metadata.ttl,
                body=envelope.SerializeToString(),
                blobs=(blob,),
            ),
        )
        return name

    def _unpack(self, name: MessageId, reply: Reply) -> Message:
        """The reply as Flower knows it. Its metadata follows from what was asked: a site cannot say otherwise."""
        asked = self._asked.pop(name)
        code, record = reply.code, RecordDict()
        if not code:
            try:
                record = self._record(reply)
            except QuorateError as error:
                site = self._sites[asked.metadata.dst_node_id]
                log.warning("contribution refused", run=self._run_id, site=site, code=error.code, reason=str(error))
                code = error.code
        message = Message(Error(ErrorCode.UNKNOWN, code) if code else record, reply_to=asked)
        message.metadata.__dict__["_message_id"] = hashlib.sha256(b"reply" + name).hexdigest()
        return message

    def _record(self, reply: Reply) -> RecordDict:
        """Raises FrameError or BlobMissingError when there is nothing that Flower can read."""
        if len(reply.blobs) != 1:
            raise FrameError("A guest app's reply must have one content")
        with self.exchange.open(reply.blobs[0]) as content:
            data = content.read()
        try:
            return recorddict_from_proto(RecordDictProto.FromString(data))
        except Exception as error:  # whatever Flower's parsers meet in a site's bytes
            raise FrameError("A guest app's reply cannot be read") from error

    def _pump(self, timeout_s: float) -> None:
        """Wait for one event at most this long, then take all that are there."""
        event = self.exchange.next_event(timeout_s)
        while event is not None:
            match event:
                case Arrived(_, reply):
                    if reply.message_id in self._asked:
                        self._arrived[reply.message_id] = reply
                case Presence(gone_for_s):
                    self._gone = set(gone_for_s)
            event = self.exchange.next_event(0.0)


class FlowerExchange:
    """The study loop's transport over any Flower Grid. Nothing is committed: a stock run that dies starts again.

    Each node is asked once which site it is; a site's bulk data travels inside its messages.
    """

    def __init__(self, grid: Grid, study: Study, folder: Path) -> None:
        self._grid = grid
        self._folder = folder
        self._blobs: dict[BlobId, bytes] = {}
        self._open: dict[str, tuple[SiteName, MessageId]] = {}
        self._nodes = self._introduce(study)
        self._pending: list[Arrived | Presence] = [
            Presence({site: 3600.0 for site in study.site_names if site not in self._nodes})
        ]

    def _introduce(self, study: Study) -> dict[SiteName, int]:
        """Which node is which site."""
        nodes: dict[SiteName, int] = {}
        while len(nodes) < study.rounds.quorum:
            asked = [
                Message(RecordDict({"quorate": ConfigRecord({"who": True})}), node, "query")
                for node in self._grid.get_node_ids()
            ]
            for answer in self._grid.send_and_receive(asked, timeout=study.rounds.deadline_s):
                if answer.has_content():
                    name = str(answer.content.config_records.get("quorate", ConfigRecord()).get("site"))
                    if name in study.site_names:
                        nodes[SiteName(name)] = answer.metadata.src_node_id
            if len(nodes) < len(study.site_names):
                time.sleep(1.0)
        return nodes

    def send(self, site: SiteName, instruction: Instruction) -> None:
        if site not in self._nodes:
            return
        kind = {Phase.TRAIN: "train", Phase.EVALUATE: "evaluate"}.get(instruction.phase, "query")
        content = RecordDict(
            {
                "quorate": ConfigRecord({"instruction": instruction_to_bytes(instruction)}),
                "blobs": ConfigRecord({blob.id.hex(): self._blobs[blob.id] for blob in instruction.blobs}),
            }
        )
        for name in self._grid.push_messages([Message(content, self._nodes[site], kind)]):
            self._open[name] = (site, instruction.message_id)

    def withdraw(self, messages: Iterable[MessageId]) -> None:
        del messages  # Flower has no way to take a message back; a late reply is not waited for

    def next_event(self, timeout_s: float) -> Arrived | Presence | None:
        end_s = time.monotonic() + timeout_s
        while not self._pending:
            for message in self._grid.pull_messages(list(self._open)):
                asked = self._open.pop(message.metadata.reply_to_message_id, None)
                if asked is not None:
                    self._pending.append(Arrived(asked[0], self._reply(message, asked[1])))
            if time.monotonic() >= end_s:
                break
            if not self._pending:
                time.sleep(POLL_S)
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


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise FrameError("A node sent something else than bytes")
    return value


def study_app(
    start: Callable[[Grid, Context], StudyLoop],
) -> ServerApp:
    """A ServerApp that runs a study loop."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        start(grid, context).run()

    return server_app


def _start_on_any_grid(grid: Grid, context: Context) -> StudyLoop:
    """For stock deployments: the study's canonical file and the result folder come from the run's configuration."""
    config = context.run_config
    study = Study.from_canonical(Path(str(config["study"])).read_bytes())
    exchange = FlowerExchange(grid, study, Path(str(config["output"])))
    return StudyLoop(RunId(f"flower-{context.run_id}"), study, exchange, StudyProgress(), {})


app = study_app(_start_on_any_grid)


def run_app(
    run: RunId,
    study: Study,
    exchange: PipeExchange,
    progress: StudyProgress,
    attempts: Mapping[tuple[int, str, SiteName], int],
) -> None:
    """Run a study's or a guest's ServerApp on our Grid, in this process, to its end."""
    grid = QuorateGrid(run, study, exchange)
    if study.guest is None:
        server_app = study_app(lambda _grid, _context: StudyLoop(run, study, exchange, progress, attempts))
        run_config: dict[str, str | int | float | bool] = {}
    else:
        server_app = _load(study.guest.server_app)
        run_config = study.guest.run_config
    context = Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    server_app(grid, context)


def _load(reference: str) -> ServerApp:
    module, _, attribute = reference.partition(":")
    loaded = getattr(importlib.import_module(module), attribute)
    if not isinstance(loaded, ServerApp):
        raise StudyError(f"{reference} is not a Flower ServerApp")
    return loaded
