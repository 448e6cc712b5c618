"""A backup as one file: a tar with a manifest as its last member, plain or sealed under a passphrase.

Whoever unpacks it may be handed a hostile one. So nothing in it decides where bytes go but a relative path without
``..``; links, devices and what is there twice are refused; each file is held against the manifest's digest; and all of
it lands in a fresh folder, which counts only when everything was found right.

A sealed one begins with ``MAGIC`` and the salt; what follows is ``chunked_aead`` under the key that scrypt makes of the
passphrase. The salt is drawn anew for each, so no key seals two.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, Literal, cast

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quorate.errors import AlreadyExistsError, BackupError, DiskFullError, FrameError, StorageError, WrongStateError
from quorate.process.backup.sqlite_copy import NO_ROOM
from quorate.process.chunked_aead import open_chunks, seal_chunks
from quorate.process.private_files import create_private, flush_folder

MAGIC: Final = b"quorate.sealed-backup/1\n"
MANIFEST: Final = "quorate-backup.json"
SALT_BYTES: Final = 16
MAX_MANIFEST_BYTES: Final = 64 * 1024**2
_PIECE_BYTES: Final = 1024 * 1024
_BLOCK: Final = tarfile.BLOCKSIZE
_PART = re.compile(r"[^/\\\0]{1,255}")

Side = Literal["server", "site"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Strict):
    """One file as it was."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Strict):
    """What a backup is of, and what is in it."""

    format: Literal["quorate.backup/1"] = "quorate.backup/1"
    side: Side
    name: str
    version: str
    created_unix_s: float
    files: dict[str, File] = {}


@dataclass(frozen=True, slots=True)
class Passphrase:
    """What a backup is sealed with; not shown in any text."""

    _secret: bytes

    @classmethod
    def read(cls, path: Path) -> Passphrase:
        """The first line of a file.

        Raises:
            BackupError: it cannot be read, or is too short to keep anybody out.
        """
        try:
            secret = path.read_bytes().partition(b"\n")[0].strip()
        except OSError as error:
            raise BackupError(f"Cannot read the passphrase in {path}", got=error.strerror or "") from error
        if len(secret) < 12:
            raise BackupError(
                f"The passphrase in {path} is too short", expected="12 characters or more, in the first line"
            )
        return cls(secret)

    def key(self, salt: bytes) -> bytes:
        return Scrypt(salt=salt, length=32, n=2**16, r=8, p=1).derive(self._secret)

    def __repr__(self) -> str:
        return "Passphrase(...)"


# --- writing ---


def write_archive(target: Path, about: Manifest, files: Mapping[str, Path], passphrase: Passphrase | None) -> Manifest:
    """Write a new file, mode 0600, flushed to disk; it has its name only when it is whole.

    Args:
        about: Without files.
        files: Where each is, by its name in the backup. They do not change meanwhile.

    Raises:
        AlreadyExistsError: there is a file of that name. DiskFullError, StorageError: it cannot be written.
    """
    _require_new(target)
    scratch = target.with_name(f"{target.name}.part")
    written: dict[str, File] = {}
    try:
        scratch.unlink(missing_ok=True)
        with os.fdopen(create_private(scratch), "wb") as file:
            pieces = _tar(about, files, written)
            if passphrase is not None:
                salt = os.urandom(SALT_BYTES)
                file.write(MAGIC + salt)
                pieces = seal_chunks(pieces, passphrase.key(salt))
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        _require_new(target)
        scratch.rename(target)
        flush_folder(target.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"There is no room for the backup {target}", action="Free some space") from error
        raise StorageError(f"The backup {target} cannot be written", got=error.strerror or "") from error
    finally:
        scratch.unlink(missing_ok=True)
    return about.model_copy(update={"files": written})


def _require_new(target: Path) -> None:
    if target.exists():
        raise AlreadyExistsError(f"{target} exists and is not overwritten", action="Name another file")


def _tar(about: Manifest, files: Mapping[str, Path], written: dict[str, File]) -> Iterator[bytes]:
    for name, path in sorted(files.items()):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield _header(name, size)
            left = size
            while left:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise WrongStateError(f"{path} became shorter while it was read", action="Make the backup again")
                left -= len(piece)
                digest.update(piece)
                yield piece
        yield bytes(-size % _BLOCK)
        written[name] = File(size=size, sha256=digest.hexdigest())
    text = about.model_copy(update={"files": written}).model_dump_json(indent=1).encode()
    yield _header(MANIFEST, len(text)) + text + bytes(-len(text) % _BLOCK) + bytes(2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.PAX_FORMAT)


# --- reading ---


def unpack_archive(source: Path, into: Path, side: Side, passphrase: Passphrase | None) -> Manifest:
    """Unpack into a new folder, and check everything. The caller removes the folder if this raises.

    Raises:
        BackupError: it is damaged, sealed under another passphrase, of the other side, or no backup.
        DiskFullError, StorageError: it cannot be unpacked.
    """
    try:
        into.mkdir(mode=0o700)
        with source.open("rb") as file:
            reader = _Reader(_plain(file, source, passphrase))
            found, text = _unpacked(reader, into)
            reader.drain()  # what is sealed counts only when its end was reached
    except (tarfile.TarError, FrameError) as error:
        raise _damaged(source, str(error)) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError("There is no room to unpack the backup", action="Free some space") from error
        raise StorageError(f"The backup {source} cannot be unpacked", got=error.strerror or "") from error
    manifest = _manifest(text, source)
    if manifest.files != found:
        wrong = sorted(name for name in manifest.files | found if manifest.files.get(name) != found.get(name))
        raise _damaged(source, f"{len(wrong)} files are not as the manifest says, {wrong[0]!r} among them")
    if manifest.side != side:
        raise BackupError(
            f"{source} is a backup of a {manifest.side}", expected=f"one of a {side}", action="Use the other command"
        )
    return manifest


def require_names(unpacked: Path, source: Path, known: Callable[[str], bool]) -> None:
    """Refuse a backup with something at its top that no backup of this kind has there.

    Raises:
        BackupError: naming it.
    """
    stray = sorted(entry.name for entry in unpacked.iterdir() if not known(entry.name))
    if stray:
        raise BackupError(f"{source} holds what no such backup holds", got=repr(stray[0]), action="Find who made it")


def _plain(file: BinaryIO, source: Path, passphrase: Passphrase | None) -> Iterator[bytes]:
    """The tar's bytes."""
    if file.read(len(MAGIC)) != MAGIC:
        file.seek(0)
        return iter(lambda: file.read(_PIECE_BYTES), b"")
    if passphrase is None:
        raise BackupError(f"{source} is sealed under a passphrase", action="Name its file with --passphrase-file")
    return open_chunks(iter(lambda: file.read(_PIECE_BYTES), b""), passphrase.key(file.read(SALT_BYTES)))


def _unpacked(reader: _Reader, into: Path) -> tuple[dict[str, File], bytes]:
    """The files, and the manifest's text."""
    found: dict[str, File] = {}
    file = cast(BinaryIO, reader)  # of which this mode uses ``read`` only
    with tarfile.open(fileobj=file, mode="r|", bufsize=_PIECE_BYTES) as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() and not info.issparse() else None
            if content is None:
                raise tarfile.TarError(f"{info.name!r} is no file")
            if info.name == MANIFEST:
                if info.size > MAX_MANIFEST_BYTES:
                    raise tarfile.TarError("its manifest is too long")
                text = content.read()
                if tar.next() is not None:
                    raise tarfile.TarError("something follows the manifest")
                return found, text
            found[info.name] = _stored(_place(into, info.name), content, info.size)
    raise tarfile.TarError("it has no manifest")


def _place(into: Path, name: str) -> Path:
    """Where a file goes: below the folder, into folders that were made here."""
    parts = name.split("/")
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise tarfile.TarError(f"{name!r} would not be put into the folder")
    folder = into
    for part in parts[:-1]:
        folder /= part
        folder.mkdir(exist_ok=True, mode=0o700)
    return folder / parts[-1]


def _stored(path: Path, content: IO[bytes], size: int) -> File:
    digest = hashlib.sha256()
    with os.fdopen(create_private(path, "This backup holds it twice"), "wb") as file:
        while piece := content.read(_PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return File(size=size, sha256=digest.hexdigest())


def _manifest(text: bytes, source: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        wrong = sorted({".".join(str(part) for part in each["loc"][:1]) or "the whole" for each in error.errors()})
        raise _damaged(source, f"its manifest is not one that this version can read: {', '.join(wrong)}") from error


def _damaged(source: Path, got: str) -> BackupError:
    return BackupError(
        f"{source} is no whole backup",
        got=got,
        action="Use another copy; if it is sealed, check the passphrase. Nothing was changed",
    )


class _Reader:
    """Pieces of bytes as a file that is read from its beginning to its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""
        self._read = 0

    def read(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            if self._read == len(self._held):
                self._held, self._read = next(self._pieces, b""), 0
                if not self._held:
                    break
            part = self._held[self._read : self._read + left]
            self._read += len(part)
            left -= len(part)
            parts.append(part)
        return b"".join(parts)

    def drain(self) -> None:
        while self.read(_PIECE_BYTES):
            pass
