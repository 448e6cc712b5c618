"""Backups as files: whole, sealed, and harmless to unpack whoever made them."""

from __future__ import annotations

import io
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, BackupError, DiskFullError, QuorateError, StorageError
from quorate.process.backup.archive import MAGIC, MANIFEST, File, Manifest, Passphrase, unpack_archive, write_archive
from quorate.process.chunked_aead import seal_chunks

ABOUT = Manifest(side="site", name="north.heart", version="0.1.0", created_unix_s=5.0)
SECRET = Passphrase(b"correct horse battery")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"keys/tls.key": b"secret", "state.sqlite": bytes(range(256)) * 9000, "empty": b""}
    for name, content in made.items():
        path = tmp_path / "state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: tmp_path / "state" / name for name in made}


@pytest.mark.parametrize("passphrase", [None, SECRET])
def test_what_was_backed_up_comes_out_again(
    files: dict[str, Path], tmp_path: Path, passphrase: Passphrase | None
) -> None:
    target = tmp_path / "north.backup"
    made = write_archive(target, ABOUT, files, passphrase)
    found = unpack_archive(target, tmp_path / "out", "site", passphrase)
    assert found == made
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(
        files
    )
    for name, path in files.items():
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out" / "keys").stat().st_mode & 0o777 == 0o700
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_plain_backup_is_a_tar_and_a_sealed_one_shows_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    write_archive(tmp_path / "plain", ABOUT, files, None)
    write_archive(tmp_path / "sealed", ABOUT, files, SECRET)
    with tarfile.open(tmp_path / "plain") as tar:
        assert tar.getnames() == ["empty", "keys/tls.key", "state.sqlite", MANIFEST]
    sealed = (tmp_path / "sealed").read_bytes()
    assert sealed.startswith(MAGIC)
    assert b"tls.key" not in sealed
    assert b"secret" not in sealed


def test_no_two_backups_are_sealed_under_one_key(files: dict[str, Path], tmp_path: Path) -> None:
    write_archive(tmp_path / "one", ABOUT, files, SECRET)
    write_archive(tmp_path / "two", ABOUT, files, SECRET)
    length = len(MAGIC) + 16
    assert (tmp_path / "one").read_bytes()[length:][:64] != (tmp_path / "two").read_bytes()[length:][:64]


def test_a_backup_is_never_overwritten(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"another")
    with pytest.raises(AlreadyExistsError, match="not overwritten"):
        write_archive(tmp_path / "there", ABOUT, files, None)
    assert (tmp_path / "there").read_bytes() == b"another"


# --- what is wrong with one ---


def refused(source: Path, tmp_path: Path, match: str, passphrase: Passphrase | None = None) -> None:
    out = tmp_path / "out" / str(time.monotonic_ns())
    out.parent.mkdir(exist_ok=True)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BackupError, match=match):
        unpack_archive(source, out, "site", passphrase)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("passphrase", [None, SECRET])
@pytest.mark.parametrize("place", [700, 40_000, -3000])
def test_a_damaged_backup_is_refused(
    files: dict[str, Path], tmp_path: Path, passphrase: Passphrase | None, place: int
) -> None:
    source = tmp_path / "backup"
    write_archive(source, ABOUT, files, passphrase)
    content = bytearray(source.read_bytes())
    content[place] ^= 1
    source.write_bytes(content)
    refused(source, tmp_path, "no whole backup", passphrase)


@pytest.mark.parametrize("passphrase", [None, SECRET])
@pytest.mark.parametrize("left", [0.0, 0.3, 0.999])
def test_a_backup_that_was_cut_off_is_refused(
    files: dict[str, Path], tmp_path: Path, passphrase: Passphrase | None, left: float
) -> None:
    source = tmp_path / "backup"
    write_archive(source, ABOUT, files, passphrase)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * left)])
    if left == 0.999 and passphrase is None:
        source.write_bytes(whole[:-1500])  # what ends a tar is only zeros
    refused(source, tmp_path, "no whole backup", passphrase)


def test_what_is_sealed_counts_only_when_its_end_was_reached(tmp_path: Path) -> None:
    """Of a tar with much behind its end nothing more would be read."""
    plain = hostile(tmp_path / "plain", entry("a"), manifest("a")).read_bytes() + bytes(3 * 1024**2)
    salt = bytes(16)
    sealed = bytearray(MAGIC + salt + b"".join(seal_chunks([plain], SECRET.key(salt))))
    (tmp_path / "whole").write_bytes(sealed)
    unpack_archive(tmp_path / "whole", tmp_path / "unpacked", "site", SECRET)
    sealed[-1] ^= 1
    (tmp_path / "damaged").write_bytes(sealed)
    refused(tmp_path / "damaged", tmp_path, "no whole backup", SECRET)


def test_another_passphrase_or_none_does_not_open_it(files: dict[str, Path], tmp_path: Path) -> None:
    write_archive(tmp_path / "backup", ABOUT, files, SECRET)
    refused(tmp_path / "backup", tmp_path, "sealed under a passphrase")
    refused(tmp_path / "backup", tmp_path, "check the passphrase", Passphrase(b"another passphrase"))


def test_a_backup_of_the_other_side_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    write_archive(tmp_path / "backup", ABOUT.model_copy(update={"side": "server"}), files, None)
    refused(tmp_path / "backup", tmp_path, "backup of a server")


Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"x", **changes: object) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def manifest(*names: str) -> Entry:
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    listed = ABOUT.model_copy(update={"files": {name: File(size=1, sha256=digest) for name in names}})
    return entry(MANIFEST, listed.model_dump_json().encode())


def hostile(path: Path, *entries: Entry) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../evil", "/evil", "keys/../../evil", "keys//evil", "./evil", "a\\evil", ".."])
def test_nothing_is_put_outside_the_folder(tmp_path: Path, name: str) -> None:
    source = hostile(tmp_path / "backup", entry(name), manifest(name))
    refused(source, tmp_path, "would not be put into the folder")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_nothing_but_files_is_unpacked(tmp_path: Path, kind: bytes) -> None:
    """A link ``keys -> /etc`` followed by ``keys/passwd`` would write there."""
    link = entry("keys", b"", type=kind, linkname=str(tmp_path))
    source = hostile(tmp_path / "backup", link, entry("keys/evil"), manifest("keys/evil"))
    refused(source, tmp_path, "is no file")
    assert not list(tmp_path.rglob("evil"))


def test_what_is_there_twice_or_not_listed_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuorateError, match="holds it twice"):
        unpack_archive(hostile(tmp_path / "1", entry("a"), entry("a"), manifest("a")), tmp_path / "out1", "site", None)
    with pytest.raises(BackupError, match="'b' among them"):
        unpack_archive(hostile(tmp_path / "2", entry("a"), entry("b"), manifest("a")), tmp_path / "out2", "site", None)
    with pytest.raises(BackupError, match="'b' among them"):
        unpack_archive(hostile(tmp_path / "3", entry("a"), manifest("a", "b")), tmp_path / "out3", "site", None)
    with pytest.raises(BackupError, match="follows the manifest"):
        unpack_archive(hostile(tmp_path / "4", manifest("a"), entry("a")), tmp_path / "out4", "site", None)
    with pytest.raises(BackupError, match="no manifest"):
        unpack_archive(hostile(tmp_path / "5", entry("a")), tmp_path / "out5", "site", None)


def test_a_manifest_of_a_newer_form_is_refused(tmp_path: Path) -> None:
    text = ABOUT.model_dump_json().replace("backup/1", "backup/2").encode()
    refused(hostile(tmp_path / "backup", entry(MANIFEST, text)), tmp_path, "this version can read: format")


# --- what may befall the writing ---


def test_a_disk_that_fills_up_leaves_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises((DiskFullError, StorageError)):
            write_archive(tmp_path / "full", ABOUT, files, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_whoever_is_killed_while_writing_leaves_no_file_of_that_name(files: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from quorate.process.backup import archive\n"
        "def pieces(*_):\n    yield b'x' * 100000\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "archive._tar = pieces\n"
        "about = archive.Manifest(side='site', name='n', version='1', created_unix_s=0)\n"
        "archive.write_archive(Path(sys.argv[1]), about, {}, None)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "backup")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "backup").exists()
    write_archive(tmp_path / "backup", ABOUT, files, None)
    assert not (tmp_path / "backup.part").exists()


@pytest.mark.parametrize(("text", "match"), [("short\n", "too short"), (None, "Cannot read")], ids=["short", "missing"])
def test_a_passphrase_that_keeps_nobody_out_is_refused(tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "passphrase"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BackupError, match=match):
        Passphrase.read(path)


def test_a_passphrase_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery\nanother line\n")
    assert "horse" not in repr(Passphrase.read(tmp_path / "passphrase"))
    assert Passphrase.read(tmp_path / "passphrase") == SECRET
