"""Which code a study means: the digest that two installations compare."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import quorate_client
from quorate.errors import TaskMissingError
from quorate.study.task_digest import installed_task, installed_tasks, task_digest, task_reference

Install = Callable[[dict[str, str]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write importable modules."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.startswith("hospital_task")]:
        del sys.modules[name]


PACKAGE = {
    "hospital_task/__init__.py": "",
    "hospital_task/app.py": "from hospital_task.deep import more\napp = 1\n",
    "hospital_task/deep/more.py": "x = 1\n",
}
NAME = "flower:hospital_task.app:app"


def test_the_tasks_that_ship_are_found_by_name() -> None:
    assert {"tabular-classifier", "image-classifier"} <= set(installed_tasks())
    assert task_reference("tabular-classifier") == "quorate_client.tasks.tabular:TASK"
    assert len(task_digest("tabular-classifier")) == 64


def test_the_digest_never_changes_for_the_same_files(install: Install) -> None:
    install(PACKAGE)
    assert task_digest(NAME) == "6c7ddc5c2724aeaf9a71a1136adc77b839dff7885b541fe39a51b924db5c7559"


@pytest.mark.parametrize(
    "changes",
    [
        {"hospital_task/app.py": PACKAGE["hospital_task/app.py"] + " "},
        {"hospital_task/deep/more.py": "x = 2\n"},
        {"hospital_task/deep/__init__.py": ""},
        {"hospital_task/__init__.py": " "},
    ],
    ids=["module", "what it imports", "a package on the way", "package"],
)
def test_any_source_that_the_task_reaches_changes_the_digest(install: Install, changes: dict[str, str]) -> None:
    install(PACKAGE)
    before = task_digest(NAME)
    install(changes)
    assert task_digest(NAME) != before


def test_content_that_moves_between_files_changes_the_digest(install: Install) -> None:
    install(PACKAGE)
    before = task_digest(NAME)
    install({"hospital_task/__init__.py": "x = 1\n", "hospital_task/deep/more.py": ""})
    assert task_digest(NAME) != before


def test_what_the_task_does_not_reach_does_not_count(install: Install) -> None:
    install(PACKAGE)
    before = task_digest(NAME)
    install({"hospital_task/another.py": "from . import app", "hospital_task/data.csv": "1,2"})
    assert task_digest(NAME) == before


def test_what_the_name_stands_for_counts(install: Install) -> None:
    install(PACKAGE)
    assert task_digest(NAME) != task_digest("flower:hospital_task.app:another")


def test_a_module_alone_is_only_itself(install: Install) -> None:
    install({"hospital_task_alone.py": "import neighbour\n"})
    before = task_digest("flower:hospital_task_alone:app")
    install({"neighbour.py": "x = 1\n"})
    assert task_digest("flower:hospital_task_alone:app") == before


def test_the_task_itself_is_not_run(install: Install) -> None:
    install({"hospital_task/__init__.py": "", "hospital_task/app.py": "raise SystemExit('it ran')\n"})
    assert len(task_digest(NAME)) == 64


def test_a_task_that_cannot_be_read_is_named(install: Install) -> None:
    install(PACKAGE | {"hospital_task/deep/more.py": "x = = 1"})
    with pytest.raises(
        TaskMissingError, match=r"hospital_task\.app:app.*The module hospital_task\.deep\.more is not Pyth"
    ):
        task_digest(NAME)


# --- the tasks that ship ---


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the site's package that is found before the installed one."""
    copy = tmp_path / "quorate_client"
    shutil.copytree(Path(quorate_client.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.delitem(sys.modules, "quorate_client")
    monkeypatch.syspath_prepend(str(tmp_path))
    return copy


READS_TABLES = "tasks/data/table.py"
READS_IMAGES = "tasks/data/images.py"


@pytest.mark.parametrize(
    ("changed", "tasks"),
    [
        (READS_TABLES, {"tabular-classifier", "image-classifier"}),
        (READS_IMAGES, {"tabular-classifier", "image-classifier"}),
        ("tasks/data/record_index.py", {"tabular-classifier", "image-classifier"}),
        ("tasks/data/__init__.py", {"tabular-classifier", "image-classifier"}),
        ("tasks/models/classifier.py", {"tabular-classifier", "image-classifier"}),
        ("tasks/models/tabular_features.py", {"tabular-classifier"}),
        ("tasks/image.py", {"image-classifier"}),
        ("tasks/training/sgd.py", {"tabular-classifier", "image-classifier"}),
        ("tasks/training/dp_sgd.py", {"tabular-classifier", "image-classifier"}),
        ("tasks/training/sampling.py", {"tabular-classifier", "image-classifier"}),
        ("site/agreement.py", {"tabular-classifier", "image-classifier"}),
        ("tasks/loading.py", set()),
        ("workers/host.py", set()),
        ("daemon/daemon.py", set()),
    ],
)
def test_one_byte_of_what_a_shipped_task_runs_changes_its_digest(shipped: Path, changed: str, tasks: set[str]) -> None:
    names = ("tabular-classifier", "image-classifier")
    before = {name: task_digest(name) for name in names}
    content = (shipped / changed).read_bytes()
    (shipped / changed).write_bytes(content.replace(b" ", b"_", 1))  # in the module's docstring
    assert {name for name in names if task_digest(name) != before[name]} == tasks


def test_a_new_shipped_task_leaves_the_others_approvals_alone(shipped: Path) -> None:
    before = [task_digest(name) for name in ("tabular-classifier", "image-classifier")]
    for new in ("tasks/survival.py", "tasks/data/series.py", "tasks/models/survival.py", "tasks/training/adam.py"):
        (shipped / new).write_text("from quorate_client.tasks.data.table import Table\n")
    importlib.invalidate_caches()
    assert [task_digest(name) for name in ("tabular-classifier", "image-classifier")] == before


@pytest.mark.parametrize("name", ["tabular-classifier", "image-classifier"])
def test_no_shipped_task_runs_what_its_source_does_not_show(name: str) -> None:
    """Else the whole of Quorate's site would count, and each release void the approvals."""
    files = set(installed_task(name).files)
    assert {"quorate_client/tasks/data/table.py", "quorate_client/tasks/training/dp_sgd.py"} <= files
    assert not {file.split("/")[1] for file in files} - {"__init__.py", "site", "tasks"}


def test_a_task_of_others_counts_with_what_it_takes_from_ours(shipped: Path, install: Install) -> None:
    install(
        PACKAGE
        | {"hospital_task/app.py": "from quorate_client.tasks.data.datasets import load_table"}
        | {"hospital-1.0.dist-info/METADATA": "Name: hospital\nVersion: 1.0\n"}
        | {"hospital-1.0.dist-info/entry_points.txt": "[quorate.tasks]\nhospital = hospital_task.app:TASK\n"}
    )
    before = task_digest("hospital")
    assert "quorate_client/tasks/data/table.py" in installed_task("hospital").files
    assert "quorate_client/tasks/models/classifier.py" not in installed_task("hospital").files
    (shipped / READS_TABLES).write_text("# another way to read tables")
    assert task_digest("hospital") != before


def test_a_guest_app_does_not_count_with_our_training(install: Install) -> None:
    install(PACKAGE)
    assert set(installed_task(NAME).files) == set(PACKAGE)


@pytest.mark.parametrize(
    "name",
    [
        "no-such-task",
        "flower:no_such_module:app",
        "flower:no_such.module:app",
        "flower:os.path.join:app",
        "flower::app",
        "flower:",
        "flower:..relative:app",
        "flower:sys:app",
        "flower:__main__:app",
    ],
)
def test_a_task_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(TaskMissingError):
        task_digest(name)
