"""The server's commands for upgrades, backup and restore, and what a start does by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.errors import EXIT_INPUT, EXIT_OTHER, WrongStateError
from quorate_server.consortium.config import ServerConfig, held_by_server
from quorate_server.daemon import upgrade_at_start
from quorate_server.storage.database import open_database
from quorate_server.storage.upgrade import pending_upgrade
from tests.server.cli.test_cli import INIT, quorate_server
from tests.server.storage.test_upgrade import NEW, OLD, columns, run

__all__ = ["quorate_server"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def old(quorate_server: Command, tmp_path: Path) -> Path:
    """A server of the version before."""
    state = tmp_path / "server"
    quorate_server("init", state, *INIT, "--listen", "127.0.0.1:1")
    run(
        url(state),
        "DROP TABLE alembic_version",
        "ALTER TABLE sessions DROP COLUMN version",
        "ALTER TABLE sessions DROP COLUMN connected_unix_s",
    )
    return state


def url(state: Path) -> str:
    return ServerConfig.read(state).engine_url


def test_upgrade_says_what_it_would_do_and_does_it(quorate_server: Command, old: Path) -> None:
    code, out, _ = quorate_server("upgrade", "--check", "--state", old)
    assert code == 0
    assert "is of layout 0001, this version's is 0002" in out
    assert "0002: which version each site ran" in out
    assert columns(url(old)) == OLD
    code, out, _ = quorate_server("upgrade", "--state", old)
    assert code == 0
    assert "was upgraded from layout 0001 to 0002" in out
    assert f"The database as it was: {old / 'server.sqlite.before-0002'}" in out
    assert columns(url(old)) == NEW
    assert "Nothing was done" in quorate_server("upgrade", "--state", old)[1]
    assert "nothing to do" in quorate_server("upgrade", "--check", "--state", old)[1]


def test_other_commands_do_not_touch_an_older_database_and_say_what_to_type(quorate_server: Command, old: Path) -> None:
    """The server of the version before may still be running."""
    code, _, err = quorate_server("operator", "list", "--state", old)
    assert code == EXIT_INPUT
    assert "quorate-server upgrade" in err
    assert err.count("\n") == 1
    code, out, _ = quorate_server("doctor", "--state", old)
    assert code == EXIT_OTHER
    assert "BROKEN database: it is of layout 0001, and this version's is 0002: an upgrade is pending" in out
    assert columns(url(old)) == OLD
    quorate_server("upgrade", "--state", old)
    assert quorate_server("operator", "list", "--state", old)[0] == 0
    assert "ok     database: 0 sites, layout 0002" in quorate_server("doctor", "--state", old)[1]


def test_a_newer_database_is_refused_by_every_command(quorate_server: Command, old: Path) -> None:
    quorate_server("upgrade", "--state", old)
    run(url(old), "UPDATE alembic_version SET version_num = '0099'")
    for command in (("upgrade",), ("upgrade", "--check"), ("operator", "list"), ("run",)):
        code, _, err = quorate_server(*command, "--state", old)
        assert code == EXIT_INPUT
        assert "newer version of Quorate" in err
        assert "Expected layout 0002; got layout 0099" in err
        assert err.strip().count("\n") == 0
    assert "BROKEN database" in quorate_server("doctor", "--state", old)[1]


def test_a_server_that_starts_upgrades_its_file(old: Path) -> None:
    upgrade_at_start(ServerConfig.read(old))
    open_database(url(old)).dispose()
    assert (old / "server.sqlite.before-0002").exists()


@pytest.mark.parametrize("command", ["upgrade", "run"])
def test_nothing_is_upgraded_under_a_running_server(quorate_server: Command, old: Path, command: str) -> None:
    with held_by_server(ServerConfig.read(old)):
        code, _, err = quorate_server(command, "--state", old)
    assert code == EXIT_INPUT
    assert "A server already runs" in err
    assert columns(url(old)) == OLD


def test_on_postgresql_the_administrator_backs_up_first(quorate_server: Command, old: Path, postgresql: str) -> None:
    run(postgresql, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    with (old / "server.toml").open("a") as file:
        file.write(f'database_url = "{postgresql}"\n')
    code, _, err = quorate_server("run", "--state", old)
    assert (code, "is empty" in err, "--new-database" in err) == (EXIT_INPUT, True, True)
    assert quorate_server("upgrade", "--new-database", "--state", old)[0] == 0
    assert quorate_server("operator", "add", "ada", "-o", old / "ada", "--state", old)[0] == 0
    run(
        postgresql,
        "DROP TABLE alembic_version",
        "ALTER TABLE sessions DROP COLUMN version, DROP COLUMN connected_unix_s",
    )
    with pytest.raises(WrongStateError, match=r"pg_dump.*quorate-server upgrade --state"):
        upgrade_at_start(ServerConfig.read(old))
    assert pending_upgrade(postgresql).copy is None
    assert quorate_server("upgrade", "--state", old)[0] == 0
    upgrade_at_start(ServerConfig.read(old))
    code, _, err = quorate_server("backup", old.parent, "--state", old)
    assert (code, "pg_dump" in err) == (EXIT_INPUT, True)


def test_a_database_that_is_gone_is_not_made_anew(quorate_server: Command, old: Path) -> None:
    (old / "server.sqlite").unlink()
    for command in (("run",), ("upgrade",), ("operator", "list"), ("backup", old.parent)):
        code, _, err = quorate_server(*command, "--state", old)
        assert (code, "quorate-server restore" in err or "is not there" in err) == (EXIT_INPUT, True)
    assert not (old / "server.sqlite").exists()
    assert quorate_server("upgrade", "--new-database", "--state", old)[0] == 0
    assert quorate_server("operator", "list", "--state", old)[:2] == (0, "")


def test_a_backup_says_what_is_in_it_and_a_restore_what_to_do_next(quorate_server: Command, old: Path) -> None:
    quorate_server("upgrade", "--state", old)
    backups = old.parent / "backups"
    backups.mkdir()
    code, out, _ = quorate_server("backup", backups, "--state", old)
    assert code == 0
    assert "unsealed: whoever reads it can admit anybody" in out
    (backup,) = backups.iterdir()
    assert backup.name.startswith("north-sea-server-")
    assert backup.stat().st_mode & 0o777 == 0o600
    code, _, err = quorate_server("backup", backup, "--state", old)
    assert (code, "not overwritten" in err) == (EXIT_INPUT, True)

    passphrase = old.parent / "passphrase"
    passphrase.write_text("correct horse battery\n")
    sealed = old.parent / "sealed"
    code, out, _ = quorate_server("backup", sealed, "--state", old, "--passphrase-file", passphrase)
    assert (code, "It is sealed" in out) == (0, True)
    again = old.parent / "again"
    code, _, err = quorate_server("restore", sealed, "--state", again)
    assert (code, "--passphrase-file" in err) == (EXIT_INPUT, True)
    code, out, _ = quorate_server("restore", sealed, "--state", again, "--passphrase-file", passphrase)
    assert code == 0
    assert "Revoke again what was revoked since" in out
    code, out, _ = quorate_server("restore", backup, "--state", again, "--replace")
    assert (code, "What was there is in" in out) == (0, True)
    assert quorate_server("doctor", "--state", again)[0] == 0
