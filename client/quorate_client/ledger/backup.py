"""A site's backup: its keys, its configuration, both databases, the fingerprints of its records, what was made of
them, and its records of appraisals.

``state.sqlite`` is copied before ``ledger.sqlite``: it is the ledger's witness, and a ledger may know more than its
witness, never less. For the same reason a restore never puts an older ledger in the place of a newer one that is still
there: what was spent since would be forgotten. The site is itself again with the ledger that is there.

``spool/``, ``work/`` and ``log/`` are left out: models are built anew, and an answer whose bulk data is gone is said to
be gone. So are the study keys of secure aggregation: a restored site has no part in the runs that they are of.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from quorate import __version__
from quorate.errors import BackupError, LedgerError
from quorate.process.backup.archive import Manifest, Passphrase, require_names, unpack_archive, write_archive
from quorate.process.backup.restoring import put_in_place, unpacking
from quorate.process.backup.sqlite_copy import copy_database, open_to_read
from quorate.process.folder_lock import held
from quorate_client.ledger.upgrading import pending_upgrades
from quorate_client.site.folder import SiteFolder
from quorate_client.site.forgotten_votes import leave_secure_runs
from quorate_client.site.keys import has_identity, load_identity, load_keys

_GATHERED = "backup-in-progress"
_LOCK = "backup.lock"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Args:
        aside: The folder with what was there; there is none where nothing was.
        kept_ledger: Whether the ledger that was there goes on, because it is newer than the backup's.
    """

    aside: Path
    kept_ledger: bool


def backup_site(folder: SiteFolder, target: Path, passphrase: Passphrase | None, now: float) -> Manifest:
    """Write a backup into a new file; the daemon may be running.

    Raises:
        WrongStateError: this folder holds no site, or another backup is being made. AlreadyExistsError: there is a file
            of that name. DiskFullError.
    """
    identity = load_identity(folder.keys)
    about = Manifest(
        side="site", name=f"{identity.site}.{identity.consortium}", version=__version__, created_unix_s=now
    )
    with (
        held(
            folder.root / _LOCK,
            what="Another backup of this site is being made",
            action="Wait until it is finished",
        ),
        _gathered(folder) as files,
    ):
        return write_archive(target, about, files, passphrase)


def restore_site(
    source: Path, folder: SiteFolder, passphrase: Passphrase | None, *, replace: bool, now: float
) -> Restored:
    """Put a backup in place, in a folder that is empty or whose content is then set aside.

    Raises:
        BackupError: it is damaged or not of a site. AlreadyExistsError: the folder is not empty. WrongStateError,
            LedgerError: a daemon runs on it, or a database in the backup is newer than this version. In each case
            nothing was changed.
    """
    folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with folder.held_by_this_daemon(), unpacking(folder.root) as unpacked:
        unpack_archive(source, unpacked, "site", passphrase)
        require_names(unpacked, source, _names(folder).__contains__)
        restored = SiteFolder(unpacked)
        if not has_identity(restored.keys) or not restored.database.exists():
            raise BackupError(f"{source} lacks the site's identity or its database", action="Use another backup")
        load_keys(restored.keys)
        pending_upgrades(restored)
        keeps = _goes_on(folder.ledger, restored.ledger)
        leave_secure_runs(restored)
        if keeps:
            copy_database(folder.ledger, restored.ledger)
        stays = (folder.lock.name, _LOCK)
        aside = put_in_place(folder.root, unpacked, key=folder.keys.name, stays=stays, replace=replace, now=now)
        folder.create()
    return Restored(aside, keeps)


def _names(folder: SiteFolder) -> set[str]:
    """What is at the top of a backup."""
    parts = (
        folder.keys,
        folder.records,
        folder.synthetic,
        folder.attestation,
        folder.config,
        folder.policy,
        folder.database,
        folder.ledger,
    )
    return {path.name for path in parts}


@contextmanager
def _gathered(folder: SiteFolder) -> Iterator[dict[str, Path]]:
    """Where each file is, by its name in the backup."""
    copies = folder.root / _GATHERED
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(mode=0o700)
    try:
        files = {}
        for database in (folder.database, folder.ledger):
            if database.exists():
                copy_database(database, copies / database.name)
                files[database.name] = copies / database.name
        whole = (folder.keys, folder.records, folder.synthetic, folder.attestation)
        within = [path for each in whole for path in each.rglob("*")]
        for path in (folder.config, folder.policy, *within):
            if path.is_file() and not path.is_symlink() and path.parent != folder.study_keys:
                files[str(path.relative_to(folder.root))] = path
        yield files
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _goes_on(there: Path, restored: Path) -> bool:
    """Whether the ledger that is there has all entries of the restored one, and more."""
    if not there.exists():
        return False
    if not restored.exists():
        return True
    try:
        with closing(open_to_read(there)) as mine, closing(open_to_read(restored)) as backup:
            newest = backup.execute("SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1").fetchone()
            if newest is None:
                return True
            same = mine.execute("SELECT 1 FROM entries WHERE number = ? AND hash = ?", newest).fetchone()
            (last,) = mine.execute("SELECT max(number) FROM entries").fetchone()
    except sqlite3.Error as error:
        raise LedgerError(
            f"The ledger {there} that would be replaced cannot be read, so whether it knows more cannot be told",
            got=str(error),
            action="If it is damaged, move it to another place, then restore",
        ) from error
    return same is not None and last > newest[0]
