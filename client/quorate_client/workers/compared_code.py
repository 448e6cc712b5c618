"""A task's worker runs the very bytes that were compared with the study, and no others.

What a task is was read from its source (``quorate.study.import_closure``). Python by itself would then run the bytecode
beside that source, which may be of another one, or what was put there since. So in a worker the modules of a task are
compiled from source, and each is held against its digest at the moment at which it is run.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from quorate.errors import TaskMismatchError
from quorate.study.task_digest import LIBRARY, InstalledTask

_READ_BY_PYTHON: Final = SourceFileLoader.get_code


class ComparedCode(MetaPathFinder):
    """Finds the modules of one task, and ours, as the other finders do; runs them only if they are what was compared.

    Ours run before a task is known. They are noted then, and compared when one is.
    """

    def __init__(self) -> None:
        self._ran: dict[str, bytes] = {}
        self._files: Mapping[str, bytes] = {}
        self._task_package = ""
        self._replaced = ""

    def install(self) -> None:
        """From now on every import of this process passes here, and every source file that is run by its path."""
        sys.meta_path.insert(0, self)

        def get_code(loader: SourceLoader, fullname: str) -> CodeType | None:
            path = loader.get_filename(fullname)
            place = self._compared_place(path)
            return _READ_BY_PYTHON(loader, fullname) if place is None else self.compile(loader, path, place)

        # A task that looks for its plugins itself makes loaders from paths, and no finder hears of it.
        SourceFileLoader.get_code = get_code  # type: ignore[assignment, method-assign]  # typeshed has two SourceLoaders

    def hold(self, task: InstalledTask) -> None:
        """Only the files of this task may run, from now on and until now.

        Raises:
            TaskMismatchError: another content of one of them was run.
        """
        for place, content in self._ran.items():
            if task.files.get(place, content) != content:
                raise self._changed(place)
        self._files, self._task_package = task.files, task.package

    def require_unchanged(self) -> None:
        """Raises TaskMismatchError: a file was found replaced, whatever became of the refusal in the task."""
        if self._replaced:
            raise self._changed(self._replaced)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises TaskMismatchError: the module is the task's and was not compared, or was replaced."""
        if fullname.partition(".")[0] not in (LIBRARY, self._task_package):
            return None
        spec = self._found_by_others(fullname, path, target)
        if spec is None or spec.origin is None or not spec.has_location:
            return spec  # there is none, or it is a folder without __init__.py
        file = Path(spec.origin)
        place = "/".join((*_package_of(fullname, spec), file.name))
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _FromSource(fullname, spec.origin, self, place)
        else:  # compiled; its loader opens it again
            self.admit(place, file.read_bytes())
        return spec

    def admit(self, place: str, content: bytes) -> None:
        """Let a file be run.

        Raises:
            TaskMismatchError: it is not what was compared.
        """
        found = hashlib.sha256(content).digest()
        compared = self._files.get(place)
        if compared is None and self._task_package and not place.startswith(f"{LIBRARY}/"):
            raise TaskMismatchError(
                "The task runs a file of its own that was not compared with the study",
                expected="modules that an import statement of the task names, in one folder",
                got=place,
                action="Tell the author of the task",
            )
        if compared is not None and compared != found:
            raise self._changed(place)
        self._ran[place] = found

    def compile(self, loader: SourceLoader, path: str, place: str) -> CodeType:
        """What was read and shown; the bytecode beside it is neither read nor written."""
        source = loader.get_data(path)
        self.admit(place, source)
        return loader.source_to_code(source, path)

    def _compared_place(self, path: str) -> str | None:
        """Which of the compared files lies there; None for all others."""
        path = os.path.normpath(Path(path).absolute())
        for package in (self._task_package, LIBRARY):
            for folder in getattr(sys.modules.get(package), "__path__", ()):
                if path.startswith(f"{folder}{os.sep}"):
                    place = package + path[len(folder) :]
                    return place if place in self._files else None
        return None

    def _changed(self, place: str) -> TaskMismatchError:
        self._replaced = place
        return TaskMismatchError(
            "A file of the task was replaced while its worker was open",
            got=place,
            action="Nothing: the next worker is new",
        )

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):  # one of before Python 3.4 has none
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    return spec
        return None


class _FromSource(SourceFileLoader):
    """Of a module that was found by its name, wherever that lies."""

    def __init__(self, fullname: str, path: str, code: ComparedCode, place: str) -> None:
        super().__init__(fullname, path)
        self._code, self._place = code, place

    def get_code(self, fullname: str) -> CodeType:
        return self._code.compile(self, self.path, self._place)


def _package_of(fullname: str, spec: ModuleSpec) -> list[str]:
    package = fullname if spec.submodule_search_locations is not None else fullname.rpartition(".")[0]
    return package.split(".") if package else []
