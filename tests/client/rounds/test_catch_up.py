"""How a site arrives at the model of a round: whatever it has and missed, and whatever is sent to it."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.plain import PlainScheme as Words
from quorate.errors import BaseModelMismatchError, ContributionError, FrameError, SumRefusedError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, BlobId, blob_id
from quorate.rounds.spool import Spool
from quorate.study.study import Optimizer, Study
from quorate.wire.sum_messages import (
    PlainOpening,
    SumRef,
    SumWork,
    plain_opening_from_bytes,
    plain_opening_to_bytes,
)
from quorate_client.rounds.model.optimizer import moments_at_start, step
from quorate_client.rounds.model.plain_files import store_file
from quorate_client.rounds.model.state import THETA_OFFSET, ModelState, Origin, StateFolder
from quorate_client.rounds.schemes.plain import PlainScheme
from quorate_client.rounds.sums.catch_up import CatchUp
from quorate_client.rounds.sums.pooled import Pooled
from quorate_client.rounds.sums.scheme import FirstModel

RUN = RunId("run-1")
SIZE = 300_000  # more than one block
SCHEME = Words(4.0, 2)
NAMES = (SiteName("east"), SiteName("north"))
STATISTICS = (20, 7)
GOLDEN_VECTORS = "386a843ffcffffbe288c95bdcdcc4c3a9a991931cdcc4cbba9cbd63524e084350f733437"


def study_with(optimizer: Optimizer) -> Study:
    return Study.model_validate(
        {
            "consortium": "tests",
            "name": "study",
            "purpose": "to be tested",
            "task": {"name": "linear", "digest": "0" * 64},
            "rounds": {"count": 1, "quorum": 1},
            "optimizer": optimizer,
            "protection": {"mode": "none", "value_bound": 4.0},
            "sites": [{"name": "east", "signing_key": "0" * 64}, {"name": "north", "signing_key": "1" * 64}],
        }
    )


STUDY = study_with(Optimizer(name="fedadam", learning_rate=0.1))


class Site:
    """A site's head with its folder, and how often it asked for the first model and for a blob."""

    def __init__(self, folder: Path, study: Study = STUDY, size: int = SIZE, run: RunId = RUN) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool")
        self.states = StateFolder(folder / "run", run, study)
        self.head = CatchUp(run, study, self.states, self.spool, PlainScheme(study, self.spool))
        self.size = size
        self.initials = 0
        self.fetched: list[BlobId] = []
        self.server: dict[BlobId, bytes] = {}
        self.first = first(size)

    async def make_initial(self, path: Path, statistics: tuple[int, ...]) -> None:
        assert statistics == STATISTICS
        self.initials += 1
        self.first.tofile(path)

    async def dimension(self) -> int:
        return self.size

    async def fetch(self, blob: Blob) -> None:
        self.fetched.append(blob.id)
        self.spool.put([self.server[blob.id]])

    async def at(self, work: SumWork, target: int) -> ModelState:
        self.fetched.clear()
        return await self.head.arrive(work, target, FirstModel(self.make_initial, self.dimension), self.fetch)

    def again(self, study: Study = STUDY) -> Site:
        """The same folder after a restart."""
        other = Site(self.folder, study, self.size)
        other.server = self.server
        return other

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "run").iterdir())


@dataclass
class WholeSum:
    """A sum's average in one piece, and what is written down with it."""

    whole: npt.NDArray[np.float64]
    origin: Origin

    def average(self, count: int) -> npt.NDArray[np.float64]:
        given, self.whole = self.whole[:count], self.whole[count:]
        return given

    def finish(self) -> Origin:
        return self.origin


class Server:
    """Sums of made-up rounds, the states from which they start, and the models that must come of them, computed in one
    piece."""

    def __init__(self, folder: Path, study: Study = STUDY, size: int = SIZE, shift: float = 0.0) -> None:
        self.study = study
        self.blobs: dict[BlobId, bytes] = {}
        self.size = size
        self.models = [first(size) + np.float32(shift)]
        self.moments = tuple(
            np.full(size, value).astype("<f4").astype(float) for value in moments_at_start(study.optimizer)
        )
        self._folder = StateFolder(folder, RUN, study)
        assert self._folder.states() == ()
        self.refs = [self._ref(0, None, STATISTICS, b"")]
        self._pooled = Pooled(STATISTICS, frozenset(NAMES))
        with self._folder.scratch() as path:
            self.models[0].tofile(path)
            self.states = [self._folder.found(path, self._origin(STATISTICS))]

    def add_round(self, seed: int | None = None, inline: bool = False) -> SumRef:
        number = len(self.refs)
        update = np.random.default_rng(seed if seed is not None else number).normal(scale=0.1, size=self.size)
        words, _ = SCHEME.encode(update, WEIGHT_ONE // 2)
        return self.add(words, inline)

    def add(self, words: npt.NDArray[np.uint32], inline: bool = False) -> SumRef:
        content, counts = words.tobytes(), (WEIGHT_ONE // 2, 10, 0, 0)
        blob = Blob.of(content) if inline else Blob(blob_id(content), len(content))
        self.blobs[blob.id] = content
        self.refs.append(self._ref(len(self.refs), blob, counts, self.states[-1].digest))
        self._pooled = self._pooled.having_told(NAMES)
        average = SCHEME.decode(words, counts[0])
        theta, moments = step(self.study.optimizer, self.models[-1].astype(float), self.moments, average)
        self.models.append(theta.astype("<f4"))
        self.moments = tuple(moment.astype("<f4").astype(float) for moment in moments)
        with suppress(BaseModelMismatchError):  # values that are out of range lead to no state
            self.states.append(self._folder.apply(self.states[-1], WholeSum(average, self._origin(counts))))
        return self.refs[-1]

    def work(self, **changes: Any) -> SumWork:
        return replace(SumWork(sums=tuple(self.refs)), **changes)

    def _ref(self, number: int, updates: Blob | None, counts: tuple[int, ...], model: bytes) -> SumRef:
        opening = PlainOpening(NAMES, counts, updates.id if updates else b"", model)
        return SumRef(number, 0, updates, Blob.of(plain_opening_to_bytes(opening)))

    def _origin(self, counts: tuple[int, ...]) -> Origin:
        digest = hashlib.sha256(b"".join(count.to_bytes(8, "big", signed=True) for count in counts)).digest()
        return Origin(self.refs[-1].opening.id, digest, self._pooled.to_bytes(NAMES))


def opened_as(ref: SumRef, **changes: Any) -> SumRef:
    """A sum with something else in what goes with it."""
    opening = replace(plain_opening_from_bytes(ref.opening.inline or b""), **changes)
    return replace(ref, opening=Blob.of(plain_opening_to_bytes(opening)))


def first(size: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=size).astype("<f4")


def theta_of(state: ModelState) -> npt.NDArray[np.float32]:
    return np.fromfile(state.path, "<f4", state.dimension, offset=THETA_OFFSET)


def site_and_server(folder: Path, rounds: int = 0, **options: Any) -> tuple[Site, Server]:
    site, server = Site(folder, **options), Server(folder / "server", **options)
    site.server = server.blobs
    for _ in range(rounds):
        server.add_round()
    return site, server


async def checkpoint_after(folder: Path, server: Server, rounds: int) -> tuple[Blob, bytes]:
    """The state file of another site."""
    other = Site(folder, server.study, server.size)
    other.server = server.blobs
    state = await other.at(server.work(), rounds)
    content = state.path.read_bytes()
    server.blobs[state.digest] = content
    return Blob(state.digest, len(content)), content


# --- the way to a model ---


async def test_model_zero_is_the_tasks_and_is_made_once(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path)
    state = await site.at(server.work(), 0)
    np.testing.assert_array_equal(theta_of(state), first(SIZE))
    assert await site.at(server.work(), 0) == state
    assert site.initials == 1


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
async def test_rounds_in_blocks_give_the_bits_of_the_whole_vector(tmp_path: Path, name: Any) -> None:
    site, server = site_and_server(tmp_path, rounds=3, study=study_with(Optimizer(name=name, learning_rate=0.1)))
    for number in range(1, 4):
        np.testing.assert_array_equal(theta_of(await site.at(server.work(), number)), server.models[number])


async def test_a_site_that_missed_rounds_arrives_at_the_same_state_file(tmp_path: Path) -> None:
    always, server = site_and_server(tmp_path / "always")
    for number in range(1, 4):
        server.add_round()
        there = await always.at(server.work(), number)
    late = Site(tmp_path / "late")
    late.server = server.blobs
    state = await late.at(server.work(), 3)
    assert state.digest == there.digest
    assert state.digest == blob_id(state.path.read_bytes())


async def test_a_site_that_is_up_to_date_fetches_only_the_last_sum(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    await site.at(server.work(), 1)
    server.add_round()
    await site.at(server.work(), 2)
    updates = server.refs[-1].updates
    assert updates is not None
    assert site.fetched == [updates.id]
    await site.at(server.work(), 2)
    assert site.fetched == []


async def test_a_sum_that_came_inline_is_not_fetched(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, size=100)
    server.add_round(inline=True)
    np.testing.assert_array_equal(theta_of(await site.at(server.work(), 1)), server.models[1])
    assert site.fetched == []


async def test_the_last_two_states_are_kept(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=3)
    state = await site.at(server.work(), 3)
    assert [name.split("-")[1] for name in site.names()] == ["2", "3"]
    assert state.parent.hex() in site.names()[0]


async def test_a_restarted_site_goes_on_from_its_disk(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=2)
    state = await site.at(server.work(), 2)
    site = site.again()
    assert await site.at(server.work(), 2) == state
    assert (site.initials, site.fetched) == (0, [])


async def test_a_late_site_starts_from_the_checkpoint(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path / "late", rounds=3)
    checkpoint, _ = await checkpoint_after(tmp_path / "other", server, 2)
    work = server.work(checkpoint=checkpoint, checkpoint_round=2, sums=(server.refs[3],))
    np.testing.assert_array_equal(theta_of(await site.at(work, 3)), server.models[3])
    assert site.initials == 0


async def test_a_checkpoint_is_left_alone_by_a_site_that_has_its_model(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path / "site", rounds=2)
    await site.at(server.work(), 2)
    checkpoint, _ = await checkpoint_after(tmp_path / "other", server, 2)
    await site.at(server.work(checkpoint=checkpoint, checkpoint_round=2, sums=()), 2)
    assert site.fetched == []


async def test_a_round_that_was_closed_again_with_another_sum_leads_to_another_model(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path / "site", rounds=1)
    before = await site.at(server.work(), 1)
    again = Server(tmp_path / "again")
    again.add_round(seed=99)
    site.server = again.blobs
    state = await site.at(again.work(), 1)
    np.testing.assert_array_equal(theta_of(state), again.models[1])
    assert (state.parent, site.initials) == (before.parent, 1)


@pytest.mark.parametrize("had", [0, 1])
async def test_a_site_whose_model_is_not_the_one_of_the_others_builds_it_anew(tmp_path: Path, had: int) -> None:
    """Its states are whole, but it computed them differently. From which one the others went on is in the next sum."""
    site, server = site_and_server(tmp_path / "site", rounds=2)
    other = Server(tmp_path / "other", shift=1.0)
    for _ in range(2):
        other.add_round()
    site.server |= other.blobs
    site.first = other.models[0]
    await site.at(other.work(), had)
    site.first = first(SIZE)
    np.testing.assert_array_equal(theta_of(await site.at(server.work(), 2)), server.models[2])
    assert site.initials == 2


async def test_the_bytes_of_a_state_file_are_these(tmp_path: Path) -> None:
    """All sites must write the same: a change here splits a consortium in which versions differ."""
    site, server = site_and_server(tmp_path, size=3)
    server.models[0] = site.first = np.array([1.0, -0.5, 0.0], "<f4")
    ref = server.add(np.array([1 << 20, 3, 2**32 - (1 << 22)], "<u4"), inline=True)
    founded = await site.at(server.work(), 0)
    state = await site.at(server.work(sums=(server.refs[0], opened_as(ref, model=founded.digest))), 1)
    content, beside = state.path.read_bytes(), b"[[20,7],3,[3]]"
    assert content[:40] == struct.pack("<8sIIQQ8x", b"QuorMdl\x02", 1, 2, 3, len(beside))
    assert content[72:136] == state.parent + state.origin.sum_id
    assert content[168:].hex() == GOLDEN_VECTORS + beside.hex()
    assert state.digest.hex() == blob_id(content).hex()


# --- attacks and accidents ---


async def test_a_gap_in_the_sums_is_refused_and_leaves_the_states(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=3)
    await site.at(server.work(), 1)
    before = site.names()
    with pytest.raises(BaseModelMismatchError):
        await site.at(server.work(sums=(server.refs[3],)), 3)
    assert site.names() == before


async def test_a_replayed_sum_is_not_applied_twice(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    state = await site.at(server.work(), 1)
    replayed = replace(server.refs[1])
    assert await site.at(server.work(sums=(replayed,)), 1) == state
    with pytest.raises(BaseModelMismatchError):
        await site.at(server.work(sums=(*server.refs, replayed)), 1)
    with pytest.raises(BaseModelMismatchError):
        await site.at(server.work(sums=(*server.refs, replace(replayed, round_number=2))), 2)
    np.testing.assert_array_equal(theta_of(state), server.models[1])


@pytest.mark.parametrize("size", [SIZE * 4 - 4, SIZE * 4 + 4])
async def test_a_sum_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    assert server.refs[1].updates is not None
    blob = Blob(server.refs[1].updates.id, size)
    site.server[blob.id] = bytes(blob.size)
    with pytest.raises(BaseModelMismatchError):
        await site.at(server.work(sums=(server.refs[0], replace(server.refs[1], updates=blob))), 1)
    assert site.fetched == []


@pytest.mark.parametrize("weight", [0, 4 * WEIGHT_ONE])
async def test_an_impossible_weight_of_a_sum_is_refused(tmp_path: Path, weight: int) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    with pytest.raises(ContributionError):
        await site.at(server.work(sums=(server.refs[0], opened_as(server.refs[1], counts=(weight, 10, 0, 0)))), 1)
    assert [name.split("-")[1] for name in site.names()] == ["0"]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"survivors": NAMES[::-1]}, FrameError),
        ({"survivors": (*NAMES, SiteName("stranger"))}, FrameError),
        ({"updates": bytes(range(32))}, SumRefusedError),
        ({"model": bytes(range(32))}, BaseModelMismatchError),
    ],
    ids=["in another order", "a stranger", "of another sum", "from another state"],
)
async def test_what_goes_with_a_sum_has_to_fit_it(
    tmp_path: Path, changes: dict[str, Any], refusal: type[Exception]
) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    await site.at(server.work(), 0)
    with pytest.raises(refusal):
        await site.at(server.work(sums=(server.refs[0], opened_as(server.refs[1], **changes))), 1)


@pytest.mark.parametrize("counts", [(0,), (1, -3)], ids=["no records", "fewer than sites"])
async def test_statistics_of_nobody_found_no_model(tmp_path: Path, counts: tuple[int, ...]) -> None:
    site, server = site_and_server(tmp_path)
    statistics = opened_as(server.refs[0], counts=counts)
    if counts[0]:
        statistics = opened_as(statistics, survivors=NAMES, model=bytes(range(32)))
    with pytest.raises(SumRefusedError):
        await site.at(server.work(sums=(statistics,)), 0)
    assert (site.names(), site.initials) == ([], 0)


async def test_a_step_out_of_the_numbers_is_refused(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, study=study_with(Optimizer(learning_rate=1e300)), size=10)
    with np.errstate(over="ignore"):
        server.add_round()
    with pytest.raises(BaseModelMismatchError):
        await site.at(server.work(), 1)
    assert [name.split("-")[1] for name in site.names()] == ["0"]


@pytest.mark.parametrize("attack", ["content", "round", "run", "study", "dimension"])
async def test_a_wrong_checkpoint_is_refused(tmp_path: Path, attack: str) -> None:
    site, server = site_and_server(tmp_path / "site", rounds=3)
    other = {
        "run": Site(tmp_path / "other", run=RunId("run-2")),
        "study": Site(tmp_path / "other", study_with(Optimizer(name="fedyogi", learning_rate=0.1))),
    }.get(attack, Site(tmp_path / "other"))
    other.server = server.blobs
    with suppress(BaseModelMismatchError):  # of another run, it has no way further
        await other.at(server.work(), 1 if attack == "round" else 2)
    state = max(other.states.states(), key=lambda state: state.round_number)
    content = state.path.read_bytes()
    checkpoint = Blob(state.digest, len(content))
    if attack == "content":
        content = content[:-1] + bytes([content[-1] ^ 1])
    if attack == "dimension":
        site.size -= 1
    (site.spool.folder / checkpoint.id.hex()).write_bytes(content)
    (site.spool.folder / f"{checkpoint.id.hex()}.frames").touch()
    confirming = server.refs[3] if attack in ("content", "dimension") else opened_as(server.refs[3], model=state.digest)
    with pytest.raises(BaseModelMismatchError):
        await site.at(SumWork(checkpoint=checkpoint, checkpoint_round=2, sums=(confirming,)), 3)
    assert site.names() == []


@pytest.mark.parametrize(
    "beside",
    [
        b"",
        b"[[],0,[]]",
        b"[[Infinity],0,[]]",
        b"[[0,7],3,[]]",
        b"[[1.5,7],3,[]]",
        b'[["20",7],3,[]]',
        b"[[20," + b"9" * 400 + b"],3,[]]",
        b"[[20],1e3,[]]",
        b"[" * 60_000,
    ],
    ids=lambda beside: beside[:17].decode(),
)
async def test_a_checkpoint_with_totals_that_no_sites_have_is_not_taken(tmp_path: Path, beside: bytes) -> None:
    """Without protection the server can name any state. The site kept this one, and failed after each training."""
    site, server = site_and_server(tmp_path / "site", rounds=3, size=8)
    _, content = await checkpoint_after(tmp_path / "other", server, 2)
    header, vectors = content[:24], content[32 : THETA_OFFSET + 3 * 4 * 8]
    checkpoint = Blob.of(header + struct.pack("<Q", len(beside)) + vectors + beside)
    confirming = opened_as(server.refs[3], model=checkpoint.id)
    with pytest.raises(BaseModelMismatchError, match="not the state from which"):
        await site.at(SumWork(checkpoint=checkpoint, checkpoint_round=2, sums=(confirming,)), 3)
    assert site.names() == []


@pytest.mark.parametrize("updates", [SIZE * 4, 16 * 1024**3])
async def test_a_checkpoint_of_an_impossible_size_is_not_even_fetched(tmp_path: Path, updates: int) -> None:
    """The task knows its model's size, whatever the server says."""
    site, server = site_and_server(tmp_path, rounds=3)
    assert server.refs[3].updates is not None
    confirming = replace(server.refs[3], updates=replace(server.refs[3].updates, size=updates))
    checkpoint = Blob(BlobId(bytes(32)), 64 * 1024**3)
    with pytest.raises(BaseModelMismatchError, match="size"):
        await site.at(SumWork(checkpoint=checkpoint, checkpoint_round=2, sums=(confirming,)), 3)
    assert site.fetched == []


async def test_a_damaged_state_is_dropped_at_the_start_and_computed_again(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=2)
    state = await site.at(server.work(), 2)
    with state.path.open("r+b") as file:
        file.seek(THETA_OFFSET + 40)
        file.write(b"\xff")
    site = site.again()
    np.testing.assert_array_equal(theta_of(await site.at(server.work(), 2)), server.models[2])


async def test_a_link_in_place_of_a_state_is_dropped(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    state = await site.at(server.work(), 1)
    elsewhere = state.path.rename(tmp_path / "elsewhere")
    state.path.symlink_to(elsewhere)
    site = site.again()
    assert await site.at(server.work(), 1) == state
    assert not state.path.is_symlink()


async def test_the_states_of_another_study_are_not_taken(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, rounds=1)
    await site.at(server.work(), 1)
    other = site.again(study_with(Optimizer(name="fedyogi", learning_rate=0.1)))
    await other.at(server.work(), 0)
    assert other.initials == 1


async def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    site, server = site_and_server(tmp_path, size=4_000_000)
    server.add_round()
    store = Spool(tmp_path / "store")
    for content in server.blobs.values():
        site.spool.put([content])
    await site.at(server.work(), 0)
    server.models.clear()
    tracemalloc.start()
    try:
        state = await site.at(server.work(), 1)
        store_file(state.path, store)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32_000_000  # the state has 48 million bytes, the sum 16


FULL = """
import asyncio, subprocess, sys
from pathlib import Path
from quorate.errors import DiskFullError
from tests.client.rounds.test_catch_up import site_and_server

folder = Path(sys.argv[1])
site, server = site_and_server(folder, rounds=1)
site.spool.put(server.blobs.values())
(folder / "run").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder / "run")], check=True)
asyncio.run(site.at(server.work(), 0))  # 3.6 million bytes
before = site.names()
try:
    asyncio.run(site.at(server.work(), 1))
except DiskFullError:
    print("refused", site.names() == before)
"""


def test_a_full_disk_is_said_and_the_states_stay(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("NOT TESTED: this machine does not permit user namespaces")
    assert in_child(FULL, str(tmp_path), before=("unshare", "-rm")).stdout.split() == ["refused", "True"]


async def test_a_checkpoint_after_the_model_that_is_asked_for_is_no_way_to_it(tmp_path: Path) -> None:
    site, _ = site_and_server(tmp_path)
    with pytest.raises(BaseModelMismatchError, match="cannot arrive"):
        await site.at(SumWork(checkpoint=Blob(BlobId(bytes(32)), 1), checkpoint_round=5), 4)


# --- being killed ---

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.client.rounds.test_catch_up import Site, site_and_server

folder, at = Path(sys.argv[1]), int(sys.argv[2])
site, server = site_and_server(folder, rounds=1, size=50)
count = 0

def kill(event, arguments):
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and "/run" in str(arguments[0]):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
asyncio.run(site.at(server.work(), 1))
print(count)
"""


def in_child(script: str, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        check=False,
    )


def crash(folder: Path, at: int) -> subprocess.CompletedProcess[str]:
    """Arrive at model 1 in another process that is killed before its ``at``-th operation on the run's folder."""
    return in_child(KILLED, str(folder), str(at))


async def test_a_site_that_is_killed_at_any_step_arrives_at_the_same_model(tmp_path: Path) -> None:
    whole = crash(tmp_path / "whole", 0)
    steps = int(whole.stdout)
    expected, server = site_and_server(tmp_path / "expected", rounds=1, size=50)
    digest = (await expected.at(server.work(), 1)).digest
    assert steps > 10
    for at in range(1, steps + 1):
        folder = tmp_path / str(at)
        assert crash(folder, at).returncode == -signal.SIGKILL
        site = Site(folder, size=50)
        site.server = server.blobs
        state = await site.at(server.work(), 1)
        assert state.digest == digest
        assert all(name.startswith("model-") for name in site.names())
