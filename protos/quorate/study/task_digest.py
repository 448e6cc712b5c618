"""Which code a study means: naming installed tasks, and the digest that tells whether two installations agree.

No code travels. A study names a task by its entry point (group ``quorate.tasks``) or, for a stock Flower app, as
``flower:MODULE:ATTRIBUTE``; operator and site each compute the digest of what is installed with them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from quorate.errors import TaskMissingError
from quorate.study.study import GUEST_PREFIX

ENTRY_POINT_GROUP = "quorate.tasks"


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


def task_digest(name: str) -> str:
    """SHA-256 (hex) over the sorted (path, sha256) of the task's own package.

    The package is the folder that holds the task's module, or the module's file alone when it is not in a package.
    Only source counts: ``*.py`` below the folder. Nothing of the task is executed, nor of the packages around it: the
    name may come from a study that nobody approved.

    Raises:
        TaskMissingError: no such task, or its module is not there.
    """
    module = task_reference(name).partition(":")[0]
    spec = _find(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise TaskMissingError(f"The task {name!r} names the module {module!r}, which is not installed here")
    origin = Path(spec.origin)
    in_package = "." in module or spec.submodule_search_locations is not None
    root = origin.parent
    files = sorted(root.rglob("*.py")) if in_package else [origin]
    digest = hashlib.sha256(b"quorate/task/v1\x00")
    for path in files:
        name_bytes = path.relative_to(root).as_posix().encode()
        digest.update(len(name_bytes).to_bytes(8, "big") + name_bytes + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _find(module: str) -> ModuleSpec | None:
    """Where a module lies. Not ``find_spec`` of a dotted name: that imports the packages around it."""
    outermost, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(outermost)
        for depth in range(len(inner)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = ".".join((outermost, *inner[: depth + 1]))
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError):  # ValueError where the text cannot be a module's name
        return None
    return spec
