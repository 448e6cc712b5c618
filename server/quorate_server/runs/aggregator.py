"""The attested aggregator of a run, from the daemon's side: a worker on another machine, which has no spool here.

What passes is no secret: replies are sealed to the machine by the sites, and what it sends they know by its signature.
So this connection is neither encrypted nor authenticated: whoever stands in it can break a run off and learns nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from quorate.attestation.binding import NONCE_BYTES
from quorate.errors import (
    AggregatorUnreachableError,
    AttestationError,
    BlobMissingError,
    FrameError,
    QuorateError,
)
from quorate.identity import SiteName
from quorate.process.frames import find_dead_paths
from quorate.rounds.blobs import DIGEST_BYTES, Blob, BlobId
from quorate.rounds.spool import NewBlob, Spool
from quorate.wire.refusal import error_to_text
from quorate_server.consortium.config import split_address
from quorate_server.rounds.pipe import Note, Verb, read_note, reference

CONNECT_FOR_S = 15.0
"""A machine that is started again comes back within it; a run whose aggregator does not is paused."""
CONNECT_EVERY_S = 0.5
BROKEN_S = 5.0
"""What stands before a machine that is started again may accept a connection and break it at once."""
EVIDENCE_S = 20.0
MAX_WAITING = 4
"""Questions of one site at a time, about one run: making evidence takes the machine a while."""
MAX_PIECE_BYTES = 8 * 1024 * 1024


class Worker(Protocol):
    """What runs a run's sums: a process of this machine (``WorkerProcess``), or an aggregator."""

    def send(self, note: Note) -> None: ...
    async def receive(self) -> Note | None: ...
    async def kill(self) -> None: ...
    async def wait(self) -> None: ...


class Aggregator:
    """One run's connection to the attested aggregator."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: str) -> Aggregator:
        """Raises AggregatorUnreachableError, after ``CONNECT_FOR_S``."""
        host, port = split_address(address)
        deadline_s = time.monotonic() + CONNECT_FOR_S
        while True:
            try:
                async with asyncio.timeout(CONNECT_FOR_S):
                    reader, writer = await asyncio.open_connection(host, port)
                break
            except OSError as error:  # a time-out too
                if time.monotonic() >= deadline_s:
                    raise AggregatorUnreachableError(
                        f"The attested aggregator at {address} does not accept a connection",
                        got=str(error) or type(error).__name__,
                        action="Start quorate-aggregator there, then `quorate run resume`",
                    ) from error
            await asyncio.sleep(CONNECT_EVERY_S)
        find_dead_paths(writer.get_extra_info("socket"))
        return cls(reader, writer)

    def send(self, note: Note) -> None:
        if not self._writer.is_closing():
            self._writer.write(note.to_bytes())

    async def receive(self) -> Note | None:
        try:
            await self._writer.drain()  # who asks and does not read the answers is heard no further
        except ConnectionError:
            return None
        return await read_note(self._reader)

    async def kill(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def wait(self) -> None:
        await self.kill()


class SpoolDesk:
    """Serves bulk data to an aggregator: what it reads, and what it makes."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._new: NewBlob | None = None
        self._failure: QuorateError | None = None

    async def serve(self, note: Note, send: Callable[[Note], None]) -> None:
        """Answer one question. What cannot be done is the answer too, and the aggregator pauses its run."""
        try:
            answer = await asyncio.to_thread(self._answer, note)
        except QuorateError as error:
            answer = Note(Verb.FAILED, error_to_text(error).encode())
        if answer is not None:
            send(answer)

    def close(self) -> None:
        """What was not finished is dropped."""
        if self._new is not None:
            self._new.close()
            self._new = None

    def _answer(self, note: Note) -> Note | None:
        match note.verb:
            case Verb.READ:
                return Note(Verb.PIECE, self._piece(note.payload))
            case Verb.PUT:
                self._put(note.payload)
                return None
            case Verb.STORE:
                try:
                    return Note(Verb.STORED, reference(self._stored()))
                finally:
                    self._failure = None
                    self.close()
            case _:
                return Note(Verb.ROOM, self._spool.free_bytes().to_bytes(8, "big"))

    def _put(self, piece: bytes) -> None:
        """What goes wrong is the answer when all has come: nobody waits for one before."""
        if self._failure is not None:
            return
        try:
            self._new = self._new or NewBlob(self._spool)
            self._new.take(piece)
        except QuorateError as error:
            self._failure = error
            self.close()

    def _stored(self) -> Blob:
        if self._failure is not None:
            raise self._failure
        self._new = self._new or NewBlob(self._spool)
        return self._new.finish()

    def _piece(self, payload: bytes) -> bytes:
        name, offset, length = payload[:DIGEST_BYTES], payload[DIGEST_BYTES:-4], payload[-4:]
        wanted = int.from_bytes(length, "big")
        if len(payload) != DIGEST_BYTES + 12 or wanted > MAX_PIECE_BYTES:
            raise FrameError("The aggregator asks for what is no part of a blob")
        try:
            with self._spool.path(BlobId(name)).open("rb") as file:
                file.seek(int.from_bytes(offset, "big"))
                return file.read(wanted)
        except FileNotFoundError as error:
            raise BlobMissingError("Bulk data that the aggregator asks for is not here (any more)") from error


class EvidenceDesk:
    """Sites that wait for evidence, by their nonces."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, tuple[SiteName, asyncio.Future[bytes]]] = {}

    async def ask(self, site: SiteName, nonce: bytes, tell: Callable[[], None]) -> bytes:
        """What the machine answers to a site's nonce.

        Args:
            tell: Passes the question on, if it is one.

        Raises:
            AttestationError: it is none, the machine does not answer, or too many questions of this site wait.
        """
        if len(nonce) != NONCE_BYTES or nonce in self._waiting:
            raise AttestationError(
                "The attested aggregator cannot be asked this", expected=f"a nonce of {NONCE_BYTES} bytes of its own"
            )
        if sum(asker == site for asker, _ in self._waiting.values()) >= MAX_WAITING:
            raise AttestationError(
                "The attested aggregator cannot be asked so often",
                expected=f"at most {MAX_WAITING} questions at a time",
            )
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = site, answer
        try:
            tell()
            async with asyncio.timeout(EVIDENCE_S):
                return await answer
        except TimeoutError as error:
            raise AttestationError(
                "The attested aggregator shows no evidence",
                expected=f"an answer within {EVIDENCE_S:g} s",
                action="Read its log; sites ask again",
            ) from error
        finally:
            del self._waiting[nonce]

    def arrived(self, payload: bytes) -> None:
        """A nonce, and what the machine answers to it."""
        _, answer = self._waiting.get(payload[:NONCE_BYTES], (None, None))
        if answer is not None and not answer.done():
            answer.set_result(payload[NONCE_BYTES:])
