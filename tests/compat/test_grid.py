"""``QuorateGrid`` against the documentation of Flower's ``Grid``, with this test in the daemon's place."""

from __future__ import annotations

import inspect
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from quorate.identity import RunId
from quorate.rounds.blobs import INLINE_BYTES, Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.spool import Spool
from quorate.study.study import Guest, Protection, Rounds, Site, Study, TaskRef
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate_server.flower.grid import QuorateGrid, node_id, run_number
from quorate_server.rounds.pipe import Note, Verb, receive_note
from quorate_server.rounds.pipe_exchange import PipeExchange
from tests.patience import PATIENCE_S

RUN = RunId("run-1")
SITES = ("east", "north", "south")


def make_study(absent_grace_s: float = 3600.0) -> Study:
    return Study(
        consortium="tests",
        name="grid",
        purpose="to be tested",
        task=TaskRef(name="flower:app:client", digest="0" * 64),
        rounds=Rounds(count=1, quorum=3, absent_grace_s=absent_grace_s),
        protection=Protection(mode="none"),
        guest=Guest(server_app="app:server"),
        sites=tuple(Site(name=name, signing_key=f"{number:064x}") for number, name in enumerate(SITES)),
    )


@dataclass
class Daemon:
    """The other end of the pipe. ``asked`` are the instructions as they come; who answers is the test."""

    sock: socket.socket
    asked: queue.SimpleQueue[tuple[str, Instruction]] = field(default_factory=queue.SimpleQueue)
    withdrawn: queue.SimpleQueue[set[MessageId]] = field(default_factory=queue.SimpleQueue)

    def listen(self) -> None:
        while (note := receive_note(self.sock)) is not None:
            if note.verb is Verb.SEND:
                self.asked.put((note.site, instruction_from_bytes(note.payload)))
            elif note.verb is Verb.WITHDRAW:
                names = {MessageId(note.payload[at : at + 32]) for at in range(0, len(note.payload), 32)}
                self.withdrawn.put(names)

    def gone(self, **seconds: float) -> None:
        self.sock.sendall(Note(Verb.PRESENCE, json.dumps(seconds).encode()).to_bytes())

    def next(self) -> tuple[str, Instruction]:
        return self.asked.get(timeout=PATIENCE_S)

    def reply(self, site: str, reply: Reply) -> None:
        self.sock.sendall(Note(Verb.REPLY, reply_to_bytes(reply), site).to_bytes())

    def answer(self, count: int) -> list[tuple[str, Instruction]]:
        """Take as many instructions and answer them, last one first, each with its site's name."""
        taken = [self.next() for _ in range(count)]
        for site, instruction in reversed(taken):
            content = recorddict_to_proto(RecordDict({"from": ConfigRecord({"site": site})})).SerializeToString()
            self.reply(site, Reply(instruction.message_id, blobs=(Blob.of(content),)))
        return taken


@dataclass
class Bench:
    """A grid, the daemon behind it, and what the grid is about."""

    grid: QuorateGrid
    daemon: Daemon
    study: Study
    spool: Spool

    def messages(self, *sites: str, value: str = "1", **options: float) -> list[Message]:
        content = RecordDict({"config": ConfigRecord({"value": value})})
        return [Message(content, node_id(self.study, site), "train", **options) for site in sites or SITES]

    def nodes(self, *sites: str) -> list[int]:
        return sorted(node_id(self.study, site) for site in sites)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def make(spool: Spool) -> Iterator[Callable[..., Bench]]:
    ends: list[socket.socket] = []
    ended: list[Callable[[], object]] = []

    def start(absent_grace_s: float = 3600.0, forgiven: frozenset[MessageId] = frozenset()) -> Bench:
        ours, theirs = socket.socketpair()
        ends.extend((ours, theirs))
        daemon = Daemon(theirs)
        listening = threading.Thread(target=daemon.listen, daemon=True)
        listening.start()
        hung_up = threading.Event()
        exchange = PipeExchange(ours, spool, hung_up.set)
        exchange.start()
        ended.extend((listening.join, hung_up.wait))
        study = make_study(absent_grace_s)
        grid = QuorateGrid(RUN, study, exchange, forgiven)
        grid.listen()
        return Bench(grid, daemon, study, spool)

    yield start
    for end in ends:
        end.shutdown(socket.SHUT_RDWR)
    for wait in ended:
        wait()
    for end in ends:
        end.close()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    made = make()
    made.daemon.gone()
    return made


# --- the interface ---


def test_everything_abstract_is_implemented_with_flowers_own_signature() -> None:
    for name in Grid.__abstractmethods__:
        ours, theirs = getattr(QuorateGrid, name), getattr(Grid, name)
        if callable(theirs):
            assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys(), name
    assert not QuorateGrid.__abstractmethods__


def test_a_run_can_be_set_and_is_named_in_messages(bench: Bench) -> None:
    assert bench.grid.run.run_id == run_number(RUN)
    bench.grid.set_run(Run.create_empty(11))
    bench.grid.push_messages(bench.messages("north"))
    _, instruction = bench.daemon.next()
    assert MessageProto.FromString(instruction.body).metadata.run_id == bench.grid.run.run_id == 11


def test_a_message_can_be_made_the_old_way(bench: Bench) -> None:
    message = bench.grid.create_message(RecordDict(), "train", 5, "2", ttl=9.0)
    metadata = message.metadata
    assert (metadata.dst_node_id, metadata.message_type, metadata.group_id, metadata.ttl) == (5, "train", "2", 9.0)
    assert (metadata.run_id, metadata.src_node_id) == (run_number(RUN), 1)


def test_nodes_are_the_sites_that_are_there(make: Callable[..., Bench]) -> None:
    bench = make(absent_grace_s=10.0)
    bench.daemon.gone(east=9.0, north=11.0)
    assert bench.grid.get_node_ids() == bench.nodes("east", "south")  # one that is just gone may be back
    nodes = list(bench.grid.get_nodes())
    assert all(isinstance(node, NodeInfo) for node in nodes)
    assert [node.node_id for node in nodes] == bench.nodes("east", "south")


def test_who_is_there_is_not_told_before_it_is_known(make: Callable[..., Bench]) -> None:
    bench = make()
    found: list[list[int]] = []
    asking = threading.Thread(target=lambda: found.append(list(bench.grid.get_node_ids())))
    asking.start()
    assert found == []
    bench.daemon.gone()
    asking.join(PATIENCE_S)
    assert found == [bench.nodes(*SITES)]


# --- sending and receiving ---


def in_thread(bench: Bench, messages: list[Message], timeout: float | None = None) -> tuple[threading.Thread, list]:
    replies: list[Message] = []
    sending = threading.Thread(
        target=lambda: replies.extend(bench.grid.send_and_receive(messages, timeout=timeout)), daemon=True
    )
    sending.start()
    return sending, replies


def test_replies_come_in_the_order_of_the_nodes_whatever_came_first(bench: Bench) -> None:
    """Strategies add floats in this order: equal runs give equal bits, and a repeated run sends equal messages."""
    sending, replies = in_thread(bench, bench.messages("south", "east", "north"))
    bench.daemon.answer(3)
    sending.join(PATIENCE_S)
    assert [reply.metadata.src_node_id for reply in replies] == bench.nodes(*SITES)
    names = {node_id(bench.study, site): site for site in SITES}
    for reply in replies:
        assert reply.content["from"]["site"] == names[reply.metadata.src_node_id]


def test_a_replys_metadata_follow_from_what_was_asked(bench: Bench) -> None:
    (message,) = bench.messages("north", ttl=77.0)
    sending, replies = in_thread(bench, [message])
    ((_, instruction),) = bench.daemon.answer(1)
    sending.join(PATIENCE_S)
    metadata = replies[0].metadata
    assert metadata.reply_to_message_id == message.metadata.message_id == instruction.message_id.hex()
    assert (metadata.src_node_id, metadata.dst_node_id) == (message.metadata.dst_node_id, 1)
    assert metadata.message_id not in ("", message.metadata.message_id)
    assert 0 < metadata.ttl <= 77.0
    assert instruction.phase is Phase.GUEST
    assert instruction.deadline_s == 77.0


def test_at_the_end_of_the_time_the_replies_that_are_there_are_given_back(bench: Bench) -> None:
    messages = bench.messages(*SITES)
    sending, replies = in_thread(bench, messages, timeout=3.0)
    answered = bench.daemon.answer(2)
    sending.join(PATIENCE_S)
    assert len(replies) == 2
    missing = {message.metadata.message_id for message in messages} - {i.message_id.hex() for _, i in answered}
    assert {name.hex() for name in bench.daemon.withdrawn.get(timeout=PATIENCE_S)} == missing


def test_without_time_nothing_is_waited_for(bench: Bench) -> None:
    assert bench.grid.send_and_receive(bench.messages("north"), timeout=0.0) == []
    assert bench.grid.send_and_receive([], timeout=None) == []


def test_pulling_gives_what_is_there_and_each_reply_once(bench: Bench) -> None:
    names = list(bench.grid.push_messages(bench.messages("east", "north")))
    assert len(set(names)) == 2
    assert bench.grid.pull_messages(names) == []
    bench.daemon.answer(1)
    pulled: list[Message] = []
    while not pulled:
        pulled.extend(bench.grid.pull_messages(names))
    assert [reply.metadata.reply_to_message_id for reply in pulled] == [names[0]]
    assert bench.grid.pull_messages(names) == []
    assert bench.grid.pull_messages(["ab" * 32]) == []


def test_threads_of_an_app_do_not_take_each_others_replies(bench: Bench) -> None:
    """Flower's earlier strategies call from one thread for each client."""
    senders = [in_thread(bench, bench.messages(site)) for site in SITES]
    bench.daemon.answer(3)
    for (sending, replies), site in zip(senders, SITES, strict=True):
        sending.join(PATIENCE_S)
        assert [reply.content["from"]["site"] for reply in replies] == [site]


def test_threads_of_an_app_do_not_break_each_others_messages(bench: Bench) -> None:
    """Each is larger than what the pipe takes at once."""
    senders = [
        in_thread(bench, bench.messages(site, value=str(number) * (INLINE_BYTES - 200)))
        for number in range(20)
        for site in SITES
    ]
    bench.daemon.answer(60)
    for sending, replies in senders:
        sending.join(PATIENCE_S)
        assert len(replies) == 1


def test_a_node_that_does_not_exist_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no node 12345"):
        bench.grid.push_messages([Message(RecordDict(), 12345, "train")])


# --- errors in the place of replies ---


def error_of(replies: list[Message]) -> tuple[int, str]:
    (reply,) = replies
    assert not reply.has_content()
    return reply.error.code, str(reply.error.reason)


@pytest.mark.parametrize(
    ("code", "flowers"),
    [
        ("task_failed", ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
        ("task_crashed", ErrorCode.CLIENT_APP_CRASHED),
        ("task_missing", ErrorCode.LOAD_CLIENT_APP_EXCEPTION),
        ("task_mismatch", ErrorCode.LOAD_CLIENT_APP_EXCEPTION),
        ("policy_refused", ErrorCode.UNKNOWN),
    ],
)
def test_a_sites_code_is_an_error_with_the_code_as_its_reason(bench: Bench, code: str, flowers: int) -> None:
    sending, replies = in_thread(bench, bench.messages("north"))
    site, instruction = bench.daemon.next()
    bench.daemon.reply(site, Reply(instruction.message_id, code))
    sending.join(PATIENCE_S)
    assert error_of(replies) == (flowers, code)


@pytest.mark.parametrize(
    ("blobs", "code"),
    [
        ((), "bad_frame"),
        ((Blob.of(b"no record"),), "bad_frame"),
        ((Blob(BlobId(bytes(32)), 100_000),), "blob_missing"),
    ],
)
def test_what_flower_cannot_read_is_an_error(bench: Bench, blobs: tuple[Blob, ...], code: str) -> None:
    sending, replies = in_thread(bench, bench.messages("north"))
    site, instruction = bench.daemon.next()
    bench.daemon.reply(site, Reply(instruction.message_id, blobs=blobs))
    sending.join(PATIENCE_S)
    assert error_of(replies) == (ErrorCode.UNKNOWN, code)


def test_a_node_that_is_gone_is_not_waited_for_beyond_the_grace(make: Callable[..., Bench]) -> None:
    bench = make(absent_grace_s=5.0)
    bench.daemon.gone()
    sending, replies = in_thread(bench, bench.messages("north"))
    _, instruction = bench.daemon.next()
    bench.daemon.gone(north=5.0)
    sending.join(PATIENCE_S)
    assert error_of(replies) == (ErrorCode.NODE_UNAVAILABLE, "absent")
    assert bench.daemon.withdrawn.get(timeout=PATIENCE_S) == {instruction.message_id}


def test_a_node_that_is_back_within_the_grace_is_waited_for(make: Callable[..., Bench]) -> None:
    bench = make(absent_grace_s=5.0)
    bench.daemon.gone(north=1.0)
    sending, replies = in_thread(bench, bench.messages("north"))
    site, instruction = bench.daemon.next()
    bench.daemon.gone()
    bench.daemon.reply(site, Reply(instruction.message_id, "site_paused"))
    sending.join(PATIENCE_S)
    assert error_of(replies) == (ErrorCode.UNKNOWN, "site_paused")


def test_a_message_ends_with_its_time_to_live(bench: Bench) -> None:
    """The earlier strategies have no other limit."""
    replies = list(bench.grid.send_and_receive(bench.messages("north", ttl=0.3)))
    assert error_of(replies) == (ErrorCode.MESSAGE_UNAVAILABLE, "late")
    bench.daemon.next()
    (name,) = bench.grid.push_messages(bench.messages("north", value="2", ttl=0.1))
    pulled: list[Message] = []
    while not pulled:
        pulled.extend(bench.grid.pull_messages([name]))
    assert error_of(pulled) == (ErrorCode.MESSAGE_UNAVAILABLE, "late")


# --- names, contents, turns ---


def test_an_app_that_starts_again_sends_messages_of_the_same_names(make: Callable[..., Bench]) -> None:
    names = []
    for _ in range(2):
        bench = make()
        bench.daemon.gone()
        names.append([list(bench.grid.push_messages(bench.messages(*SITES))) for _ in range(2)])
    assert names[0] == names[1]
    assert len({name for pushed in names[0] for name in pushed}) == 6  # the same again is another message


def test_what_was_forgiven_is_asked_under_another_name(make: Callable[..., Bench]) -> None:
    bench = make()
    (first, second) = (next(iter(bench.grid.push_messages(bench.messages("north")))) for _ in range(2))
    again = make(forgiven=frozenset({MessageId(bytes.fromhex(first))}))
    assert list(again.grid.push_messages(again.messages("north"))) == [second]


def test_one_content_for_all_is_packed_once_and_travels_in_the_spool_if_it_is_large(bench: Bench) -> None:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(INLINE_BYTES)])})
    bench.grid.push_messages([Message(content, node, "train") for node in bench.nodes(*SITES)])
    blobs = {bench.daemon.next()[1].blobs for _ in SITES}
    (((blob,),),) = (tuple(blobs),)
    assert blob.inline is None
    assert bench.spool.content(blob) == recorddict_to_proto(content).SerializeToString(deterministic=True)
    bench.grid.push_messages(bench.messages("north"))
    assert bench.daemon.next()[1].blobs[0].inline is not None


def test_a_content_that_changes_between_two_messages_is_sent_as_it_was(bench: Bench) -> None:
    content = RecordDict()

    def messages() -> Iterator[Message]:
        for value in ("first", "second"):
            content["config"] = ConfigRecord({"value": value})
            yield Message(content, bench.nodes("north")[0], "train")

    bench.grid.push_messages(messages())
    assert [word in bench.daemon.next()[1].blobs[0].inline for word in (b"first", b"second")] == [True, True]


def test_a_site_is_told_when_it_owes_nothing_more(bench: Bench) -> None:
    """It forgets what is two turns old, so what is owed at one time must be of one turn."""
    turns = []
    for count in (1, 2, 1):
        sending, _ = in_thread(bench, bench.messages(*["north"] * count))
        turns.append([instruction.round_number for _, instruction in bench.daemon.answer(count)])
        sending.join(PATIENCE_S)
    assert turns == [[1], [2, 2], [3]]
