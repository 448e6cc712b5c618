"""Whether a study's task is the installed one."""

from __future__ import annotations

import pytest

from quorate.errors import TaskMismatchError, TaskMissingError
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.approval.installed_tasks import InstalledTasks

from ..conftest import APP


def test_the_installed_task_passes() -> None:
    InstalledTasks(lambda: 0.0).check(TaskRef(name=APP, digest=task_digest(APP)))


def test_another_version_is_refused() -> None:
    with pytest.raises(TaskMismatchError, match="is not the one that the study names"):
        InstalledTasks(lambda: 0.0).check(TaskRef(name=APP, digest="0" * 64))


def test_a_task_that_is_not_installed_is_refused() -> None:
    with pytest.raises(TaskMissingError):
        InstalledTasks(lambda: 0.0).check(TaskRef(name="no-such-task", digest="0" * 64))


def test_code_that_was_changed_under_a_running_daemon_is_noticed() -> None:
    now = [0.0]
    digests = ["a" * 64, "b" * 64]
    tasks = InstalledTasks(lambda: now[0], lambda _: digests[0], fresh_s=5.0)
    study = TaskRef(name="task", digest="a" * 64)
    tasks.check(study)
    digests.pop(0)
    tasks.check(study)

    now[0] = 6.0

    with pytest.raises(TaskMismatchError):
        tasks.check(study)
