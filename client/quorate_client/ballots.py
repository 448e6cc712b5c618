"""The votes that this site gave, on disk before they leave: what it helped to open, it does not help to open otherwise.

A server that gets two sums over almost the same sites on the same model, and works with one of the sites that may read
them, subtracts one from the other and holds what the victim sent. Retrying a round is needed all the same, so a site
votes at most twice on one model, and the second time for the same survivors or for ones that differ by so many that the
difference hides each of them among others. The statistics and the first model are the same in every run of a study:
there the survivors of all its runs are compared.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from quorate.errors import VoteRefusedError
from quorate.identity import RunId, SiteName
from quorate.secagg.participant import Ballot
from quorate_client.state import State, transaction

MOST_VOTES = 2
LAST_OF_ALL_RUNS = 1
"""The sums up to this one start from the same in every run."""


def check(ballot: Ballot, earlier: Sequence[Ballot], colluders: int, elsewhere: Sequence[Ballot] = ()) -> None:
    """Whether a site may give this vote.

    Args:
        earlier: Its votes in the same round of the same run.
        colluders: Sites that may work together with the server.
        elsewhere: Its votes in other runs about the same.

    Raises:
        VoteRefusedError: it may not.
    """
    others = [old for old in earlier if old.identity != ballot.identity]
    problem = ""
    if any(old != ballot for old in earlier if old.identity == ballot.identity):
        problem = "another vote in the same sum"
    elif len(others) >= MOST_VOTES:
        problem = f"vote number {len(others) + 1} on one model"
    else:
        for old in (*others, *elsewhere):
            difference = set(old.survivors) ^ set(ballot.survivors)
            if difference and len(difference) < colluders + 2:
                problem = f"survivors that differ from the last attempt's by {len(difference)}"
    if problem:
        raise VoteRefusedError(
            "The server asks this site to open what would tell too much about one of the sites",
            expected=f"at most {MOST_VOTES} votes on one model, over the same sites or over {colluders + 2} others",
            got=problem,
            action="Have all sites of the last attempt connected, in the first round those of the study's earlier runs "
            "too; then let the operator resume the run",
        )


@dataclass(frozen=True, slots=True)
class Ballots:
    """The votes, in the site's database."""

    state: State

    def lock(self, study: bytes, run: RunId, round_number: int, ballot: Ballot, colluders: int) -> None:
        """Write a vote down before it is given.

        Nobody waits for the disk here. A vote leaves in a reply, and a reply leaves once it is flushed to disk: to the
        same file, behind the vote (``journal.py``). After a power cut a vote that left is there; of one that did not
        leave, nothing is needed.

        Raises:
            VoteRefusedError: it may not be given. DiskFullError: it could not be written.
        """
        database = self.state.database
        with _flushed_later(database), transaction(database):
            (newest,) = database.execute("SELECT max(round) FROM ballots WHERE run = ?", (run,)).fetchone()
            if newest is not None and newest > round_number:
                raise VoteRefusedError("The server asks for a vote in a round that is over")
            earlier = self._find("run = ? AND round = ?", run, round_number)
            of_all = round_number <= LAST_OF_ALL_RUNS
            elsewhere = self._find("study = ? AND round = ? AND run != ?", study, round_number, run) if of_all else []
            check(ballot, earlier, colluders, elsewhere)
            database.execute(
                "DELETE FROM ballots WHERE run = ? AND round < ? AND round > ?", (run, round_number, LAST_OF_ALL_RUNS)
            )
            database.execute(
                "INSERT OR IGNORE INTO ballots VALUES (?, ?, ?, ?, ?, ?)",
                (ballot.identity, study, run, round_number, json.dumps(ballot.survivors), ballot.digest),
            )

    def _find(self, condition: str, *values: object) -> list[Ballot]:
        rows = self.state.database.execute(
            f"SELECT identity, survivors, digest FROM ballots WHERE {condition}",  # noqa: S608  # constant
            values,
        )
        return [
            Ballot(identity, tuple(SiteName(name) for name in json.loads(survivors)), digest)
            for identity, survivors, digest in rows
        ]


@contextmanager
def _flushed_later(database: sqlite3.Connection) -> Iterator[None]:
    """What is committed here is flushed by the next commit outside: the log is one file, and is read in order."""
    database.execute("PRAGMA synchronous=NORMAL")
    try:
        yield
    finally:
        database.execute("PRAGMA synchronous=FULL")
