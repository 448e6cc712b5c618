"""Which files an import of a module can run, read from their source. Nothing of them is executed.

Import statements are followed wherever they stand, in functions and under ``if TYPE_CHECKING:`` too: there are a dozen
ways to make that name true. Where code is run by a name or from a text that no import statement shows, or by a module
that is no source, nobody can say what it reaches: then all modules of these packages count.

This is against mistakes and old versions, not against an author who hides what a task runs: a library that imports what
it is told to (by a name in a configuration, say) is seen only if it is in ``_RUN_BY_NAME``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, all_suffixes
from pathlib import Path

from quorate.errors import TaskMissingError

MAX_FILES = 1_000
MAX_FILE_BYTES = 512 * 1024
MAX_SOURCE_BYTES = 8 * 1024 * 1024
"""A study chooses the module's name before anybody approved anything; a framework's whole tree is no task. The parser
takes some 7 s and 600 MB for a megabyte of source."""

_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What the parser raises, the last two for what is nested too deeply."""
# fmt: off
_RUN_BY_NAME = frozenset({
    "builtins", "cloudpickle", "ctypes", "dill", "hydra", "imp", "importlib", "joblib", "lazy_loader", "marshal",
    "pickle", "pkgutil", "pydoc", "runpy", "subprocess", "zipimport",
})
_RUN_A_TEXT = frozenset({
    "__builtins__", "__import__", "__loader__", "__package__", "__path__", "__spec__", "compile", "eval", "exec",
})
_STEER_IMPORTS = frozenset({"meta_path", "modules", "path", "path_hooks", "path_importer_cache"})  # of sys
# fmt: on


@dataclass(frozen=True, slots=True)
class Imports:
    """What a module's source says of other modules.

    Args:
        statements: (dots, module, names) of each ``from``; a plain ``import`` has neither dots nor names.
        are_all: Whether nothing is run but what these statements show.
    """

    statements: tuple[tuple[int, str, tuple[str, ...]], ...]
    are_all: bool


_UNKNOWN = Imports((), are_all=False)


def reached_files(starts: tuple[str, ...], packages: frozenset[str]) -> dict[str, bytes]:
    """The files that an import of ``starts`` can run, as far as they lie in these top-level packages.

    The packages around a module count with it: their ``__init__.py`` runs when it is imported.

    Returns:
        SHA-256 of each, by its place in the package: ``package/inner/module.py``, wherever that is on this machine.

    Raises:
        TaskMissingError: a start is not installed, or one of the files cannot be read or is not Python.
    """
    closure = _Closure(packages)
    for start in starts:
        if not closure.reach(start):
            raise TaskMissingError(f"The module {start!r} is not installed here")
    return closure.files


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module lies. Without a file it is a folder without ``__init__.py``, which is a package too.

    Args:
        folders: In which the modules of a package lie; none of what is no package.
    """

    file: Path | None
    folders: tuple[str, ...] = ()


class _Closure:
    """Modules that were reached; those of ``packages`` are read, and what they import is reached in turn."""

    def __init__(self, packages: frozenset[str]) -> None:
        self.files: dict[str, bytes] = {}
        self._packages = packages
        self._places: dict[str, _Place | None] = {}
        self._read: set[str] = set()
        self._source_bytes = 0
        self._is_whole = False

    def reach(self, module: str) -> bool:
        """Take a module in, with all that it reaches. False where there is none: not every name that is imported from
        a package is a module, and what is tried for may be missing."""
        waiting = [module]
        while waiting:
            for name in _outermost_first(waiting.pop()):
                place = self._find(name)
                if place is None:
                    break
                if name not in self._read:
                    self._read.add(name)
                    waiting += self._imports(name, place)
        place = self._find(module)
        return place is not None and place.file is not None

    def _find(self, name: str) -> _Place | None:
        """The packages around it were looked for before."""
        if name not in self._places:
            package = name.rpartition(".")[0]
            try:
                self._places[name] = _inner_place(name, self._places.get(package)) if package else _outer_place(name)
            except (ImportError, ValueError):  # ValueError where the text cannot be a module's name
                self._places[name] = None
        return self._places[name]

    def _imports(self, module: str, place: _Place) -> Iterator[str]:
        """Take a module's file in. Gives the modules that it imports."""
        if place.file is None:
            return
        package = module if place.folders else module.rpartition(".")[0]
        source = self._take("/".join((*_parts(package), place.file.name)), place.file)
        try:
            imports = imports_of(source) if source is not None else _UNKNOWN
        except _NO_PYTHON as error:
            raise TaskMissingError(f"The module {module} is not Python", got=str(error)) from error
        yield from self._meant(package, imports)
        if not imports.are_all and not self._is_whole:
            self._is_whole = True
            for outermost in sorted(self._packages):
                self._take_all(outermost)

    def _take_all(self, package: str) -> None:
        """Take all modules of a top-level package in. What does not parse cannot run."""
        for folder in self._folders(package):
            for path in _modules_below(Path(folder)):
                name = "/".join((package, *path.relative_to(folder).parts))
                if name not in self.files:  # else read, or behind a file of the same name that comes first
                    self._take(name, path)

    def _take(self, name: str, path: Path) -> bytes | None:
        """Note a file. Gives its content if that is source."""
        if name not in self.files and len(self.files) >= MAX_FILES:
            raise TaskMissingError("The task reaches too many files to be compared", expected=f"at most {MAX_FILES}")
        try:
            if path.suffix != ".py":
                with path.open("rb") as file:
                    self.files[name] = hashlib.file_digest(file, "sha256").digest()
                return None
            size = path.stat().st_size
            self._source_bytes += size
            if size > MAX_FILE_BYTES or self._source_bytes > MAX_SOURCE_BYTES:
                raise TaskMissingError(
                    "The task reaches more source than is compared",
                    expected=f"at most {MAX_FILE_BYTES} bytes a file and {MAX_SOURCE_BYTES} together",
                    got=f"{name} among it",
                )
            source = path.read_bytes()
        except OSError as error:
            raise TaskMissingError(f"Cannot read {name}", got=error.strerror or "") from error
        self.files[name] = hashlib.sha256(source).digest()
        return source

    def _meant(self, package: str, imports: Imports) -> Iterator[str]:
        """The modules that statements in ``package`` import, as far as they are of our packages."""
        around = _parts(package)
        for dots, named, names in imports.statements:
            if dots > len(around):
                continue  # beyond the top: fails when it runs
            module = ".".join((*around[: len(around) - dots + 1], *_parts(named))) if dots else named
            if module.partition(".")[0] not in self._packages:
                continue
            if not names:
                yield module
            for name in names:
                # A star imports the modules that ``__all__`` of the package names: any of them.
                inner = [each.name for each in pkgutil.iter_modules(self._folders(module))] if name == "*" else [name]
                yield from (module, *(f"{module}.{each}" for each in inner))

    def _folders(self, package: str) -> tuple[str, ...]:
        place = None
        for name in _outermost_first(package):
            place = self._find(name)
        return place.folders if place is not None else ()


def _outer_place(name: str) -> _Place | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None else _Place(_file_of(spec), tuple(spec.submodule_search_locations or ()))


def _inner_place(name: str, around: _Place | None) -> _Place | None:
    """Not ``find_spec`` of a dotted name: that imports the packages around it."""
    if around is None:
        return None
    try:
        spec = _found(name, around.folders)
        if spec is None:
            return None
        if spec.origin is not None:
            return _Place(_file_of(spec), tuple(spec.submodule_search_locations or ()))
    except KeyError:  # of a folder without __init__.py, where the package around it was not imported
        pass
    folders = (Path(folder, name.rpartition(".")[2]) for folder in around.folders)
    return _Place(None, tuple(str(folder) for folder in folders if folder.is_dir()))


def _found(name: str, folders: tuple[str, ...]) -> ModuleSpec | None:
    """As an import would find it: what is installed for its development may be found by a finder of its own."""
    for finder in sys.meta_path:
        if hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, folders)
            if spec is not None:
                return spec
    return None


def _file_of(spec: ModuleSpec) -> Path | None:
    return Path(spec.origin) if spec.origin is not None and spec.has_location else None


@lru_cache(maxsize=2 * MAX_FILES)
def imports_of(source: bytes) -> Imports:
    """What a source file imports. Kept by its content, so nothing goes stale; for as many files as two tasks may have,
    for a task that did not fit would be parsed anew each time.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is not Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about others' source
        tree = ast.parse(source)
    statements: list[tuple[int, str, tuple[str, ...]]] = []
    are_all = True
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                statements += [(0, alias.name, ()) for alias in node.names]
            case ast.ImportFrom():
                statements.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        are_all = are_all and not _runs_what_is_not_shown(node)
    return Imports(tuple(dict.fromkeys(statements)), are_all)


def _runs_what_is_not_shown(node: ast.AST) -> bool:
    match node:
        case ast.Import():
            return any(
                alias.name.partition(".")[0] in _RUN_BY_NAME or (alias.name == "sys" and alias.asname is not None)
                for alias in node.names
            )
        case ast.ImportFrom(level=0, module=str(module)):
            return (
                module.partition(".")[0] in _RUN_BY_NAME
                or (module == "sys" and any(alias.name in _STEER_IMPORTS for alias in node.names))
                or any(alias.name == "sys" for alias in node.names)
            )
        case ast.Name():
            return node.id in _RUN_A_TEXT
        case ast.Attribute(value=ast.Name(id="sys")):
            return node.attr in _STEER_IMPORTS
        case ast.Attribute(value=ast.Name(id="torch"), attr="load"):  # unpickles
            return True
        case ast.Attribute(attr="sys"):  # os.sys
            return True
        case _:
            return False


def _outermost_first(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _parts(module: str) -> list[str]:
    return module.split(".") if module else []


def _modules_below(folder: Path) -> Iterator[Path]:
    """Importable files, in a fixed order; through links too, for imports go through them."""
    suffixes, seen = tuple(all_suffixes()), set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        paths = (Path(where, name) for name in sorted(names) if name.endswith(suffixes))
        yield from (path for path in paths if _is_file(path))


def _is_file(path: Path) -> bool:
    """A link to a name that is too long is none."""
    try:
        return path.is_file()
    except OSError:
        return False
