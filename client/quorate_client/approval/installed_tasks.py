"""Whether the task that a study names is installed here, and is the same code."""

from __future__ import annotations

from collections.abc import Callable

from quorate.errors import TaskMismatchError
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest


class InstalledTasks:
    """Compares tasks by digest. A digest is computed anew after ``fresh_s``: finding and hashing a package takes some
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

    def check(self, task: TaskRef) -> None:
        """Refuse a task whose code here is not the code that the study was published with.

        Raises:
            TaskMissingError: it is not installed. TaskMismatchError: it is another version.
        """
        installed = self._installed(task.name)
        if installed != task.digest:
            raise TaskMismatchError(
                f"The task {task.name} installed here is not the one that the study names",
                expected=f"digest {task.digest[:16]}…",
                got=f"{installed[:16]}…",
                action="Install the version that the operator has, or have the study published with this one",
            )

    def _installed(self, name: str) -> str:
        now = self._monotonic()
        if name not in self._known or now - self._known[name][0] > self._fresh_s:
            self._known[name] = (now, self._digest(name))
        return self._known[name][1]
