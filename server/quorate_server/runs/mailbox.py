"""Instructions that wait for a reply: at most one reply each is taken, written down, and only then acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from quorate.errors import BlobMissingError, FrameError, MessageUnknownError, WorkWithdrawnError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import MAX_BLOB_BYTES, Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Reply
from quorate.rounds.spool import Spool
from quorate.v1 import rounds_pb2
from quorate.wire.messages import instruction_to_proto
from quorate_server.runs.sessions import Sessions
from quorate_server.storage.journal import Journal

MAX_UPLOADS = 16
"""Blobs that a site may announce for one reply: as many as a reply may refer to."""

OnReply = Callable[[SiteName, Reply], None]


@dataclass(frozen=True, slots=True)
class _Outstanding:
    site: SiteName
    instruction: Instruction
    refers_to: frozenset[BlobId]
    on_reply: OnReply
    max_bytes: int
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
        self.needed: list[Callable[[], Collection[BlobId]]] = []
        """Asked, before an upload is removed, what the runs still need."""
        self._writing: dict[tuple[SiteName, MessageId], asyncio.Future[None]] = {}

    # --- for runs ---

    def send(
        self,
        site: SiteName,
        instruction: Instruction,
        refers_to: frozenset[BlobId],
        on_reply: OnReply,
        max_bytes: int = MAX_BLOB_BYTES,
    ) -> None:
        """Ask a site; ``on_reply`` gets the reply.

        The same instruction again (its run's worker was started again) goes on where it was.

        Args:
            refers_to: What the site may download for it.
            max_bytes: What it may upload for it, in all.
        """
        entry = _Outstanding(site, instruction, refers_to, on_reply, max_bytes)
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
            self._discard_uploads(entry)
            refusal = Reply(message, WorkWithdrawnError.code)
            written.append(self._journal.record_reply(entry.site, entry.instruction, refusal))
        await self._journal.written()
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
            MessageUnknownError: this site owes no such reply. FrameError: more blobs or bytes than a reply may have.
        """
        entry = self._owed(site, message)
        announced = {**entry.announced, blob.id: blob}
        if len(announced) > MAX_UPLOADS or sum(each.size for each in announced.values()) > entry.max_bytes:
            raise FrameError(
                "The uploads for one reply are too many or too large",
                expected=f"at most {MAX_UPLOADS}, of {entry.max_bytes} bytes together",
            )
        entry.announced[blob.id] = blob

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
            self._remove({blob})
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

    def take(self, site: SiteName, reply: Reply) -> asyncio.Future[None]:
        """Take a reply: check it, hand it on, write it down. Done when it may be acknowledged.

        It is handed on before it is written: a server that dies in between never acknowledged it, so the site brings
        it again. One that came before is acknowledged and not handed on.

        Raises:
            MessageUnknownError: this site owes no such reply. BlobMissingError: an upload is missing.
        """
        name = site, reply.message_id
        if reply.message_id not in self._outstanding:
            if name in self._writing:
                return self._writing[name]
            if self._journal.has_reply(*name):
                known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                known.set_result(None)
                return known
        entry = self._owed(*name)
        for blob in reply.blobs:
            if blob.inline is None and not self._spool.has(blob):
                raise BlobMissingError(
                    "A reply refers to bulk data that was not uploaded", action="The daemon uploads it again by itself"
                )
        del self._outstanding[reply.message_id]
        entry.on_reply(site, reply)
        self._discard_uploads(entry, kept={blob.id for blob in reply.blobs})
        self._writing[name] = written = self._journal.record_reply(site, entry.instruction, reply)
        written.add_done_callback(lambda _: self._writing.pop(name))
        return written

    def _discard_uploads(self, entry: _Outstanding, kept: Collection[BlobId] = ()) -> None:
        """What was uploaded for an instruction that is over, whole or in part, is removed."""
        self._remove(entry.uploaded.difference(kept))
        for blob in entry.announced:
            self._spool.abandon(blob, entry.site)

    def _remove(self, uploaded: set[BlobId]) -> None:
        """Uploading is not owning: a site may bring what another one answered with, or what is committed."""
        for blob in uploaded.difference(*(needed() for needed in self.needed)) if uploaded else ():
            self._spool.remove(blob)

    def _owed(self, site: SiteName, message: MessageId) -> _Outstanding:
        entry = self._outstanding.get(message)
        if entry is None or entry.site != site:
            raise MessageUnknownError(
                "No reply to this message is expected from this site (any more)",
                action="The round may be over; the daemon goes on with the next one by itself",
            )
        return entry
