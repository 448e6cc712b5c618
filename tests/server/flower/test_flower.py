"""Flower on our transport and our loop on Flower's: stock strategies unchanged, and nodes that misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, Strategy
from flwr.supercore.run import Run

from quorate.errors import QuorumMissingError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Reply
from quorate.rounds.spool import Spool
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate_server.flower.exchange import FlowerExchange
from quorate_server.flower.grid import QuorateGrid, node_id
from quorate_server.rounds.pipe import Note, Verb, receive_note
from quorate_server.rounds.pipe_exchange import PipeExchange
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sums.loop import SumLoop
from tests.patience import PATIENCE_S
from tests.server.sites_kit import SimulatedSite
from tests.server.study_kit import MemoryBlobs, a_study

RUN = RunId("malignancy-0a1b2c")
STUDY = a_study(rounds={"count": 2, "absent_grace_s": 0.2, "deadline_s": 600.0})

# --- a stock ClientApp, as in Flower's quickstart ---

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    number = int(context.node_config["number"])
    rate = float(message.content.config_records["config"].get("lr", 0.5))  # type: ignore[arg-type]
    trained = [array + rate * (number - array) for array in arrays]
    metrics = MetricRecord({"num-examples": 10 * (number + 1), "loss": float(number)})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class Sites:
    """The daemon's end of the pipe, with a ClientApp at every site. Known messages are answered from the journal."""

    def __init__(self, folder: Path, journal: dict[MessageId, Reply], failing: str = "") -> None:
        self.sock, theirs = socket.socketpair()
        self._theirs = theirs
        self.journal = journal
        self.failing = failing
        self.worked: list[str] = []
        self._gone = threading.Event()
        self.exchange = PipeExchange(theirs, Spool(folder / "spool"), self._gone.set)
        self.grid = QuorateGrid(RUN, STUDY, self.exchange)
        self._numbers = {site: number for number, site in enumerate(STUDY.site_names)}
        self._answering = threading.Thread(target=self._answer, daemon=True)
        self.exchange.start()
        self._answering.start()
        self.sock.sendall(Note(Verb.PRESENCE, json.dumps({}).encode()).to_bytes())
        self.grid.listen()

    def _answer(self) -> None:
        while (note := receive_note(self.sock)) is not None:
            if note.verb is Verb.SEND:
                instruction = instruction_from_bytes(note.payload)
                if instruction.message_id not in self.journal:
                    self.worked.append(note.site)
                    self.journal[instruction.message_id] = self._work(note.site, instruction)
                reply = reply_to_bytes(self.journal[instruction.message_id])
                self.sock.sendall(Note(Verb.REPLY, reply, note.site).to_bytes())

    def _work(self, site: str, instruction: Instruction) -> Reply:
        from quorate_client.flower.guest import handle

        if site == self.failing:
            return Reply(instruction.message_id, "task_failed")
        answer = handle(
            client_app,
            body=instruction.body,
            content=instruction.blobs[0].inline or b"",
            state=b"",
            run_config={},
            node_config={"number": self._numbers[SiteName(site)]},
        )
        return Reply(instruction.message_id, body=answer.body, blobs=(Blob.of(answer.content),))

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        assert self._gone.wait(PATIENCE_S)
        self._answering.join()
        self.sock.close()
        self._theirs.close()


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Callable[..., Sites]]:
    opened: list[Sites] = []

    def start(journal: dict[MessageId, Reply] | None = None, failing: str = "") -> Sites:
        opened.append(Sites(tmp_path, {} if journal is None else journal, failing))
        return opened[-1]

    yield start
    for made in opened:
        made.close()


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(min_available_nodes=4),
    "FedProx": lambda: FedProx(min_available_nodes=4, proximal_mu=0.1),
    "FedAdam": lambda: FedAdam(min_available_nodes=4, eta=0.1),
    "FedMedian": lambda: FedMedian(min_available_nodes=4),
}


def trained(sites: Sites, strategy: Strategy, rounds: int = 2) -> tuple[Any, list[np.ndarray]]:
    result = strategy.start(
        grid=sites.grid,
        initial_arrays=ArrayRecord([np.zeros((2, 3)), np.ones(2)]),
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": 0.5}),
    )
    return result, result.arrays.to_numpy_ndarrays()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stock_strategy_runs_unchanged(sites: Callable[..., Sites], name: str) -> None:
    result, arrays = trained(sites(), STRATEGIES[name]())
    assert [array.shape for array in arrays] == [(2, 3), (2,)]
    assert set(result.train_metrics_clientapp) == set(result.evaluate_metrics_clientapp) == {1, 2}
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == 0.5
    if name in ("FedAvg", "FedProx"):
        # Sites 0 to 3 with 10 to 40 examples pull towards their number: the weighted mean of the targets is 2.
        assert arrays[0] == pytest.approx(np.full((2, 3), 2 * (1 - 0.25)))
    if name == "FedMedian":
        assert arrays[0] == pytest.approx(np.full((2, 3), 1.5 * (1 - 0.25)))


def test_an_app_that_starts_again_gets_the_same_replies_without_new_work(sites: Callable[..., Sites]) -> None:
    journal: dict[MessageId, Reply] = {}
    first = sites(journal)
    _, arrays = trained(first, STRATEGIES["FedAdam"]())
    assert len(first.worked) == 4 * 2 * 2
    second = sites(journal)
    _, again = trained(second, STRATEGIES["FedAdam"]())
    assert second.worked == []
    assert all(np.array_equal(left, right) for left, right in zip(arrays, again, strict=True))
    further = sites(journal)
    trained(further, STRATEGIES["FedAdam"](), rounds=3)
    assert len(further.worked) == 4 * 2


def test_a_site_whose_app_raises_is_an_error_and_the_strategy_goes_on_with_the_others(
    sites: Callable[..., Sites],
) -> None:
    _, arrays = trained(sites(failing="west"), STRATEGIES["FedAvg"](), rounds=1)
    # Without site 3 the weighted mean of the targets 0, 1 and 2 is 8/6.
    assert arrays[0] == pytest.approx(np.full((2, 3), 8 / 6 / 2))


# --- our loop on a grid of Flower's ---


class StockGrid(Grid):
    """Flower's grid with our ClientApp's contract at the nodes: an instruction in, a reply out, blobs beside both."""

    def __init__(self, blobs: MemoryBlobs, tamper: Callable[[SiteName, Message, Message], Message]) -> None:
        self._run = Run.create_empty(1)
        self.sites = {
            node_id(STUDY, name): SimulatedSite(name, 10 * (number + 1), blobs, STUDY)
            for number, name in enumerate(STUDY.site_names)
        }
        self.tamper = tamper
        self.absent: set[SiteName] = set()
        self.replies: dict[str, Message] = {}
        self._pushed = 0

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node, site in self.sites.items() if site.name not in self.absent]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            # Through bytes, as over a network.
            content = RecordDictProto.FromString(recorddict_to_proto(message.content).SerializeToString())
            arrived = Message(
                recorddict_from_proto(content), message.metadata.dst_node_id, message.metadata.message_type
            )
            self._pushed += 1
            name = f"message-{self._pushed}"
            arrived.metadata.__dict__["_message_id"] = name
            site = self.sites[message.metadata.dst_node_id]
            self.replies[name] = self.tamper(site.name, arrived, self._reply(site, arrived))
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(name) for name in message_ids if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, site: SimulatedSite, message: Message) -> Message:
        asked = message.content.config_records["quorate"]
        if "who" in asked:
            return Message(RecordDict({"quorate": ConfigRecord({"site": site.name})}), reply_to=message)
        instruction = instruction_from_bytes(bytes(asked["instruction"]))  # type: ignore[arg-type]
        for text, data in message.content.config_records["blobs"].items():
            site.blobs.content[blob_id(data)] = data  # type: ignore[arg-type,index]
            assert blob_id(data).hex() == text  # type: ignore[arg-type]
        reply = site.answer(instruction)
        sent = {blob.id.hex(): site.blobs.content[blob.id] for blob in reply.blobs if blob.inline is None}
        return answered(message, reply_to_bytes(reply), sent)


def answered(message: Message, reply: object, blobs: dict[str, Any]) -> Message:
    content = RecordDict({"quorate": ConfigRecord({"reply": reply}), "blobs": ConfigRecord(blobs)})  # type: ignore[dict-item]
    return Message(content, reply_to=message)


@pytest.fixture(autouse=True)
def _identity() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = 1
    TaskIdentity.node_id = 1


def honest(_: SiteName, __: Message, reply: Message) -> Message:
    return reply


def run_on(grid: StockGrid, folder: Path) -> SumLoop:
    loop = SumLoop(RUN, STUDY, FlowerExchange(grid, STUDY, folder), StudyProgress(), {})
    loop.run()
    return loop


def test_our_loop_runs_on_any_grid_and_the_model_is_the_sites(tmp_path: Path) -> None:
    grid = StockGrid(MemoryBlobs(), honest)
    run_on(grid, tmp_path)
    states = {site.state() for site in grid.sites.values()}
    assert {(tmp_path / "model.npz").read_bytes()} == states
    assert all(site.trained == [(1, 0), (2, 0)] for site in grid.sites.values())


def test_nodes_that_never_come_are_absent_and_a_quorum_goes_on_without_them(tmp_path: Path) -> None:
    grid = StockGrid(MemoryBlobs(), honest)
    grid.absent = {SiteName("west")}
    run_on(grid, tmp_path)
    assert {site.name for site in grid.sites.values() if site.trained} == {"east", "north", "south"}


def an_error(message: Message, _: Message) -> Message:
    return Message(Error(1, "a patient's name"), reply_to=message)


def without_records(message: Message, _: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def a_text(message: Message, _: Message) -> Message:
    return answered(message, "text", {})


def nonsense(message: Message, _: Message) -> Message:
    return answered(message, b"\xff\xff", {})


def misnamed_blob(message: Message, reply: Message) -> Message:
    records = reply.content.config_records
    return answered(message, records["quorate"]["reply"], dict.fromkeys(records["blobs"], b"other") or {"00": b"x"})


def missing_blob(message: Message, reply: Message) -> Message:
    return answered(message, reply.content.config_records["quorate"]["reply"], {})


@pytest.mark.parametrize(
    "attack", [an_error, without_records, a_text, nonsense, misnamed_blob, missing_blob], ids=lambda a: a.__name__
)
def test_a_node_that_sends_something_else_is_left_out_and_the_run_goes_on(
    tmp_path: Path, attack: Callable[[Message, Message], Message]
) -> None:
    def tamper(site: SiteName, message: Message, reply: Message) -> Message:
        return attack(message, reply) if site == "west" and message.metadata.message_type == "train" else reply

    grid = StockGrid(MemoryBlobs(), tamper)
    run_on(grid, tmp_path)
    assert (tmp_path / "model.npz").is_file()
    assert {site.name for site in grid.sites.values() if site.round_number == 2} == set(STUDY.site_names)


def test_without_a_quorum_of_answers_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    def tamper(site: SiteName, message: Message, reply: Message) -> Message:
        refusing = site in ("south", "west") and message.metadata.message_type == "train"
        return an_error(message, reply) if refusing else reply

    with pytest.raises(QuorumMissingError) as caught:
        run_on(StockGrid(MemoryBlobs(), tamper), tmp_path)
    assert "patient" not in str(caught.value)
