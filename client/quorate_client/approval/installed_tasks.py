"""Whether the task that a study names is installed here, and is the same code."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from quorate.study.study import TaskRef
from quorate.study.task_digest import require_accepted, task_digest


class InstalledTasks:
    """Compares tasks by digest. A digest is computed anew after ``fresh_s``: finding and hashing the files takes some
    milliseconds, which would be paid for every instruction.

    Args:
        monotonic: Seconds from any start.
        digest: Gives the digest (hex) of an installed task.
    """

    def __init__(
        self, monotonic: Callable[[], float], digest: Callable[[str], str] = task_digest, fresh_s: float = 5.0
    ) -> None:
        self._monotonic = monotonic
        self._digest = digest
        self._fresh_s = fresh_s
        self._known: dict[str, tuple[float, str]] = {}

    def check(self, task: TaskRef, now: datetime) -> str:
        """Refuse a task whose code here is not code that the study accepts.

        Args:
            now: This machine's time, with its zone.

        Returns:
            The digest (hex) of the version that is installed.

        Raises:
            TaskMissingError: it is not installed. TaskMismatchError: it is a version that is not accepted now.
        """
        installed = self._installed(task.name)
        require_accepted(task, installed, now.astimezone(UTC).date())
        return installed

    def _installed(self, name: str) -> str:
        now = self._monotonic()
        if name not in self._known or now - self._known[name][0] > self._fresh_s:
            self._known[name] = (now, self._digest(name))
        return self._known[name][1]
