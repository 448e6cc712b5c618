"""Our own apps on a Grid that is not ours: here the smallest one that there can be, in this process."""

from __future__ import annotations

import json
import runpy
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from quorate.errors import BlobMissingError, QuorumMissingError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, blob_id
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.study.study import Study
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate_client.flower import client_app as client
from quorate_client.flower.site_file import NodeSite
from quorate_client.site.folder import RELEASED_MODEL, SiteFolder
from quorate_server.flower import server_app as server
from quorate_server.flower.exchange import FlowerExchange
from quorate_server.rounds.phases import Arrived, Presence
from quorate_server.rounds.progress import StudyProgress
from tests.client.engine_processes import end_engines
from tests.compat.consortium_kit import REPOSITORY, SITES, AppConsortium
from tests.compat.malignancy import APP, SCHEMA, STUDIES, Outcome, assert_same, outcome
from tests.compat.reference import RUN_ID, InProcessGrid

NODES = dict(zip((30, 10, 20), SITES, strict=True))
"""Node numbers, in an order that is not the sites'."""
OPEN_MODEL = runpy.run_path(str(APP / "open_model.py"))["open_model"]


class SiteGrid(InProcessGrid):
    """A node for each site file, with our ClientApp."""

    def __init__(self, prepared: Path, nodes: dict[int, str]) -> None:
        super().__init__(
            client.app,
            {node: {client.SITE_KEY: str(prepared / "sites" / f"{site}.json")} for node, site in nodes.items()},
            {},
        )


@pytest.fixture
def study(prepared: Path) -> Study:
    """Short of patience: two are a quorum, and who is not there at once is not waited for."""
    study = Study.from_canonical((prepared / "study.json").read_bytes())
    return study.model_copy(update={"rounds": study.rounds.model_copy(update={"quorum": 2, "absent_grace_s": 0.0})})


def released(prepared: Path, site: str) -> Path:
    return prepared / f"state-{site}" / "work" / "runs" / f"flower-{RUN_ID}" / RELEASED_MODEL


def run(grid: InProcessGrid, prepared: Path, run_id: int = RUN_ID) -> None:
    config = {"study": str(prepared / "study.json"), "output": str(prepared)}
    server.app(grid, Context(run_id, 1, {}, RecordDict(), config))


# --- whole runs ---


@pytest.mark.integration
def test_two_runs_on_our_own_transport_give_the_same_model(
    consortium: AppConsortium, own_transport: dict[str, Outcome], tables: dict[str, Path]
) -> None:
    """Without this, the comparisons with it say nothing."""
    run = consortium.run(STUDIES["none"])
    view = consortium.await_end(run)
    assert all(result.contributed == SITES for result in view.results)
    assert_same(own_transport["none"], outcome(consortium.folder(run) / "model.npz", tables))


@pytest.mark.integration
def test_a_study_on_any_grid_gives_the_model_of_our_own_transport(
    own_transport: dict[str, Outcome], prepared: Path, tables: dict[str, Path]
) -> None:
    run(SiteGrid(prepared, NODES), prepared)
    assert_same(own_transport["none"], outcome(prepared / "model.npz", tables))


@pytest.mark.integration
def test_a_secret_study_on_any_grid_gives_the_model_of_our_own_transport(
    own_transport: dict[str, Outcome], prepared_in_secret: Path, tables: dict[str, Path]
) -> None:
    """The model is at each site, and sealed where the ServerApp ran: the operator's key opens it."""
    run(SiteGrid(prepared_in_secret, NODES), prepared_in_secret)
    OPEN_MODEL(prepared_in_secret, RUN_ID, prepared_in_secret / "opened.npz")
    assert_same(own_transport["secagg"], outcome(prepared_in_secret / "opened.npz", tables))
    opened = (prepared_in_secret / "opened.npz").read_bytes()
    models = [released(prepared_in_secret, site).read_bytes() for site in SITES]
    assert models == [opened] * len(SITES)


@pytest.mark.integration
def test_a_private_study_on_any_grid_is_held_to_the_sites_policies_and_paid_for_on_their_ledgers(
    prepared_in_private: Path,
) -> None:
    policies = [SiteFolder(prepared_in_private / f"state-{site}").policy for site in SITES]
    for policy in policies:
        policy.write_text('release = ["operator"]\n[privacy]\nleast_records = 100000\n')
    with pytest.raises(QuorumMissingError, match=r"phase upload.* east \(site_interrupted\)"):
        run(SiteGrid(prepared_in_private, NODES), prepared_in_private)
    assert [spent_rounds(prepared_in_private, site) for site in SITES] == [0, 0, 0]
    for policy in policies:
        policy.write_text('release = ["operator"]\n')
    run(SiteGrid(prepared_in_private, NODES), prepared_in_private, RUN_ID + 1)
    assert [spent_rounds(prepared_in_private, site) for site in SITES] == [1, 1, 1]


@pytest.fixture
def prepared_in_private(tables: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """The demo's study for its three sites, one round, with differential privacy."""
    (tmp_path / "schema.toml").write_text(SCHEMA.read_text())
    text = (REPOSITORY / "demo" / "study.toml").read_text()
    (tmp_path / "study.toml").write_text(
        text.replace('["north", "south", "east", "west"]', json.dumps(SITES)).replace("count = 20", "count = 1")
    )
    runpy.run_path(str(APP / "prepare.py"))["prepare"](tmp_path / "study.toml", tmp_path, tables)
    yield tmp_path
    end_engines(tmp_path)


def spent_rounds(prepared: Path, site: str) -> int:
    """How many trainings were paid for and settled at a site."""
    with closing(sqlite3.connect(SiteFolder(prepared / f"state-{site}").ledger)) as ledger:
        entries = [json.loads(content) for (content,) in ledger.execute("SELECT content FROM entries")]
    return sum(entry["kind"] == "spend" for entry in entries)


def test_a_run_without_a_quorum_ends_with_the_codes_and_no_text(prepared: Path) -> None:
    class Failing(SiteGrid):
        """All nodes but one fail once they were introduced."""

        def answer(self, message: Message) -> Message:
            if message.metadata.dst_node_id == 10 or "instruction" not in message.content.config_records["quorate"]:
                return super().answer(message)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "canary-4711"), reply_to=message)

    with pytest.raises(QuorumMissingError, match="task_failed") as caught:
        run(Failing(prepared, NODES), prepared)
    assert "canary" not in str(caught.value)


def test_a_site_whose_node_is_not_there_is_done_without(study: Study, prepared: Path) -> None:
    (prepared / "study.json").write_bytes(study.canonical())
    for name in SITES:
        site = NodeSite.read(prepared / "sites" / f"{name}.json")
        agreement = replace(site.agreement, study=study, digest=study.digest())
        NodeSite(agreement, site.folder).write(prepared / "sites" / f"{name}.json")
    run(SiteGrid(prepared, {30: "east", 20: "south"}), prepared)
    assert (prepared / "model.npz").exists()


# --- the exchange ---


class Scripted(InProcessGrid):
    """Nodes that say what they are told to. ``names`` is what each answers when it is asked who it is."""

    def __init__(self, names: Mapping[int, str], reply: Callable[[Message], Message] | None = None) -> None:
        super().__init__(client.app, {node: {} for node in names}, {})
        self.names = names
        self.reply = reply
        self.asked: list[Message] = []

    def answer(self, message: Message) -> Message:
        self.asked.append(message)
        if "who" in message.content.config_records["quorate"]:
            content = ConfigRecord({"site": self.names[message.metadata.dst_node_id]})
            return Message(RecordDict({"quorate": content}), reply_to=message)
        assert self.reply is not None
        return self.reply(message)


def instruction(study: Study, site: str, blobs: tuple[Blob, ...] = ()) -> Instruction:
    run_id = RunId("run")
    name = message_id(run_id, 1, Phase.UPLOAD, 0, SiteName(site))
    return Instruction(name, run_id, 1, Phase.UPLOAD, 0, study.digest(), 77.0, blobs=blobs)


def test_nodes_are_known_by_what_they_answer(study: Study, tmp_path: Path) -> None:
    """A stranger and a second node of the same name are left out, and so is who does not come in time."""
    grid = Scripted({1: "north", 2: "stranger", 3: "", 4: "north", 5: "east"}, _echo)
    exchange = FlowerExchange(grid, study, tmp_path)
    presence = exchange.next_event(0.0)
    assert isinstance(presence, Presence)
    assert presence.gone_for_s.keys() == {"south"}
    for site in SITES:
        exchange.send(SiteName(site), instruction(study, site))
    sent_to = [m.metadata.dst_node_id for m in grid.asked if "instruction" in m.content.config_records["quorate"]]
    assert sent_to == [5, 1]


def test_a_node_that_cannot_say_who_it_is_answers_with_an_empty_name(prepared: Path) -> None:
    grid = InProcessGrid(client.app, {1: {client.SITE_KEY: str(prepared / "nowhere.json")}, 2: {}}, {})
    who = [Message(RecordDict({"quorate": ConfigRecord({"who": True})}), node, "query") for node in (1, 2)]
    assert [reply.content["quorate"]["site"] for reply in grid.send_and_receive(who)] == ["", ""]


def test_bulk_data_travel_inside_messages_both_ways(study: Study, tmp_path: Path) -> None:
    def reply(message: Message) -> Message:
        (content,) = message.content.config_records["blobs"].values()
        assert isinstance(content, bytes)
        return _reply(message, (content[::-1],))

    grid = Scripted(NODES, reply)
    exchange = FlowerExchange(grid, study, tmp_path)
    sent = exchange.put([b"abc", b"d" * 100_000])
    exchange.next_event(0.0)
    exchange.send(SiteName("north"), instruction(study, "north", (sent,)))
    assert grid.asked[-1].metadata.ttl == 77.0
    arrived = exchange.next_event(5.0)
    assert isinstance(arrived, Arrived)
    assert (arrived.site, arrived.reply.code) == ("north", "")
    with exchange.open(arrived.reply.blobs[0]) as content:
        assert content.read() == b"d" * 100_000 + b"cba"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (lambda m: Message(Error(ErrorCode.NODE_UNAVAILABLE, "canary-4711"), reply_to=m), "task_failed"),
        (lambda m: Message(RecordDict(), reply_to=m), "bad_frame"),
        (lambda m: _reply(m, (b"data",), name=bytes(32)), "blob_mismatch"),
        (lambda m: Message(RecordDict({"quorate": ConfigRecord({"reply": b"\xff"})}), reply_to=m), "bad_frame"),
    ],
)
def test_what_a_node_should_not_say_is_a_refusal_with_a_code(
    study: Study, tmp_path: Path, reply: Callable[[Message], Message], code: str
) -> None:
    exchange = FlowerExchange(Scripted(NODES, reply), study, tmp_path)
    exchange.next_event(0.0)
    exchange.send(SiteName("north"), instruction(study, "north"))
    arrived = exchange.next_event(5.0)
    assert isinstance(arrived, Arrived)
    assert arrived.reply == Reply(instruction(study, "north").message_id, code)


def test_what_was_withdrawn_is_not_looked_for_any_more(study: Study, tmp_path: Path) -> None:
    exchange = FlowerExchange(Scripted(NODES, _echo), study, tmp_path)
    exchange.next_event(0.0)
    for site in ("north", "south"):
        exchange.send(SiteName(site), instruction(study, site))
    exchange.withdraw([instruction(study, "north").message_id])
    arrived = exchange.next_event(5.0)
    assert isinstance(arrived, Arrived)
    assert arrived.site == "south"
    assert exchange.next_event(0.0) is None


def test_what_is_obsolete_is_forgotten(study: Study, tmp_path: Path) -> None:
    exchange = FlowerExchange(Scripted(NODES), study, tmp_path)
    blob = exchange.put([b"abc"])
    exchange.commit(StudyProgress(), None, {blob.id})
    with pytest.raises(BlobMissingError):
        exchange.open(blob)


def _echo(message: Message) -> Message:
    return _reply(message, ())


def _reply(message: Message, blobs: tuple[bytes, ...], name: bytes | None = None) -> Message:
    """As our ClientApp answers, with this bulk data, under a false name if there is one."""
    raw = message.content.config_records["quorate"]["instruction"]
    assert isinstance(raw, bytes)
    refs = tuple(Blob(blob_id(data), len(data)) for data in blobs)
    reply = Reply(instruction_from_bytes(raw).message_id, blobs=refs)
    content = ConfigRecord({(name or ref.id).hex(): data for ref, data in zip(refs, blobs, strict=True)})
    record = RecordDict({"quorate": ConfigRecord({"reply": reply_to_bytes(reply)}), "blobs": content})
    return Message(record, reply_to=message)
