"""A site's commands for upgrades, backup and restore."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from quorate.errors import EXIT_INPUT, EXIT_REFUSED
from quorate_client.ledger.file import LEDGER_LAYOUT
from quorate_client.site.database import STATE_LAYOUT
from quorate_client.site.folder import SiteFolder
from tests.patience import PATIENCE_S

from ..command_kit import Result, Run, runner
from ..ledger_kit import NO_LIMITS, NOW, a_charge, opened
from ..site.test_layout import made, told


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, joined: SiteFolder) -> Run:
    return runner(capsys, monkeypatch, joined)


@pytest.fixture
def old(joined: SiteFolder) -> SiteFolder:
    """A site of the version before."""
    for path, layout in ((joined.database, STATE_LAYOUT), (joined.ledger, LEDGER_LAYOUT)):
        path.unlink(missing_ok=True)
        made(path, replace(layout, steps=()))
    return joined


def daemon(site: SiteFolder) -> Result:
    """A daemon that does not come to its work, as a process of its own: it opens a log."""
    line = [sys.executable, "-m", "quorate_client.cli", "run", "--state", site.root, "--log-level", "error"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return Result(done.returncode, done.stdout, done.stderr)


def layouts(site: SiteFolder) -> list[int]:
    return [told(site.database)[0], told(site.ledger)[0]]


def test_upgrade_says_what_it_would_do_and_does_it(run: Run, old: SiteFolder) -> None:
    result = run("upgrade", "--check")
    assert result.code == 0
    assert "state.sqlite: would go from layout 4 to 7." in result.out
    assert layouts(old) == [4, 3]
    result = run("upgrade")
    assert "ledger.sqlite: went from layout 3 to 4." in result.out
    assert str(old.ledger.with_name("ledger.sqlite.before-4")) in result.out
    assert layouts(old) == [7, 4]
    assert run("upgrade").out.count("nothing to do") == 2
    assert [each["steps"] for each in run("upgrade", "--check", "--json").json()] == [[], []]


def test_other_commands_do_not_touch_an_older_database_and_say_what_to_type(run: Run, old: SiteFolder) -> None:
    """The daemon of the version before may still be at work on it."""
    for command in (("status",), ("pause",), ("data", "list"), ("ledger", "show")):
        result = run(*command)
        assert result.code == EXIT_INPUT
        assert "quorate-client upgrade" in result.err
    finding = next(each for each in run("doctor", "--json").json() if each["step"] == "databases")
    assert (finding["verdict"], "upgrade is pending" in finding["text"]) == ("failed", True)
    assert layouts(old) == [4, 3]
    run("upgrade")
    finding = next(each for each in run("doctor", "--json").json() if each["step"] == "databases")
    assert (finding["verdict"], finding["text"]) == (
        "ok",
        "of this version's layouts: state.sqlite 7, ledger.sqlite 4",
    )


def test_nothing_is_upgraded_under_a_running_daemon(run: Run, old: SiteFolder) -> None:
    with old.held_by_this_daemon():
        assert "already runs" in run("upgrade").err
        assert run("upgrade", "--check").code == 0
    assert layouts(old) == [4, 3]


def test_a_newer_database_ends_every_command_with_one_line(run: Run, old: SiteFolder) -> None:
    run("upgrade")
    with closing(sqlite3.connect(old.database)) as database:
        database.execute("PRAGMA user_version=8")
    for command in (daemon(old), run("upgrade"), run("status")):
        assert command.code == EXIT_INPUT
        assert "Expected layout 7; got layout 8" in command.err
        assert command.err.strip().count("\n") == 0
    with closing(sqlite3.connect(old.database)) as database:
        database.execute("PRAGMA user_version=7")
    with closing(sqlite3.connect(old.ledger)) as database:
        database.execute("PRAGMA user_version=9")
    assert daemon(old).code == EXIT_REFUSED


def test_a_database_that_is_gone_is_not_made_anew(run: Run, joined: SiteFolder) -> None:
    joined.database.unlink()
    for result in (daemon(joined), run("status"), run("ledger", "show"), run("data", "list")):
        assert (result.code, "quorate-client restore" in result.err) == (EXIT_INPUT, True)
    assert not joined.database.exists()
    assert not joined.ledger.exists()
    finding = next(each for each in run("doctor", "--json").json() if each["step"] == "databases")
    assert finding["verdict"] == "failed"


def test_a_backup_says_that_it_holds_keys_and_a_restore_which_ledger_counts(
    run: Run, joined: SiteFolder, tmp_path: Path
) -> None:
    with opened(joined.root) as ledger:
        ledger.reserve(a_charge(1), NO_LIMITS, NOW)
    backup = tmp_path / "backup"
    result = run("backup", backup)
    assert (result.code, "secret keys, unsealed" in result.err) == (0, True)
    assert backup.stat().st_mode & 0o777 == 0o600
    result = run("restore", backup)
    assert (result.code, "--replace" in result.err) == (EXIT_INPUT, True)
    with opened(joined.root) as ledger:
        ledger.reserve(a_charge(2), NO_LIMITS, NOW)
    result = run("restore", backup, "--replace")
    assert result.code == 0
    assert "The privacy ledger is the one that was there" in result.out
    shutil.rmtree(joined.root)
    result = run("restore", backup)
    assert result.code == 0
    assert "The privacy ledger is the backup's" in result.err
    assert "votes_forgotten" in result.out
    assert run("status").code == 0


def test_a_sealed_backup_opens_with_its_passphrase_only(run: Run, joined: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    (tmp_path / "other").write_text("incorrect horse battery\n")
    made = run("backup", tmp_path / "b", "--passphrase-file", tmp_path / "passphrase", "--json")
    assert made.json()["sealed"]
    shutil.rmtree(joined.root)
    for options in ((), ("--passphrase-file", tmp_path / "other")):
        assert run("restore", tmp_path / "b", *options).code == EXIT_INPUT
        assert not joined.keys.exists()
    assert run("restore", tmp_path / "b", "--passphrase-file", tmp_path / "passphrase", "--json").json() == {
        "site": "north",
        "kept_ledger": False,
        "set_aside": None,
    }
