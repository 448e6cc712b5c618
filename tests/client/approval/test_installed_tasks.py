"""Whether a study's task is the installed one."""

from __future__ import annotations

from datetime import datetime

import pytest

from quorate.errors import TaskMismatchError, TaskMissingError
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.approval.installed_tasks import InstalledTasks

from ..conftest import APP

OLD, NEW = "a" * 64, "b" * 64
NOW = datetime.fromisoformat("2027-01-15T12:00:00+00:00")


BOTH = TaskRef.model_validate({"name": "task", "digest": NEW, "also": {"digest": OLD, "until": "2027-01-31"}})


def installed(digest: str) -> InstalledTasks:
    return InstalledTasks(lambda: 0.0, lambda _: digest)


def test_the_installed_task_passes() -> None:
    digest = task_digest(APP)
    assert InstalledTasks(lambda: 0.0).check(TaskRef(name=APP, digest=digest), NOW) == digest


def test_another_version_is_refused() -> None:
    with pytest.raises(TaskMismatchError, match="is not the one that the study names"):
        InstalledTasks(lambda: 0.0).check(TaskRef(name=APP, digest="0" * 64), NOW)


def test_a_task_that_is_not_installed_is_refused() -> None:
    with pytest.raises(TaskMissingError):
        InstalledTasks(lambda: 0.0).check(TaskRef(name="no-such-task", digest="0" * 64), NOW)


def test_code_that_was_changed_under_a_running_daemon_is_noticed() -> None:
    now = [0.0]
    digests = [OLD, NEW]
    tasks = InstalledTasks(lambda: now[0], lambda _: digests[0], fresh_s=5.0)
    tasks.check(TaskRef(name="task", digest=OLD), NOW)
    digests.pop(0)
    tasks.check(TaskRef(name="task", digest=OLD), NOW)

    now[0] = 6.0

    with pytest.raises(TaskMismatchError):
        tasks.check(TaskRef(name="task", digest=OLD), NOW)


@pytest.mark.parametrize("version", [OLD, NEW])
def test_which_of_two_versions_a_site_runs_is_its_own_matter(version: str) -> None:
    assert installed(version).check(BOTH, NOW) == version


def test_a_third_version_is_refused_with_the_two() -> None:
    with pytest.raises(TaskMismatchError, match=r"Expected digest b{16}… or a{16}…; got c{16}…"):
        installed("c" * 64).check(BOTH, NOW)


@pytest.mark.parametrize(
    ("now", "is_accepted"),
    [
        ("1970-01-01T00:00:00+00:00", True),
        ("2027-01-31T00:00:00+00:00", True),
        ("2027-01-31T23:59:59+00:00", True),
        ("2027-02-01T00:00:00+00:00", False),
        ("2027-02-01T01:30:00+02:00", True),  # 23:30 of the day before in UTC
        ("2027-01-31T20:00:00-05:00", False),  # 01:00 of the day after in UTC
        ("2033-01-01T00:00:00+00:00", False),
    ],
)
def test_the_other_version_is_accepted_up_to_its_day_and_on_it_in_utc(now: str, is_accepted: bool) -> None:
    moment = datetime.fromisoformat(now)
    assert installed(NEW).check(BOTH, moment) == NEW
    if is_accepted:
        assert installed(OLD).check(BOTH, moment) == OLD
        return
    with pytest.raises(TaskMismatchError) as refused:
        installed(OLD).check(BOTH, moment)
    assert "was accepted until 2027-01-31 (UTC)" in str(refused.value)
    assert f"{NEW[:16]}…" in refused.value.expected
    assert "Install the version" in refused.value.action
