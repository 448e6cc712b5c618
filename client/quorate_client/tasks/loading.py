"""Getting at an installed task by its name.

Apart from what tasks import: code that imports by a name which its source does not show makes all modules around it
count in the digest of a task that it belongs to (``quorate.study.import_closure``).
"""

from __future__ import annotations

import importlib

from quorate.errors import TaskMissingError
from quorate_client.tasks import Task


def load_task(reference: str) -> Task:
    """The installed object behind ``MODULE:ATTRIBUTE`` (``task_reference`` gives it).

    Raises:
        TaskMissingError: there is no such object, or it is not a task.
    """
    module, _, attribute = reference.partition(":")
    try:
        task = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise TaskMissingError(
            f"The task {reference} cannot be loaded", action="Install the package that provides it, and what it needs"
        ) from error
    if not isinstance(task, Task):
        raise TaskMissingError(
            f"{reference} is not a task", expected="an object with the methods check, schema and open"
        )
    return task
