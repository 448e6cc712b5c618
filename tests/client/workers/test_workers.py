"""Task workers: warm, confined, and replaced when they break."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from quorate.errors import (
    PolicyError,
    SiteRefusalError,
    TaskCrashedError,
    TaskFailedError,
    TaskMismatchError,
    TaskMissingError,
)
from quorate.process.frames import framed, header
from quorate.study.task_digest import task_digest
from quorate_client.site.agreement import Agreement
from quorate_client.workers.compared_code import ComparedCode
from quorate_client.workers.host import TaskHost
from quorate_client.workers.isolation import Confinement
from quorate_client.workers.main import MAX_ANSWER_BYTES
from quorate_client.workers.pool import ProcessWorkers, TaskWorker, WorkerKey
from quorate_client.workers.process import ProcessWorker
from tests.client.engine_kit import (
    gone,
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_agreement,
    make_study,
    process_settings,
)
from tests.client.linear_task import SECRET

KEY = WorkerKey(b"study", "records")
OTHER = WorkerKey(b"study", "other records")


@asynccontextmanager
async def pool(folder: Path, **settings: Any) -> AsyncIterator[ProcessWorkers]:
    workers = ProcessWorkers(process_settings(folder, **settings))
    try:
        yield workers
    finally:
        await workers.close()


def opening(agreement: Agreement, **changes: Any) -> dict[str, Any]:
    study, dataset = agreement.study, agreement.dataset
    assert dataset is not None
    described = {
        "name": dataset.name,
        "kind": dataset.kind,
        "path": str(dataset.path),
        "schema": {},
        "test_fraction": 0.2,
        "records": 40,
    }
    task = study.task.model_dump(mode="json") | changes
    return {"task": task, "dataset": described, "seed": 1}


async def open_task(worker: TaskWorker, folder: Path, **parameters: Any) -> None:
    """Open the tests' task, ready to be trained from the parameters in ``folder/theta``."""
    agreement = make_agreement(make_study(parameters=parameters), folder)
    await worker.call("open", opening(agreement))
    await worker.call("measure", {})
    await worker.call("initial", {"path": str(folder / "theta")})


async def train(worker: TaskWorker, folder: Path) -> dict[str, Any]:
    theta = {"path": str(folder / "theta"), "offset": 0, "dimension": 4}
    update = str(folder / "update")
    arguments = {"theta": theta, "update": update, "round_number": 1, "rng_seed": 1, "proximal_mu": 0.0}
    return await worker.call("train", arguments)


def pid_of(worker: TaskWorker) -> int:
    assert isinstance(worker, ProcessWorker)
    return worker.pid


async def visit(workers: ProcessWorkers, key: WorkerKey) -> int:
    async with workers.lease(key) as worker:
        return pid_of(worker)


async def test_a_worker_stays_warm_between_leases(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path) as workers:
        async with workers.lease(KEY) as worker:
            await open_task(worker, tmp_path)
            first = pid_of(worker)
        async with workers.lease(KEY) as worker:
            assert pid_of(worker) == first
            assert (await train(worker, tmp_path))["records"] == 41


async def test_studies_and_data_sets_have_workers_of_their_own(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path) as workers, workers.lease(KEY) as one, workers.lease(OTHER) as other:
        assert pid_of(one) != pid_of(other)


async def test_one_lease_at_a_time(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path) as workers:
        async with workers.lease(KEY):
            waiting = asyncio.create_task(visit(workers, KEY))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting


async def test_the_cap_ends_the_worker_that_rested_longest(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path, most=2) as workers:
        descriptors = []
        for number in range(3):
            async with workers.lease(WorkerKey(b"study", str(number))) as worker:
                descriptors.append(os.pidfd_open(pid_of(worker)))
        await gone(descriptors[0])
        assert not select.select(descriptors[1:], [], [], 0)[0]
    for descriptor in descriptors[1:]:
        await gone(descriptor)


async def test_at_the_cap_a_lease_waits_for_one_to_be_given_back(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path, most=1) as workers:
        async with workers.lease(KEY):
            waiting = asyncio.create_task(visit(workers, OTHER))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting


async def test_an_idle_worker_is_ended(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path, idle_s=0.0) as workers:
        async with workers.lease(KEY) as worker:
            descriptor = os.pidfd_open(pid_of(worker))
        await gone(descriptor)
        async with workers.lease(KEY) as worker:
            await open_task(worker, tmp_path)


# --- what tasks do ---


async def test_an_exception_is_a_code_without_text_and_the_worker_stays(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        await open_task(worker, tmp_path, trouble="raise")
        before = pid_of(worker)
        with pytest.raises(TaskFailedError) as caught:
            await train(worker, tmp_path)
        assert SECRET not in str(caught.value)
        assert SECRET in (tmp_path / "tasks.log").read_text()
        await open_task(worker, tmp_path)
        await train(worker, tmp_path)
        assert pid_of(worker) == before


async def test_what_a_task_prints_stays_in_the_sites_log(
    installed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        await open_task(worker, tmp_path)
        await train(worker, tmp_path)
    assert SECRET in (tmp_path / "tasks.log").read_text()
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("trouble", ["segfault", "exit", "hog", "forge"])
async def test_a_task_that_takes_its_process_down_ends_the_job_and_the_next_gets_a_fresh_one(
    installed: Path, tmp_path: Path, trouble: str
) -> None:
    async with pool(tmp_path, confinement=Confinement(memory_bytes=4 << 30)) as workers:
        async with workers.lease(KEY) as worker:
            await open_task(worker, tmp_path, trouble=trouble)
            before = pid_of(worker)
            with pytest.raises(TaskCrashedError) as caught:
                await train(worker, tmp_path)
            assert SECRET not in str(caught.value)
        async with workers.lease(KEY) as worker:
            assert pid_of(worker) != before
            assert worker.ready_for == b""
            await open_task(worker, tmp_path)
            await train(worker, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [header(MAX_ANSWER_BYTES + 1), framed(b"[]"), framed(b"{"), framed(pickle.dumps({"code": "ok"})), b"\x00"],
    ids=["too long", "no object", "no JSON", "a pickle", "cut off"],
)
async def test_an_answer_that_is_none_ends_the_worker(answer: bytes) -> None:
    """A task may have taken its process over, and writes what it likes."""
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    worker = ProcessWorker(process, *await asyncio.open_connection(sock=ours))
    with theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(TaskCrashedError):
            await worker.call("train", {})
    assert not worker.alive
    assert process.returncode == -signal.SIGKILL


async def test_a_worker_that_is_killed_in_training_ends_the_job(installed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        await open_task(worker, tmp_path, trouble="hang", signal=str(pipe))
        job = asyncio.create_task(train(worker, tmp_path))
        os.kill(int(await asyncio.to_thread(pipe.read_text)), signal.SIGKILL)
        with pytest.raises(TaskCrashedError):
            await job


async def test_a_resting_worker_that_is_killed_is_replaced(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path) as workers:
        async with workers.lease(KEY) as worker:
            descriptor = os.pidfd_open(pid_of(worker))
            os.kill(pid_of(worker), signal.SIGKILL)
        await gone(descriptor)
        async with workers.lease(KEY) as worker:
            try:
                await open_task(worker, tmp_path)
            except TaskCrashedError:  # the loop had not heard of its death yet
                return
            await train(worker, tmp_path)


async def test_a_cancelled_call_ends_the_worker_at_once(installed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        await open_task(worker, tmp_path, trouble="hang", signal=str(pipe))
        job = asyncio.create_task(train(worker, tmp_path))
        descriptor = os.pidfd_open(int(await asyncio.to_thread(pipe.read_text)))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await gone(descriptor)


async def test_a_task_of_another_version_than_the_studys_is_not_executed(installed: Path, tmp_path: Path) -> None:
    agreement = make_agreement(make_study(), tmp_path)
    (installed / "linear_task.py").write_text(f"print('{SECRET}')\n")
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        with pytest.raises(TaskMismatchError):
            await worker.call("open", opening(agreement))
    assert SECRET not in (tmp_path / "tasks.log").read_text()


async def test_a_task_that_is_not_installed_is_said(installed: Path, tmp_path: Path) -> None:
    agreement = make_agreement(make_study(), tmp_path)
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        with pytest.raises(TaskMissingError):
            await worker.call("open", opening(agreement, name="missing"))


@pytest.mark.parametrize(("verb", "parameters"), [("open", {"trouble": "parameters"}), ("what", {})])
async def test_other_refusals_of_a_task_are_failures_of_the_task(
    installed: Path, tmp_path: Path, verb: str, parameters: dict[str, Any]
) -> None:
    agreement = make_agreement(make_study(), tmp_path)
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        with pytest.raises(TaskFailedError):
            await worker.call(verb, opening(agreement, parameters=parameters))


def host_on(day: list[str]) -> TaskHost:
    """A worker's inside, by whose clock it is the last second of a day (UTC)."""
    return TaskHost(ComparedCode(), lambda: datetime.fromisoformat(f"{day[0]}T23:59:59+00:00").timestamp())


def both(installed: Path) -> dict[str, Any]:
    """A study's task whose installed version is the other one, until the end of January."""
    return {"digest": "0" * 64, "also": {"digest": task_digest("linear"), "until": "2027-01-31"}}


def test_the_other_version_runs_until_its_last_day_is_over(installed: Path, tmp_path: Path) -> None:
    day = ["2027-01-31"]
    host, opened = host_on(day), opening(make_agreement(make_study(), tmp_path), **both(installed))
    assert host.answer({"verb": "open", **opened}) == {}
    assert host.answer({"verb": "measure"})["dimension"] == 4

    day[0] = "2027-02-01"

    assert host.answer({"verb": "measure"}) == {"code": TaskMismatchError.code}
    assert host.answer({"verb": "open", **opened}) == {"code": TaskMismatchError.code}


def test_private_training_that_began_does_not_go_on_after_the_last_day(installed: Path, tmp_path: Path) -> None:
    day = ["2027-01-31"]
    host = host_on(day)
    host.answer({"verb": "open", **opening(make_agreement(make_study(), tmp_path), **both(installed))})
    host._private = SimpleNamespace(train=None)  # type: ignore[assignment]  # whose use would be another failure
    asked = {"verb": "train_privately", "theta": {}, "update": "", "settings": {}, "proximal_mu": 0.0}
    assert host.answer({**asked}) == {"code": TaskFailedError.code}

    day[0] = "2027-02-01"

    assert host.answer({**asked}) == {"code": TaskMismatchError.code}


def test_the_other_version_is_not_executed_after_its_last_day(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agreement = make_agreement(make_study(), tmp_path)
    (installed / "linear_task.py").write_text(f"print('{SECRET}')\n")
    opened = opening(agreement, **both(installed))
    assert host_on(["2027-02-01"]).answer({"verb": "open", **opened}) == {"code": TaskMismatchError.code}
    said = capsys.readouterr()
    assert SECRET not in said.out
    assert "accepted until 2027-01-31" in said.err


def test_a_guest_app_of_the_other_version_runs_until_its_last_day_is_over(installed: Path, tmp_path: Path) -> None:
    day = ["2027-01-31"]
    name = "flower:guest_app:app"
    task = {"name": name, "digest": "0" * 64, "also": {"digest": task_digest(name), "until": "2027-01-31"}}
    host = host_on(day)
    files = {key: str(tmp_path / key) for key in ("content", "reply", "state")}
    message = {"task": task, "body": "", **files, "run_config": {}, "node_config": {}}
    assert host.answer({"verb": "guest", **message}) == {"code": TaskFailedError.code}  # loaded; it is no message

    day[0] = "2027-02-01"

    assert host.answer({"verb": "guest", **message}) == {"code": TaskMismatchError.code}


# --- confinement ---


async def test_a_task_reaches_neither_the_network_nor_the_keys(installed: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "signing.key").write_text("secret")
    confinement = Confinement(hidden=(keys,))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with pool(tmp_path, confinement=confinement, require_isolation=lambda: True) as workers:
            try:
                async with workers.lease(KEY) as worker:
                    port = listener.getsockname()[1]
                    await open_task(worker, tmp_path, trouble="call home", port=port)
                    with pytest.raises(SiteRefusalError):
                        await train(worker, tmp_path)
                    await open_task(worker, tmp_path, trouble="read keys", key=str(keys / "signing.key"))
                    with pytest.raises(SiteRefusalError):
                        await train(worker, tmp_path)
            except PolicyError:
                pytest.skip("NOT TESTED: this machine does not permit user namespaces")
        assert not select.select([listener], [], [], 0)[0]
    log = (tmp_path / "tasks.log").read_text()
    assert "Network is unreachable" in log
    assert "No such file or directory" in log


async def test_a_site_that_demands_isolation_refuses_less(installed: Path, tmp_path: Path) -> None:
    confinement = Confinement(hidden=(tmp_path / "missing",))
    async with pool(tmp_path, confinement=confinement) as workers, workers.lease(KEY) as worker:
        descriptor = os.pidfd_open(pid_of(worker))  # without the demand it runs, with limits only
    await gone(descriptor)
    async with pool(tmp_path, confinement=confinement, require_isolation=lambda: True) as workers:
        with pytest.raises(PolicyError):
            await visit(workers, KEY)


async def test_a_worker_inherits_no_files_and_no_secrets_of_the_environment(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy")
    with (tmp_path / "secret file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
            await open_task(worker, tmp_path, trouble="look around")
            await train(worker, tmp_path)
    seen = (tmp_path / "tasks.log").read_text()
    assert "environment:" in seen
    assert "password" not in seen
    assert "secret file" not in seen
    assert seen.count("socket:") == 1


async def test_a_worker_runs_nothing_from_the_folder_that_tasks_may_write(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``export X=$X:/opt/...`` leaves an empty part where X was not set: the worker's own folder. What a task of before
    wrote there would run before the worker confines itself."""
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH"):
        monkeypatch.setenv(name, f":.:work:..:{os.environ.get(name, '/opt')}:")
    for folder in (tmp_path, tmp_path / "work"):
        folder.mkdir(exist_ok=True)
        (folder / "socket.py").write_text(f"open({str(tmp_path / 'escaped')!r}, 'w').close()")
    async with pool(tmp_path) as workers, workers.lease(KEY) as worker:
        environment = psutil.Process(pid_of(worker)).environ()
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH"):
        assert all(Path(part).is_absolute() for part in environment[name].split(os.pathsep))
    assert not (tmp_path / "escaped").exists()


async def test_a_worker_that_does_not_get_ready_in_time_is_ended(installed: Path, tmp_path: Path) -> None:
    async with pool(tmp_path, start_s=0.0) as workers:
        with pytest.raises(TaskCrashedError):
            await visit(workers, KEY)
