"""What this site helped to open, for ever, on disk before it leaves: two sums that tell too much together do not both
get its vote.

A server that gets sums over almost the same sites on the same input, and works with one of the sites that may read
them, combines them into what a single site sent. So a site votes, whatever run and study it is asked in, for at most
two sets of survivors of one query, and the two differ in at least k + 2 sites and have at least k + 2 in common (k
sites collude). More than half of the honest sites are behind each set that is opened, so at most three are, and each
sum and difference of three such sets covers no site or at least k + 2 (``tests/attacks`` has all families up to eight
sites). Differences in pairs alone are not enough: {1,2,5,6} + {3,4,5,6} - {1,2,3,4} is twice {5,6}.

It holds for one query. Sums on neighbouring models, as of two rounds after each other, are other queries, and who is in
one of them and not in the other is told about nearly as if they were the same: only noise hides that.

With its vote on a sum a site also commits to the state that the sum starts from: for each sum of a run there is one
such state, or none.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorate.errors import BaseModelMismatchError, SiteInterruptedError, VoteRefusedError
from quorate.identity import RunId, SiteName
from quorate.secagg.survivor_sets import MAX_SETS, go_together
from quorate.secagg.terms import Roster
from quorate_client.site.database import SiteDatabase, transaction

if TYPE_CHECKING:
    from quorate.secagg.participant import Ballot

MAX_FAILURES = 2
Members = tuple[tuple[SiteName, str], ...]
"""Survivors by name, each with its signing key in hex."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a vote is asked about.

    Args:
        query: What the sites computed on their records; equal for equal input (``query.py``).
        belief: The digest of the state that the sum starts from; empty at the first sum of a run.
        roster: Whose keys the names stand for.
        colluders: Sites that may work together with the server.
    """

    run: RunId
    round_number: int
    query: bytes
    belief: bytes
    roster: Roster
    colluders: int

    def members(self, survivors: Collection[SiteName]) -> Members:
        return tuple((site, self.roster[site].hex()) for site in sorted(survivors))


def check(survivors: Members, earlier: Collection[Members], colluders: int) -> None:
    """Whether a site may vote for these survivors of a query.

    A site counts as the same by its name and by its key: whichever of the two was changed, neither view may show too
    little between two sets.

    Args:
        earlier: All sets of the same query for which it voted.

    Raises:
        VoteRefusedError: it may not.
    """
    others = {old for old in earlier if old != survivors}
    problem = ""
    if survivors not in earlier and len(others) >= MAX_SETS:
        problem = f"set number {len(others) + 1} of one query"
    for old in others:
        for by in (0, 1):
            one, other = ({member[by] for member in members} for members in (old, survivors))
            if not go_together(one, other, colluders):
                differing, common = len(one ^ other), len(one & other)
                problem = (
                    f"survivors that differ from earlier ones by {differing} and have {common} in common with them"
                )
    if problem:
        raise VoteRefusedError(
            "The server asks this site to open what would tell too much about one of the sites",
            expected=f"the survivors of an earlier vote on the same input, or at most {MAX_SETS} sets that differ in "
            f"{colluders + 2} sites and share {colluders + 2}",
            got=problem,
            action="Have the sites of the earlier sum connected (in the first rounds, those of the study's earlier "
            "runs), then let the operator resume the run",
        )


@dataclass(frozen=True, slots=True)
class VoteLog:
    """The votes, and what goes with them, in the site's database."""

    state: SiteDatabase

    @property
    def memory(self) -> bytes:
        """Another one each time that votes were forgotten, and empty before."""
        return self.state.memory

    def lock(self, ballot: Ballot, question: Question) -> None:
        """Write a vote down before it is given.

        Nobody waits for the disk here. A vote leaves in a reply, and a reply leaves once it is flushed to disk: to the
        same file, behind the vote (``journal.py``). After a power cut a vote that left is there; of one that did not
        leave, nothing is needed.

        Raises:
            VoteRefusedError: it may not be given. DiskFullError: it could not be written.
        """
        run, before = question.run, question.round_number - 1
        members = question.members(ballot.survivors)
        content = json.dumps(members)
        digest = hashlib.sha256(content.encode()).digest()
        with self._written_later() as database:
            (newest,) = database.execute("SELECT max(round) FROM beliefs WHERE run = ?", (run,)).fetchone()
            if newest is not None and newest > before:
                raise VoteRefusedError("The server asks for a vote in a round that is over")
            if self.believed(run, before) not in (None, question.belief):
                raise VoteRefusedError("The server asks for a vote on a sum from another state than the last vote's")
            row = (ballot.identity, run, question.round_number, question.query, digest, ballot.digest)
            same = database.execute("SELECT * FROM ballots WHERE identity = ?", (ballot.identity,)).fetchone()
            if same not in (None, row):
                raise VoteRefusedError("The server asks for another vote in the same sum")
            check(members, self.survivors(question.query), question.colluders)
            database.execute("INSERT OR IGNORE INTO survivors VALUES (?, ?)", (digest, content))
            database.execute("INSERT OR IGNORE INTO ballots VALUES (?, ?, ?, ?, ?, ?)", row)
            database.execute("INSERT OR IGNORE INTO beliefs VALUES (?, ?, ?)", (run, before, question.belief))

    def survivors(self, query: bytes) -> list[Members]:
        """The sets of a query for which this site voted."""
        rows = self.state.database.execute(
            "SELECT DISTINCT members FROM ballots JOIN survivors ON id = survivors WHERE query = ?", (query,)
        )
        return [tuple((SiteName(name), key) for name, key in json.loads(members)) for (members,) in rows]

    def believed(self, run: RunId, round_number: int) -> bytes | None:
        """The digest of the state after a round from which this site voted on."""
        row = self.state.database.execute(
            "SELECT belief FROM beliefs WHERE run = ? AND round = ?", (run, round_number)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def require_believed(self, run: RunId, round_number: int, belief: bytes) -> None:
        """Raises BaseModelMismatchError for another state than the one from which this site voted on."""
        if self.believed(run, round_number) not in (None, belief):
            raise BaseModelMismatchError(
                f"The server leads this site to another state of round {round_number} than the one it voted from",
                action="Have the administrators compare what their sites logged; distrust the server",
            )

    def begin_upload(self, run: RunId, round_number: int, attempt: int) -> None:
        """Note that records are about to be read for a sum: once for each attempt.

        Raises:
            VoteRefusedError: it was noted before. SiteInterruptedError: this site failed too often in this run.
        """
        with self._written_later() as database:
            (failures,) = database.execute("SELECT sum(failed) FROM uploads WHERE run = ?", (run,)).fetchone()
            if (failures or 0) >= MAX_FAILURES:
                raise SiteInterruptedError(
                    f"This site could not compute on its records {failures} times in this run, and sits the rest out",
                    action="See the site's log for the reason; `quorate-client resume` lets it take part again",
                )
            written = database.execute(
                "INSERT OR IGNORE INTO uploads VALUES (?, ?, ?, 0)", (run, round_number, attempt)
            )
            if not written.rowcount:
                raise VoteRefusedError("The server asks for an upload in the same attempt again")

    def upload_failed(self, run: RunId, round_number: int, attempt: int) -> None:
        with self._written_later() as database:
            database.execute(
                "UPDATE uploads SET failed = 1 WHERE run = ? AND round = ? AND attempt = ?",
                (run, round_number, attempt),
            )

    def note_counted(self, run: RunId, records: int) -> None:
        """With how many records this site was counted in a run. Ones that come later do not raise its weight."""
        with self._written_later() as database:
            database.execute("INSERT OR REPLACE INTO counted VALUES (?, ?)", (run, records))

    def counted(self, run: RunId) -> int | None:
        row = self.state.database.execute("SELECT records FROM counted WHERE run = ?", (run,)).fetchone()
        return None if row is None else int(row[0])

    @contextmanager
    def _written_later(self) -> Iterator[sqlite3.Connection]:
        """What is committed here is flushed by the next commit outside: the log is one file, and is read in order."""
        database = self.state.database
        database.execute("PRAGMA synchronous=NORMAL")
        try:
            with transaction(database):
                yield database
        finally:
            database.execute("PRAGMA synchronous=FULL")
