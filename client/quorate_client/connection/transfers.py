"""Bulk bytes between the spool and the server: one attempt at a time, and the downloads that outlive a connection.

Every attempt goes on at the first frame that the receiver lacks. Reading stops when the receiver stops taking: the
stream's window is the back-pressure, and no more than a few frames are in memory.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog

from quorate.errors import BlobMissingError, DiskFullError, FrameError, MessageUnknownError, TransportError
from quorate.identity import RunId
from quorate.process.cancellation import to_its_end
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import MessageId
from quorate.rounds.spool import BlobWriter, Spool
from quorate.v1 import rounds_pb2
from quorate.wire.messages import blob_to_proto, frame_from_proto, frame_to_proto
from quorate_client.connection.backoff import Backoff
from quorate_client.connection.channel import translated
from quorate_client.connection.current import CurrentConnection

log = structlog.get_logger()

OPEN_TIMEOUT_S = 30.0
ATTEMPTS_WITHOUT_PROGRESS = 5
KEEP_FREE_BYTES = 1024**3
KEEP_FREE_SHARE = 0.05
"""What a server offers does not fill a site's disk: so much stays free, or this share of it if that is less."""

Count = Callable[[int], None]


def _uncounted(*_: int) -> None: ...


Result = TypeVar("Result")


async def upload(
    stub: Any,
    address: str,
    spool: Spool,
    message: MessageId,
    blob: Blob,
    sent: Count,
    resumed: Count = _uncounted,
) -> None:
    """One attempt to bring a blob to the server.

    Args:
        sent: Is told the bytes of each frame that left.
        resumed: Is told how many frames the server has of an earlier attempt.

    Raises:
        BlobMissingError: the blob is not in the spool. TransportError and other QuorateErrors: as the server answers.
    """
    if not spool.has(blob):
        raise BlobMissingError("The bulk data of a reply is no longer in the spool")
    request = rounds_pb2.OpenUploadRequest(message_id=message, blob=blob_to_proto(blob))
    with translated(address):
        opened = await stub.OpenUpload(request, timeout=OPEN_TIMEOUT_S)
    if opened.complete:
        return
    # When the server has every frame but was stopped before it named the whole, the last one is repeated.
    first = min(opened.next_frame, blob.frames - 1)
    resumed(first)
    with translated(address):
        await stub.Upload(_frames(spool, blob, first, sent))


async def download(stub: Any, address: str, writer: BlobWriter, blob: Blob, received: Count) -> None:
    """One attempt to fetch the rest of a blob into the spool.

    Raises:
        FrameError: a frame was corrupted, truncated, out of order or too much. DiskFullError: no room here.
        BlobMissingError, ServerUnreachableError and other QuorateErrors: as the server answers.
    """
    try:
        with translated(address):
            call = stub.Download(rounds_pb2.DownloadRequest(blob_id=blob.id, first_frame=writer.next_frame))
            try:
                async for frame in call:
                    writer.take(frame_from_proto(frame))
                    received(len(frame.data))
            finally:
                call.cancel()
        # On a thread, for its flush may take long, and to its end: cancelled halfway it would flush a closed file.
        await to_its_end(asyncio.to_thread(writer.finish))
    finally:
        writer.close()


class Downloads:
    """Brings blobs into the spool, across lost connections, until the caller gives up.

    Args:
        current: Where the present connection is found.
        received: Told the bytes of each frame that came.
        free_bytes: How much the disk may take. By default all but what has to stay free.
        resumed: Told how many frames are here of an earlier attempt.
        broken: Called when an attempt was broken off.
    """

    def __init__(
        self,
        current: CurrentConnection,
        spool: Spool,
        random: Callable[[], float],
        received: Count,
        free_bytes: Callable[[], int] | None = None,
        resumed: Count = _uncounted,
        broken: Callable[[], None] = _uncounted,
    ) -> None:
        self._free_bytes = free_bytes or partial(_free_bytes, spool.folder)
        self._current = current
        self._spool = spool
        self._random = random
        self._received = received
        self._resumed = resumed
        self._broken = broken
        # A blob has one writer at a time, though several runs may want it.
        self._locks: WeakValueDictionary[BlobId, asyncio.Lock] = WeakValueDictionary()

    async def fetch(self, run: RunId, blob: Blob) -> None:
        """Return when a blob that this run needs is in the spool, whole.

        Raises:
            FrameError: what the server sends is not this blob, even when asked again. BlobMissingError: it has no such
                blob for this site. DiskFullError: no room here.
        """
        if blob.inline is not None:
            return
        async with self._locks.setdefault(blob.id, asyncio.Lock()):
            if not self._spool.has(blob):
                self._require_room(blob)
                await self._fetch(run, blob)

    def _require_room(self, blob: Blob) -> None:
        if blob.size > self._free_bytes():
            raise DiskFullError(
                "What the server offers would fill the disk that holds the spool",
                got=f"{blob.size} bytes",
                action="Free some space; if the model cannot be so large, ask the operator",
            )

    async def _fetch(self, run: RunId, blob: Blob) -> None:
        waits = Backoff(self._random)
        fruitless = 0
        while True:
            connection = await self._current.connected_for(run)
            writer = await to_its_end(asyncio.to_thread(self._spool.writer, blob))
            begun_at = writer.next_frame
            self._resumed(begun_at)
            try:
                await download(connection.stub, connection.address, writer, blob, self._received)
            except BlobMissingError:
                raise
            except TransportError as error:
                if writer.next_frame > begun_at:
                    waits.reset()
                    fruitless = 0
                # A server that is away is waited for; one that sends wrong bytes again and again is not.
                fruitless += isinstance(error, FrameError)
                if fruitless >= ATTEMPTS_WITHOUT_PROGRESS:
                    raise
                self._broken()
                log.warning("download broken off", code=error.code, frame=writer.next_frame, frames=blob.frames)
            else:
                return
            await asyncio.sleep(waits.next_s())


def _free_bytes(folder: Path) -> int:
    disk = shutil.disk_usage(folder)
    return disk.free - min(KEEP_FREE_BYTES, int(disk.total * KEEP_FREE_SHARE))


async def upload_until_done(
    attempt: Callable[[], Awaitable[None]], waits: Backoff, broken: Callable[[], None] = _uncounted
) -> None:
    """Repeat one blob's upload until the server has it whole; ``broken`` is called for each attempt that failed.

    Raises:
        BlobMissingError: the blob is not in the spool. MessageUnknownError: the server does not want it any more.
        FrameError: the server finds the bytes wrong, even when sent again. IdentityError: it refuses this site.
    """
    fruitless = 0
    while True:
        try:
            await attempt()
        except (BlobMissingError, MessageUnknownError):
            raise
        except (TransportError, DiskFullError) as error:
            # A server whose disk is full may get room before the round's deadline.
            fruitless += isinstance(error, FrameError)
            if fruitless >= ATTEMPTS_WITHOUT_PROGRESS:
                raise
            broken()
            log.warning("upload broken off", code=error.code, reason=str(error))
        else:
            return
        await asyncio.sleep(waits.next_s())


async def _frames(spool: Spool, blob: Blob, first: int, sent: Count) -> AsyncIterator[rounds_pb2.UploadFrame]:
    for frame in spool.read(blob, first):
        name = blob.id if frame.index == first else b""
        yield rounds_pb2.UploadFrame(blob_id=name, frame=frame_to_proto(frame))
        sent(len(frame.data))
