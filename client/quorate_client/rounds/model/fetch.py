"""Bulk data that a round needs, brought to this site."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from quorate.errors import BlobMissingError
from quorate.rounds.blobs import Blob
from quorate.rounds.spool import Spool
from quorate_client.rounds.model.plain_files import open_plain

Fetch = Callable[[Blob], Awaitable[None]]


async def fetched(blob: Blob, spool: Spool, fetch: Fetch) -> BinaryIO:
    """The content of a blob, brought into the spool if it is not there.

    Raises:
        BlobMissingError: it did not arrive.
    """
    if blob.inline is not None:
        return io.BytesIO(blob.inline)
    if not spool.has(blob):
        await fetch(blob)
    if not spool.has(blob):
        raise BlobMissingError("Bulk data that the round needs did not arrive")
    return open_plain(spool.path(blob.id))
