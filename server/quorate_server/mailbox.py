"""Instructions that wait for a reply: at most one reply each is taken, written down, and only then acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from quorate.blobs import Blob, BlobId, Spool
from quorate.errors import BlobMissingError, FrameError, MessageUnknownError, WorkWithdrawnError
from quorate.exchange import Instruction, MessageId, Reply
from quorate.identity import RunId, SiteName
from quorate.messages import instruction_to_proto
from quorate.v1 import rounds_pb2
from quorate_server.journal import Journal
from quorate_server.sessions import Sessions

MAX_UPLOADS = 16
"""Blobs that a site may announce for one reply: as many as a reply may refer to."""

Taker = Callable[[SiteName, Reply], None]


@dataclass(frozen=True, slots=True)
class _Outstanding:
    site: SiteName
    instruction: Instruction
    refers_to: frozenset[BlobId]
    taker: Taker
    announced: dict[BlobId, Blob] = field(default_factory=dict)
    uploaded: set[BlobId] = field(default_factory=set)


class Mailbox:
    """Between the runs, which send instructions, and the sessions, which carry them.

    An instruction stays here until it is answered or withdrawn, so a site that (re)connects is sent what it owes.
    """

    def __init__(self, sessions: Sessions, journal: Journal, spool: Spool) -> None:
        self._sessions = sessions
        self._journal = journal
        self._spool = spool
        self._outstanding: dict[MessageId, _Outstanding] = {}
        self._taking: set[MessageId] = set()

    # --- for runs ---

    def send(self, site: SiteName, instruction: Instruction, refers_to: frozenset[BlobId], taker: Taker) -> None:
        """Ask a site; ``taker`` gets the reply once it is durable. ``refers_to`` is what the site may download for it.

        The same instruction again (its run's worker was started again) goes on where it was.
        """
        entry = _Outstanding(site, instruction, refers_to, taker)
        known = self._outstanding.get(instruction.message_id)
        if known is not None:
            entry.announced.update(known.announced)
            entry.uploaded.update(known.uploaded)
        self._outstanding[instruction.message_id] = entry
        session = self._sessions.session(site)
        if session is not None:
            session.send(rounds_pb2.ServerEvent(instruction=instruction_to_proto(instruction)))

    async def withdraw(self, messages: Iterable[MessageId]) -> None:
        """The replies are no longer wanted.

        Each is written down as a refusal: the site stops for good, so whoever wants the work later has to ask under
        another attempt. What was uploaded for it, whole or in part, is removed.
        """
        written = []
        for message in messages:
            entry = self._outstanding.pop(message, None)
            if entry is None:
                continue
            session = self._sessions.session(entry.site)
            if session is not None:
                session.send(rounds_pb2.ServerEvent(withdraw=rounds_pb2.Withdraw(message_id=message)))
            if message not in self._taking:
                # Announcing is not owning: a site may name a sum that others still need.
                for blob in entry.uploaded:
                    self._spool.remove(blob)
                for blob in entry.announced:
                    self._spool.abandon(blob, entry.site)
            refusal = Reply(message, WorkWithdrawnError.code)
            written.append(self._journal.record_reply(entry.site, entry.instruction, refusal))
        await asyncio.gather(*written)

    def asked_for(self, run: RunId) -> list[MessageId]:
        """What sites still owe a run."""
        return [message for message, entry in self._outstanding.items() if entry.instruction.run == run]

    # --- for sessions ---

    def owed_by(self, site: SiteName) -> list[Instruction]:
        return [entry.instruction for entry in self._outstanding.values() if entry.site == site]

    def announce(self, site: SiteName, message: MessageId, blob: Blob) -> None:
        """The site is about to upload a blob for its reply to this message.

        Raises:
            MessageUnknownError: this site owes no such reply. FrameError: more blobs than a reply may have.
        """
        announced = self._owed(site, message).announced
        if blob.id not in announced and len(announced) >= MAX_UPLOADS:
            raise FrameError("Too many uploads for one reply", expected=f"at most {MAX_UPLOADS}")
        announced[blob.id] = blob

    def announced(self, site: SiteName, blob: BlobId) -> tuple[MessageId, Blob]:
        """What an upload that now begins was announced as. Raises MessageUnknownError."""
        for message, entry in self._outstanding.items():
            if entry.site == site and blob in entry.announced:
                return message, entry.announced[blob]
        raise MessageUnknownError("An upload must be announced first", action="The daemon announces it again by itself")

    def uploaded(self, site: SiteName, message: MessageId, blob: BlobId) -> None:
        """An upload brought a blob that was not here. Raises MessageUnknownError when it is not wanted any more; it is
        removed then."""
        try:
            self._owed(site, message).uploaded.add(blob)
        except MessageUnknownError:
            self._spool.remove(blob)
            raise

    def check_download(self, site: SiteName, blob: BlobId) -> Blob:
        """The blob, if some instruction that this site owes a reply to refers to it.

        Raises:
            BlobMissingError: it does not, or the blob is not here.
        """
        for entry in self._outstanding.values():
            if entry.site == site and blob in entry.refers_to:
                path = self._spool.path(blob)
                if path.is_file():
                    return Blob(blob, path.stat().st_size)
        raise BlobMissingError("The bulk data that was asked for is not (or no longer) part of this site's work")

    async def take(self, site: SiteName, reply: Reply) -> bool:
        """Take a reply: check, write down, hand on. True when it may be acknowledged.

        A reply that is already written down is acknowledged and not handed on again.

        Raises:
            MessageUnknownError: this site owes no such reply. BlobMissingError: an upload is missing.
        """
        if reply.message_id not in self._outstanding and self._journal.has_reply(site, reply.message_id):
            return True
        entry = self._owed(site, reply.message_id)
        if reply.message_id in self._taking:
            return False
        for blob in reply.blobs:
            if blob.inline is None and not self._spool.has(blob):
                raise BlobMissingError(
                    "A reply refers to bulk data that was not uploaded", action="The daemon uploads it again by itself"
                )
        self._taking.add(reply.message_id)
        try:
            # The stored reply is handed on: another one may have been written before its connection ended.
            stored = await self._journal.record_reply(site, entry.instruction, reply)
        finally:
            self._taking.discard(reply.message_id)
        current = self._outstanding.pop(reply.message_id, None)
        if current is not None:
            current.taker(site, stored)
        return True

    def _owed(self, site: SiteName, message: MessageId) -> _Outstanding:
        entry = self._outstanding.get(message)
        if entry is None or entry.site != site:
            raise MessageUnknownError(
                "No reply to this message is expected from this site (any more)",
                action="The round may be over; the daemon goes on with the next one by itself",
            )
        return entry
