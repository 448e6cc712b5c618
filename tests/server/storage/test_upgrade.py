"""The server's database is brought from layout to layout, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

import quorate_server.consortium.tables
import quorate_server.storage.journal_tables  # noqa: F401  # all tables are declared
from quorate.errors import AlreadyExistsError, DiskFullError, StorageError, WrongStateError
from quorate.identity import SiteName
from quorate.process.backup.sqlite_copy import open_to_read
from quorate_server.storage import upgrade as upgrading
from quorate_server.storage.database import FIRST_LAYOUT, LAYOUT, METADATA, open_database
from quorate_server.storage.journal import Journal, Visit
from quorate_server.storage.upgrade import make_database, pending_upgrade, upgrade_database
from tests.dying import is_refused_to_nobody, killed_at
from tests.patience import PATIENCE_S

EAST = SiteName("east")


def run(url: str, *statements: str) -> list[Any]:
    """Returns what the last one gives."""
    engine = create_engine(url)
    try:
        with engine.begin() as db:
            results = [db.execute(text(statement)) for statement in statements]
            return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []
    finally:
        engine.dispose()


def old_database(url: str) -> str:
    """As the version before layouts had numbers wrote it, with a site that connected twice."""
    make_database(url)
    run(
        url,
        "DROP TABLE alembic_version",
        "ALTER TABLE sessions DROP COLUMN version",
        "ALTER TABLE sessions DROP COLUMN connected_unix_s",
        "INSERT INTO sessions (site, number) VALUES ('east', 2)",
    )
    return url


def columns(url: str, table: str = "sessions") -> set[str]:
    engine = create_engine(url)
    try:
        return {column["name"] for column in inspect(engine).get_columns(table)}
    finally:
        engine.dispose()


OLD = {"site", "number"}
NEW = OLD | {"version", "connected_unix_s"}


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """An old database."""
    path = tmp_path / "server.sqlite"
    old_database(url_of(path))
    return path


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


# --- layouts ---


def test_the_revisions_lead_to_the_tables_that_are_declared(database_url: str) -> None:
    make_database(database_url)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()
    assert ScriptDirectory(str(upgrading._MIGRATIONS)).get_heads() == [LAYOUT]
    assert ScriptDirectory(str(upgrading._MIGRATIONS)).get_bases() == [FIRST_LAYOUT]


def test_an_old_database_is_upgraded_and_keeps_what_is_in_it(database_url: str) -> None:
    old_database(database_url)
    todo = pending_upgrade(database_url)
    assert (todo.found, [step[:6] for step in todo.steps]) == (FIRST_LAYOUT, ["0002: "])
    assert columns(database_url) == OLD
    with pytest.raises(WrongStateError, match="quorate-server upgrade"):
        open_database(database_url)

    assert upgrade_database(database_url) == todo
    assert pending_upgrade(database_url).steps == ()
    assert upgrade_database(database_url).steps == ()
    engine = open_database(database_url)
    with closing(Journal(engine, lambda: 7.0)) as journal:
        assert journal.last_visits() == {EAST: Visit("", 0.0)}
        assert not journal.raise_session(EAST, 2, "0.1.0")
        assert journal.raise_session(EAST, 3, "0.1.0")
        assert journal.last_visits() == {EAST: Visit("0.1.0", 7.0)}
    engine.dispose()


def test_a_new_database_and_an_upgraded_one_have_the_same_tables(tmp_path: Path, old_file: Path) -> None:
    upgrade_database(url_of(old_file))
    make_database(url_of(tmp_path / "new.sqlite"))
    wanted = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex%' ORDER BY name"
    assert run(url_of(old_file), wanted) == run(url_of(tmp_path / "new.sqlite"), wanted)
    for (name,) in run(url_of(old_file), "SELECT name FROM sqlite_master WHERE type = 'table'"):
        assert columns(url_of(old_file), name) == columns(url_of(tmp_path / "new.sqlite"), name)


def test_a_copy_of_what_was_is_kept(old_file: Path) -> None:
    copy = upgrade_database(url_of(old_file)).copy
    assert copy == old_file.with_name("server.sqlite.before-0002")
    assert columns(url_of(copy)) == OLD
    assert run(url_of(copy), "SELECT * FROM sessions") == [("east", 2)]
    assert copy.stat().st_mode & 0o777 == 0o600


# --- what is refused ---


def test_a_newer_database_is_not_touched(database_url: str) -> None:
    make_database(database_url)
    run(database_url, "UPDATE alembic_version SET version_num = '0003'")
    for attempt in (open_database, pending_upgrade, upgrade_database, make_database):
        with pytest.raises(WrongStateError, match="newer version") as refused:
            attempt(database_url)
        assert (refused.value.expected, refused.value.got) == ("layout 0002", "layout 0003")
        assert refused.value.exit_code == 2


def test_an_empty_database_is_made_only_when_asked_for(database_url: str) -> None:
    if database_url.startswith("postgresql"):
        for attempt in (open_database, pending_upgrade, upgrade_database):
            with pytest.raises(WrongStateError, match="is empty"):
                attempt(database_url)
    make_database(database_url)
    with pytest.raises(AlreadyExistsError):
        make_database(database_url)


def test_a_file_that_is_gone_is_not_made_by_opening_it(tmp_path: Path) -> None:
    for attempt in (open_database, pending_upgrade, upgrade_database):
        with pytest.raises(WrongStateError, match="quorate-server restore"):
            attempt(url_of(tmp_path / "server.sqlite"))
    assert list(tmp_path.iterdir()) == []


def test_a_database_from_before_the_first_layout_is_refused(old_file: Path) -> None:
    run(url_of(old_file), "DROP TABLE earlier_keys")
    with pytest.raises(WrongStateError, match="too old"):
        upgrade_database(url_of(old_file))
    assert columns(url_of(old_file)) == OLD


# --- what may befall it ---


def test_a_full_disk_changes_nothing(old_file: Path) -> None:
    script = (
        "import resource, signal, sys; from quorate_server.storage.upgrade import upgrade_database\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "upgrade_database(sys.argv[1])"
    )
    # No room for the copy; room for it, and none for the steps: SQLite appends them to its log.
    run(url_of(old_file), "PRAGMA journal_mode=WAL")
    for size in (1_000, old_file.stat().st_size):
        line = [sys.executable, "-c", script, url_of(old_file), str(size)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if size == 1_000:
            assert done.returncode != 0
            assert "errors.DiskFullError" in done.stderr or "errors.StorageError" in done.stderr
            assert columns(url_of(old_file)) == OLD
        assert not list(old_file.parent.glob("*.part"))
    assert columns(url_of(old_file)) in (OLD, NEW)


def test_a_full_database_is_told_as_a_full_disk(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(connection: Any, _: Any) -> None:
        upgrading_begins(connection, _)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    with closing(sqlite3.connect(old_file)) as db:
        db.execute("VACUUM")
    upgrading_begins = upgrading._begin_by_hand
    monkeypatch.setattr(upgrading, "_begin_by_hand", limited)
    with pytest.raises(DiskFullError):
        upgrade_database(url_of(old_file))
    assert columns(url_of(old_file)) == OLD


def test_a_database_that_cannot_be_written_is_told(old_file: Path) -> None:
    with TemporaryDirectory(dir="/tmp") as root:  # which another user reaches: root may write anywhere
        path = old_file.rename(Path(root) / "server.sqlite")
        path.chmod(0o444)
        Path(root).chmod(0o555)
        assert is_refused_to_nobody(lambda: upgrade_database(url_of(path)), StorageError)
        Path(root).chmod(0o755)
        assert columns(url_of(path)) == OLD


WATCHED = ("storage/upgrade.py", "migrations/env.py", "versions/layout_0002.py")
"""The copy's own steps are gone through by ``tests/client/site/test_layout.py``."""


def test_whoever_is_killed_at_any_step_leaves_the_layout_before_or_the_one_after(old_file: Path) -> None:
    whole = old_file.read_bytes()
    memory = Path("/dev/shm")  # noqa: S108  # a kill leaves all that was written, on whatever disk
    found = []
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as root:
        for step in range(1, 1000):
            path = Path(root) / str(step) / "server.sqlite"
            path.parent.mkdir()
            path.write_bytes(whole)
            child = os.fork()
            if child == 0:
                sys.settrace(killed_at(step, WATCHED))
                upgrade_database(url_of(path))
                os._exit(0)
            if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                break
            last = path
            with closing(open_to_read(path)) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                names = {row[1] for row in db.execute("PRAGMA table_info(sessions)")}
                numbered = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            assert (names, numbered is not None) in ((OLD, False), (NEW, True)), step
            found.append(names)
        assert len(found) > 40
        assert OLD in found
        assert NEW in found
        upgrade_database(url_of(last))  # which goes on where it was killed
        assert columns(url_of(last)) == NEW


@pytest.mark.parametrize("count", [3])
def test_of_processes_that_upgrade_at_once_one_does_it(database_url: str, count: int) -> None:
    old_database(database_url)
    script = (
        "import sys; from quorate_server.storage.upgrade import upgrade_database\n"
        "sys.stdin.readline(); print(len(upgrade_database(sys.argv[1]).steps))"
    )
    line = [sys.executable, "-c", script, database_url]
    racing = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    steps = [int(process.communicate("\n", timeout=PATIENCE_S)[0]) for process in racing]
    assert sorted(steps) == [0, 0, 1]
    assert columns(database_url) == NEW
    assert run(database_url, "SELECT * FROM alembic_version") == [(LAYOUT,)]
