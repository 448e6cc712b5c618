"""Which code a study means: the digest that two installations compare."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorate.errors import TaskMissingError
from quorate.study.task_digest import installed_tasks, task_digest, task_reference


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
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
    "hospital_task/app.py": "app = 1\n",
    "hospital_task/deep/more.py": "x = 1\n",
}
NAME = "flower:hospital_task.app:app"


def test_the_tasks_that_ship_are_found_by_name() -> None:
    assert {"tabular-classifier", "image-classifier"} <= set(installed_tasks())
    assert task_reference("tabular-classifier") == "quorate_client.tasks.tabular:TASK"
    assert len(task_digest("tabular-classifier")) == 64


def test_the_digest_never_changes_for_the_same_files(install: Callable[[dict[str, str]], None]) -> None:
    install(PACKAGE)
    assert task_digest(NAME) == "17203a87d8cea02f29c68c5446f3cde2f581d449d2b5b60e8b30185f22dcddd2"


@pytest.mark.parametrize(
    "changes",
    [
        {"hospital_task/app.py": "app = 2\n"},
        {"hospital_task/deep/more.py": "x = 2\n"},
        {"hospital_task/another.py": ""},
        {"hospital_task/__init__.py": " "},
    ],
    ids=["module", "deep file", "added file", "package"],
)
def test_any_source_of_the_package_changes_the_digest(
    install: Callable[[dict[str, str]], None], changes: dict[str, str]
) -> None:
    install(PACKAGE)
    before = task_digest(NAME)
    install(changes)
    assert task_digest(NAME) != before


def test_content_that_moves_between_files_changes_the_digest(install: Callable[[dict[str, str]], None]) -> None:
    install(PACKAGE)
    before = task_digest(NAME)
    install({"hospital_task/app.py": PACKAGE["hospital_task/deep/more.py"], "hospital_task/deep/more.py": "app = 1\n"})
    assert task_digest(NAME) != before


def test_what_is_no_source_does_not_count(install: Callable[[dict[str, str]], None]) -> None:
    install(PACKAGE)
    before = task_digest(NAME)
    install({"hospital_task/data.csv": "1,2", "hospital_task/__pycache__/app.cpython-311.pyc": "x"})
    assert task_digest(NAME) == before


def test_a_module_alone_is_only_itself(install: Callable[[dict[str, str]], None]) -> None:
    install({"hospital_task_alone.py": "app = 1\n"})
    before = task_digest("flower:hospital_task_alone:app")
    install({"neighbour.py": "x = 1\n"})
    assert task_digest("flower:hospital_task_alone:app") == before


def test_the_task_itself_is_not_run(install: Callable[[dict[str, str]], None]) -> None:
    install({"hospital_task/__init__.py": "", "hospital_task/app.py": "raise SystemExit('it ran')\n"})
    assert len(task_digest(NAME)) == 64


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
