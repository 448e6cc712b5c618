"""Layouts of a site's files: numbered steps, all or nothing, with a copy of what was before."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from quorate import __version__
from quorate.errors import DiskFullError, LedgerError, QuorateError, StorageError, WrongStateError
from quorate_client.approval.datasets import Datasets
from quorate_client.ledger.file import LEDGER_LAYOUT, open_file
from quorate_client.ledger.upgrading import upgrade_site
from quorate_client.site.database import STATE_LAYOUT, make_state, open_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.layout import (
    KEEP_HISTORY,
    Layout,
    Step,
    fill,
    new_file,
    pending,
    require_newest,
    upgrade,
)
from tests.dying import is_refused_to_nobody, killed_at
from tests.patience import PATIENCE_S

from ..synthetic_sets import REAL

BOTH = pytest.mark.parametrize("layout", [STATE_LAYOUT, LEDGER_LAYOUT], ids=["state", "ledger"])
# A file of three layouts, whose last step moves what is in it: there is no such one at a site yet.
NOTES = Layout(
    "The notes",
    first=1,
    schema="CREATE TABLE notes (text TEXT NOT NULL) STRICT;",
    steps=(
        KEEP_HISTORY,
        Step(
            "notes have numbers",
            "CREATE TABLE numbered (number INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;"
            "INSERT INTO numbered (text) SELECT text FROM notes;"
            "DROP TABLE notes;",
        ),
    ),
    refusal=WrongStateError,
)

MORE = Step("more", "CREATE TABLE more (a TEXT) STRICT;")
WRONG = Step("wrong", "INSERT INTO nowhere VALUES (1);")


def first_of(layout: Layout) -> Layout:
    return replace(layout, steps=())


def made(path: Path, layout: Layout, *statements: str) -> Path:
    new_file(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        fill(database, layout)
        for statement in statements:
            database.execute(statement)
    return path


def told(path: Path) -> tuple[int, dict[str, list[tuple[Any, ...]]]]:
    """The number, and what is in each table."""
    with closing(sqlite3.connect(path)) as database:
        (number,) = database.execute("PRAGMA user_version").fetchone()
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(names)}  # noqa: S608
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return number, rows


def schema(path: Path) -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return {tuple(row) for row in database.execute("SELECT type, name, sql FROM sqlite_master")}


OLD = {"notes": [("one",), ("two",)]}


def old_notes(folder: Path) -> Path:
    return made(folder / "notes.sqlite", first_of(NOTES), "INSERT INTO notes VALUES ('one'), ('two')")


# --- what an upgrade does ---


@BOTH
def test_an_upgraded_file_looks_like_a_new_one(tmp_path: Path, layout: Layout) -> None:
    upgraded = made(tmp_path / "old", first_of(layout))
    assert upgrade(upgraded, layout).steps
    assert schema(upgraded) == schema(made(tmp_path / "new", layout))
    assert told(upgraded)[0] == layout.newest


def test_what_is_in_the_file_moves_along_and_a_copy_of_what_was_is_kept(tmp_path: Path) -> None:
    path = old_notes(tmp_path)
    todo = pending(path, NOTES)
    assert todo.steps == (KEEP_HISTORY.what, "notes have numbers")
    assert told(path) == (1, OLD)  # so far nothing was done
    assert upgrade(path, NOTES) == todo
    number, tables = told(path)
    assert number == 3
    assert tables["numbered"] == [(1, "one"), (2, "two")]
    assert [row[:2] for row in tables["layouts"]] == [(2, __version__), (3, __version__)]
    assert todo.copy == tmp_path / "notes.sqlite.before-3"
    assert told(todo.copy) == (1, OLD)
    assert todo.copy.stat().st_mode & 0o777 == 0o600


def test_data_sets_of_the_layout_before_are_real_ones_and_stay_the_ones_that_they_were(tmp_path: Path) -> None:
    before = replace(STATE_LAYOUT, steps=STATE_LAYOUT.steps[:1])
    path = made(
        tmp_path / "state.sqlite",
        before,
        "INSERT INTO datasets VALUES ('visits', 'tabular', '/data/visits.csv', '{\"kind\": \"tabular\"}', 0.25, "
        "120, NULL, 'c0', '/site/records/ab', 7.0)",
    )
    assert upgrade(path, STATE_LAYOUT).steps == (
        "what a synthetic data set was made from, and how",
        "for which study each reply is",
    )
    with closing(open_state(path)) as state:
        assert Datasets(state, lambda: 0.0).all() == [REAL]


def test_an_upgrade_that_is_done_does_nothing(tmp_path: Path) -> None:
    path = old_notes(tmp_path)
    upgrade(path, NOTES)
    before = told(path)
    assert upgrade(path, NOTES).steps == ()
    assert told(path) == before


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert upgrade(tmp_path / "none", NOTES).steps == ()
    assert list(tmp_path.iterdir()) == []


# --- what is refused ---


def test_a_newer_file_is_refused_with_what_to_install(tmp_path: Path) -> None:
    path = made(tmp_path / "notes.sqlite", replace(NOTES, steps=(*NOTES.steps, MORE)))
    before = told(path)
    for attempt in (pending, upgrade):
        with pytest.raises(WrongStateError) as refused:
            attempt(path, NOTES)
        assert (refused.value.expected, refused.value.got) == ("layout 3", f"layout 4, by Quorate {__version__}")
        assert refused.value.action == f"Install Quorate {__version__} or a newer one"
        assert str(refused.value).count("\n") == 0
    assert told(path) == before
    assert not list(tmp_path.glob("*.before-*"))


@BOTH
def test_a_site_s_files_are_opened_in_one_layout_only(tmp_path: Path, layout: Layout) -> None:
    is_state = layout is STATE_LAYOUT
    for number, name, match in (
        (layout.first - 1, "ancient", "too old"),
        (layout.first, "older", "quorate-client upgrade"),
        (layout.newest + 1, "newer", "newer version"),
    ):
        path = made(tmp_path / name, layout, f"PRAGMA user_version={number}")
        with pytest.raises(layout.refusal, match=match) as refused:
            open_state(path) if is_state else open_file(path)
        assert refused.value.exit_code == (2 if is_state else 3)


def test_a_database_that_is_gone_or_empty_is_not_made_anew_by_opening_it(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with pytest.raises(WrongStateError, match="quorate-client restore"):
        open_state(path)
    assert list(tmp_path.iterdir()) == []
    path.touch()
    with pytest.raises(WrongStateError, match="is empty"):
        open_state(path)


# --- what may befall it ---


def test_both_files_or_neither_when_one_is_newer(tmp_path: Path) -> None:
    folder = SiteFolder(tmp_path)
    made(folder.database, first_of(STATE_LAYOUT))
    made(folder.ledger, LEDGER_LAYOUT, "PRAGMA user_version=99")
    with pytest.raises(LedgerError, match="newer"):
        upgrade_site(folder)
    assert told(folder.database)[0] == STATE_LAYOUT.first


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = old_notes(tmp_path)
    broken = replace(NOTES, steps=(*NOTES.steps, WRONG))
    with pytest.raises(StorageError):
        upgrade(path, broken)
    assert told(path) == (1, OLD)


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """The file may not become larger than it is: the copy has room, the steps have none."""
    path = old_notes(tmp_path)
    script = (
        "import resource, signal, sys; from pathlib import Path; from tests.client.site.test_layout import NOTES\n"
        "from quorate_client.site.layout import upgrade\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "upgrade(Path(sys.argv[1]), NOTES)"
    )
    for size in (1_000, 9_000):
        done = subprocess.run(
            [sys.executable, "-c", script, path, str(size)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode != 0
        assert "errors.DiskFullError" in done.stderr or "errors.StorageError" in done.stderr
        assert told(path) == (1, OLD)
        assert not (tmp_path / "notes.sqlite.before-3.part").exists()
    assert upgrade(path, NOTES).steps


def test_a_full_database_is_told_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_notes(tmp_path)
    connect = sqlite3.connect

    def limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*arguments, **options)
        if arguments[0] == path:
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            database.execute(f"PRAGMA max_page_count={pages}")
        return database

    monkeypatch.setattr(sqlite3, "connect", limited)
    with pytest.raises(DiskFullError):
        upgrade(path, NOTES)
    monkeypatch.undo()
    assert told(path) == (1, OLD)


def test_a_folder_that_cannot_be_written_changes_nothing() -> None:
    with TemporaryDirectory(dir="/tmp") as root:  # which another user reaches: root may write anywhere
        folder = Path(root)
        path = old_notes(folder)
        path.chmod(0o444)
        folder.chmod(0o555)
        assert is_refused_to_nobody(lambda: upgrade(path, NOTES), StorageError)
        folder.chmod(0o755)
        assert told(path) == (1, OLD)


WATCHED = ("site/layout.py", "process/backup/sqlite_copy.py", "process/private_files.py")


def test_whoever_is_killed_at_any_step_leaves_the_layout_before_or_the_one_after() -> None:
    memory = Path("/dev/shm")  # noqa: S108  # a kill leaves all that was written, on whatever disk
    layouts = []
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as root:
        for step in range(1, 1000):
            folder = Path(root) / f"{step}"
            folder.mkdir()
            path = old_notes(folder)
            child = os.fork()
            if child == 0:
                sys.settrace(killed_at(step, WATCHED))
                upgrade(path, NOTES)
                os._exit(0)
            if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                break
            number, tables = told(path)
            layouts.append(number)
            assert (number, "numbered" in tables, "notes" in tables) in {(1, False, True), (3, True, False)}, step
            copy = folder / "notes.sqlite.before-3"
            assert not copy.exists() or told(copy) == (1, OLD)
            assert number == 1 or copy.exists()
            upgrade(path, NOTES)
            assert told(path)[1]["numbered"] == [(1, "one"), (2, "two")]
            assert {each.name for each in folder.iterdir()} <= {path.name, copy.name}
    assert len(layouts) > 60
    assert layouts == sorted(layouts)
    assert set(layouts) == {1, 3}


def test_of_two_processes_that_upgrade_at_once_one_does_it_and_the_other_finds_it_done(tmp_path: Path) -> None:
    path = old_notes(tmp_path)
    script = (
        "import sys; from pathlib import Path; from tests.client.site.test_layout import NOTES\n"
        "from quorate_client.site.layout import upgrade\n"
        "sys.stdin.readline(); print(len(upgrade(Path(sys.argv[1]), NOTES).steps))"
    )
    racing = [
        subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    steps = [int(process.communicate(timeout=PATIENCE_S)[0]) for process in racing]
    assert set(steps) <= {0, 2}
    assert 2 in steps
    number, tables = told(path)
    assert (number, tables["numbered"]) == (3, [(1, "one"), (2, "two")])
    assert len(tables["layouts"]) == 2


def test_a_new_state_is_private_from_its_first_byte(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_state(tmp_path / "state.sqlite")
    finally:
        os.umask(old)
    assert (tmp_path / "state.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_layout_that_is_not_the_newest_is_not_used(tmp_path: Path) -> None:
    path = old_notes(tmp_path)
    with closing(sqlite3.connect(path)) as database, pytest.raises(QuorateError, match="Restart the site's daemon"):
        require_newest(database, path, NOTES)
