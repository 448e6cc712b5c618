"""What we use of flwr beyond its public programming model. When an upgrade of flwr fails here, begin here.

Users of these names: the two folders flower/, nothing else.
"""

from __future__ import annotations

import ast
import inspect
import time
from importlib.metadata import requires, version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from packaging.requirements import Requirement

from tests.compat.consortium_kit import REPOSITORY

METADATA_KEYS = {
    "_run_id",
    "_message_id",
    "_src_node_id",
    "_dst_node_id",
    "_src_task_id",
    "_dst_task_id",
    "_reply_to_message_id",
    "_group_id",
    "_created_at",
    "_delivered_at",
    "_ttl",
    "_message_type",
}


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 8, 9


def asked() -> Message:
    message = Message(RecordDict(), 5, "train.special", ttl=60.0, group_id="3")
    message.metadata.__dict__["_message_id"] = "asked"
    return message


def test_the_installed_flwr_is_one_that_we_say_we_run_with() -> None:
    wanted = [Requirement(text) for text in requires("quorate") or () if Requirement(text).name == "flwr"]
    assert len(wanted) == 3
    assert all(requirement.specifier.contains(version("flwr")) for requirement in wanted)


@pytest.mark.parametrize("side", ["server/quorate_server", "client/quorate_client"])
def test_one_module_of_each_side_imports_flwr(side: str) -> None:
    importing = set()
    for path in (REPOSITORY / side).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "flwr" for name in names):
                importing.add(path.parent.name)
    assert importing == {"flower"}


def test_a_server_app_can_make_messages_once_the_task_identity_is_set() -> None:
    metadata = asked().metadata
    assert (metadata.run_id, metadata.src_task_id, metadata.src_node_id) == (7, 8, 9)
    assert abs(metadata.created_at - time.time()) < 5


def test_without_a_task_identity_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why both sides set it."""
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError, match="run_id is not set"):
        asked()


def test_a_messages_metadata_is_a_dictionary_with_these_keys() -> None:
    """Message and run ids have no setters; the grid assigns them here."""
    message = asked()
    assert set(message.metadata.__dict__) == METADATA_KEYS
    message.metadata.__dict__["_message_id"] = "another"
    message.metadata.__dict__["_run_id"] = 11
    assert (message.metadata.message_id, message.metadata.run_id) == ("another", 11)
    for name in ("message_id", "run_id"):
        with pytest.raises(AttributeError):
            setattr(message.metadata, name, "x")


def test_metadata_survives_its_proto() -> None:
    metadata = asked().metadata
    proto = MessageProto(metadata=metadata_to_proto(metadata))
    read = metadata_from_proto(MessageProto.FromString(proto.SerializeToString()).metadata)
    assert {k: v for k, v in read.__dict__.items() if v} == {k: v for k, v in metadata.__dict__.items() if v}


def test_a_record_survives_its_proto_in_the_same_bytes() -> None:
    """Names of messages are made from these bytes."""
    record = RecordDict(
        {
            "arrays": ArrayRecord([np.arange(5, dtype=np.float32), np.ones((2, 2))]),
            "config": ConfigRecord({"text": "a", "number": 1, "flag": True, "bytes": b"\x00", "list": [1.5, 2.5]}),
            "metrics": MetricRecord({"num-examples": 10, "loss": 0.5}),
        }
    )
    data = recorddict_to_proto(record).SerializeToString(deterministic=True)
    assert recorddict_to_proto(record).SerializeToString(deterministic=True) == data
    read = recorddict_from_proto(RecordDictProto.FromString(data))
    assert recorddict_to_proto(read).SerializeToString(deterministic=True) == data
    np.testing.assert_array_equal(read["arrays"].to_numpy_ndarrays()[0], np.arange(5))
    assert dict(read["config"]) == dict(record["config"])


def test_no_record_and_an_empty_record_are_the_same() -> None:
    """A ClientApp's state before its first message."""
    assert recorddict_to_proto(RecordDict()).SerializeToString(deterministic=True) == b""
    assert dict(recorddict_from_proto(RecordDictProto.FromString(b""))) == {}


def test_a_message_can_be_made_from_its_metadata() -> None:
    message = make_message(asked().metadata, content=RecordDict({"config": ConfigRecord({"a": 1})}))
    assert message.has_content()
    assert message.metadata.message_id == "asked"


def test_a_reply_follows_from_what_was_asked() -> None:
    message = asked()
    for reply in (Message(RecordDict(), reply_to=message), Message(Error(2, "code"), reply_to=message)):
        metadata = reply.metadata
        assert (metadata.src_node_id, metadata.dst_node_id) == (5, 9)
        assert (metadata.reply_to_message_id, metadata.message_id) == ("asked", "")
        assert (metadata.message_type, metadata.group_id, metadata.run_id) == ("train.special", "3", 7)
        assert 0 < metadata.ttl <= 60.0


def test_a_run_can_be_made_empty() -> None:
    assert Run.create_empty(11).run_id == 11


def test_flowers_error_codes() -> None:
    codes = {name: value for name, value in vars(ErrorCode).items() if name.isupper()}
    assert codes == {
        "UNKNOWN": 0,
        "LOAD_CLIENT_APP_EXCEPTION": 1,
        "CLIENT_APP_RAISED_EXCEPTION": 2,
        "MESSAGE_UNAVAILABLE": 3,
        "REPLY_MESSAGE_UNAVAILABLE": 4,
        "NODE_UNAVAILABLE": 5,
        "MOD_FAILED_PRECONDITION": 6,
        "INVALID_FAB": 7,
        "CLIENT_APP_CRASHED": 8,
    }


def test_what_flowers_grid_asks_of_an_implementation() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }
    assert list(inspect.signature(Grid.send_and_receive).parameters) == ["self", "messages", "timeout"]


def test_a_context_takes_these_arguments() -> None:
    parameters = list(inspect.signature(Context).parameters.values())
    assert [each.name for each in parameters[:5]] == ["run_id", "node_id", "node_config", "state", "run_config"]
    assert all(each.default is not inspect.Parameter.empty for each in parameters[5:])


def test_an_array_carries_any_bytes() -> None:
    array = Array("uint8", (3,), "quorate.words", b"\x01\x02\x03")
    record = RecordDict({"arrays": ArrayRecord({"words": array})})
    read = recorddict_from_proto(recorddict_to_proto(record))
    assert read.array_records["arrays"]["words"].data == b"\x01\x02\x03"
