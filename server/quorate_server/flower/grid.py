"""Flower's ``Grid`` over our transport, so that any ServerApp and strategy runs unchanged on it.

Names of flwr that are used in this folder and are not public: ``TaskIdentity`` (``Message`` needs it in a ServerApp),
``Run``, ``ErrorCode``, ``make_message``, the serialisers, and ``Metadata``'s dictionary (message ids are the grid's to
assign). tests/compat/test_flwr_names.py fails when one of them changes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from quorate.errors import (
    FrameError,
    QuorateError,
    TaskCrashedError,
    TaskFailedError,
    TaskMismatchError,
    TaskMissingError,
)
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.study.study import Study
from quorate_server.rounds.phases import Arrived, Presence
from quorate_server.rounds.pipe_exchange import PipeExchange

log = structlog.get_logger()

LISTEN_S = 3600.0
ABSENT = "absent"
LATE = "late"

_FLOWER_CODES = {
    ABSENT: ErrorCode.NODE_UNAVAILABLE,
    LATE: ErrorCode.MESSAGE_UNAVAILABLE,
    TaskFailedError.code: ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    TaskCrashedError.code: ErrorCode.CLIENT_APP_CRASHED,
    TaskMissingError.code: ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    TaskMismatchError.code: ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
}
"""What Flower calls the codes for which it has a word; the others are UNKNOWN there. Our code is the error's reason."""


def node_id(study: Study, site: SiteName) -> int:
    """A site's number in Flower's world: 63 bits of the hash of its signing key."""
    key = next(bytes.fromhex(member.signing_key) for member in study.sites if member.name == site)
    return int.from_bytes(hashlib.sha256(b"quorate/node/v1\x00" + key).digest()[:8], "big") >> 1


def run_number(run: RunId) -> int:
    """A run's number in Flower's world."""
    return int.from_bytes(hashlib.sha256(b"quorate/run/v1\x00" + run.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class _Asked:
    """A message that is on its way. ``metadata_only`` is the message without its content, which may be large."""

    number: int
    site: SiteName
    metadata_only: Message
    expires_s: float


class QuorateGrid(Grid):
    """Flower's Grid over our transport, for one run in one process. Any number of the app's threads may use it.

    A message's name is made from its content, so when a guest app starts again after a crash, messages that are equal
    to earlier ones get the replies that the journal holds, and only new ones cost work. For the same reason replies
    come back in the order of the nodes' ids and not of their arrival: strategies add floats in the order that they get.

    As in Flower, a node whose connection is lost counts as there for a while (the study's ``absent_grace_s``); then, or
    when its time to live is over, a message is answered by an error. What nobody waits for any more is withdrawn.

    Args:
        forgiven: Messages that were refused or withdrawn before an operator resumed the run: they are asked anew.
    """

    def __init__(
        self, run: RunId, study: Study, exchange: PipeExchange, forgiven: AbstractSet[MessageId] = frozenset()
    ) -> None:
        self.exchange = exchange
        self._run_id = run
        self._study = study
        self._forgiven = forgiven
        self._run = Run.create_empty(run_number(run))
        self._sites = {node_id(study, site): site for site in study.site_names}
        self._changed = threading.Condition()
        self._gone_since_s: dict[SiteName, float] | None = None
        self._asked: dict[MessageId, _Asked] = {}
        self._arrived: dict[MessageId, Reply] = {}
        self._pushed = 0
        self._repeats: Counter[bytes] = Counter()
        self._turns: Counter[SiteName] = Counter()
        TaskIdentity.run_id = self._run.run_id
        TaskIdentity.task_id = self._run.run_id
        TaskIdentity.node_id = 1

    def listen(self) -> None:
        """Begin to take what arrives. From here on the events of the exchange belong to the grid."""
        threading.Thread(target=self._listen, daemon=True, name="grid").start()

    # --- Flower's Grid ---

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
        with self._changed:
            self._changed.wait_for(lambda: self._gone_since_s is not None)  # the daemon's first word
            return sorted(node for node, site in self._sites.items() if not self._is_gone(site))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        # Strategies send one content to all nodes: it is packed once. Not so what a generator yields: that may be the
        # same object each time, with something else in it.
        packed: dict[int, Blob] = {}
        is_settled = isinstance(messages, list | tuple)
        names: list[str] = []
        for message in messages:
            blob = packed.get(id(message.content)) if is_settled else None
            packed[id(message.content)] = blob = blob or self._pack(message.content)
            names.append(self._push(message, blob).hex())
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = {MessageId(bytes.fromhex(name)) for name in message_ids}
        with self._changed:
            lost = self._lose(wanted)
            taken = self._take(wanted)
        self.exchange.withdraw(lost)
        return self._unpack(taken)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        names = {MessageId(bytes.fromhex(name)) for name in self.push_messages(messages)}
        end_s = float("inf") if timeout is None else time.monotonic() + timeout
        with self._changed:
            withdrawn = self._lose(names)
            while (waiting := names - set(self._arrived)) and (now := time.monotonic()) < end_s:
                until_s = min(end_s, *(self._lost_s(self._asked[name]) for name in waiting))
                self._changed.wait(min(LISTEN_S, max(0.0, until_s - now)))
                withdrawn |= self._lose(names)
            taken = self._take(names)
            for name in waiting:
                del self._asked[name]
        self.exchange.withdraw(withdrawn | waiting)
        return self._unpack(taken)

    # --- sending ---

    def _pack(self, content: RecordDict) -> Blob:
        data = recorddict_to_proto(content).SerializeToString(deterministic=True)
        return Blob.of(data) if len(data) <= INLINE_BYTES else self.exchange.put([data])

    def _push(self, message: Message, blob: Blob) -> MessageId:
        metadata = message.metadata
        site = self._sites.get(metadata.dst_node_id)
        if site is None:
            raise ValueError(f"There is no node {metadata.dst_node_id} in this study")
        with self._changed:
            name, attempt = self._name(site, metadata.message_type.encode(), blob)
            if not any(self._asked[owed].site == site for owed in set(self._asked) - set(self._arrived)):
                self._turns[site] += 1
            metadata.__dict__["_message_id"] = name.hex()
            metadata.__dict__["_run_id"] = self._run.run_id
            metadata_only = make_message(metadata, content=RecordDict())
            self._pushed += 1
            self._asked[name] = _Asked(self._pushed, site, metadata_only, time.monotonic() + metadata.ttl)
            instruction = Instruction(
                message_id=name,
                run=self._run_id,
                # The site forgets what is two turns old. All messages that it owes at one time are of one turn.
                round_number=self._turns[site],
                phase=Phase.GUEST,
                attempt=attempt,
                study_digest=self._study.digest(),
                deadline_s=metadata.ttl,
                body=MessageProto(metadata=metadata_to_proto(metadata)).SerializeToString(),
                blobs=(blob,),
            )
        self.exchange.send(site, instruction)
        return name

    def _name(self, site: SiteName, kind: bytes, blob: Blob) -> tuple[MessageId, int]:
        salt = hashlib.sha256(len(kind).to_bytes(2, "big") + kind + site.encode() + blob.id).digest()
        while True:
            attempt = self._repeats[salt]
            self._repeats[salt] += 1
            name = message_id(self._run_id, 0, Phase.GUEST, attempt, site, salt)
            if name not in self._forgiven:
                return name, attempt

    # --- what arrives, and what does not; under the lock ---

    def _listen(self) -> None:
        while True:
            event = self.exchange.next_event(LISTEN_S)
            with self._changed:
                match event:
                    case Arrived(_, reply) if reply.message_id in self._asked:
                        self._arrived.setdefault(reply.message_id, reply)
                    case Presence(gone_for_s):
                        now = time.monotonic()
                        self._gone_since_s = {site: now - seconds for site, seconds in gone_for_s.items()}
                self._changed.notify_all()

    def _is_gone(self, site: SiteName) -> bool:
        return self._gone_until_s(site) <= time.monotonic()

    def _gone_until_s(self, site: SiteName) -> float:
        """When a site counts as gone, unless it comes back."""
        since_s = (self._gone_since_s or {}).get(site)
        return float("inf") if since_s is None else since_s + self._study.rounds.absent_grace_s

    def _lost_s(self, asked: _Asked) -> float:
        return min(asked.expires_s, self._gone_until_s(asked.site))

    def _lose(self, names: AbstractSet[MessageId]) -> set[MessageId]:
        """Answer by an error what will not be answered by its node. Returns which these are."""
        now = time.monotonic()
        open_now = {name: self._asked[name] for name in names if name in self._asked and name not in self._arrived}
        lost = {name: asked for name, asked in open_now.items() if self._lost_s(asked) <= now}
        for name, asked in lost.items():
            self._arrived[name] = Reply(name, LATE if asked.expires_s <= now else ABSENT)
        return set(lost)

    def _take(self, names: AbstractSet[MessageId]) -> list[tuple[_Asked, Reply]]:
        """Replies that are here; each is given out once."""
        here = [name for name in names if name in self._arrived]
        return [(self._asked.pop(name), self._arrived.pop(name)) for name in here]

    # --- replies ---

    def _unpack(self, taken: list[tuple[_Asked, Reply]]) -> list[Message]:
        ordered = sorted(taken, key=lambda pair: (pair[0].metadata_only.metadata.dst_node_id, pair[0].number))
        return [self._message(asked, reply) for asked, reply in ordered]

    def _message(self, asked: _Asked, reply: Reply) -> Message:
        """The reply as Flower knows it. Its metadata follows from what was asked: a site cannot say otherwise."""
        code, record = reply.code, RecordDict()
        if not code:
            try:
                record = self._record(reply)
            except QuorateError as error:
                log.warning(
                    "contribution refused", run=self._run_id, site=asked.site, code=error.code, reason=str(error)
                )
                code = error.code
        error_or_record = Error(_FLOWER_CODES.get(code, ErrorCode.UNKNOWN), code) if code else record
        message = Message(error_or_record, reply_to=asked.metadata_only)
        message.metadata.__dict__["_message_id"] = hashlib.sha256(b"reply" + reply.message_id).hexdigest()
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
