"""Flower at a site: stock ClientApps in a task worker, and our engine as a ClientApp behind Flower's transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

from quorate.errors import ConfigError, FrameError, TaskFailedError
from quorate.rounds.blobs import INLINE_BYTES, Blob, BlobId
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.wire.messages import instruction_to_bytes, reply_from_bytes
from quorate.wire.sum_messages import plain_opening_from_bytes, plain_opening_to_bytes, sum_answer_from_bytes
from quorate_client.flower import client_app
from quorate_client.flower.site_file import NodeSite
from tests.client.engine_kit import (
    RUN,
    ServerPart,
    SiteUnderTest,
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_agreement,
    make_study,
    site,
)
from tests.client.engine_processes import end_engines, engines
from tests.client.linear_task import SECRET

NODE = 42


@pytest.fixture(autouse=True)
def server_app(tmp_path: Path) -> Iterator[None]:
    """This process plays the ServerApp, which makes messages. Engines that it had started end with the test."""
    TaskIdentity.task_id = TaskIdentity.run_id = 7
    TaskIdentity.node_id = 1
    yield
    end_engines(tmp_path)


# --- stock ClientApps over our transport ---


def guest_instruction(server: ServerPart, content: RecordDict, number: int, message_type: str = "train") -> Instruction:
    message = Message(content, dst_node_id=NODE, message_type=message_type)
    message.metadata.__dict__["_message_id"] = f"message-{number}"
    message.metadata.created_at -= 2 * 24 * 3600  # the server's clock is two days behind
    body = message_to_proto(message)
    body.ClearField("content")
    data = recorddict_to_proto(content).SerializeToString()
    blob = Blob.of(data) if len(data) <= INLINE_BYTES else server.spool.put([data])
    return replace(server.instruction(Phase.GUEST, number), body=body.SerializeToString(), blobs=(blob,))


def guest_reply(reply: Reply, site: SiteUnderTest) -> Message:
    proto = ProtoMessage.FromString(reply.body)
    assert not proto.HasField("error")
    proto.content.CopyFrom(ProtoRecordDict.FromString(site.spool.content(reply.blobs[0])))
    return message_from_proto(proto)


@asynccontextmanager
async def guest_site(folder: Path, *, processes: bool = False, **node_config: str) -> AsyncIterator[SiteUnderTest]:
    server = ServerPart(make_study(guest=True), folder / "server")
    async with site(server, folder / "site", processes=processes, node_config=node_config) as alone:
        yield alone


def arrays(size: int = 3) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord([np.arange(size, dtype=np.float32)])})


async def test_a_stock_client_app_answers_a_message_in_a_worker_process(installed: Path, tmp_path: Path) -> None:
    async with guest_site(tmp_path, processes=True) as alone:
        instruction = guest_instruction(alone.server, arrays(), 1)
        reply = await alone.perform(instruction)
        message = guest_reply(reply, alone)
        np.testing.assert_array_equal(message.content.array_records["arrays"].to_numpy_ndarrays()[0], [1, 2, 3])
        assert message.content.metric_records["metrics"]["rate"] == 0.5
        assert message.metadata.reply_to_message_id == "message-1"
        assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (7, NODE, 1)
        assert message.metadata.ttl > 0
        assert reply.working_s > 0


async def test_content_that_is_large_goes_through_the_spool_both_ways(installed: Path, tmp_path: Path) -> None:
    async with guest_site(tmp_path) as alone:
        reply = await alone.perform(guest_instruction(alone.server, arrays(100_000), 1))
        assert reply.blobs[0].inline is None
        message = guest_reply(reply, alone)
        assert message.content.array_records["arrays"].to_numpy_ndarrays()[0][-1] == 100_000


async def test_what_an_app_keeps_in_its_context_lasts_for_the_run_and_over_restarts(
    installed: Path, tmp_path: Path
) -> None:
    async with guest_site(tmp_path, processes=True) as alone:
        for number in (1, 2):
            await alone.perform(guest_instruction(alone.server, arrays(), number))
        await alone.workers.close()
        again = alone.restarted()
        message = guest_reply(await again.perform(guest_instruction(alone.server, arrays(), 3)), again)
        assert message.content.metric_records["metrics"]["seen"] == 3
        await again.engine.forget(RUN)
        message = guest_reply(await again.perform(guest_instruction(alone.server, arrays(), 4)), again)
        assert message.content.metric_records["metrics"]["seen"] == 1


async def test_the_text_of_an_apps_exception_stays_at_the_site(installed: Path, tmp_path: Path) -> None:
    async with guest_site(tmp_path, processes=True, trouble="raise") as alone:
        with pytest.raises(TaskFailedError) as caught:
            await alone.perform(guest_instruction(alone.server, arrays(), 1))
        assert SECRET not in str(caught.value)
        assert SECRET in (alone.folder / "tasks.log").read_text()
        assert list((alone.folder / "runs" / RUN).glob("new-*")) == []


async def test_a_message_that_the_app_does_not_know_is_a_failed_task(installed: Path, tmp_path: Path) -> None:
    async with guest_site(tmp_path) as alone:
        with pytest.raises(TaskFailedError):
            await alone.perform(guest_instruction(alone.server, arrays(), 1, "evaluate"))


async def test_a_guest_study_has_no_study_phases_and_one_content_a_message(installed: Path, tmp_path: Path) -> None:
    async with guest_site(tmp_path) as alone:
        instruction = guest_instruction(alone.server, arrays(), 1)
        for wrong in (replace(instruction, phase=Phase.UPLOAD), replace(instruction, blobs=())):
            with pytest.raises(FrameError):
                await alone.perform(wrong)


# --- our engine behind Flower's transport ---


class Node:
    """A Flower node that runs our app, each message through bytes as on Flower's wire."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def ask(self, instruction: Instruction, blobs: dict[BlobId, bytes], kind: str = "train") -> tuple[Reply, bytes]:
        records = {
            "quorate": ConfigRecord({"instruction": instruction_to_bytes(instruction)}),
            "blobs": ConfigRecord({blob.hex(): content for blob, content in blobs.items()}),
        }
        sent = message_to_proto(Message(RecordDict({**records}), dst_node_id=NODE, message_type=kind))
        answer = client_app.app(message_from_proto(ProtoMessage.FromString(sent.SerializeToString())), self.context)
        wire = message_to_proto(answer).SerializeToString()
        content = message_from_proto(ProtoMessage.FromString(wire)).content
        reply = content.config_records["quorate"]["reply"]
        assert isinstance(reply, bytes)
        for name, data in content.config_records["blobs"].items():
            assert isinstance(data, bytes)
            blobs[BlobId(bytes.fromhex(name))] = data
        return reply_from_bytes(reply), wire


@pytest.fixture
def node(installed: Path, tmp_path: Path) -> tuple[Node, ServerPart]:
    """As behind a SuperNode, with a model that does not travel inline."""
    study = make_study(parameters={"padding": 30_000})
    NodeSite(make_agreement(study, tmp_path), tmp_path / "site").write(tmp_path / "site.json")
    context = Context(7, NODE, {client_app.SITE_KEY: str(tmp_path / "site.json")}, RecordDict(), {})
    return Node(context), ServerPart(study, tmp_path / "server")


def run_a_round(node: Node, server: ServerPart) -> bytes:
    """The first two sums, and an upload for the third; gives the digest of the new model."""
    counted(node, server)
    blobs: dict[BlobId, bytes] = {}
    reply, _ = node.ask(server.instruction(Phase.UPLOAD, 1), blobs)
    assert reply.code == ""
    for content in blobs.values():
        server.spool.put([content])
    server.take(reply, server.spool)
    server.close(1)
    reply, _ = node.ask(server.instruction(Phase.UPLOAD, 2), needed(server))
    assert reply.code == ""
    return sum_answer_from_bytes(reply.body).model


def counted(node: Node, server: ServerPart) -> None:
    """The sum of the statistics."""
    reply, _ = node.ask(server.instruction(Phase.UPLOAD), {})
    server.take(reply, server.spool)
    server.close(0)


def needed(server: ServerPart) -> dict[BlobId, bytes]:
    return {ref.updates.id: server.spool.content(ref.updates) for ref in server.work.sums if ref.updates}


def test_a_round_runs_behind_flowers_transport(node: tuple[Node, ServerPart], tmp_path: Path) -> None:
    digest = run_a_round(*node)
    assert (tmp_path / "site" / "work" / "runs" / RUN / f"model-1-{digest.hex()}.state").exists()
    assert list((tmp_path / "site" / "spool").iterdir()) == []


def test_a_round_goes_on_in_another_engine(node: tuple[Node, ServerPart], tmp_path: Path) -> None:
    """After one that died nothing but the disk is left; the next message starts another."""
    client, server = node
    run_a_round(client, server)
    (engine,) = engines(tmp_path)
    engine.kill()
    psutil.wait_procs([engine])
    reply, _ = client.ask(server.instruction(Phase.UPLOAD, 2), needed(server))
    assert reply.code == ""


def test_partitions_of_a_simulation_are_the_sites_by_name(installed: Path, tmp_path: Path) -> None:
    study = make_study()
    for name in ("north", "east"):
        NodeSite(make_agreement(study, tmp_path, name), tmp_path / name).write(tmp_path / f"{name}.json")
    counts = []
    for partition in (0, 1):
        context = Context(7, NODE, {"partition-id": partition}, RecordDict(), {client_app.SITES_KEY: str(tmp_path)})
        reply, _ = Node(context).ask(ServerPart(study, tmp_path / "server").instruction(Phase.UPLOAD), {})
        counts.append(sum_answer_from_bytes(reply.body).plain_counts[0])
    assert counts == [40, 41]


def test_bulk_data_that_was_not_sent_along_is_a_code(node: tuple[Node, ServerPart]) -> None:
    client, server = node
    run_a_round(client, server)
    first, second = server.work.sums
    assert second.updates is not None
    other = Blob(BlobId(bytes(32)), second.updates.size)
    opening = plain_opening_from_bytes(second.opening.inline or b"")
    changed = Blob.of(plain_opening_to_bytes(replace(opening, updates=other.id)))
    work = replace(server.work, sums=(first, replace(second, updates=other, opening=changed)))
    for sent in ({}, {other.id: b"something else"}):
        reply, _ = client.ask(server.instruction(Phase.UPLOAD, 2, work), dict(sent))
        assert reply.code == ("blob_mismatch" if sent else "blob_missing")


def test_flower_is_not_given_the_text_of_an_exception(installed: Path, tmp_path: Path) -> None:
    study = make_study(parameters={"trouble": "raise"})
    NodeSite(make_agreement(study, tmp_path), tmp_path / "site").write(tmp_path / "site.json")
    client = Node(Context(7, NODE, {client_app.SITE_KEY: str(tmp_path / "site.json")}, RecordDict(), {}))
    server = ServerPart(study, tmp_path / "server")
    counted(client, server)
    reply, wire = client.ask(server.instruction(Phase.UPLOAD, 1), {})
    assert reply.code == TaskFailedError.code
    assert SECRET.encode() not in wire
    assert SECRET in (tmp_path / "site" / "log" / "tasks.log").read_text()


def test_a_node_that_does_not_know_its_site_says_so(installed: Path, tmp_path: Path) -> None:
    server = ServerPart(make_study(), tmp_path / "server")
    for config in ({}, {client_app.SITE_KEY: str(tmp_path / "missing.json")}):
        client = Node(Context(7, NODE, dict(config), RecordDict(), {}))
        reply, _ = client.ask(server.instruction(Phase.UPLOAD), {})
        assert reply.code == ConfigError.code
