"""One message through a stock ClientApp, bytes in and bytes out. Runs in a task worker.

Flower's conversion between messages and bytes is not public; it is used here only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Context
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

from quorate.errors import TaskFailedError


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
