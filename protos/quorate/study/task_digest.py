"""Which code a study means: naming installed tasks, and the digest that tells whether two installations agree.

No code travels. A study names a task by its entry point (group ``quorate.tasks``) or, for a stock Flower app, as
``flower:MODULE:ATTRIBUTE``; operator and site each compute the digest of what is installed with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import entry_points

from quorate.errors import TaskMismatchError, TaskMissingError
from quorate.study.import_closure import reached_files
from quorate.study.study import GUEST_PREFIX, TaskRef

ENTRY_POINT_GROUP = "quorate.tasks"
LIBRARY = "quorate_client"
"""Where the code lies that tasks share: how data is read, models, local training."""
PRIVATE_LOOP = "quorate_client.tasks.training.dp_sgd"
"""Runs in a task's worker on its model and records."""


def installed_tasks() -> tuple[str, ...]:
    """The names of all tasks installed here."""
    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)}))


def task_reference(name: str) -> str:
    """``MODULE:ATTRIBUTE`` of an installed task.

    Raises:
        TaskMissingError: no such task is installed here.
    """
    if name.startswith(GUEST_PREFIX):
        return name.removeprefix(GUEST_PREFIX)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return point.value
    raise TaskMissingError(
        f"The task {name!r} is not installed here",
        expected=f"one of {', '.join(installed_tasks()) or '(none)'}",
        action="Install the package that provides it, in the version that the study names",
    )


@dataclass(frozen=True, slots=True)
class InstalledTask:
    """A task as it is installed here.

    Args:
        reference: ``MODULE:ATTRIBUTE``, what its name stands for here.
        files: SHA-256 of each file that is the task, by its place in its package.
    """

    reference: str
    files: Mapping[str, bytes]

    @property
    def package(self) -> str:
        """The top-level package or module that its module lies in."""
        return _package_of(self.reference)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the reference and the sorted (path, sha256)."""
        digest = hashlib.sha256(b"quorate/task/v2\x00")
        files = sorted((path.encode(errors="surrogateescape"), content) for path, content in self.files.items())
        for text, content in ((self.reference.encode(), b""), *files):
            digest.update(len(text).to_bytes(8, "big") + text + content)
        return digest.hexdigest()


def installed_task(name: str) -> InstalledTask:
    """Find a task and hash its files: what its imports reach within its own top-level package and within
    ``quorate_client``, and Quorate's loop of private training, which no task imports.

    Not those of ``quorate`` (its errors alone change with every release) and of other packages. Nothing of the task is
    executed, nor of the packages around it: the name may come from a study that nobody approved.

    Raises:
        TaskMissingError: no such task, or its module is not there or cannot be read (``reached_files``).
    """
    reference = task_reference(name)
    module = reference.partition(":")[0]
    starts = (module,) if name.startswith(GUEST_PREFIX) else (module, PRIVATE_LOOP)
    try:
        files = reached_files(starts, frozenset({_package_of(reference), LIBRARY}))
    except TaskMissingError as error:
        raise TaskMissingError(
            f"The task {name!r} cannot be compared: {error.what}", expected=error.expected, got=error.got
        ) from error
    return InstalledTask(reference, files)


def _package_of(reference: str) -> str:
    return reference.partition(":")[0].partition(".")[0]


def require_accepted(task: TaskRef, installed: str, today: date) -> None:
    """Refuse another version than those that a study accepts.

    Args:
        installed: The digest (hex) of the task that is installed here.
        today: In UTC.

    Raises:
        TaskMismatchError: it is another version, or one that was accepted until an earlier day.
    """
    if installed in task.accepted(today):
        return
    also = task.also
    if also is not None and installed == also.digest:
        raise TaskMismatchError(
            f"The version of the task {task.name} that is installed here was accepted until {also.until} (UTC)",
            expected=f"digest {task.digest[:16]}…",
            got=f"{installed[:16]}…, and it is {today}",
            action="Install the version that the operator has, or have the study published with a later day",
        )
    raise TaskMismatchError(
        f"The task {task.name} installed here is not the one that the study names",
        expected="digest " + " or ".join(f"{digest[:16]}…" for digest in task.accepted(today)),
        got=f"{installed[:16]}…",
        action="Install the version that the operator has, or have the study published with this one",
    )


def task_digest(name: str) -> str:
    """The digest (hex) of an installed task. Raises TaskMissingError as ``installed_task``."""
    return installed_task(name).digest
