"""Which blobs the runs still need. Blobs are named by content: what one run or site is done with another may need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain

from quorate.identity import RunId
from quorate.rounds.blobs import BlobId
from quorate.rounds.instruction import Instruction, Reply
from quorate.rounds.spool import Spool


class BlobsInUse:
    """What each run has to find in the spool when it goes on, and what sites brought for the round that is open."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._kept: dict[RunId, set[BlobId]] = {}
        self._answered: dict[RunId, set[BlobId]] = {}

    def keep(self, run: RunId, *messages: Instruction | Reply) -> None:
        """From now on the run needs what these messages refer to, until its next step is committed."""
        self._kept.setdefault(run, set()).update(_bulk(messages))

    def hold_progress(self, run: RunId, blobs: set[BlobId]) -> None:
        """This is what the run committed. It takes the place of all that was kept for it."""
        self._kept[run] = blobs

    def hold_answers(self, run: RunId, replies: Iterable[Reply]) -> None:
        """Sites answered these; nothing that was made of them is committed yet."""
        self._answered.setdefault(run, set()).update(_bulk(replies))

    def drop_answers(self, run: RunId) -> None:
        """The round is committed, or its answers are kept."""
        self._answered.pop(run, None)

    def all(self, besides: RunId | None = None) -> set[BlobId]:
        """What some run needs; of ``besides`` without what it was answered."""
        answered = (blobs for run, blobs in self._answered.items() if run != besides)
        return set().union(*chain(self._kept.values(), answered))

    async def discard(self, run: RunId, obsolete: set[BlobId]) -> None:
        """A step of the run is committed that makes these obsolete: remove those that nobody else needs."""
        await self._remove(obsolete - self.all(besides=run))

    async def release(self, run: RunId) -> None:
        """The run is over: remove all that only it needed."""
        await self._remove(self._kept.pop(run, set()) - self.all())

    async def _remove(self, blobs: set[BlobId]) -> None:
        def remove() -> None:
            for blob in blobs:
                self._spool.remove(blob)

        if blobs:
            await asyncio.to_thread(remove)  # deleting a file can take a millisecond


def _bulk(messages: Iterable[Instruction | Reply]) -> set[BlobId]:
    return {blob.id for message in messages for blob in message.blobs if blob.inline is None}
