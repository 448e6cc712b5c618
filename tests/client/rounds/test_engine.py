"""The site's engine: the phases of a study with several sites, what it refuses, and what breaks under it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import (
    BaseModelMismatchError,
    BlobMissingError,
    DatasetMissingError,
    FrameError,
    StudyNotApprovedError,
    TaskCrashedError,
    TaskFailedError,
    UpdateNotFiniteError,
)
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import cancel
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.rounds.rates import pooled_rates
from quorate.study.study import Optimizer, Release, Rounds, Study
from quorate.wire.messages import reply_to_bytes
from quorate.wire.sum_messages import PlainOpening, SumAnswer, SumRef, plain_opening_to_bytes
from quorate_client.rounds.engine import Engine
from quorate_client.rounds.model.state import THETA_OFFSET
from quorate_client.site.folder import RELEASED_MODEL
from quorate_client.workers.host import write_model
from tests.client.engine_kit import (
    RUN,
    SITES,
    ServerPart,
    SiteUnderTest,
    gone,
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_study,
    records_of,
    site,
)
from tests.client.linear_task import SECRET


@asynccontextmanager
async def consortium(
    folder: Path, study: Study, *, processes: bool = False
) -> AsyncIterator[tuple[ServerPart, list[SiteUnderTest]]]:
    """All sites of a study, prepared."""
    server = ServerPart(study, folder / "server")
    async with AsyncExitStack() as stack:
        sites = [
            await stack.enter_async_context(site(server, folder / name, name, processes=processes)) for name in SITES
        ]
        await sum_of(server, sites, 0)
        yield server, sites


async def sum_of(server: ServerPart, sites: list[SiteUnderTest], number: int) -> list[SumAnswer]:
    """What these sites upload for a sum, which is closed then."""
    answers = [await each.do(Phase.UPLOAD, number) for each in sites]
    server.close(number)
    return answers


@asynccontextmanager
async def lone_site(
    folder: Path, *, prepared: bool = True, processes: bool = False, **changes: Any
) -> AsyncIterator[tuple[ServerPart, SiteUnderTest]]:
    server = ServerPart(make_study(**changes), folder / "server")
    async with site(server, folder / "site", processes=processes) as alone:
        if prepared:
            await alone.sum_alone(0)
        yield server, alone


def pooled_records() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    parts = [records_of(name) for name in SITES]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def reference_model(rounds: int) -> np.ndarray[Any, Any]:
    """The same study in one place: gradient descent on all records, centred with their common mean."""
    x, y = pooled_records()
    features = np.hstack([x - x.mean(axis=0), np.ones((len(x), 1))])
    weights = np.random.default_rng(7).normal(size=4).astype(np.float32).astype(float)
    for _ in range(rounds):
        weights -= 0.5 * features.T @ (1 / (1 + np.exp(-features @ weights)) - y) / len(y)
    return weights


def theta_of(each: SiteUnderTest, digest: bytes) -> np.ndarray[Any, Any]:
    (path,) = (each.folder / "runs" / RUN).glob(f"model-*-{digest.hex()}.state")
    return np.fromfile(path, "<f4", 4, offset=THETA_OFFSET)


# --- the phases ---


async def test_the_first_sum_is_of_record_counts_and_statistics(installed: Path, tmp_path: Path) -> None:
    async with consortium(tmp_path, make_study()) as (server, _):
        x = np.concatenate([records_of(name)[0] for name in SITES])
        records, _, *sums = server.counts(0)
        assert records == len(x)
        np.testing.assert_allclose(np.array(sums) / (1 << 20), x.sum(axis=0), atol=1e-4)


async def test_three_sites_train_the_model_of_their_pooled_records(installed: Path, tmp_path: Path) -> None:
    async with consortium(tmp_path, make_study()) as (server, sites):
        for number in (1, 2, 3):
            trained = await sum_of(server, sites, number)
            assert [item.plain_counts[1] for item in trained] == [len(records_of(name)[0]) for name in SITES]
            assert 0.98 * WEIGHT_ONE < sum(item.plain_counts[0] for item in trained) <= WEIGHT_ONE
        evaluated = await sum_of(server, sites, 4)
        assert len({item.model for item in evaluated}) == 1
        theta = theta_of(sites[0], evaluated[0].model)
        np.testing.assert_allclose(theta, reference_model(3), atol=1e-5)
        x, y = pooled_records()
        right = (np.hstack([x - x.mean(axis=0), np.ones((len(x), 1))]) @ reference_model(3) > 0) == y
        assert pooled_rates(server.study, 4, server.counts(4))[3]["accuracy"] == pytest.approx(right.mean())


async def test_the_loss_of_training_travels_as_a_fixed_point_integer(installed: Path, tmp_path: Path) -> None:
    async with consortium(tmp_path, make_study()) as (server, sites):
        await sum_of(server, sites, 1)
        loss = pooled_rates(server.study, 1, server.counts(1))[1]["train_loss"]
        x, y = pooled_records()
        odds = np.hstack([x - x.mean(axis=0), np.ones((len(x), 1))]) @ reference_model(0)
        assert abs(loss - np.log1p(np.exp(-(2 * y - 1) * odds)).mean()) < 1e-5


async def test_an_update_that_is_clipped_is_counted(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path, parameters={"rate": 1e3}) as (_, alone):
        assert (await alone.do(Phase.UPLOAD, 1)).plain_counts[3] > 0


async def test_a_large_model_travels_through_the_spool(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path, parameters={"padding": 30_000}) as (server, alone):
        reply = await alone.perform(server.instruction(Phase.UPLOAD, 1))
        assert reply.blobs[0].inline is None
        assert alone.spool.has(reply.blobs[0])
        server.take(reply, alone.spool)
        server.close(1)
        await alone.do(Phase.UPLOAD, 2)
        assert reply.blobs[0].size > INLINE_BYTES


async def test_a_site_that_missed_training_and_a_late_one_arrive_at_the_same_model(
    installed: Path, tmp_path: Path
) -> None:
    async with consortium(tmp_path, make_study(optimizer=Optimizer(name="fedadam"))) as (server, sites):
        for number in (1, 2):
            await sum_of(server, sites[:2], number)
        assert len({(await each.do(Phase.UPLOAD, 3)).model for each in sites}) == 1


async def test_a_checkpoint_is_the_agreed_state_and_starts_a_late_site(installed: Path, tmp_path: Path) -> None:
    async with consortium(tmp_path, make_study(optimizer=Optimizer(name="fedavgm"))) as (server, sites):
        for number in (1, 2):
            await sum_of(server, sites[:2], number)
        evaluated = await sum_of(server, sites[:2], 3)
        last = await sites[0].do(Phase.UPLOAD, 4)
        reply = await sites[0].perform(server.instruction(Phase.CHECKPOINT, 4))
        (checkpoint,) = reply.blobs
        assert checkpoint.id == evaluated[0].model
        server.take(reply, sites[0].spool)
        reference, sums = Blob(checkpoint.id, checkpoint.size), server.work.sums[3:]
        server.work = replace(server.work, checkpoint=reference, checkpoint_round=2, sums=sums)
        assert (await sites[2].do(Phase.UPLOAD, 4)).model == last.model
        assert sums[0].updates is not None
        assert sites[2].fetched == [checkpoint.id, sums[0].updates.id]


async def test_the_released_model_is_the_same_bytes_at_every_site_and_stays_there(
    installed: Path, tmp_path: Path
) -> None:
    study = make_study(release=Release(model="operator"), rounds=Rounds(count=1, quorum=1))
    async with consortium(tmp_path, study) as (server, sites):
        for number in (1, 2):
            await sum_of(server, sites, number)
        replies = [await each.perform(server.instruction(Phase.RELEASE, 2)) for each in sites]
        assert len({reply.blobs[0].id for reply in replies}) == 1
        kept = sites[0].folder / "runs" / RUN / "model.npz"
        assert kept.read_bytes() == sites[0].spool.content(replies[0].blobs[0])
        with np.load(kept) as arrays:
            np.testing.assert_allclose(arrays["weights"], reference_model(1)[:3], atol=1e-5)
            assert arrays["__metadata__"].tobytes() == b'{"task": "linear"}'


def test_a_model_has_the_same_bytes_in_whatever_order_its_arrays_come(tmp_path: Path) -> None:
    one, other = {"a": np.arange(3), "b": np.arange(4)}, {"b": np.arange(4), "a": np.arange(3)}
    write_model(tmp_path / "one", one, {"x": 1, "y": 2})
    write_model(tmp_path / "other", other, {"y": 2, "x": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


async def test_the_model_stays_at_the_sites_where_the_study_says_so_whatever_the_server_asks(
    installed: Path, tmp_path: Path
) -> None:
    async with lone_site(tmp_path, release=Release(model="sites"), rounds=Rounds(count=1, quorum=1)) as (server, alone):
        for number in (1, 2):
            await alone.sum_alone(number)
        before = sorted(alone.spool.folder.iterdir())
        reply = await alone.perform(server.instruction(Phase.RELEASE, 2))
        assert reply.blobs == ()
        assert sorted(alone.spool.folder.iterdir()) == before
        assert (alone.folder / "runs" / RUN / "model.npz").exists()


async def test_the_seed_of_training_is_the_sites_own(installed: Path, tmp_path: Path) -> None:
    drawn: list[int] = []

    def randomness(count: int) -> bytes:
        drawn.append(count)
        return b"\xff" * count

    server = ServerPart(make_study(), tmp_path / "server")
    async with site(server, tmp_path / "site", randomness=randomness) as alone:
        await alone.sum_alone(0)
        await alone.do(Phase.UPLOAD, 1)
    assert drawn == [8]


async def test_working_time_is_the_tasks(installed: Path, tmp_path: Path) -> None:
    """With a clock that advances by one second whenever it is read: two readings for each call of the task."""
    ticks = iter(range(100))
    async with lone_site(tmp_path) as (server, alone):
        engine = Engine(alone.workers, alone.spool, alone.folder, lambda: float(next(ticks)))
        reply = await engine.perform(server.instruction(Phase.UPLOAD, 1), alone.agreement, alone.fetch)
        assert reply.working_s == 2.0  # the first model, and the training; the task was open


async def test_statistics_of_another_sum_open_the_task_anew(installed: Path, tmp_path: Path) -> None:
    """The tests' task refuses to begin twice."""
    async with lone_site(tmp_path) as (server, alone):
        await alone.do(Phase.UPLOAD, 1)
        opening = PlainOpening((SiteName("north"),), (*server.counts(0)[:2], 0, 0, 0), b"", b"")
        changed = SumRef(0, 0, None, Blob.of(plain_opening_to_bytes(opening)))
        server.work = replace(server.work, sums=(changed,))
        await alone.do(Phase.UPLOAD, 1)
        await alone.do(Phase.UPLOAD, 1)


# --- refusals ---


async def test_work_of_another_study_than_the_approved_one_is_refused(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (server, alone):
        instruction = replace(server.instruction(Phase.UPLOAD, 1), study_digest=bytes(32))
        with pytest.raises(StudyNotApprovedError):
            await alone.perform(instruction)


@pytest.mark.parametrize("run", ["../../keys", "a/b", "", ".", "x" * 101])
async def test_a_run_cannot_be_named_like_a_path(installed: Path, tmp_path: Path, run: str) -> None:
    async with lone_site(tmp_path) as (server, alone):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FrameError):
            await alone.perform(replace(server.instruction(Phase.UPLOAD, 1), run=RunId(run)))
        with pytest.raises(FrameError):
            await alone.engine.forget(RunId(run))
        assert sorted(tmp_path.rglob("*")) == before


async def test_one_run_cannot_be_two_studies(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (server, alone):
        await alone.do(Phase.UPLOAD, 1)
        study = make_study(purpose="another")
        agreement = replace(alone.agreement, study=study, digest=study.digest())
        instruction = replace(server.instruction(Phase.UPLOAD, 1), study_digest=study.digest())
        with pytest.raises(FrameError):
            await alone.engine.perform(instruction, agreement, alone.fetch)


async def test_a_study_has_no_messages_of_guest_apps(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (server, alone):
        with pytest.raises(FrameError):
            await alone.perform(replace(server.instruction(Phase.GUEST), blobs=(Blob.of(b"x"),)))


async def test_without_a_data_set_there_is_no_work(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path, prepared=False) as (server, alone):
        alone.agreement = replace(alone.agreement, dataset=None)
        with pytest.raises(DatasetMissingError):
            await alone.perform(server.instruction(Phase.UPLOAD))


async def test_a_blob_that_does_not_arrive_is_said(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (server, alone):
        await alone.sum_alone(1)

        async def fetch(_: Blob) -> None:
            return None

        with pytest.raises(BlobMissingError):
            await alone.engine.perform(server.instruction(Phase.UPLOAD, 2), alone.agreement, fetch)


@pytest.mark.parametrize(
    ("trouble", "refusal"),
    [
        ("nan", UpdateNotFiniteError),
        ("short", TaskFailedError),
        ("liar", TaskFailedError),
    ],
)
async def test_an_update_that_must_not_leave_does_not(
    installed: Path, tmp_path: Path, trouble: str, refusal: type[Exception]
) -> None:
    async with lone_site(tmp_path, parameters={"trouble": trouble, "padding": 30_000}) as (server, alone):
        with pytest.raises(refusal):
            await alone.perform(server.instruction(Phase.UPLOAD, 1))
        assert list(alone.spool.folder.iterdir()) == []
        assert list((alone.folder / "runs" / RUN).glob("new-*")) == []


async def test_a_replayed_sum_is_not_applied_twice(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (server, alone):
        await alone.sum_alone(1)
        once = await alone.do(Phase.UPLOAD, 2)
        assert (await alone.do(Phase.UPLOAD, 2)).model == once.model
        forged = replace(server.work, sums=(*server.work.sums, replace(server.work.sums[1], round_number=2)))
        with pytest.raises(BaseModelMismatchError):
            await alone.perform(server.instruction(Phase.UPLOAD, 3, forged))


# --- processes that break ---


async def test_a_whole_round_in_worker_processes(installed: Path, tmp_path: Path) -> None:
    async with consortium(tmp_path, make_study(), processes=True) as (server, sites):
        await sum_of(server, sites, 1)
        evaluated = await sum_of(server, sites, 2)
        np.testing.assert_allclose(theta_of(sites[0], evaluated[0].model), reference_model(1), atol=1e-5)


async def test_the_text_of_an_exception_is_in_no_reply(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path, processes=True, parameters={"trouble": "raise"}) as (server, alone):
        instruction = server.instruction(Phase.UPLOAD, 1)
        with pytest.raises(TaskFailedError) as caught:
            await alone.perform(instruction)
        reply = Reply(instruction.message_id, caught.value.code)
        assert SECRET.encode() not in reply_to_bytes(reply)
        assert SECRET not in str(caught.value)
        assert SECRET in (alone.folder / "tasks.log").read_text()


async def test_after_a_crash_in_training_the_next_round_works(installed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    parameters = {"trouble": "once", "marker": str(tmp_path / "marker"), "signal": str(pipe)}
    async with lone_site(tmp_path, processes=True, parameters=parameters) as (server, alone):
        job = asyncio.create_task(alone.perform(server.instruction(Phase.UPLOAD, 1)))
        os.kill(int(await asyncio.to_thread(pipe.read_text)), signal.SIGKILL)
        with pytest.raises(TaskCrashedError):
            await job
        assert list((alone.folder / "runs" / RUN).glob("new-*")) == []
        trained = await alone.do(Phase.UPLOAD, 1)
        assert trained.plain_counts[0] > 0


async def test_cancelled_work_ends_with_its_process_and_the_next_works(installed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    parameters = {"trouble": "once", "marker": str(tmp_path / "marker"), "signal": str(pipe)}
    async with lone_site(tmp_path, processes=True, parameters=parameters) as (server, alone):
        job = asyncio.create_task(alone.perform(server.instruction(Phase.UPLOAD, 1)))
        descriptor = os.pidfd_open(int(await asyncio.to_thread(pipe.read_text)))
        await cancel({job})
        assert job.cancelled()
        await gone(descriptor)
        await alone.do(Phase.UPLOAD, 1)


# --- restarts, and the end ---


async def test_after_a_restart_of_the_daemon_the_site_goes_on(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (_, alone):
        await alone.sum_alone(1)
        before = await alone.do(Phase.UPLOAD, 2)
        again = alone.restarted()
        after = await again.do(Phase.UPLOAD, 2)
        assert after.model == before.model
        assert again.fetched == []


async def test_a_forgotten_run_leaves_its_final_model_and_can_go_on(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (_, alone):
        await alone.do(Phase.UPLOAD, 1)
        await alone.engine.forget(RUN)
        assert list((alone.folder / "runs").iterdir()) == []
        await alone.engine.forget(RUN)
        await alone.do(Phase.UPLOAD, 1)
        (alone.folder / "runs" / RUN / RELEASED_MODEL).write_bytes(b"model")
        await alone.engine.forget(RUN)
        assert [path.name for path in (alone.folder / "runs" / RUN).iterdir()] == [RELEASED_MODEL]
        await alone.do(Phase.UPLOAD, 1)


async def test_malformed_work_is_refused(installed: Path, tmp_path: Path) -> None:
    async with lone_site(tmp_path) as (server, alone):
        with pytest.raises(FrameError):
            await alone.perform(replace(server.instruction(Phase.UPLOAD, 1), body=b"\xff\xff"))
        with pytest.raises(FrameError):
            await alone.perform(server.instruction(Phase.UPLOAD, 5))
        with pytest.raises(BaseModelMismatchError):
            await alone.perform(replace(server.instruction(Phase.UPLOAD, 1), body=b""))


async def test_folders_may_be_given_relative_to_where_the_daemon_runs(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with lone_site(Path("here"), processes=True) as (_, alone):
        await alone.sum_alone(1)
        await alone.do(Phase.UPLOAD, 2)


def test_the_engine_loads_nothing_heavy_before_it_is_used() -> None:
    script = "import sys, quorate_client.rounds.engine; print({'numpy', 'torch', 'flwr', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
