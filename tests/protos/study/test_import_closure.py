"""What an import of a module can run: read from source, never by running it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorate.errors import TaskMissingError
from quorate.study import import_closure
from quorate.study.import_closure import MAX_FILE_BYTES, MAX_FILES, MAX_SOURCE_BYTES, imports_of, reached_files

Write = Callable[[dict[str, str]], Path]

EXTENSION = importlib.machinery.EXTENSION_SUFFIXES[-1]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write importable modules. None of them may be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def _write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return tmp_path

    yield _write
    assert not [name for name in sys.modules if name.partition(".")[0] in ("ward", "clinic", "alone")]


def reached(start: str, *packages: str) -> set[str]:
    return set(reached_files((start,), frozenset({start.partition(".")[0], *packages})))


BESIDE = {
    "ward/__init__.py": "raise SystemExit('it ran')\n",
    "ward/a.py": "raise SystemExit('it ran')\n",
    "ward/b.py": "",
    "ward/c.py": "",
    "ward/inner/__init__.py": "",
    "ward/inner/d.py": "",
    "ward/inner/e.py": "",
}
"""Nothing in it imports anything yet; ``ward.task`` comes beside it."""


@pytest.mark.parametrize(
    ("statement", "more"),
    [
        ("", []),
        ("import ward.a", ["a"]),
        ("import ward.a as other, ward.b", ["a", "b"]),
        ("import ward.inner.d", ["inner/__init__", "inner/d"]),
        ("from ward import a", ["a"]),
        ("from ward import a as b", ["a"]),
        ("from ward.a import whatever", ["a"]),
        ("from ward import inner", ["inner/__init__"]),
        ("from ward.inner import d, VALUE", ["inner/__init__", "inner/d"]),
        ("from . import a", ["a"]),
        ("from .a import *", ["a"]),
        ("from .inner.d import x", ["inner/__init__", "inner/d"]),
        ("from .inner import *", ["inner/__init__", "inner/d", "inner/e"]),
        ("from .. import beyond", []),
        ("from ..ward import a", []),
        ("from ward.nothing import x\nimport ward.nothing.more", []),
        ("import os, numpy.linalg\nfrom json import decoder", []),
        ("def open():\n    from ward.a import x", ["a"]),
        ("class Session:\n    async def train(self):\n        import ward.a", ["a"]),
        ("try:\n    import ward.a\nexcept ImportError:\n    import ward.b\nelse:\n    import ward.c", ["a", "b", "c"]),
        ("import sys\nif sys.platform == 'win32':\n    import ward.a\nelse:\n    import ward.b", ["a", "b"]),
        ("if 0: import ward.a", ["a"]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ward.a\nelse:\n    import ward.b",
            ["a", "b"],
        ),
        ("import typing as t\nif t.TYPE_CHECKING:\n    import ward.a", ["a"]),
        ("from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import ward.a", ["a"]),
        ("'import ward.a'  # import ward.b", []),
    ],
)
def test_import_statements_are_followed_wherever_they_stand(write: Write, statement: str, more: list[str]) -> None:
    write(BESIDE | {"ward/task.py": statement})
    assert reached("ward.task") == {f"ward/{name}.py" for name in ("__init__", "task", *more)}


def test_what_is_reached_is_followed_in_turn_and_circles_end(write: Write) -> None:
    write(
        BESIDE
        | {
            "ward/task.py": "from . import a",
            "ward/a.py": "from .inner import d",
            "ward/inner/d.py": "from .. import b",
        }
        | {"ward/inner/__init__.py": "from ward import task", "ward/b.py": "from ward.inner.d import x"}
    )
    names = ("__init__", "task", "a", "b", "inner/__init__", "inner/d")
    assert reached("ward.task") == {f"ward/{name}.py" for name in names}


def test_other_packages_count_only_where_they_are_asked_for(write: Write) -> None:
    write(BESIDE | {"ward/task.py": "import clinic.x", "clinic/__init__.py": "", "clinic/x.py": "from ward import a"})
    assert reached("ward.task") == {"ward/__init__.py", "ward/task.py"}
    assert reached("ward.task", "clinic") == {
        *("ward/__init__.py", "ward/task.py", "ward/a.py"),
        *("clinic/__init__.py", "clinic/x.py"),
    }


@pytest.mark.parametrize(
    "statement",
    [
        "import importlib",
        "import importlib.util",
        "from importlib import import_module as get",
        "def get(name):\n    return __import__(name)",
        "exec('import ward.a')",
        "run = eval",
        "compile('import ward.a', '', 'exec')",
        "import runpy",
        "import pickle",
        "import subprocess",
        "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)",
        "__path__.append('elsewhere')",
        "import builtins",
        "__builtins__",
        "import sys\nsys.path.insert(0, 'ward')",
        "from sys import modules",
        "import sys as s\ns.path.insert(0, 'ward')",
        "import os\nos.sys.path.insert(0, 'ward')",
        "from os import sys",
        "import ctypes",
        "__package__ = 'ward.inner'\nfrom .d import x",
        "import torch\ntorch.load('model', weights_only=False)",
    ],
)
def test_where_a_module_runs_what_no_statement_shows_the_whole_package_counts(write: Write, statement: str) -> None:
    write(BESIDE | {"ward/task.py": "from . import b", "ward/b.py": statement, "clinic/__init__.py": ""})
    whole = {*BESIDE, "ward/task.py"}
    assert reached("ward.task") == whole
    write({"ward/new.py": "", "ward/folder/without/init.py": "", "ward/notes.txt": "", "ward/__pycache__/a.pyc": ""})
    assert reached("ward.task") == whole | {"ward/new.py", "ward/folder/without/init.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "model.eval()",
        "re.compile('x')",
        "sys.exit()",
        "from importers import importlib_of_ours",
        "from . import runpy",
        "from .inner import pickle",
        "'exec'",
        "from typing import TYPE_CHECKING",
    ],
)
def test_what_only_reads_alike_runs_nothing(write: Write, statement: str) -> None:
    write(BESIDE | {"ward/task.py": statement})
    assert "ward/a.py" not in reached("ward.task")


def test_what_is_loaded_by_name_may_be_of_the_other_packages_too(write: Write) -> None:
    write(BESIDE | {"ward/task.py": "import importlib", "ward/broken.py": "this is no Python"})
    write({"clinic/__init__.py": "", "clinic/x.py": ""})
    assert reached("ward.task", "clinic") >= {*BESIDE, "ward/broken.py", "clinic/__init__.py", "clinic/x.py"}


def test_no_name_in_a_study_makes_a_site_parse_for_minutes(write: Write) -> None:
    write({"ward/__init__.py": "", "ward/task.py": "x = 1\n" * (MAX_FILE_BYTES // 6 + 1)})
    with pytest.raises(TaskMissingError, match="more source"):
        reached("ward.task")
    part = "#" * (MAX_FILE_BYTES - 10)
    count = MAX_SOURCE_BYTES // (MAX_FILE_BYTES - 10) + 1
    write({"ward/task.py": "".join(f"from . import m{number}\n" for number in range(count))})
    write({f"ward/m{number}.py": part for number in range(count)})
    with pytest.raises(TaskMissingError, match="more source"):
        reached("ward.task")


def test_a_link_to_a_name_that_is_too_long_is_no_module(write: Write, tmp_path: Path) -> None:
    write(BESIDE | {"ward/task.py": "import importlib"})
    before = reached("ward.task")
    folder = next(path.parent for path in tmp_path.rglob("task.py"))
    (folder / "link.py").symlink_to("x" * 300)
    assert reached("ward.task") == before


def test_a_compiled_module_counts_and_so_does_all_that_it_might_import(write: Write) -> None:
    write(BESIDE | {"ward/task.py": "from ward import fast", f"ward/fast{EXTENSION}": "machine code"})
    before = reached_files(("ward.task",), frozenset({"ward"}))
    assert set(before) == {*BESIDE, "ward/task.py", f"ward/fast{EXTENSION}"}
    write({f"ward/fast{EXTENSION}": "other machine code"})
    assert reached_files(("ward.task",), frozenset({"ward"})) != before


def test_a_compiled_module_that_is_not_imported_does_not_count(write: Write) -> None:
    write(BESIDE | {"ward/task.py": "", f"ward/fast{EXTENSION}": "machine code"})
    assert reached("ward.task") == {"ward/__init__.py", "ward/task.py"}


def test_what_shadows_a_module_counts_in_its_place(write: Write) -> None:
    write(BESIDE | {"ward/task.py": "from ward import a", "ward/a/__init__.py": "from . import more, b"})
    write({"ward/a/more.py": ""})
    assert reached("ward.task") == {"ward/__init__.py", "ward/task.py", "ward/a/__init__.py", "ward/a/more.py"}


def test_a_module_alone_is_itself_whatever_it_runs(write: Write) -> None:
    write({"alone.py": "import importlib, clinic\nfrom . import clinic\nfrom alone import *", "clinic.py": ""})
    assert reached("alone") == {"alone.py"}


def test_packages_without_init_are_packages(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"ward/inner/task.py": "from . import d\nfrom ward.other import e", "ward/inner/d.py": "import importlib"})
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "ward" / "other").mkdir(parents=True)
    (elsewhere / "ward" / "other" / "e.py").write_text("")
    (elsewhere / "ward" / "f.py").write_text("")
    monkeypatch.syspath_prepend(str(elsewhere))
    names = {"ward/inner/task.py", "ward/inner/d.py", "ward/other/e.py"}
    assert reached("ward.inner.task") == names | {"ward/f.py"}


def test_links_are_gone_through_and_a_circle_of_them_ends(write: Write, tmp_path: Path) -> None:
    real = write(
        {"real/__init__.py": "from . import linked", "real/task.py": "", "far/x.py": "", "far/__init__.py": ""}
    )
    (real / "ward").symlink_to("real")
    (real / "real" / "linked").symlink_to(real / "far")
    assert reached("ward.task") == {"ward/__init__.py", "ward/task.py", "ward/linked/__init__.py"}
    (real / "real" / "task.py").write_text("import importlib")
    (real / "far" / "back").symlink_to(real / "real")
    (real / "far" / "gone.py").symlink_to("nowhere")
    importlib.invalidate_caches()
    names = {"ward/__init__.py", "ward/task.py", "ward/linked/__init__.py", "ward/linked/x.py"}
    assert reached("ward.task") == names


def test_where_it_is_installed_does_not_matter(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(dict.fromkeys(BESIDE, "import importlib"))
    here = reached_files(("ward.a",), frozenset({"ward"}))
    (tmp_path / "ward").rename(tmp_path / "moved")
    (tmp_path / "another").mkdir()
    (tmp_path / "moved").rename(tmp_path / "another" / "ward")
    monkeypatch.syspath_prepend(str(tmp_path / "another"))
    assert reached_files(("ward.a",), frozenset({"ward"})) == here


@pytest.mark.parametrize(
    "source",
    ["def f(:\n", "print 'old'\n", "\x00", "(" * 500 + ")" * 500, "-" * 100_000 + "1"],
    ids=lambda text: text[:5],
)
def test_a_module_that_is_not_python_is_named(write: Write, source: str) -> None:
    write(BESIDE | {"ward/task.py": "from ward import a", "ward/a.py": source})
    with pytest.raises(TaskMissingError, match=r"The module ward\.a is not Python"):
        reached("ward.task")


def test_what_is_no_file_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "ward.zip", "w") as archive:
        archive.writestr("ward/__init__.py", "")
        archive.writestr("ward/task.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "ward.zip"))
    with pytest.raises(TaskMissingError, match=r"Cannot read ward/__init__\.py"):
        reached("ward.task")


def test_source_is_read_in_its_own_encoding_and_without_warnings(write: Write) -> None:
    root = write(BESIDE | {"ward/task.py": ""})
    (root / "ward" / "task.py").write_bytes(b"# coding: latin-1\n'\xe4\\d'\nfrom ward import a\n")
    assert "ward/a.py" in reached("ward.task")


def test_a_tree_of_a_frameworks_size_is_no_task(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_closure, "MAX_FILES", len(BESIDE))
    write(BESIDE | {"ward/task.py": ""})
    reached("ward.task")
    write({"ward/task.py": "import importlib"})
    with pytest.raises(TaskMissingError, match="too many files"):
        reached("ward.task")


def test_a_changed_file_is_seen_at_once(write: Write) -> None:
    root = write(BESIDE | {"ward/task.py": "from . import a"})
    assert "ward/a.py" in reached("ward.task")
    (root / "ward" / "task.py").write_text("from . import b")  # of the same length, in the same moment
    assert reached("ward.task") == {"ward/__init__.py", "ward/task.py", "ward/b.py"}


class EditableFinder:
    """As setuptools installs what is being worked on and lies in another folder than its name says."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = places

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        place = self._places.get(fullname)
        if place is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, place / "__init__.py", submodule_search_locations=[str(place)]
        )


def test_a_package_is_found_where_its_installation_says(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(
        {
            "ward/__init__.py": "",
            "ward/task.py": "from ward.inner import a",
            "elsewhere/__init__.py": "",
            "elsewhere/a.py": "",
        }
    )
    # One of before Python 3.4 is among them.
    monkeypatch.setattr(
        sys, "meta_path", [*sys.meta_path, object(), EditableFinder({"ward.inner": root / "elsewhere"})]
    )
    assert reached("ward.task") == {"ward/__init__.py", "ward/task.py", "ward/inner/__init__.py", "ward/inner/a.py"}


def test_of_a_task_that_has_not_changed_nothing_is_parsed_again(write: Write) -> None:
    """The daemon asks every few seconds. As many files as there may be are remembered, else none of them were."""
    names = [f"part_{number}" for number in range(MAX_FILES - 2)]
    write({"ward/__init__.py": "", "ward/task.py": "".join(f"from . import {name}\n" for name in names)})
    write({f"ward/{name}.py": f"NUMBER = {number}" for number, name in enumerate(names)})
    assert len(reached("ward.task")) == MAX_FILES
    before = imports_of.cache_info().misses
    assert len(reached("ward.task")) == MAX_FILES
    assert imports_of.cache_info().misses == before


def test_imports_are_remembered_by_what_the_source_says() -> None:
    assert imports_of(b"import ward.a") is imports_of(b"".join((b"import ", b"ward.a")))
    assert imports_of(b"import ward.a") != imports_of(b"import ward.b")
