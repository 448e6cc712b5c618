"""What the server must remember to go on after a crash: runs, replies, results, session numbers, ledgers' heads.

A reply is written before it is acknowledged. Nobody waits for that, so the replies of a moment share one write: two
hundred sites cost a few commits, not two hundred.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from quorate.identity import RunId, SiteName
from quorate.privacy.ledger_head import SignedHead
from quorate.rounds.instruction import Instruction, MessageId, Reply
from quorate.rounds.run import RunState
from quorate.wire.messages import reply_from_bytes, reply_to_bytes
from quorate_server.storage.journal_tables import (
    ADD_HEAD,
    ADD_REPLY,
    ADD_RESULT,
    DROP_EARLIER_REPLIES,
    DROP_HEAD,
    DROP_RESULT,
    KNOWN_HEADS,
    LEDGER_HEADS,
    REPLIES,
    RESULTS,
    RUNS,
    SESSIONS,
    STEP_FORWARD,
    WRITTEN,
)

GATHER_S = 0.1
"""How long a reply waits for others to be written with."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is stored. ``reason`` and ``progress`` are JSON, or empty."""

    run: RunId
    study_digest: bytes
    state: RunState
    reason: str
    progress: str
    started_unix_s: float
    changed_unix_s: float


@dataclass(frozen=True, slots=True)
class Visit:
    """When a site connected last and which version it ran; empty and 0 where that was not written down yet."""

    version: str
    connected_unix_s: float


@dataclass(frozen=True, slots=True)
class _PendingReply:
    site: SiteName
    instruction: Instruction
    reply: Reply
    written: asyncio.Future[None]


class Journal:
    """The tables above, with short transactions. ``record_reply`` is for the event loop, the rest is synchronous."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._pending: list[_PendingReply] = []
        self._heads: dict[bytes, SignedHead] = {}  # those that wait to be written
        self._kept_heads: dict[bytes, SignedHead] = {}  # the last that was written of each
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writing: asyncio.Task[None] | None = None
        self._due: asyncio.TimerHandle | None = None

    def close(self) -> None:
        self._writer.shutdown(wait=True)

    # --- sessions ---

    def raise_session(self, site: SiteName, number: int, version: str) -> bool:
        """Fencing: remember a higher session number, and what connected with it. False when the number is not higher
        than the last one.

        One conditional update decides, so that of two who show the same number at the same moment one wins.
        """
        mine = SESSIONS.c.site == site
        new = {"number": number, "version": version, "connected_unix_s": self._clock()}
        try:
            with self._engine.begin() as db:
                if db.execute(update(SESSIONS).where(mine, SESSIONS.c.number < number).values(**new)).rowcount:
                    return True
                if db.execute(select(SESSIONS.c.site).where(mine)).first() is not None:
                    return False
                db.execute(insert(SESSIONS).values(site=site, **new))
        except IntegrityError:  # the other one's insertion came first
            return False
        return True

    def last_visits(self) -> dict[SiteName, Visit]:
        """How each site connected last."""
        with self._engine.connect() as db:
            rows = db.execute(select(SESSIONS.c.site, SESSIONS.c.version, SESSIONS.c.connected_unix_s)).all()
        return {SiteName(row.site): Visit(row.version, row.connected_unix_s) for row in rows}

    def forget_session(self, site: SiteName) -> None:
        """A site that enrolled anew counts from one again."""
        with self._engine.begin() as db:
            db.execute(delete(SESSIONS).where(SESSIONS.c.site == site))

    def ledger_head(self, signing_key: bytes) -> SignedHead | None:
        """The newest head of a site's privacy ledger that its key signed and this server was shown."""
        mine = LEDGER_HEADS.c.signing_key == signing_key
        with self._engine.connect() as db:
            row = db.execute(
                select(LEDGER_HEADS.c.number, LEDGER_HEADS.c.hash, LEDGER_HEADS.c.signature).where(mine)
            ).first()
        return None if row is None else SignedHead(row[0], row[1], row[2])

    def has_ledger_head(self, signing_key: bytes, head: SignedHead) -> bool:
        """Whether this very head, its signature too, was the last to be recorded: every reply brings it again."""
        return head == self._heads.get(signing_key, self._kept_heads.get(signing_key))

    def record_ledger_head(self, signing_key: bytes, head: SignedHead) -> None:
        """Remember a head that its key signed, with the replies of this moment; an older one is passed over."""
        known = self._heads.get(signing_key)
        if known is None or known.number < head.number:
            self._heads[signing_key] = head
            self._write_soon([])

    # --- runs ---

    def create_run(self, run: RunId, study_digest: bytes) -> None:
        now = self._clock()
        with self._engine.begin() as db:
            db.execute(
                insert(RUNS).values(
                    run=run,
                    study_digest=study_digest,
                    state=RunState.RUNNING,
                    reason="",
                    progress="",
                    started_unix_s=now,
                    changed_unix_s=now,
                )
            )

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        with self._engine.connect() as db:
            rows = db.execute(select(RUNS).order_by(RUNS.c.started_unix_s)).all()
        return [_run_record(row) for row in rows]

    def run(self, run: RunId) -> RunRecord:
        """One run that was created."""
        with self._engine.connect() as db:
            return _run_record(db.execute(select(RUNS).where(RUNS.c.run == run)).one())

    def set_state(self, run: RunId, state: RunState, reason: str = "") -> None:
        with self._engine.begin() as db:
            db.execute(
                update(RUNS).where(RUNS.c.run == run).values(state=state, reason=reason, changed_unix_s=self._clock())
            )

    async def commit(self, run: RunId, progress: str, result: tuple[int, str] | None) -> None:
        """One step forward: the new progress and, if a round ended, its result, in one transaction.

        Replies that wait to be written go with it. Those of earlier rounds are not needed again then, and go.
        """
        batch, self._pending = self._pending, []
        heads, self._heads = self._heads, {}

        def write() -> None:
            step = {"of": run, "progress": progress, "changed_unix_s": self._clock()}
            with self._engine.begin() as db:
                _add_replies(db, batch)
                _keep_heads(db, heads)
                db.execute(STEP_FORWARD, step)
                if result is not None:
                    number, text = result
                    db.execute(DROP_RESULT, {"of": run, "number": number})
                    db.execute(ADD_RESULT, {"run": run, "round": number, "result": text})
                    db.execute(DROP_EARLIER_REPLIES, {"of": run, "number": number})

        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except BaseException:
            self._write_soon(batch)
            for signing_key, head in heads.items():
                self.record_ledger_head(signing_key, head)
            raise
        self._kept_heads |= heads
        _settle(batch)

    def results(self, run: RunId) -> list[dict[str, object]]:
        with self._engine.connect() as db:
            rows = db.execute(select(RESULTS.c.result).where(RESULTS.c.run == run).order_by(RESULTS.c.round))
            return [json.loads(text) for (text,) in rows]

    # --- replies ---

    def record_reply(self, site: SiteName, instruction: Instruction, reply: Reply) -> asyncio.Future[None]:
        """Done when a reply to this instruction is in the database; the first one stays."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._write_soon([_PendingReply(site, instruction, reply, written)])
        return written

    def _write_soon(self, replies: list[_PendingReply]) -> None:
        self._pending += replies
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(GATHER_S, self._write_now)

    def _write_now(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._drain())

    async def written(self) -> None:
        """Hurry: return when all replies that were recorded are in the database, or could not be written."""
        if self._pending or self._heads:
            self._write_now()
        if self._writing is not None:
            await asyncio.wait({self._writing})

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending or self._heads:
            batch, self._pending = self._pending, []
            heads, self._heads = self._heads, {}  # if they cannot be written: each reply that comes again brings one
            try:
                await loop.run_in_executor(self._writer, self._write_replies, batch, heads)
            except Exception as error:  # noqa: BLE001  # whoever waits for the write must learn of its failure
                _settle(batch, error)
            else:
                self._kept_heads |= heads
                _settle(batch)

    def _write_replies(self, batch: list[_PendingReply], heads: dict[bytes, SignedHead]) -> None:
        with self._engine.begin() as db:
            _add_replies(db, batch)
            _keep_heads(db, heads)

    def has_reply(self, site: SiteName, message: MessageId) -> bool:
        """Whether this site's reply to this message was written down, and its round is not forgotten yet."""
        mine = (REPLIES.c.message_id == message, REPLIES.c.site == site)
        with self._engine.connect() as db:
            return db.execute(select(REPLIES.c.run).where(*mine)).first() is not None

    def refuse_reply(self, message: MessageId, code: str) -> None:
        """The run could not use a reply: it counts as a refusal with this code, so that the site may be asked again."""
        with self._engine.begin() as db:
            db.execute(update(REPLIES).where(REPLIES.c.message_id == message).values(code=code))

    def forget_reply(self, message: MessageId) -> None:
        """The reply can be read by nobody any more; the site brings it once more."""
        with self._engine.begin() as db:
            db.execute(delete(REPLIES).where(REPLIES.c.message_id == message, REPLIES.c.code == ""))

    def replies(self, run: RunId) -> dict[MessageId, Reply]:
        with self._engine.connect() as db:
            rows = db.execute(select(REPLIES.c.message_id, REPLIES.c.reply).where(REPLIES.c.run == run)).all()
        return {MessageId(key): reply_from_bytes(data) for key, data in rows}

    def forgive_refusals(self, run: RunId) -> None:
        """An operator resumed the run: sites that refused may be asked again, under a new attempt."""
        with self._engine.begin() as db:
            db.execute(update(REPLIES).where(REPLIES.c.run == run, REPLIES.c.code != "").values(forgiven=True))

    def forgiven(self, run: RunId) -> set[MessageId]:
        """Messages of a guest app that are asked under another attempt: names made from content are not numbered."""
        with self._engine.connect() as db:
            rows = db.execute(select(REPLIES.c.message_id).where(REPLIES.c.run == run, REPLIES.c.forgiven)).all()
        return {MessageId(key) for (key,) in rows}

    def attempts(self, run: RunId) -> dict[tuple[int, str, SiteName], int]:
        """The attempt under which a site is asked next, where it is not the first, by (round, phase, site)."""
        with self._engine.connect() as db:
            rows = db.execute(
                select(REPLIES.c.round, REPLIES.c.phase, REPLIES.c.site, REPLIES.c.attempt).where(
                    REPLIES.c.run == run, REPLIES.c.forgiven
                )
            ).all()
        found: dict[tuple[int, str, SiteName], int] = {}
        for round_number, phase, site, attempt in rows:
            key = (round_number, phase, SiteName(site))
            found[key] = max(found.get(key, 0), attempt + 1)
        return found

    def forget_replies(self, run: RunId) -> None:
        """The run is over."""
        with self._engine.begin() as db:
            db.execute(delete(REPLIES).where(REPLIES.c.run == run))


def _run_record(row: Row[Any]) -> RunRecord:
    times = (row.started_unix_s, row.changed_unix_s)
    return RunRecord(RunId(row.run), row.study_digest, RunState(row.state), row.reason, row.progress, *times)


def _add_replies(db: Connection, batch: list[_PendingReply]) -> None:
    """The first reply to an instruction stays."""
    fresh = {item.reply.message_id: item for item in reversed(batch)}
    for name in db.scalars(WRITTEN, {"names": list(fresh)}) if fresh else ():
        del fresh[name]
    if fresh:
        db.execute(ADD_REPLY, [_row_of(item) for item in fresh.values()])


def _keep_heads(db: Connection, heads: dict[bytes, SignedHead]) -> None:
    """The newest head of each ledger stays."""
    if not heads:
        return
    known = {row.signing_key: row.number for row in db.execute(KNOWN_HEADS, {"keys": list(heads)})}
    for key, head in heads.items():
        if known.get(key, 0) < head.number:
            db.execute(DROP_HEAD, {"key": key})
            row = {"signing_key": key, "number": head.number, "hash": head.hash, "signature": head.signature}
            db.execute(ADD_HEAD, row)


def _settle(batch: list[_PendingReply], error: Exception | None = None) -> None:
    """Those who wait for these replies learn how it ended."""
    for item in batch:
        if item.written.done():  # its waiter gave up
            continue
        if error is None:
            item.written.set_result(None)
        else:
            item.written.set_exception(error)


def _row_of(item: _PendingReply) -> dict[str, object]:
    return {
        "message_id": item.reply.message_id,
        "run": item.instruction.run,
        "round": item.instruction.round_number,
        "phase": item.instruction.phase,
        "attempt": item.instruction.attempt,
        "site": item.site,
        "code": item.reply.code,
        "reply": reply_to_bytes(item.reply),
        "forgiven": False,
    }
