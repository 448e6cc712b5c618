"""What passes between a site and the server in studies that demand an attested machine: nothing else, and only sealed.

The gate stands in front of the socket, beside no task's code. An instruction is worked on if the machine that was
appraised signed it. A reply leaves sealed to that machine, its code too. The machine is appraised again when its
appraisal is too old, and whenever an instruction comes that it did not sign: it may have been started again, with new
keys. While it cannot be appraised, work and replies wait. What was appraised and refused is told to the server by its
code, in the open; that code depends on the evidence alone.

Not behind the gate, as no study's work: approvals, readiness, heartbeats, and the head of the privacy ledger.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import BinaryIO
from weakref import WeakValueDictionary

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.appraisal import REFUSALS, Appraisal
from quorate.attestation.binding import NONCE_BYTES, Expected, binding
from quorate.attestation.evidence import Evidence
from quorate.attestation.sealing import EnclaveIdentity, blob_key, reply_context, reply_secret, seal
from quorate.errors import (
    AttestationError,
    QuorateError,
    ServerUnreachableError,
    SiteInterruptedError,
)
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import to_its_end
from quorate.process.chunked_aead import seal_chunks
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.instruction import Instruction, MessageId, Reply, message_id
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.v1 import attestation_pb2
from quorate.wire.attestation_messages import answer_from_proto, sealed_to_bytes
from quorate.wire.messages import reply_to_bytes
from quorate_client.connection.backoff import Backoff
from quorate_client.connection.channel import translated
from quorate_client.connection.current import Connection, CurrentConnection

log = structlog.get_logger()

FRESH_S = 300.0
"""An appraisal counts so long; then the machine is asked again."""
ANSWER_S = 60.0
"""A nonce counts so long."""
MAX_TRUSTED = 256
"""Runs whose appraisals are remembered: a server may make up any number of names."""
_PIECE_BYTES = 1024 * 1024

Appraise = Callable[[Study, Evidence, Expected, datetime], Appraisal]
"""Holds evidence against the study's policy and the site's. Raises AttestationError."""


@dataclass(frozen=True, slots=True)
class Appraised:
    """What came of a question to the machine that adds a run's sums; ``nonce`` and ``door_key`` were part of it."""

    run: RunId
    study: Study
    study_digest: bytes
    nonce: bytes
    door_key: bytes
    identity: EnclaveIdentity
    evidence: Evidence
    at: datetime
    code: str = ""


@dataclass(frozen=True, slots=True)
class GateParts:
    """What the gate needs of the daemon.

    Args:
        study: The study with a digest, whatever was answered to it; None if it was never shown to this site.
        appraise: The rule.
        rules: What the site's own files demand of a machine at this moment; an appraisal by others counts no more.
        door_key: The key that the server shows (``way.key_of_the_door``); blocks.
        signing_key: The site's.
        note: Told of every appraisal before it counts, in a thread. Raises QuorateError where it cannot be put on
            record that a machine is trusted: it is not trusted then.
        owed: The messages whose replies the server has yet to get.
        random: Uniform in [0, 1).
    """

    site: SiteName
    study: Callable[[bytes], Study | None]
    appraise: Appraise
    rules: Callable[[], object]
    door_key: Callable[[], bytes]
    signing_key: Callable[[], Ed25519PrivateKey]
    note: Callable[[Appraised], None]
    owed: Callable[[], set[MessageId]]
    now: Callable[[], datetime]
    random: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Trusted:
    """An appraisal in which all held, and what it holds for beside its machine."""

    appraised: Appraised
    connection: Connection
    rules: object


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A reply, and what it became for one machine: the sealed head, then the sealed bulk data."""

    reply: Reply
    to: EnclaveIdentity
    leaving: Reply


class Gate:
    """One site's. Lives in the daemon's event loop."""

    def __init__(self, parts: GateParts, current: CurrentConnection, spool: Spool) -> None:
        self._parts = parts
        self._current = current
        self._spool = spool
        self._trusted: dict[RunId, _Trusted] = {}
        self._asking: WeakValueDictionary[RunId, asyncio.Lock] = WeakValueDictionary()
        self._sealed: dict[MessageId, _Sealed] = {}

    async def admits(self, instruction: Instruction) -> bool:
        """Whether the site may work on this instruction. If not, it gets no answer. Waits while the machine cannot be
        asked.

        Raises:
            AttestationError: the machine is none that may be trusted.
        """
        study = self._parts.study(instruction.study_digest)
        if study is None or study.attestation is None:
            return True
        waits = Backoff(self._parts.random)
        while True:
            try:
                is_admitted = await self._is_of_the_machine(instruction, study)
                break
            except AttestationError:
                raise
            except QuorateError as error:
                log.warning(
                    "the attested machine cannot be asked", run=instruction.run, code=error.code, reason=str(error)
                )
            await asyncio.sleep(waits.next_s())
        if not is_admitted:
            log.warning("an instruction that the attested machine did not sign was passed over", run=instruction.run)
        return is_admitted

    async def _is_of_the_machine(self, instruction: Instruction, study: Study) -> bool:
        # What is signed names run, round, phase, attempt and site by the id alone.
        if instruction.message_id != message_id(
            instruction.run, instruction.round_number, instruction.phase, instruction.attempt, self._parts.site
        ):
            return False
        digest = instruction.study_digest
        known = self._fresh(instruction.run, digest)
        if known is not None and known.has_signed(instruction.signed_part, instruction.signature):
            return True
        identity = await self._appraised(instruction.run, study, digest, not_this=known)
        return identity.has_signed(instruction.signed_part, instruction.signature)

    async def outgoing(self, run: RunId, study_digest: bytes | None, reply: Reply) -> Reply:
        """A reply as it may leave.

        Args:
            study_digest: Of the study that it is for; None of replies of before there was attestation.

        Raises:
            QuorateError: it may not leave now.
        """
        if study_digest is None:
            return reply
        study = self._parts.study(study_digest)
        if study is None:  # whatever it may demand, nothing was computed for it
            return Reply(reply.message_id, reply.code or SiteInterruptedError.code)
        if study.attestation is None:
            return reply
        if reply.code in REFUSALS:
            return Reply(reply.message_id, reply.code)
        identity = self._fresh(run, study_digest)
        try:
            identity = identity or await self._appraised(run, study, study_digest, not_this=None)
        except AttestationError as error:
            return Reply(reply.message_id, error.code)
        made = self._sealed.get(reply.message_id)
        if made is not None and made.reply == reply and made.to == identity:
            return made.leaving
        if made is None or made.reply != reply:
            self._tidy(reply.message_id)
            made = None
        sealed = await to_its_end(asyncio.to_thread(self._seal, run, study_digest, identity, reply, made))
        if made is not None:
            self._remove(made.leaving.blobs[:1])
        self._sealed[reply.message_id] = _Sealed(reply, identity, sealed)
        return sealed

    def settled(self, message: MessageId) -> None:
        """The server has the reply, or does not want it: what was sealed for it goes."""
        made = self._sealed.pop(message, None)
        if made is not None:
            self._remove(made.leaving.blobs)

    def _tidy(self, message: MessageId) -> None:
        """Before something new is sealed: what nobody waits for any more goes, and what it takes the place of."""
        for name in self._sealed.keys() - self._parts.owed() | {message}:
            self.settled(name)

    def _remove(self, blobs: tuple[Blob, ...]) -> None:
        for blob in blobs:
            if blob.inline is None:
                self._spool.remove(blob.id)

    # --- appraisals ---

    def _fresh(self, run: RunId, digest: bytes) -> EnclaveIdentity | None:
        known = self._trusted.get(run)
        if known is None or known.appraised.study_digest != digest:
            return None
        if known.connection is not self._current.connection or known.rules != self._parts.rules():
            return None
        age_s = (self._parts.now() - known.appraised.at).total_seconds()
        return known.appraised.identity if 0 <= age_s < FRESH_S else None

    async def _appraised(
        self, run: RunId, study: Study, digest: bytes, not_this: EnclaveIdentity | None
    ) -> EnclaveIdentity:
        """The machine's keys, appraised now, or a moment ago by somebody else who waited.

        Raises:
            AttestationError: it is none that may be trusted. Other QuorateErrors: it cannot be asked now.
        """
        async with self._asking.setdefault(run, asyncio.Lock()):
            known = self._fresh(run, digest)
            if known is not None and known != not_this:
                return known
            self._trusted.pop(run, None)
            connection, rules = await self._current.connected(), self._parts.rules()
            asked = await self._ask(connection, run, study, digest)
            try:
                await asyncio.to_thread(self._hold, study, asked)
            except AttestationError as error:
                await asyncio.to_thread(self._parts.note, replace(asked, code=error.code))
                log.error("the attested machine is not trusted", run=run, code=error.code, reason=str(error))
                raise
            await asyncio.to_thread(self._parts.note, asked)
            self._trusted[run] = _Trusted(asked, connection, rules)
            while len(self._trusted) > MAX_TRUSTED:
                del self._trusted[next(iter(self._trusted))]
            log.info("the attested machine is trusted", run=run, evidence=asked.evidence.kind.value)
            return asked.identity

    async def _ask(self, connection: Connection, run: RunId, study: Study, digest: bytes) -> Appraised:
        door_key = await asyncio.to_thread(self._parts.door_key)
        nonce, asked_at = os.urandom(NONCE_BYTES), self._parts.now()
        try:
            with translated(connection.address):
                answer = await connection.stub.Attest(
                    attestation_pb2.AttestRequest(run=run, nonce=nonce), timeout=ANSWER_S
                )
        except AttestationError as error:  # the server's word, and no appraisal
            raise ServerUnreachableError(f"The server shows no evidence: {error.what}") from error
        evidence, identity = answer_from_proto(answer)
        return Appraised(run, study, digest, nonce, door_key, identity, evidence, asked_at)

    def _hold(self, study: Study, asked: Appraised) -> None:
        """Raises AttestationError."""
        bound = binding(
            nonce=asked.nonce,
            public_key=asked.identity.public_key,
            tls_spki=asked.door_key,
            study=study.canonical(),
            run=asked.run,
        )
        self._parts.appraise(study, asked.evidence, Expected(bound, asked.at), self._parts.now())

    # --- sealing ---

    def _seal(self, run: RunId, digest: bytes, to: EnclaveIdentity, reply: Reply, made: _Sealed | None) -> Reply:
        """Bulk data that was sealed for another machine stays as it is: its keys are in the head alone."""
        site = self._parts.signing_key()
        context = reply_context(digest, run, reply.message_id, self._parts.site)
        # Alike whenever this reply is sealed: the server may have some of it, from before this site was started again.
        secret = reply_secret(reply_to_bytes(reply), context, site)
        head = seal(sealed_to_bytes(reply, secret), to, context, site)
        first = Blob.of(head) if len(head) <= INLINE_BYTES else self._spool.put([head])
        bulk = made.leaving.blobs[1:] if made is not None else tuple(self._sealed_bulk(reply, secret))
        return Reply(reply.message_id, blobs=(first, *bulk))

    def _sealed_bulk(self, reply: Reply, secret: bytes) -> Iterator[Blob]:
        for number, blob in enumerate(blob for blob in reply.blobs if blob.inline is None):
            with self._spool.open(blob) as file:
                yield self._spool.put(seal_chunks(_pieces(file), blob_key(secret, number)))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.read, _PIECE_BYTES), b"")
