"""A server's backup: its whole state folder as of one moment, while it may be running.

While the database is locked for writing no run commits a step, so nothing that it names leaves the spool: in that
moment the files are given a second name each (a link, which takes no room and no time), and what the database holds is
pinned. Everything else happens after. Uploads that have not arrived whole are left out; the sites send them again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import create_engine

from quorate import __version__
from quorate.errors import BackupError, WrongStateError
from quorate.process.backup.archive import Manifest, Passphrase, require_names, unpack_archive, write_archive
from quorate.process.backup.restoring import ASIDE, UNPACKED, put_in_place, unpacking
from quorate.process.backup.sqlite_copy import copy_database, open_to_read
from quorate.process.folder_lock import held
from quorate.process.storage_errors import sqlite_refusal
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.config import CONFIG_NAME, DATABASE_NAME, LOCK_NAME, ServerConfig
from quorate_server.storage.database import layout_of, require_tables, require_there, sqlite_path

_GATHERED = "backup-in-progress"
_LOCK = "backup.lock"
_NOT_STATE = {LOCK_NAME, _LOCK, _GATHERED, UNPACKED}
_LOCK_S = 60.0


def backup_server(config: ServerConfig, target: Path, passphrase: Passphrase | None, now: float) -> Manifest:
    """Write a backup into a new file.

    Raises:
        WrongStateError: the database is no SQLite file in the folder, or another backup is being made.
        AlreadyExistsError: there is a file of that name. DiskFullError, StorageError.
    """
    database = config.state_dir / DATABASE_NAME
    if sqlite_path(config.engine_url) != database:
        raise WrongStateError(
            "The server's database is not the SQLite file in its folder, so this command cannot copy it",
            got=config.engine_url.partition(":")[0],
            action="Pause the runs or stop the server, back the database up with its own tools (pg_dump), then copy "
            f"server.toml, ca, spool and runs of {config.state_dir}",
        )
    require_there(config.engine_url)
    about = Manifest(side="server", name=config.consortium, version=__version__, created_unix_s=now)
    with (
        held(
            config.state_dir / _LOCK,
            what="Another backup of this server is being made",
            action="Wait until it is finished",
        ),
        _gathered(config.state_dir, database) as gathered,
    ):
        files = {str(path.relative_to(gathered)): path for path in gathered.rglob("*") if path.is_file()}
        return write_archive(target, about, files, passphrase)


def restore_server(source: Path, state: Path, passphrase: Passphrase | None, *, replace: bool, now: float) -> Path:
    """Put a backup in place, in a folder that is empty or whose content is then set aside.

    Returns:
        The folder with what was there; there is none where nothing was.

    Raises:
        BackupError: it is damaged or not of a server. AlreadyExistsError: the folder is not empty. WrongStateError: a
            server runs on it, or the backup's database is newer than this version. In each case nothing was changed.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        held(state / LOCK_NAME, what=f"A server runs on {state}", action="Stop it first"),
        unpacking(state) as unpacked,
    ):
        unpack_archive(source, unpacked, "server", passphrase)
        require_names(unpacked, source, _is_state)
        _require_sound(unpacked, source)
        stays = (LOCK_NAME, _LOCK)
        return put_in_place(state, unpacked, key=CONFIG_NAME, stays=stays, replace=replace, now=now)


def _is_state(name: str) -> bool:
    """Whether what has this name at the top of the folder is the server's state."""
    return name not in _NOT_STATE and not name.startswith(ASIDE)


def _require_sound(unpacked: Path, source: Path) -> None:
    """It would start: configuration, authority, and a database of this version or an earlier one."""
    database = unpacked / DATABASE_NAME
    if not (unpacked / CONFIG_NAME).exists() or not database.exists():
        raise BackupError(f"{source} lacks {CONFIG_NAME} or {DATABASE_NAME}", action="Use another backup")
    config = ServerConfig.read(unpacked)
    Authority.load(config.ca_dir, config.consortium)
    engine = create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            require_tables(layout_of(connection))
    finally:
        engine.dispose()


@contextmanager
def _gathered(state: Path, database: Path) -> Iterator[Path]:
    """A folder with everything as of one moment; it is gone afterwards."""
    folder = state / _GATHERED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        with closing(open_to_read(database)) as reading:
            with closing(sqlite3.connect(database, isolation_level=None, timeout=_LOCK_S)) as holding:
                holding.execute("BEGIN IMMEDIATE")
                reading.execute("BEGIN")
                reading.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it sees this moment
                _link_all(state, folder)
                holding.execute("ROLLBACK")
            copy_database(reading, folder / DATABASE_NAME)
        yield folder
    except sqlite3.Error as error:
        raise sqlite_refusal(error, "The server's database", database) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link_all(state: Path, into: Path) -> None:
    for root, folders, names in os.walk(state):
        here = Path(root)
        is_top = here == state
        folders[:] = [name for name in folders if not is_top or _is_state(name)]
        target = into / here.relative_to(state)
        is_spool = here == state / "spool"
        target.mkdir(exist_ok=True, mode=0o700)
        for name in names:
            path = here / name
            is_no_state = is_top and (not _is_state(name) or name.startswith(DATABASE_NAME))
            is_arriving = is_spool and ".part" in name
            if is_no_state or is_arriving or path.is_symlink() or not path.is_file():  # a link could lead anywhere
                continue
            _second_name(path, target / name)


def _second_name(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except FileNotFoundError:
        return  # a run that is over was tidied up
    except OSError:  # a file system without links
        shutil.copyfile(path, target)
