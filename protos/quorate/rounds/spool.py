"""Blobs at rest: the folder, and the writer that goes on where a transfer broke off."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from quorate.errors import BlobMismatchError, BlobMissingError, DiskFullError, FrameError
from quorate.rounds.blobs import DIGEST_BYTES, FRAME_BYTES, Blob, BlobId, Frame, name_of


class Spool:
    """A folder of blobs: complete ones under their names, incomplete ones beside them until they are whole.

    ``ID`` holds the payload and ``ID.frames`` its frames' digests. ``ID.part`` and ``ID.part.frames`` are the same of a
    blob that is still arriving, with its sender's name before ``.part`` where there may be several. A complete blob was
    flushed to disk before its name appeared. One writer at a time for each blob and sender is the caller's part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, blob: BlobId) -> Path:
        return self.folder / blob.hex()

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here, whole. A reference that lies about the size refers to nothing."""
        try:
            size = self.path(blob.id).stat().st_size
        except FileNotFoundError:
            return False
        return size == blob.size and self._digests_path(blob.id).is_file()

    def writer(self, blob: Blob, sender: str = "") -> BlobWriter:
        """Write the frames of an announced blob, going on where an earlier attempt of the same sender ended.

        Two senders may bring the same content at the same time: each has its own incomplete copy.
        """
        return BlobWriter(self, blob, sender)

    def put(self, content: Iterable[bytes]) -> Blob:
        """Store bytes whose name is not known beforehand. Returns the reference, without inline content."""
        with closing(NewBlob(self)) as new:
            for piece in content:
                new.take(piece)
            return new.finish()

    def read(self, blob: Blob, first_frame: int = 0) -> Iterator[Frame]:
        """The frames of a whole blob from disk, with the digests that were checked when it came in."""
        if not self.has(blob):
            raise BlobMissingError("The bulk data that was asked for is not here (any more)")
        digests = self._digests_path(blob.id).read_bytes()
        with self.path(blob.id).open("rb") as file:
            file.seek(first_frame * FRAME_BYTES)
            for index in range(first_frame, blob.frames):
                data = file.read(FRAME_BYTES)
                yield Frame(index, data, digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def open(self, blob: Blob) -> BinaryIO:
        """A whole blob as a file. Raises BlobMissingError."""
        if not self.has(blob):
            raise BlobMissingError("The bulk data that was asked for is not here (any more)")
        return self.path(blob.id).open("rb")

    def content(self, blob: Blob) -> bytes:
        """All bytes of a blob, inline or from disk. For small blobs."""
        if blob.inline is not None:
            return blob.inline
        return b"".join(frame.data for frame in self.read(blob))

    def remove(self, blob: BlobId) -> None:
        """Remove a blob, and what is still arriving of it."""
        for path in (self.path(blob), *self.folder.glob(f"{blob.hex()}.*")):
            path.unlink(missing_ok=True)

    def abandon(self, blob: BlobId, sender: str) -> None:
        """Remove what is still arriving of a blob from this sender."""
        for end in ("part", "part.frames"):
            (self.folder / f"{blob.hex()}.{sender}.{end}").unlink(missing_ok=True)

    def keep_only(self, wanted: set[BlobId], *, incomplete_since_unix_s: float = math.inf) -> None:
        """Remove everything else. Blobs that were still arriving at ``incomplete_since_unix_s`` or later may go on."""
        names = {blob.hex() for blob in wanted}
        for path in self.folder.iterdir():
            name, _, rest = path.name.partition(".")
            arriving = "part" in rest and path.stat().st_mtime >= incomplete_since_unix_s
            if name not in names and not arriving:
                path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def _digests_path(self, blob: BlobId) -> Path:
        return self.folder / f"{blob.hex()}.frames"


class NewBlob:
    """Takes bytes of any lengths whose name is not known beforehand, and makes them a blob. ``close`` it in any case.

    Raises:
        DiskFullError: no room; nothing is left behind.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._path = spool.folder / f"new-{os.urandom(8).hex()}"
        self._digests_path = self._path.with_suffix(".frames")
        self._pending = bytearray()
        self._digests = bytearray()
        self._size = 0
        with disk_errors():
            self._file = self._path.open("wb")

    def take(self, piece: bytes) -> None:
        self._pending += piece
        while len(self._pending) >= FRAME_BYTES:
            self._write(bytes(self._pending[:FRAME_BYTES]))
            del self._pending[:FRAME_BYTES]

    def finish(self) -> Blob:
        """Flushed to disk under its name before this returns."""
        if self._pending:
            self._write(bytes(self._pending))
        with disk_errors():
            _flush(self._file)
            with self._digests_path.open("wb") as file:
                file.write(self._digests)
                _flush(file)
        blob = Blob(name_of(self._size, bytes(self._digests)), self._size)
        if not self._spool.has(blob):
            self._digests_path.rename(self._spool._digests_path(blob.id))
            self._path.rename(self._spool.path(blob.id))
        return blob

    def close(self) -> None:
        with suppress(OSError):  # what could not be written then is not needed
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._digests_path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        with disk_errors():
            self._file.write(data)
        self._digests += hashlib.sha256(data).digest()
        self._size += len(data)


class BlobWriter:
    """Takes the frames of one blob in order and makes it whole.

    A frame that was taken before is passed over (a repetition is harmless); a gap, a wrong digest or a wrong length is
    refused and leaves what was taken before in place, so that the sender can go on from ``next_frame``.
    """

    def __init__(self, spool: Spool, blob: Blob, sender: str) -> None:
        self._spool = spool
        self._blob = blob
        stem = f"{blob.id.hex()}.{sender}." if sender else f"{blob.id.hex()}."
        self._part = spool.folder / f"{stem}part"
        self._part_digests = spool.folder / f"{stem}part.frames"
        self.next_frame = blob.frames if spool.has(blob) else self._recover()
        self._file: BinaryIO | None = None
        self._digests: BinaryIO | None = None

    def take(self, frame: Frame) -> None:
        """Check and keep one frame.

        Raises:
            FrameError: corrupted, truncated, too long or out of order. DiskFullError: no room.
        """
        if frame.index < self.next_frame:
            return
        if frame.index > self.next_frame:
            raise FrameError(
                "A frame is missing before this one", expected=f"frame {self.next_frame}", got=f"frame {frame.index}"
            )
        last = self._blob.size - (self._blob.frames - 1) * FRAME_BYTES
        expected = last if frame.index == self._blob.frames - 1 else FRAME_BYTES
        if frame.index >= self._blob.frames or len(frame.data) != expected:
            raise FrameError(
                f"Frame {frame.index} has the wrong length", expected=f"{expected} bytes", got=f"{len(frame.data)}"
            )
        if hashlib.sha256(frame.data).digest() != frame.sha256:
            raise FrameError(f"Frame {frame.index} was corrupted on its way", expected="content matching its SHA-256")
        with disk_errors():
            self._file = self._file or self._part.open("ab", buffering=0)
            self._digests = self._digests or self._part_digests.open("ab", buffering=0)
            try:
                _write_all(self._file, frame.data)
                _write_all(self._digests, frame.sha256)
            except OSError:
                # A torn frame must not stay: the next one would be appended behind it.
                os.truncate(self._part, self.next_frame * FRAME_BYTES)
                os.truncate(self._part_digests, self.next_frame * DIGEST_BYTES)
                raise
        self.next_frame += 1

    def finish(self) -> None:
        """Check the whole and give it its name; flushed to disk before this returns.

        Raises:
            FrameError: frames are missing. BlobMismatchError: the frames do not make the announced blob; they are
                dropped, so that a fresh upload starts at frame 0.
        """
        if self._spool.has(self._blob):
            self.close()
            self._drop()
            return
        if self.next_frame < self._blob.frames:
            raise FrameError(
                "The blob is not complete", expected=f"{self._blob.frames} frames", got=f"{self.next_frame}"
            )
        with disk_errors():
            self.close(flush=True)
            self._part.touch()
            self._part_digests.touch()
        if name_of(self._blob.size, self._part_digests.read_bytes()) != self._blob.id:
            self._drop()
            self.next_frame = 0
            raise BlobMismatchError("The frames that arrived do not make the blob that was announced")
        self._part_digests.rename(self._spool._digests_path(self._blob.id))
        self._part.rename(self._spool.path(self._blob.id))

    def close(self, *, flush: bool = False) -> None:
        for file in (self._file, self._digests):
            if file is not None:
                if flush:
                    os.fsync(file.fileno())
                file.close()
        self._file = self._digests = None

    def _drop(self) -> None:
        self._part.unlink(missing_ok=True)
        self._part_digests.unlink(missing_ok=True)

    def _recover(self) -> int:
        """Frames of an earlier attempt that are whole on disk; torn ones are cut off."""
        if not self._part.exists() or not self._part_digests.exists():
            # One without the other is what a kill between the two renames of ``finish`` leaves; new frames must not
            # be appended to it.
            self._drop()
            return 0
        digests = self._part_digests.read_bytes()
        whole = min(self._part.stat().st_size // FRAME_BYTES, len(digests) // DIGEST_BYTES)
        with self._part.open("rb") as file:
            for index in range(whole):
                start = index * DIGEST_BYTES
                if hashlib.sha256(file.read(FRAME_BYTES)).digest() != digests[start : start + DIGEST_BYTES]:
                    whole = index
                    break
        os.truncate(self._part, whole * FRAME_BYTES)
        os.truncate(self._part_digests, whole * DIGEST_BYTES)
        return whole


class disk_errors:  # noqa: N801  # reads as a statement
    """Translate a full disk."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                "The disk that holds the spool is full",
                action="Free some space; the transfer then goes on where it ended",
            ) from error


def _write_all(file: BinaryIO, data: bytes) -> None:
    """An unbuffered write may be partial when the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
