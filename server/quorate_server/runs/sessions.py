"""Who is connected: one session per site, fencing, liveness.

Liveness is by application heartbeats and an explicit goodbye, not by the transport: a stopped process keeps its
TCP connection open, and a killed one looks like a clean close.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from quorate.errors import FrameError, IdentityClonedError, QuorateError, SupersededError
from quorate.identity import SiteName
from quorate.privacy.ledger_head import SignedHead
from quorate.process.printable import printable
from quorate.rounds.instruction import MessageId
from quorate.v1 import rounds_pb2
from quorate.versions import SERIES, Age, age_of, require_fits
from quorate.wire.refusal import detail_of
from quorate_server.storage.journal import Journal

MAX_SESSION = 2**63 - 1
MAX_VERSION_CHARACTERS = 40
MAX_WAITING = 1000
"""Events that wait for a site: a thousand heartbeats are half an hour."""
ACK_DELAY_S = 0.1
"""Nobody waits for an acknowledgement, and a message costs more than what is in it: those of a moment go together."""

PresenceState = Literal["online", "silent", "paused", "offline"]


@dataclass(slots=True)
class Session:
    """One open stream of a site. ``outgoing`` ends with None."""

    site: SiteName
    number: int
    version: str
    outgoing: asyncio.Queue[rounds_pb2.ServerEvent | None] = field(default_factory=asyncio.Queue)
    last_heard_s: float = 0.0
    paused: bool = False
    silent: bool = False
    ended: bool = False
    _acks: list[MessageId] = field(default_factory=list)

    def acknowledge(self, message: MessageId) -> None:
        """Tell the site, in a moment, that its reply is written down. A reply whose acknowledgement is lost comes
        again and is acknowledged then."""
        if not self._acks:
            asyncio.get_running_loop().call_later(ACK_DELAY_S, self._send_acks)
        self._acks.append(message)

    def _send_acks(self) -> None:
        if self._acks:
            self.send(rounds_pb2.ServerEvent(ack=rounds_pb2.ReplyAck(message_ids=self._acks)))
            self._acks = []

    def send(self, event: rounds_pb2.ServerEvent) -> None:
        if self.ended:
            return
        if self.outgoing.qsize() >= MAX_WAITING:
            # One that asks for answers and does not read them would fill the memory. What waits goes out, then it ends.
            self.ended = True
            self.outgoing.put_nowait(None)
            return
        self.outgoing.put_nowait(event)

    def drop_waiting(self) -> None:
        """What waits is not wanted any more."""
        self.outgoing = asyncio.Queue()

    def end(self, error: QuorateError | None = None) -> None:
        """Let the stream end, with the reason why."""
        self._send_acks()
        if error is not None:
            self.send(rounds_pb2.ServerEvent(refused=detail_of(error)))
        self.ended = True
        self.outgoing.put_nowait(None)


class Sessions:
    """All open sessions, and since when the other sites are gone.

    Args:
        journal: Persists the session numbers.
        silent_after_s: A site that is not heard of this long counts as gone though its stream is open.
        on_change: Called after each change of who is there.
        series: The released series of versions, this server's last.
    """

    def __init__(
        self,
        journal: Journal,
        silent_after_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        series: Sequence[str] = SERIES,
    ) -> None:
        self._journal = journal
        self._silent_after_s = silent_after_s
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._open: dict[SiteName, Session] = {}
        self._gone_since_s: dict[SiteName, float] = {}
        visits = journal.last_visits()
        self._last_seen_unix_s = {site: visit.connected_unix_s for site, visit in visits.items()}
        self._versions = {site: visit.version for site, visit in visits.items()}
        self._series = series
        self._started_s = monotonic()
        self.on_change: list[Callable[[], None]] = []

    async def attach(self, site: SiteName, number: int, version: str) -> Session:
        """Open a session. A higher number takes over from an open one.

        Raises:
            IdentityClonedError: the number is not higher than the last one: somebody else uses this identity.
            SupersededError: a newer connection was faster. FrameError: not a session number, or not a version.
            VersionRefusedError: the site's version is too far from this one's.
        """
        if len(version) > MAX_VERSION_CHARACTERS or printable(version) != version:
            raise FrameError("The site's version is malformed", expected=f"at most {MAX_VERSION_CHARACTERS} characters")
        if not 0 < number <= MAX_SESSION:
            raise FrameError("A session number is out of range", expected=f"1 to {MAX_SESSION}")
        self._versions[site] = version  # also of one that is refused: the operator sees what has to be upgraded
        require_fits(version, self._series)
        if not await asyncio.to_thread(self._journal.raise_session, site, number, version):
            raise IdentityClonedError(
                f"The session number of {site} was already used, so two daemons use its identity",
                expected="a number higher than at every earlier connection",
                got=f"{number}",
                action="Stop the other daemon, or revoke and invite the site again if its keys were copied or restored",
            )
        previous = self._open.get(site)
        if previous is not None:
            superseded = SupersededError(
                f"A newer connection of {site} took over",
                action="If no second daemon of this site should run, its keys were copied: revoke the site",
            )
            if previous.number > number:  # it attached while this one's number was being written down
                raise superseded
            previous.end(superseded)
        session = Session(site, number, version, last_heard_s=self._monotonic())
        self._open[site] = session
        self._last_seen_unix_s[site] = self._wall_clock()
        self._changed()
        return session

    def forget_number(self, site: SiteName) -> None:
        """A site that enrolled anew counts its sessions from one again."""
        self._journal.forget_session(site)

    async def ledger_head(self, signing_key: bytes) -> SignedHead | None:
        """The newest head of a site's privacy ledger, to repeat it to the site."""
        return await asyncio.to_thread(self._journal.ledger_head, signing_key)

    def keep_ledger_head(self, signing_key: bytes, head: SignedHead) -> None:
        """Keep the head of a site's privacy ledger, if the site signed it: somebody who had only its certificate could
        otherwise put a number there that no true head comes after. One that is kept already was signed."""
        if not self._journal.has_ledger_head(signing_key, head) and head.is_signed_by(signing_key):
            self._journal.record_ledger_head(signing_key, head)

    def detach(self, session: Session) -> None:
        session.ended = True
        if self._open.get(session.site) is session:
            del self._open[session.site]
            self._gone_since_s[session.site] = self._monotonic()
            self._changed()

    def heard(self, session: Session, *, paused: bool) -> None:
        """A heartbeat arrived."""
        session.last_heard_s = self._monotonic()
        self._last_seen_unix_s[session.site] = self._wall_clock()
        if session.silent or session.paused != paused:
            session.silent = False
            session.paused = paused
            self._changed()

    def sweep(self) -> None:
        """Mark those that have fallen silent; called about once a second."""
        now = self._monotonic()
        fell_silent = [s for s in self._open.values() if not s.silent and now - s.last_heard_s > self._silent_after_s]
        for session in fell_silent:
            session.silent = True
            self._gone_since_s[session.site] = now
        if fell_silent:
            self._changed()

    async def drop(self, site: SiteName, error: QuorateError) -> None:
        """End a site's session from this side."""
        session = self._open.get(site)
        if session is not None:
            session.end(error)
            self.detach(session)

    def drop_all(self) -> None:
        """The server stops."""
        for session in list(self._open.values()):
            session.end()

    def session(self, site: SiteName) -> Session | None:
        return self._open.get(site)

    def broadcast(self, event: rounds_pb2.ServerEvent) -> None:
        for session in self._open.values():
            session.send(event)

    def state(self, site: SiteName) -> PresenceState:
        session = self._open.get(site)
        if session is None:
            return "offline"
        if session.silent:
            return "silent"
        return "paused" if session.paused else "online"

    def gone_for_s(self, site: SiteName) -> float | None:
        """Seconds since the site was last there; None while it is. After a start of the server all count from then."""
        session = self._open.get(site)
        if session is not None and not session.silent:
            return None
        return self._monotonic() - self._gone_since_s.get(site, self._started_s)

    def last_seen(self, site: SiteName) -> float:
        return self._last_seen_unix_s.get(site, 0.0)

    def version(self, site: SiteName) -> str:
        return self._versions.get(site, "")

    def age(self, site: SiteName) -> Age:
        """How the version that a site ran last stands to this server's."""
        return age_of(self.version(site), self._series)

    def _changed(self) -> None:
        for listener in self.on_change:
            listener()
