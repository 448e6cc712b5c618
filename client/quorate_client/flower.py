"""Everything of Flower at a site: guest apps in a task worker, and our own engine as a ClientApp.

``handle`` runs a stock ClientApp on one message, bytes in and bytes out. ``app`` is the reverse: a ClientApp that runs
this site's engine behind Flower's own transport (``flower-supernode``) or in its simulation. There each message carries
a record ``quorate`` with an instruction, and a record ``blobs`` with all bulk data that the instruction names, by the
hex of their ids; the reply has the same form. A message that asks ``who`` is answered with the site's name. The engine
itself runs in a process of its own, which outlives the ClientApp (``site_engine.py``).

Flower's conversion between messages and bytes is not public; it is used here only.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

from quorate.errors import ConfigError, FrameError, QuorateError, TaskFailedError
from quorate.exchange import Reply
from quorate.messages import instruction_from_bytes, reply_to_bytes
from quorate_client.door import ask
from quorate_client.folder import SiteFolder
from quorate_client.site_file import Site

SITE_KEY = "quorate-site"
"""In a SuperNode's node configuration: the path of the site file."""
SITES_KEY = "quorate-sites"
"""In a simulation's run configuration: a folder of site files; the n-th by name is partition n."""


# --- stock ClientApps over our transport ---


@dataclass(frozen=True, slots=True)
class GuestAnswer:
    """The reply's metadata and content and the app's state afterwards, each as serialized protos of Flower's."""

    body: bytes
    content: bytes
    state: bytes


def handle(
    app: object,
    *,
    body: bytes,
    content: bytes,
    state: bytes,
    run_config: Mapping[str, str | int | float | bool],
    node_config: Mapping[str, str | int | float | bool],
) -> GuestAnswer:
    """Have a ClientApp handle one message.

    Args:
        body: A proto Message without content.
        content: A proto RecordDict.
        state: A proto RecordDict, or empty for a run's first message.

    Raises:
        TaskFailedError: not a ClientApp, or it answered with an error. Whatever the app raises.
    """
    if not isinstance(app, ClientApp):
        raise TaskFailedError("The study's task is not a Flower ClientApp", got=type(app).__name__)
    proto = ProtoMessage.FromString(body)
    # Flower takes the reply's time to live from when the message was made. The server's clock is not compared to ours.
    proto.metadata.created_at = time.time()
    metadata = metadata_from_proto(proto.metadata)
    message = make_message(metadata, content=recorddict_from_proto(ProtoRecordDict.FromString(content)))
    # Flower keeps this for the process; messages that the app makes by itself need it.
    TaskIdentity.run_id, TaskIdentity.node_id = metadata.run_id, metadata.dst_node_id
    TaskIdentity.task_id = metadata.dst_task_id or 0
    context = Context(
        run_id=metadata.run_id,
        node_id=metadata.dst_node_id,
        node_config=dict(node_config),
        state=recorddict_from_proto(ProtoRecordDict.FromString(state)),
        run_config=dict(run_config),
    )
    reply = app(message, context)
    if reply.has_error():
        raise TaskFailedError("The app answered with an error", got=f"code {reply.error.code}")
    return GuestAnswer(
        body=ProtoMessage(metadata=metadata_to_proto(reply.metadata)).SerializeToString(deterministic=True),
        content=recorddict_to_proto(reply.content).SerializeToString(deterministic=True),
        state=recorddict_to_proto(context.state).SerializeToString(deterministic=True),
    )


# --- our engine behind Flower's transport ---

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Phases that change something at the site."""
    return _serve(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The phase that evaluates."""
    return _serve(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    """All other phases."""
    return _serve(message, context)


def _serve(message: Message, context: Context) -> Message:
    """An instruction in, a reply out. Flower would send the text of an exception to the server: none passes."""
    if "who" in message.content.config_records.get("quorate", ConfigRecord()):
        return Message(RecordDict({"quorate": ConfigRecord({"site": _name_of(context)})}), reply_to=message)
    serialized = _field(message.content, "quorate", "instruction")
    name = instruction_from_bytes(serialized).message_id
    try:
        reply, sent = _ask(serialized, message.content.config_records.get("blobs", ConfigRecord()), context)
    except QuorateError as error:
        traceback.print_exc()
        reply, sent = reply_to_bytes(Reply.refusing(name, error)), {}
    except Exception:  # noqa: BLE001  # the door: whatever happens here becomes a code
        traceback.print_exc()
        reply, sent = reply_to_bytes(Reply(name, TaskFailedError.code)), {}
    quorate = ConfigRecord({"reply": reply})
    return Message(RecordDict({"quorate": quorate, "blobs": ConfigRecord({**sent})}), reply_to=message)


def _ask(instruction: bytes, blobs: ConfigRecord, context: Context) -> tuple[bytes, dict[str, bytes]]:
    """Have the site's engine do it. The reply, and its bulk data by the hex of their names."""
    file = _file_of(context)
    question = [str(file.absolute()).encode(), instruction]
    for name, content in blobs.items():
        if isinstance(content, bytes):
            question += [bytes.fromhex(name), content]
    reply, *sent = ask(SiteFolder(Site.read(file).folder), question)
    return reply, {name.hex(): content for name, content in zip(sent[::2], sent[1::2], strict=True)}


def _name_of(context: Context) -> str:
    """The site's name; empty where the node does not know it: why is for its own log."""
    try:
        return Site.read(_file_of(context)).agreement.site
    except QuorateError:
        traceback.print_exc()
        return ""


def _file_of(context: Context) -> Path:
    path = context.node_config.get(SITE_KEY)
    folder = context.run_config.get(SITES_KEY)
    if isinstance(path, str):
        return Path(path)
    if isinstance(folder, str):
        files = sorted(Path(folder).glob("*.json"))
        partition = context.node_config.get("partition-id")
        if isinstance(partition, int) and 0 <= partition < len(files):
            return files[partition]
    raise ConfigError(
        "This Flower node does not know which site it is",
        expected=f"{SITE_KEY} in its node configuration, or {SITES_KEY} in the run's and as many files as partitions",
    )


def _field(content: RecordDict, record: str, key: str) -> bytes:
    value: Any = content.config_records.get(record, ConfigRecord()).get(key)
    if not isinstance(value, bytes):
        raise FrameError("A message does not carry an instruction")
    return value
