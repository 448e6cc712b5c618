"""A site's backup: itself again, and never with a ledger that forgot something which is still known."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, BackupError, LedgerError, LedgerRolledBackError, WrongStateError
from quorate.identity import SiteName
from quorate.privacy.ledger_head import SignedHead
from quorate.process.backup.archive import Manifest, Passphrase, unpack_archive, write_archive
from quorate_client.ledger import backup
from quorate_client.ledger.backup import backup_site, restore_site
from quorate_client.site.database import make_state, site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Identity, load_identity, load_keys, make_or_load_keys, save_identity

from ..ledger_kit import NO_LIMITS, NOW, a_charge, opened

SECRET = Passphrase(b"correct horse battery")
IDENTITY = Identity("heart", SiteName("north"), "localhost:1")


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A site that joined, with a study key, fingerprints, a configuration, and things that need no backup."""
    folder = SiteFolder(tmp_path / "site")
    folder.create()
    make_or_load_keys(folder.keys)
    make_state(folder.database)
    save_identity(folder.keys, IDENTITY, b"authority", b"certificate")
    for path in ("keys/studies/run-1", "records/visits", "config.toml", "policy.toml", "spool/blob", "work/model"):
        (folder.root / path).parent.mkdir(exist_ok=True)
        (folder.root / path).write_text(path)
    (folder.keys / "link").symlink_to("/etc/passwd")
    with site_state(folder.database) as state:
        assert [state.next_session() for _ in range(3)] == [1, 2, 3]
    spend(folder, 1)
    return folder


def spend(folder: SiteFolder, *rounds: int) -> SignedHead | None:
    with opened(folder.root) as ledger:
        for number in rounds:
            ledger.reserve(a_charge(number), NO_LIMITS, NOW)
        return ledger.entries.head()


def entries(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])


def restored(site: SiteFolder, backup: Path, *, replace: bool = False, passphrase: Passphrase | None = None) -> bool:
    return restore_site(backup, site, passphrase, replace=replace, now=NOW).kept_ledger


@pytest.mark.parametrize("passphrase", [None, SECRET])
def test_a_restored_site_is_what_it_was(site: SiteFolder, tmp_path: Path, passphrase: Passphrase | None) -> None:
    with site.held_by_this_daemon():  # it may be running
        made = backup_site(site, tmp_path / "backup", passphrase, NOW)
    assert (made.side, made.name) == ("site", "north.heart")
    assert "keys/studies/run-1" not in made.files
    again = SiteFolder(tmp_path / "again")
    assert not restored(again, tmp_path / "backup", passphrase=passphrase)
    assert load_identity(again.keys) == IDENTITY
    assert load_keys(again.keys).member(IDENTITY.site) == load_keys(site.keys).member(IDENTITY.site)
    files = {str(path.relative_to(again.root)) for path in again.root.rglob("*") if path.is_file()}
    assert files >= {"records/visits", "config.toml", "policy.toml"}
    assert not files & {"keys/link", "spool/blob", "work/model"}
    assert {path.stat().st_mode & 0o777 for path in again.keys.iterdir() if path.is_file()} == {0o600}
    with site_state(again.database) as state:
        assert state.next_session() == 4
    spend(again, 2)
    assert entries(again.ledger) == 2


# --- which ledger counts ---


def test_a_ledger_that_is_there_and_knows_more_goes_on(site: SiteFolder, tmp_path: Path) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    spend(site, 2, 3)
    assert restored(site, tmp_path / "backup", replace=True)
    assert entries(site.ledger) == 3
    spend(site, 4)


def test_an_older_ledger_is_found_out_by_what_a_server_repeats(site: SiteFolder, tmp_path: Path) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    head = spend(site, 2)
    assert head is not None
    shutil.rmtree(site.root)  # the disk is lost
    assert not restored(site, tmp_path / "backup")
    spend(site, 3)  # nobody told it yet
    with opened(site.root) as ledger:
        ledger.entries.check_witness(head)
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(4), NO_LIMITS, NOW)


def test_an_older_ledger_beside_a_newer_witness_is_found_out_at_once(site: SiteFolder, tmp_path: Path) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    spend(site, 2)
    unpack_archive(tmp_path / "backup", tmp_path / "by hand", "site", None)
    shutil.copy(tmp_path / "by hand" / "ledger.sqlite", site.ledger)
    with pytest.raises(LedgerRolledBackError):
        spend(site, 3)


def test_a_ledger_of_another_history_is_set_aside(site: SiteFolder, tmp_path: Path) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    for path in (site.ledger, site.database):
        path.unlink()
    make_state(site.database)
    spend(site, 7, 8, 9)
    done = restore_site(tmp_path / "backup", site, None, replace=True, now=NOW)
    assert not done.kept_ledger
    assert entries(site.ledger) == 1
    assert entries(done.aside / "ledger.sqlite") == 3


def test_a_ledger_that_cannot_be_read_is_not_replaced_by_one_that_may_know_less(
    site: SiteFolder, tmp_path: Path
) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    site.ledger.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match="move it to another place"):
        restored(site, tmp_path / "backup", replace=True)
    site.ledger.rename(tmp_path / "damaged")
    assert not restored(site, tmp_path / "backup", replace=True)
    assert entries(site.ledger) == 1


def test_the_witness_in_a_backup_never_knows_more_than_its_ledger(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is spent between the two copies is in the ledger only."""
    copied = backup.copy_database

    def while_it_spends(source: Path, target: Path) -> None:
        copied(source, target)
        if target.name == "state.sqlite":
            spend(site, 2)

    monkeypatch.setattr(backup, "copy_database", while_it_spends)
    backup_site(site, tmp_path / "backup", None, NOW)
    monkeypatch.undo()
    again = SiteFolder(tmp_path / "again")
    restored(again, tmp_path / "backup")
    spend(again, 3)
    assert entries(again.ledger) == 3


def memory(site: SiteFolder) -> bytes:
    with site_state(site.database) as state:
        return state.memory


def test_each_restore_begins_another_memory_and_drops_the_study_keys(site: SiteFolder, tmp_path: Path) -> None:
    """Those too that are in a backup of the version before. What it voted for since is forgotten, and the site must not
    take itself for the one that did (tests/attacks/test_restored_votes.py)."""
    assert memory(site) == b""
    about = Manifest(side="site", name="north.heart", version="0", created_unix_s=NOW)
    files = {str(path.relative_to(site.root)): path for path in site.keys.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if not path.is_symlink()} | {"state.sqlite": site.database}
    assert "keys/studies/run-1" in files
    write_archive(tmp_path / "backup", about, files, None)
    again = [SiteFolder(tmp_path / name) for name in ("one", "another")]
    for folder in again:
        restored(folder, tmp_path / "backup")
        assert not folder.study_keys.exists()
    assert len({memory(folder) for folder in (site, *again)}) == 3


# --- what is refused ---


def everything(folder: SiteFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in folder.root.rglob("*")
        if path.is_file()
        and path.name not in ("daemon.lock", "backup.lock")
        and "-wal" not in path.name
        and "-shm" not in path.name
    }


def test_nothing_is_replaced_without_being_told(site: SiteFolder, tmp_path: Path) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    before = everything(site)
    with pytest.raises(AlreadyExistsError, match="--replace"):
        restored(site, tmp_path / "backup")
    assert everything(site) == before


def test_a_running_daemon_is_not_restored_over(site: SiteFolder, tmp_path: Path) -> None:
    backup_site(site, tmp_path / "backup", None, NOW)
    with site.held_by_this_daemon(), pytest.raises(WrongStateError, match="already runs"):
        restored(site, tmp_path / "backup", replace=True)


@pytest.mark.parametrize("what", ["damaged", "newer", "no identity", "stray"])
def test_a_backup_that_would_not_start_changes_nothing(site: SiteFolder, tmp_path: Path, what: str) -> None:
    other = SiteFolder(tmp_path / "other")
    backup_site(site, tmp_path / "good", None, NOW)
    restored(other, tmp_path / "good")
    if what == "newer":
        with closing(sqlite3.connect(other.database)) as database:
            database.execute("PRAGMA user_version=99")
    backup_site(other, tmp_path / "backup", None, NOW)
    if what == "damaged":
        content = bytearray((tmp_path / "backup").read_bytes())
        content[515] ^= 1
        (tmp_path / "backup").write_bytes(content)
    if what == "no identity":
        (tmp_path / "backup").unlink()
        about = Manifest(side="site", name="north", version="0", created_unix_s=NOW)
        write_archive(tmp_path / "backup", about, {"state.sqlite": other.database}, None)
    if what == "stray":
        (tmp_path / "backup").unlink()
        about = Manifest(side="site", name="north", version="0", created_unix_s=NOW)
        files = {str(path.relative_to(other.root)): path for path in other.keys.rglob("*") if path.is_file()}
        files |= {"state.sqlite": other.database, "work/control": other.database}
        write_archive(tmp_path / "backup", about, files, None)
    before = everything(site)
    with pytest.raises((BackupError, WrongStateError)):
        restored(site, tmp_path / "backup", replace=True)
    assert everything(site) == before
