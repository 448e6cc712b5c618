"""What the server asked and what this site answered, so that work is done at most once and a reply is never lost.

An entry goes from started to replied to settled. The first two are on disk before the work begins, and before a byte of
the reply is sent; the last waits for what is written next: if it is lost, the reply is only sent once more. A reply
stays after the server acknowledged it, because a power cut at the server may make it ask again; entries are forgotten
two rounds later, or after some days. The blobs that an entry needs are kept with it and freed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from quorate.errors import QuorateError
from quorate.identity import RunId
from quorate.rounds.blobs import BlobId
from quorate.rounds.instruction import Instruction, MessageId, Reply
from quorate.wire.messages import reply_from_bytes, reply_to_bytes
from quorate_client.site.database import SiteDatabase, transaction

ROUNDS_KEPT = 2
MAX_ENTRIES = 20_000
_COLUMNS = "message_id, run, round, phase, deadline_s, study_digest, reply, is_settled"


@dataclass(frozen=True, slots=True)
class Entry:
    """One instruction. ``reply`` is None while the work is not done; settled means that the server wants no more.
    ``study_digest`` is None where an older version wrote it down."""

    message_id: MessageId
    run: RunId
    round_number: int
    phase: str
    deadline_s: float
    study_digest: bytes | None
    reply: Reply | None
    is_settled: bool


class Journal:
    """The entries, in the site's database.

    Args:
        clock: Unix seconds, for the age of entries only.
    """

    def __init__(self, state: SiteDatabase, clock: Callable[[], float], most_entries: int = MAX_ENTRIES) -> None:
        self._database = state.database
        self._most_entries = most_entries
        self._clock = clock
        self._settled: set[MessageId] = set()  # those of which the database does not know it yet
        self._oldest_round: dict[RunId, int] = {}

    def close(self) -> None:
        """Write what could wait, if there is room for it."""
        with suppress(QuorateError), self._transaction():
            pass

    def find(self, message: MessageId) -> Entry | None:
        row = self._database.execute(f"SELECT {_COLUMNS} FROM journal WHERE message_id = ?", (message,)).fetchone()  # noqa: S608  # constant
        return None if row is None else self._entry(row)

    def start(self, instruction: Instruction) -> set[BlobId]:
        """Remember that work begins, before it begins. Returns the blobs that nothing needs any more.

        Of its run this round and the one before are kept: the server may have lost the end of its own log in a power
        cut and ask for the last round again.
        """
        run, oldest = instruction.run, instruction.round_number - ROUNDS_KEPT + 1
        with self._transaction():
            self._insert(instruction)
            if self._oldest_round.get(run, 0) >= oldest:
                return set()
            unneeded = self._forget("run = ? AND round < ? AND reply IS NOT NULL", (run, oldest))
        if len(self._oldest_round) >= MAX_ENTRIES:
            self._oldest_round.clear()
        self._oldest_round[run] = oldest
        return unneeded

    def needs(self, message: MessageId, blob: BlobId) -> None:
        """Remember that the work needs a blob, before its first frame is stored."""
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO journal_blobs VALUES (?, ?)", (message, blob))

    def reply(self, instruction: Instruction, reply: Reply, *, wanted: bool = True) -> set[BlobId]:
        """Store the reply, before it is sent. The first reply to an instruction is final. Returns the blobs that
        nothing needs any more.

        Every question is written down with its answer, a refusal too, so a server that goes on asking would fill the
        disk: only the last ``MAX_ENTRIES`` are kept.

        Args:
            wanted: Whether the server is to get it: not if it withdrew the instruction.
        """
        with self._transaction():
            self._insert(instruction)
            self._store(reply)
            self._database.execute(
                "UPDATE journal SET is_settled = ? WHERE message_id = ?", (not wanted, instruction.message_id)
            )
            return self._forget(
                "journal.rowid <= (SELECT max(rowid) FROM journal) - ? AND reply IS NOT NULL", (self._most_entries,)
            )

    def interrupt(self) -> list[MessageId]:
        """Answer everything that an earlier life of the daemon began and did not finish. Returns what it was."""
        with self._transaction():
            rows = self._database.execute("SELECT message_id FROM journal WHERE reply IS NULL").fetchall()
            messages = [MessageId(row[0]) for row in rows]
            for message in messages:
                self._store(Reply(message, "site_interrupted"))
        return messages

    def replace(self, reply: Reply) -> None:
        """Put a refusal in the place of a reply whose bulk data turned out to be damaged and so never counted."""
        with self._transaction():
            self._database.execute("UPDATE journal SET reply = NULL WHERE message_id = ?", (reply.message_id,))
            self._store(reply)

    def settle(self, message: MessageId) -> Entry | None:
        """The server acknowledged the reply or does not want it. It may name what nobody asked here."""
        entry = self.find(message)
        if entry is not None:
            self._settled.add(message)
        return entry

    def owed(self) -> list[Entry]:
        """Entries whose reply the server has not acknowledged, oldest first."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM journal WHERE reply IS NOT NULL AND NOT is_settled ORDER BY rowid"  # noqa: S608  # constant
        ).fetchall()
        return [entry for row in rows if not (entry := self._entry(row)).is_settled]

    def forget_older_than(self, seconds: float) -> set[BlobId]:
        """Forget what is too old for any round to wait for. Returns the blobs that nothing needs any more."""
        with self._transaction():
            return self._forget("started_unix_s < ? AND reply IS NOT NULL", (self._clock() - seconds,))

    def blobs(self) -> set[BlobId]:
        """All blobs that some entry needs."""
        return {BlobId(row[0]) for row in self._database.execute("SELECT DISTINCT blob FROM journal_blobs")}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One that takes along what could wait for it."""
        with transaction(self._database):
            settled = [(message,) for message in self._settled]
            self._database.executemany("UPDATE journal SET is_settled = 1 WHERE message_id = ?", settled)
            yield
        self._settled.clear()

    def _insert(self, instruction: Instruction) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO journal (message_id, run, round, phase, deadline_s, study_digest, started_unix_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                instruction.message_id,
                instruction.run,
                instruction.round_number,
                instruction.phase,
                instruction.deadline_s,
                instruction.study_digest,
                self._clock(),
            ),
        )

    def _store(self, reply: Reply) -> None:
        self._database.execute(
            "UPDATE journal SET reply = ? WHERE message_id = ? AND reply IS NULL",
            (reply_to_bytes(reply), reply.message_id),
        )
        self._database.executemany(
            "INSERT OR IGNORE INTO journal_blobs VALUES (?, ?)",
            [(reply.message_id, blob.id) for blob in reply.blobs if blob.inline is None],
        )

    def _forget(self, condition: str, values: tuple[object, ...]) -> set[BlobId]:
        rows = self._database.execute(
            f"SELECT DISTINCT blob FROM journal_blobs JOIN journal USING (message_id) WHERE {condition}",  # noqa: S608  # constant
            values,
        ).fetchall()
        self._database.execute(f"DELETE FROM journal WHERE {condition}", values)  # noqa: S608  # constant
        return {BlobId(row[0]) for row in rows} - self.blobs() if rows else set()

    def _entry(self, row: tuple[bytes, str, int, str, float, bytes | None, bytes | None, int]) -> Entry:
        message, run, round_number, phase, deadline_s, study_digest, reply, settled = row
        return Entry(
            MessageId(message),
            RunId(run),
            round_number,
            phase,
            deadline_s,
            study_digest,
            reply_from_bytes(reply) if reply is not None else None,
            bool(settled) or message in self._settled,
        )
