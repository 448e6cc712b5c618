"""Finding and loading tasks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quorate.errors import TaskMissingError
from quorate.study.task_digest import task_reference
from quorate_client.tasks import Task
from quorate_client.tasks.loading import load_task


@pytest.mark.parametrize("name", ["tabular-classifier", "image-classifier"])
def test_the_shipped_tasks_are_installed(name: str) -> None:
    assert isinstance(load_task(task_reference(name)), Task)


@pytest.mark.parametrize(
    "reference", ["quorate_client.tasks.tabular:ABSENT", "quorate_absent:TASK", "quorate_client.tasks.tabular", "", ":"]
)
def test_a_reference_to_nothing_is_refused(reference: str) -> None:
    with pytest.raises(TaskMissingError, match="cannot be loaded"):
        load_task(reference)


def test_an_object_that_is_no_task_is_refused() -> None:
    with pytest.raises(TaskMissingError, match=r"quorate_client\.tasks\.tabular:NAME is not a task"):
        load_task("quorate_client.tasks.tabular:NAME")


@pytest.mark.parametrize("module", ["tabular", "image"])
def test_checking_parameters_needs_neither_torch_nor_numpy(module: str) -> None:
    program = (
        f"import sys; from quorate_client.tasks.{module} import TASK; from quorate.errors import StudyError\n"
        "try: TASK.check({})\n"
        "except StudyError: sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
