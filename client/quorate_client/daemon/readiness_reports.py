"""Telling the server whether this site would work for the studies that it offers, before anybody starts a run.

Looked at when the site connects, when the studies change and now and then; told is what differs from what was told on
this connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import structlog

from quorate.errors import (
    QuorateError,
    TransportError,
    WrongRoleError,
)
from quorate.process.cancellation import wait_for_event
from quorate.study.readiness import Readiness
from quorate.v1 import rounds_pb2
from quorate.wire.messages import readiness_to_proto
from quorate_client.approval.offers import CALL_TIMEOUT_S, Offer, Unsound, read_offers
from quorate_client.approval.readiness import MAX_STUDIES, Assessor
from quorate_client.connection.channel import translated
from quorate_client.connection.current import Connection

log = structlog.get_logger()

LOOK_EVERY_S = 60.0
"""An answer, the policy, a data set or the ledger may change without a word of the server."""
Result = TypeVar("Result")


@dataclass(slots=True)
class ReadinessReports:
    """Looks at the offered studies and tells the server, for as long as a connection lasts."""

    assessor: Assessor
    look_every_s: float = LOOK_EVERY_S
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    # One thread of its own: a computation outlives the connection that it was for, and the next one must wait for it
    # rather than take a thread from the work of rounds.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "readiness"))

    def studies_changed(self) -> None:
        """The server says so."""
        self._changed.set()

    async def run(self, connection: Connection) -> None:
        """Tell the server at once, and again what changes. A server that does not know the call is left alone."""
        told: dict[bytes, Readiness] = {}
        offers: list[Offer | Unsound] = []
        self._changed.set()
        while True:
            try:
                if self._changed.is_set():
                    self._changed.clear()
                    offers = await self._offers(connection)
                for offer in offers:
                    readiness = await self._assess(offer)
                    if told.get(offer.digest) != readiness:
                        await _tell(connection, offer.digest, readiness)
                        told[offer.digest] = readiness
            except QuorateError as error:
                log.debug("readiness not told", code=error.code, reason=str(error))
                if _is_unknown_call(error):
                    return
            await wait_for_event(self._changed, self.look_every_s)

    async def _offers(self, connection: Connection) -> list[Offer | Unsound]:
        with translated(connection.address):
            reply = await connection.stub.ListStudies(rounds_pb2.SiteStudiesRequest(), timeout=CALL_TIMEOUT_S)
        return await self._aside(read_offers, rounds_pb2.SiteStudiesReply(studies=reply.studies[-MAX_STUDIES:]))

    async def _assess(self, offer: Offer | Unsound) -> Readiness:
        try:
            if isinstance(offer, Unsound):
                raise offer.problem
            question = self.assessor.look(offer.study, offer.digest)
            if question is not None:
                await self._aside(self.assessor.answer, question)
        except QuorateError as error:
            log.debug("a study would be refused", study=offer.digest.hex()[:12], code=error.code, reason=str(error))
            return Readiness(error.code)
        return Readiness()

    async def _aside(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


async def _tell(connection: Connection, digest: bytes, readiness: Readiness) -> None:
    request = rounds_pb2.ReportReadinessRequest(digest=digest, readiness=readiness_to_proto(readiness))
    with translated(connection.address):
        await connection.stub.ReportReadiness(request, timeout=CALL_TIMEOUT_S)
    log.debug("readiness told", study=digest.hex()[:12], code=readiness.code)


def _is_unknown_call(error: QuorateError) -> bool:
    """A server of an older version has a guard that offers the call to nobody; without one, gRPC says so itself."""
    cause = error.__cause__
    is_unimplemented = isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED
    return isinstance(error, WrongRoleError) or (isinstance(error, TransportError) and is_unimplemented)
