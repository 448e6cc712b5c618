"""Our ClientApp: a site's engine behind Flower's own transport (``flower-supernode``) or in its simulation.

Each message carries a record ``quorate`` with an instruction, and a record ``blobs`` with all bulk data that the
instruction names, by the hex of their ids; the reply has the same form. A message that asks ``who`` is answered with
the site's name. The engine itself runs in a process of its own, which outlives the ClientApp
(``daemon/engine_process.py``).
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from quorate.errors import ConfigError, FrameError, QuorateError, TaskFailedError
from quorate.rounds.instruction import Reply
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate_client.flower.engine_client import ask
from quorate_client.flower.site_file import NodeSite
from quorate_client.site.folder import SiteFolder

SITE_KEY = "quorate-site"
"""In a SuperNode's node configuration: the path of the site file."""
SITES_KEY = "quorate-sites"
"""In a simulation's run configuration: a folder of site files; the n-th by name is partition n."""


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
    except Exception:  # noqa: BLE001  # whatever happens here becomes a code
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
    reply, *sent = ask(SiteFolder(NodeSite.read(file).folder), question)
    return reply, {name.hex(): content for name, content in zip(sent[::2], sent[1::2], strict=True)}


def _name_of(context: Context) -> str:
    """The site's name; empty where the node does not know it: why is for its own log."""
    try:
        return NodeSite.read(_file_of(context)).agreement.site
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
