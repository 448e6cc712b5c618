"""Secure aggregation over a Grid that is not ours, with the sites' real engine processes: what passes through the Grid,
and what it costs when an engine dies. The Grid is the smallest that there can be, in this process.

Four sites, of which one may collude: a sum needs three uploads, three votes and two reveals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from quorate.aggregation import ring, words
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import PlainScheme, weight_of
from quorate.identity import SiteName
from quorate.rounds.instruction import Instruction, Phase
from quorate.study.study_file import StudyFile
from quorate.study.task_digest import task_digest
from quorate.wire.messages import instruction_from_bytes, reply_from_bytes
from quorate_client.flower import client_app as client
from quorate_client.flower.site_file import NodeSite
from quorate_client.rounds.model.state import THETA_OFFSET
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import RELEASED_MODEL, SiteFolder
from quorate_client.site.keys import make_or_load_keys
from quorate_client.tasks.data.datasets import register
from quorate_server.flower import server_app as server
from tests.client.data_kit import fix_split
from tests.client.engine_processes import end_engines, engines
from tests.compat.reference import RUN_ID, InProcessGrid
from tests.integration.crash_kit import PACKAGES, SECRET, shares_in, write_study, write_table
from tests.integration.test_secagg import samples, seen, spellings

pytestmark = pytest.mark.integration

RECORDS = SECRET.records
SITES = tuple(RECORDS)
NODES = dict(enumerate(SITES, start=10))
RUN = f"flower-{RUN_ID}"
ROUNDS = 3
DIMENSION = 20_000
BOUND = 4.0


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The study and a site file for each site; its updates are kept."""
    monkeypatch.syspath_prepend(str(PACKAGES[0]))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES[0]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rounds = {"count": ROUNDS, "quorum": 3, "deadline_s": 120.0, "checkpoint_every": 2}
    file = write_study(tmp_path, "elsewhere", SITES, rounds, "secagg", "sites", DIMENSION)
    folders = {SiteName(name): SiteFolder(tmp_path / "sites" / name) for name in SITES}
    members = []
    for name, folder in folders.items():
        folder.create()
        fix_split(folder)
        members.append(make_or_load_keys(folder.keys).member(name))
        (folder.work / "control").mkdir()
        (folder.work / "control" / "keep").touch()
    keys = {member.name: member.signing_key for member in members}
    study = StudyFile.read(file).resolve("tests", keys, task_digest)
    (tmp_path / "study.json").write_bytes(study.canonical())
    for name, folder in folders.items():
        table = write_table(tmp_path / f"{name}.csv", RECORDS[name])
        dataset = register(name, table, study.task.parameters["schema"], 0.5, folder)
        agreement = Agreement(study, study.digest(), name, dataset, node_config={})
        NodeSite(agreement, folder.root, tuple(members)).write(tmp_path / f"{name}.json")
    yield tmp_path
    end_engines(tmp_path)


class Watched(InProcessGrid):
    """A node for each site, and everything that passes, as whoever runs a SuperLink holds it."""

    def __init__(self, prepared: Path) -> None:
        nodes = {node: {client.SITE_KEY: str(prepared / f"{name}.json")} for node, name in NODES.items()}
        super().__init__(client.app, nodes, {})
        self.prepared = prepared
        self.passed: list[bytes] = []
        self.codes: dict[tuple[str, int, Phase], str] = {}

    def answer(self, message: Message) -> Message:
        asked = _instruction(message)
        name = NODES[message.metadata.dst_node_id]
        if asked is not None:
            self.before(name, asked)
        reply = super().answer(message)
        if asked is not None:
            raw = reply.content.config_records["quorate"]["reply"]
            assert isinstance(raw, bytes)
            self.codes[name, asked.round_number, asked.phase] = reply_from_bytes(raw).code
        self.passed += [recorddict_to_proto(each.content).SerializeToString() for each in (message, reply)]
        return reply

    def before(self, site: str, asked: Instruction) -> None:
        """What happens at a site before it is asked."""

    def run(self) -> None:
        config = {"study": str(self.prepared / "study.json"), "output": str(self.prepared)}
        server.app(self, Context(RUN_ID, 1, {}, RecordDict(), config))


def _instruction(message: Message) -> Instruction | None:
    raw = message.content.config_records["quorate"].get("instruction")
    return instruction_from_bytes(raw) if isinstance(raw, bytes) else None


def models(prepared: Path) -> list[Path]:
    return [prepared / "sites" / name / "work" / "runs" / RUN / RELEASED_MODEL for name in SITES]


def canaries(prepared: Path) -> Mapping[str, list[re.Pattern[bytes]]]:
    """What nobody but the sites may hold."""
    found: dict[str, list[re.Pattern[bytes]]] = {}
    packing, total = Packing(BOUND, len(SITES)), sum(RECORDS.values())
    for name in SITES:
        folder = SiteFolder(prepared / "sites" / name)
        weight = weight_of(RECORDS[name], total)
        found[f"records of {name}"] = spellings(RECORDS[name])
        found[f"weight of {name}"] = spellings(weight)
        found[f"study key of {name}"] = [re.compile(re.escape((folder.keys / "studies" / f"{RUN}.key").read_bytes()))]
        for path in (folder.work / "runs" / RUN).glob("model-*.state"):
            found[f"{path.name} of {name}"] = samples(path.read_bytes()[THETA_OFFSET:])
        for number in range(1, ROUNDS + 1):
            update = np.fromfile(folder.work / "control" / f"update-{number}", np.float32)
            coefficients = packing.encode(update, weight)[0]
            plain = PlainScheme(BOUND, len(SITES)).encode(update, weight)[0].astype("<u4").tobytes()
            found[f"update {number} of {name}"] = samples(update.tobytes())
            found[f"plain words {number} of {name}"] = samples(plain)
            residues = (coefficients % ring.MODULUS).astype(np.uint64)
            found[f"bare coefficients {number} of {name}"] = samples(coefficients.tobytes()) + samples(
                words.pack(residues)
            )
    return found


def test_nothing_of_a_site_passes_through_the_grid(prepared: Path) -> None:
    """The sites hold one exact model; not a site's count, weight, update, model or key is in any message."""
    grid = Watched(prepared)
    grid.run()
    assert set(grid.codes.values()) == {""}
    assert len({path.read_bytes() for path in models(prepared)}) == 1
    expected = np.array([ROUNDS * RECORDS[name] / sum(RECORDS.values()) for name in SITES])
    np.testing.assert_allclose(shares_in(models(prepared)[0]), expected, atol=SECRET.tolerance, rtol=0)
    sought = canaries(prepared)
    assert len([name for name in sought if name.startswith("model-")]) == 2 * len(SITES)
    assert seen(grid.passed, sought) == set()
    assert sum(map(len, grid.passed)) > 2 * ROUNDS * len(SITES) * 4 * DIMENSION
    # The search itself finds what is there.
    kept = prepared / "sites" / "east" / "work" / "control" / "update-2"
    record = RecordDict({"blobs": ConfigRecord({"x": kept.read_bytes()})})
    assert seen([recorddict_to_proto(record).SerializeToString()], sought) == {"update 2 of east"}
    assert not (prepared / "model.npz").exists()


def test_a_site_whose_engine_dies_after_its_upload_sits_the_rest_of_the_sum_out(prepared: Path) -> None:
    """Its keys died with the process, as a daemon's do. What it uploaded counts, and it is in the next sum."""

    class Deadly(Watched):
        def before(self, site: str, asked: Instruction) -> None:
            if (site, asked.round_number, asked.phase) == ("east", 1, Phase.VOTE):
                (engine,) = engines(self.prepared / "sites" / "east")
                engine.kill()
                psutil.wait_procs([engine])

    grid = Deadly(prepared)
    grid.run()
    assert {key: code for key, code in grid.codes.items() if code} == {("east", 1, Phase.VOTE): "vote_refused"}
    assert grid.codes["east", 2, Phase.UPLOAD] == ""
    assert len({path.read_bytes() for path in models(prepared)}) == 1
    expected = np.array([ROUNDS * RECORDS[name] / sum(RECORDS.values()) for name in SITES])
    np.testing.assert_allclose(shares_in(models(prepared)[0]), expected, atol=SECRET.tolerance, rtol=0)


def test_an_upload_that_is_asked_for_twice_is_made_once(prepared: Path) -> None:
    """There is no journal: a SuperLink that repeats a message gets a refusal, not a second ciphertext under the key."""

    class Repeating(Watched):
        def answer(self, message: Message) -> Message:
            reply = super().answer(message)
            asked = _instruction(message)
            if asked is not None and (asked.phase, asked.round_number) == (Phase.UPLOAD, 1):
                again = super().answer(message)
                assert reply_from_bytes(again.content["quorate"]["reply"]).code == "vote_refused"
            return reply

    Repeating(prepared).run()
    for name in SITES:
        steps = (prepared / "sites" / name / "work" / "control" / "steps").read_text()
        assert [line.split()[0] for line in steps.splitlines()].count("train-1") == 1


@pytest.fixture(autouse=True)
def server_app() -> None:
    """This process plays the ServerApp, which makes messages."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, 1
