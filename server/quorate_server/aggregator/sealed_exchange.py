"""The exchange of a study's loop inside of the attested machine: replies are opened here, instructions signed.

The loop does not know of it. What it is given and what it names is the sites' own; what passes the connection is
sealed. Bulk data is opened as it is read, in chunks, so that no update lies anywhere in the clear but in the sum.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Protocol, cast

import structlog

from quorate.attestation.appraisal import REFUSALS
from quorate.attestation.sealing import EnclaveKeys, blob_key, reply_context
from quorate.errors import (
    AttestationError,
    BlobMissingError,
    FrameError,
    UnsealError,
    WorkWithdrawnError,
)
from quorate.identity import RunId, SiteName
from quorate.process.chunked_aead import sealed_bytes
from quorate.process.sealed_file import SealedFile
from quorate.rounds.blobs import DIGEST_BYTES, INLINE_BYTES, Blob, BlobId
from quorate.rounds.instruction import MAX_BODY_BYTES, MOST_BLOBS, Instruction, MessageId, Phase, Reply
from quorate.rounds.run import RoundResult
from quorate.study.study import Study
from quorate.wire.attestation_messages import sealed_from_bytes
from quorate_server.rounds.phases import Arrived, Exchange, Presence, Status
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sum_figures import SumFigures

log = structlog.get_logger()

UNSEALED_CODES = REFUSALS | {WorkWithdrawnError.code}
"""What may be said in the open: that a site does not trust this machine, and that nobody waited for it."""
MOST_REPETITIONS = 2
"""How often a site is asked again for what does not open."""
MOST_HEAD_BYTES = MAX_BODY_BYTES + MOST_BLOBS * INLINE_BYTES + 64 * 1024
"""Of a sealed reply without its bulk data, which is opened in memory."""
PIECE_BYTES = 1024 * 1024
PASSED_ON = (Phase.CHECKPOINT, Phase.RELEASE)
"""Phases whose bulk data leaves the machine as it came: the sites sealed it to each other, or to the operator."""


class Outside(Exchange, Protocol):
    """The connection to the server: what an exchange is, and a way into its spool."""

    def again(self, message: MessageId) -> None: ...
    def read_at(self, blob: Blob, start: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Sealed:
    """Bulk data of a reply: as it lies at the server, and what opens it."""

    at_server: Blob
    size: int
    key: bytes


class SealedExchange:
    """Between a study's loop and the connection.

    Args:
        keys: This machine's, for this run alone.
    """

    def __init__(self, run: RunId, study: Study, outside: Outside, keys: EnclaveKeys) -> None:
        self._run = run
        self._digest = study.digest()
        self._site_keys = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
        self._outside = outside
        self._keys = keys
        self._asked: dict[MessageId, tuple[SiteName, Instruction]] = {}
        self._sealed: dict[BlobId, _Sealed] = {}
        self._obsolete: set[BlobId] = set()
        self._repeated: Counter[MessageId] = Counter()

    def send(self, site: SiteName, instruction: Instruction) -> None:
        signed = replace(instruction, signature=self._keys.sign(instruction.signed_part))
        self._asked[instruction.message_id] = site, signed
        self._outside.send(site, signed)

    def withdraw(self, messages: Iterable[MessageId]) -> None:
        names = tuple(messages)
        for name in names:
            self._asked.pop(name, None)
            self._repeated.pop(name, None)
        self._outside.withdraw(names)

    def refuse(self, message: MessageId, code: str) -> None:
        self._outside.refuse(message, code)

    def next_event(self, timeout_s: float) -> Arrived | Presence | None:
        event = self._outside.next_event(timeout_s)
        return self._opened(event.reply) if isinstance(event, Arrived) else event

    def open(self, blob: Blob) -> BinaryIO:
        sealed = self._sealed.get(blob.id)
        if blob.inline is not None or sealed is None:
            return self._outside.open(blob)
        return cast(BinaryIO, self._file(sealed))

    def put(self, content: Iterable[bytes]) -> Blob:
        return self._outside.put(content)

    def keep_model(self, blob: Blob) -> None:
        self._outside.keep_model(blob)

    def free_bytes(self) -> int:
        return self._outside.free_bytes()

    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        opened = obsolete & self._sealed.keys()
        at_server = {self._sealed.pop(name).at_server.id for name in opened}
        self._outside.commit(progress, result, (obsolete - opened) | at_server | self._obsolete)
        self._obsolete.clear()

    def report(self, status: Status) -> None:
        self._outside.report(status)

    def measured(self, figures: SumFigures) -> None:
        self._outside.measured(figures)

    # --- replies ---

    def _opened(self, reply: Reply) -> Arrived | None:
        """What a site said, or why it does not count. None where it was not asked, or is asked again."""
        asked = self._asked.pop(reply.message_id, None)
        if asked is None:
            return None
        site, instruction = asked
        try:
            said = self._unsealed(site, instruction, reply)
        except (UnsealError, BlobMissingError) as error:
            if self._repeated[reply.message_id] < MOST_REPETITIONS:
                # Sealed to the machine that was here before. The site has not lost its work, and seals it anew.
                log.info("asked again for what does not open here", run=self._run, site=site, reason=str(error))
                self._repeated[reply.message_id] += 1
                self._outside.again(reply.message_id)
                self.send(site, instruction)
                return None
            said = Reply(reply.message_id, error.code)
        except (AttestationError, FrameError) as error:
            said = Reply(reply.message_id, error.code)
        self._obsolete |= {blob.id for blob in reply.blobs if blob.inline is None} - self._at_server()
        self._repeated.pop(reply.message_id, None)
        if said.code:
            self._outside.refuse(reply.message_id, said.code)
        return Arrived(site, said)

    def _unsealed(self, site: SiteName, instruction: Instruction, reply: Reply) -> Reply:
        """Raises UnsealError, SiteSignatureError, BlobMissingError, FrameError: this site's reply is of no use. Others
        are about the server."""
        if reply.code:
            if reply.code in UNSEALED_CODES:
                return Reply(reply.message_id, reply.code)
            raise UnsealError("A site's refusal is not sealed")
        if not reply.blobs:
            raise UnsealError("A site's reply is not sealed")
        head, *bulk = reply.blobs
        context = reply_context(self._digest, self._run, reply.message_id, site)
        content = self._keys.open(self._content(head), context, self._site_keys[site])
        said, secret = sealed_from_bytes(content)
        if said.message_id != reply.message_id:
            raise UnsealError("A site sealed a reply to something else")
        listed = [blob for blob in said.blobs if blob.inline is None]
        if [sealed_bytes(blob.size) for blob in listed] != [blob.size for blob in bulk]:
            raise UnsealError("A site's sealed reply and the bulk data that came with it do not belong together")
        kept = {
            blob: self._kept(blob, _Sealed(at_server, blob.size, blob_key(secret, number)), instruction.phase)
            for number, (blob, at_server) in enumerate(zip(listed, bulk, strict=True))
        }
        return replace(said, blobs=tuple(kept.get(blob, blob) for blob in said.blobs))

    def _kept(self, blob: Blob, sealed: _Sealed, phase: Phase) -> Blob:
        """The bulk data as the loop knows it. Under a name of this machine's own where it stays sealed: nobody looks
        whether it is what its site names, and that may be the name of what the machine itself has stored."""
        if phase not in PASSED_ON:
            own = BlobId(os.urandom(DIGEST_BYTES))
            self._sealed[own] = sealed
            return Blob(own, blob.size)
        file = self._file(sealed)
        if self._outside.put(iter(partial(file.read, PIECE_BYTES), b"")) != blob:
            raise UnsealError("A site's bulk data is not what it named")
        return blob

    def _at_server(self) -> set[BlobId]:
        return {sealed.at_server.id for sealed in self._sealed.values()}

    def _file(self, sealed: _Sealed) -> SealedFile:
        return SealedFile(partial(self._outside.read_at, sealed.at_server), sealed.size, sealed.key)

    def _content(self, blob: Blob) -> bytes:
        if blob.size > MOST_HEAD_BYTES:
            raise UnsealError("A site's sealed reply is too large", expected=f"at most {MOST_HEAD_BYTES} bytes")
        return blob.inline if blob.inline is not None else self._outside.read_at(blob, 0, blob.size)
