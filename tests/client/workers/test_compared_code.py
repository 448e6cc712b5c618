"""A worker runs the bytes of a task that were compared with its study, whatever else lies there or comes later."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import SiteRefusalError, TaskMismatchError
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.workers.pool import ProcessWorkers, TaskWorker, WorkerKey
from quorate_client.workers.process import ProcessWorker
from tests.client.engine_kit import (
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_agreement,
    make_study,
    process_settings,
)

KEY = WorkerKey(b"study", "records")
TRAINS_WITH_LATE = """
before = LinearSession.train
def train(self, *arguments):
    import ward.late
    return before(self, *arguments)
LinearSession.train = train
"""
# The library imports what a text names, which no import statement shows.
GOES_ON_WITHOUT_LATE = """
before = LinearSession.train
def train(self, *arguments):
    try:
        import ward.late
    except Exception:
        pass
    return before(self, *arguments)
LinearSession.train = train
"""
LOADS_BY_PATH = """
import importlib.util
from pathlib import Path
spec = importlib.util.spec_from_file_location("plugin", Path(__file__).with_name("late.py"))
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""
# As some libraries still put there: a finder of before Python 3.4.
TRIES_FOR_A_MODULE = """
import sys
class Finder:
    def find_module(self, *_): return None
sys.meta_path.insert(0, Finder())
try:
    from ward import faster
except ImportError:
    pass
"""
LOADS_BY_CONFIGURATION = """
import logging.config
logging.config.dictConfig({"version": 1, "filters": {"f": {"()": "ward.late.run"}}})
"""


def install(folder: Path, extra: str) -> Path:
    """The package ``ward`` with the tests' task, and a module that prints when it is run."""
    package = folder / "ward"
    package.mkdir()
    (package / "__init__.py").touch()
    # Which would make all of the package count.
    task = (folder / "linear_task.py").read_text().replace("import ctypes\n", "")
    (package / "task.py").write_text(task + extra)
    (package / "late.py").write_text("print('late as it was')\ndef run(): return None\n")
    with (folder / "linear_task-1.0.dist-info" / "entry_points.txt").open("a") as points:
        points.write("ward = ward.task:TASK\n")
    return package


@asynccontextmanager
async def leased(folder: Path) -> AsyncIterator[TaskWorker]:
    workers = ProcessWorkers(process_settings(folder))
    try:
        async with workers.lease(KEY) as worker:
            yield worker
    finally:
        await workers.close()


async def open_ward(worker: TaskWorker, folder: Path, digest: str) -> None:
    agreement = make_agreement(make_study(task=TaskRef(name="ward", digest=digest, parameters={})), folder)
    dataset = agreement.dataset
    assert dataset is not None
    described: dict[str, Any] = {"name": dataset.name, "kind": dataset.kind, "path": str(dataset.path), "schema": {}}
    described |= {"test_fraction": 0.2, "records": 40}
    task = agreement.study.task.model_dump(mode="json")
    await worker.call("open", {"task": task, "dataset": described, "seed": 1})
    await worker.call("measure", {})
    await worker.call("initial", {"path": str(folder / "theta")})


async def train(worker: TaskWorker, folder: Path) -> None:
    theta = {"path": str(folder / "theta"), "offset": 0, "dimension": 4}
    update = str(folder / "update")
    await worker.call("train", {"theta": theta, "update": update, "round_number": 1, "rng_seed": 1, "proximal_mu": 0.0})


def printed(folder: Path) -> str:
    return (folder / "tasks.log").read_text()


def put_bytecode(source: Path, text: str) -> None:
    """Bytecode of another text beside a source, with the marks by which Python takes it for that source's."""
    honest = source.stat()
    code = importlib._bootstrap_external._code_to_timestamp_pyc(  # type: ignore[attr-defined]
        compile(text, str(source), "exec"), int(honest.st_mtime), honest.st_size
    )
    cached = Path(importlib.util.cache_from_source(str(source)))
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(code)


async def test_bytecode_beside_the_source_is_not_run(installed: Path, tmp_path: Path) -> None:
    package = install(installed, TRAINS_WITH_LATE)
    put_bytecode(package / "late.py", "print('hidden in bytecode')")
    async with leased(tmp_path) as worker:
        await open_ward(worker, tmp_path, task_digest("ward"))
        await train(worker, tmp_path)
    assert "late as it was" in printed(tmp_path)
    assert "hidden in bytecode" not in printed(tmp_path)


async def test_a_module_that_is_replaced_under_an_open_worker_is_not_run(installed: Path, tmp_path: Path) -> None:
    package = install(installed, TRAINS_WITH_LATE)
    async with leased(tmp_path) as worker:
        await open_ward(worker, tmp_path, task_digest("ward"))
        (package / "late.py").write_text("print('replaced')\n")
        with pytest.raises(TaskMismatchError):
            await train(worker, tmp_path)
        assert isinstance(worker, ProcessWorker)
        assert not worker.alive  # the next one compares what is there by then
    assert "replaced\n" not in printed(tmp_path)


async def test_a_task_that_catches_the_refusal_does_not_go_on_without_the_module(
    installed: Path, tmp_path: Path
) -> None:
    """Else a site would compute something else than was agreed, for as long as the worker lives."""
    package = install(installed, GOES_ON_WITHOUT_LATE)
    async with leased(tmp_path) as worker:
        await open_ward(worker, tmp_path, task_digest("ward"))
        (package / "late.py").write_text("print('replaced')\n")
        with pytest.raises(TaskMismatchError):
            await train(worker, tmp_path)
        assert isinstance(worker, ProcessWorker)
        assert not worker.alive
    assert "replaced\n" not in printed(tmp_path)


async def test_bytecode_beside_a_plugin_that_is_run_by_its_path_is_not_run(installed: Path, tmp_path: Path) -> None:
    package = install(installed, LOADS_BY_PATH)
    put_bytecode(package / "late.py", "print('hidden in bytecode')")
    async with leased(tmp_path) as worker:
        await open_ward(worker, tmp_path, task_digest("ward"))
    assert "late as it was" in printed(tmp_path)
    assert "hidden in bytecode" not in printed(tmp_path)


async def test_a_task_may_try_for_a_module_that_is_not_there(installed: Path, tmp_path: Path) -> None:
    install(installed, TRIES_FOR_A_MODULE)
    async with leased(tmp_path) as worker:
        await open_ward(worker, tmp_path, task_digest("ward"))


async def test_a_module_that_no_statement_shows_is_not_run(installed: Path, tmp_path: Path) -> None:
    install(installed, LOADS_BY_CONFIGURATION)
    async with leased(tmp_path) as worker:
        with pytest.raises(SiteRefusalError):
            await open_ward(worker, tmp_path, task_digest("ward"))
    assert "late as it was" not in printed(tmp_path)
    assert "TaskMismatchError" in printed(tmp_path)
    assert "ward/late.py" in printed(tmp_path)


async def test_a_module_from_another_folder_of_the_package_is_not_run(installed: Path, tmp_path: Path) -> None:
    """A package may be put together at run time; compared was what lay in its first folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "late.py").write_text("print('from elsewhere')\n")
    package = install(installed, TRAINS_WITH_LATE)
    (package / "late.py").unlink()
    (package / "__init__.py").write_text(f"__path__.append({str(elsewhere)!r})\n")
    async with leased(tmp_path) as worker:
        await open_ward(worker, tmp_path, task_digest("ward"))
        with pytest.raises(TaskMismatchError):
            await train(worker, tmp_path)
    assert "from elsewhere" not in printed(tmp_path)


async def test_our_own_module_that_was_replaced_before_the_task_was_known_is_found(
    installed: Path, tmp_path: Path
) -> None:
    """What a task shares with us ran before the worker knew of the task."""
    from quorate.study.task_digest import installed_task
    from quorate_client.workers.compared_code import ComparedCode

    code = ComparedCode()
    code.admit("quorate_client/tasks/loading.py", b"another text")
    code.admit("quorate_client/tasks/__init__.py", b"another text")
    with pytest.raises(TaskMismatchError, match="replaced"):
        code.hold(installed_task("linear"))
