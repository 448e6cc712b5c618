"""Votes that a site gave: what it helped to open, it does not help to open otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import (
    BaseModelMismatchError,
    DiskFullError,
    SiteInterruptedError,
    VoteRefusedError,
    WrongStateError,
)
from quorate.identity import RunId, SiteName
from quorate.secagg.participant import Ballot
from quorate_client.rounds.sums.votes import MAX_FAILURES, MAX_SETS, Members, Question, VoteLog, check
from quorate_client.site.database import SiteDatabase, make_state
from tests.client.databases import state_made
from tests.patience import PATIENCE_S
from tests.protos.secagg.parties import Consortium

RUN = RunId("run-1")
SITES = tuple(SiteName(f"site-{number}") for number in range(8))
ROSTER = {site: bytes([place]) * 32 for place, site in enumerate(SITES)}
QUERY = b"query".ljust(32)


def a_ballot(identity: str = "first", survivors: tuple[SiteName, ...] = SITES, digest: str = "sum") -> Ballot:
    return Ballot(identity.encode().ljust(32), survivors, digest.encode().ljust(32))


def a_question(round_number: int = 1, query: bytes = QUERY, run: RunId = RUN, belief: bytes = b"state") -> Question:
    return Question(run, round_number, query, belief, ROSTER, 1)


def without(*places: int) -> tuple[SiteName, ...]:
    return tuple(site for place, site in enumerate(SITES) if place not in places)


def members(survivors: tuple[SiteName, ...] = SITES) -> Members:
    return a_question().members(survivors)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SiteDatabase]:
    with state_made(tmp_path / "state.sqlite") as opened:
        yield opened


@pytest.fixture
def ballots(state: SiteDatabase) -> VoteLog:
    return VoteLog(state)


def kept(state: SiteDatabase) -> list[tuple[bytes, bytes]]:
    return state.database.execute("SELECT query, identity FROM ballots ORDER BY query, identity").fetchall()


# --- the rule ---


def test_the_first_vote_on_a_query_is_free() -> None:
    check(members(), [], 1)


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_the_victim_alone_cannot_be_left_out_of_a_second_sum(colluders: int) -> None:
    """Two sums over U and U without the victim, subtracted, are what the victim sent."""
    for survivors in (without(*range(count)) for count in range(1, colluders + 2)):
        with pytest.raises(VoteRefusedError, match="survivors that differ"):
            check(members(survivors), [members()], colluders)
        with pytest.raises(VoteRefusedError, match="survivors that differ"):
            check(members(), [members(survivors)], colluders)
    check(members(without(*range(colluders + 2))), [members()], colluders)


def test_a_site_that_is_swapped_for_another_counts_twice_in_the_difference() -> None:
    check(members(without(0)), [members(without(1))], 0)
    with pytest.raises(VoteRefusedError, match="differ from earlier ones by 2"):
        check(members(without(0)), [members(without(1))], 1)


def test_two_sets_that_have_too_little_in_common_are_refused() -> None:
    with pytest.raises(VoteRefusedError, match="have 2 in common"):
        check(members(without(0, 1, 2)), [members(without(5, 6, 7))], 1)


def test_two_sets_are_voted_for_at_most_and_each_of_them_again() -> None:
    earlier = [members(), members(without(0, 1, 2))]
    for again in earlier:
        check(again, earlier, 1)
    with pytest.raises(VoteRefusedError, match="set number 3 of one query"):
        check(members(without(2, 3, 4)), earlier, 1)


subsets = st.sets(st.sampled_from(SITES)).map(lambda chosen: members(tuple(sorted(chosen))))


@given(subsets, st.lists(subsets, max_size=3, unique=True), st.integers(0, 6))
def test_the_rule_is_what_it_says(survivors: Members, earlier: list[Members], colluders: int) -> None:
    others = [set(old) for old in earlier if old != survivors]
    allowed = (len(others) == len(earlier) - 1 or len(others) < MAX_SETS) and all(
        len(other ^ set(survivors)) >= colluders + 2 and len(other & set(survivors)) >= colluders + 2
        for other in others
    )
    if allowed:
        check(survivors, earlier, colluders)
    else:
        with pytest.raises(VoteRefusedError):
            check(survivors, earlier, colluders)


# --- on disk ---


def test_a_vote_stands_for_ever_also_after_the_database_was_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with state_made(path) as state:
        VoteLog(state).lock(a_ballot(), a_question())
    for _ in range(2):
        with state_made(path) as state:
            with pytest.raises(VoteRefusedError, match="another vote in the same sum"):
                VoteLog(state).lock(a_ballot(digest="other"), a_question())
            with pytest.raises(VoteRefusedError, match="survivors that differ"):
                VoteLog(state).lock(a_ballot("second", without(0)), a_question())
            VoteLog(state).lock(a_ballot(), a_question())
            assert kept(state) == [(QUERY, a_ballot().identity)]
            assert VoteLog(state).survivors(QUERY) == [members()]


FULL = 2
"""Of SQLite's ``synchronous``: a commit returns when it is on disk."""


def test_what_is_committed_after_a_vote_waits_for_the_disk_as_before(state: SiteDatabase, ballots: VoteLog) -> None:
    """The reply that carries a vote flushes it; it would not, if a vote changed how replies are written."""
    statements: list[str] = []
    state.database.set_trace_callback(statements.append)
    ballots.lock(a_ballot(), a_question())
    with pytest.raises(VoteRefusedError):
        ballots.lock(a_ballot(digest="other"), a_question())
    assert state.database.execute("PRAGMA synchronous").fetchone() == (FULL,)
    assert [s for s in statements if s.startswith("PRAGMA synchronous=")][-1] == "PRAGMA synchronous=FULL"


def test_a_refused_vote_leaves_no_trace(state: SiteDatabase, ballots: VoteLog) -> None:
    ballots.lock(a_ballot(), a_question())
    before = list(state.database.iterdump())
    for refused in (a_ballot(digest="other"), a_ballot("second", without(0))):
        with pytest.raises(VoteRefusedError):
            ballots.lock(refused, a_question())
        assert list(state.database.iterdump()) == before
    ballots.lock(a_ballot("second", without(0, 1, 2)), a_question())


def test_survivors_are_kept_once_however_often_they_are_voted_for(state: SiteDatabase, ballots: VoteLog) -> None:
    """A thousand sites in each of ten thousand rounds would fill the disk."""
    for number in range(1, 6):
        ballots.lock(a_ballot(str(number)), a_question(number, query=bytes([number]) * 32))
    assert state.database.execute("SELECT count(*) FROM survivors").fetchone() == (1,)


@pytest.mark.parametrize("where", ["in another round", "in another run"])
def test_the_same_query_is_compared_wherever_it_was_asked(ballots: VoteLog, where: str) -> None:
    """The statistics and the first model are the same in every run, and a state can be shown again in a later round."""
    ballots.lock(a_ballot("a"), a_question())
    again = a_question(2) if where == "in another round" else a_question(run=RunId("run-2"))
    with pytest.raises(VoteRefusedError, match="survivors that differ"):
        ballots.lock(a_ballot("b", without(0)), again)
    ballots.lock(a_ballot("c"), again)


def test_different_queries_have_nothing_to_do_with_each_other(ballots: VoteLog) -> None:
    ballots.lock(a_ballot("a"), a_question())
    ballots.lock(a_ballot("b", without(0)), a_question(2, query=b"other".ljust(32)))


# --- what a vote commits to ---


def test_a_vote_commits_to_the_state_it_starts_from_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with state_made(path) as state:
        VoteLog(state).lock(a_ballot("a"), a_question(2))
    with state_made(path) as state:
        ballots = VoteLog(state)
        with pytest.raises(VoteRefusedError, match="another state"):
            ballots.lock(a_ballot("b"), a_question(2, belief=b"other"))
        with pytest.raises(BaseModelMismatchError):
            ballots.require_believed(RUN, 1, b"other")
        ballots.require_believed(RUN, 1, b"state")
        ballots.require_believed(RUN, 2, b"other")
        ballots.require_believed(RunId("run-2"), 1, b"other")
        ballots.lock(a_ballot("c"), a_question(2))


def test_a_round_that_is_over_is_not_voted_on_again(state: SiteDatabase, ballots: VoteLog) -> None:
    ballots.lock(a_ballot(), a_question(2))
    ballots.lock(a_ballot("second"), a_question(3))
    before = kept(state)
    for number, ballot in ((2, a_ballot("third")), (2, a_ballot()), (0, a_ballot("fourth"))):
        with pytest.raises(VoteRefusedError, match="a round that is over"):
            ballots.lock(ballot, a_question(number))
    assert kept(state) == before


# --- reading records ---


def test_records_are_read_once_for_each_attempt_at_a_sum(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with state_made(path) as state:
        VoteLog(state).begin_upload(RUN, 1, 0)
    with state_made(path) as state:
        with pytest.raises(VoteRefusedError, match="in the same attempt"):
            VoteLog(state).begin_upload(RUN, 1, 0)
        for number, attempt in ((1, 1), (2, 0)):
            VoteLog(state).begin_upload(RUN, number, attempt)
        VoteLog(state).begin_upload(RunId("run-2"), 1, 0)


def test_a_site_that_fails_on_its_records_sits_the_rest_of_the_run_out(state: SiteDatabase, ballots: VoteLog) -> None:
    for number in range(1, 1 + MAX_FAILURES):
        ballots.begin_upload(RUN, number, 0)
        ballots.upload_failed(RUN, number, 0)
    with pytest.raises(SiteInterruptedError, match="sits the rest out"):
        ballots.begin_upload(RUN, 9, 0)
    ballots.begin_upload(RunId("run-2"), 1, 0)
    state.pause(True)
    with pytest.raises(SiteInterruptedError):
        ballots.begin_upload(RUN, 9, 0)
    state.pause(False)  # its administrator looked at it
    ballots.begin_upload(RUN, 9, 0)


# --- more than one process, and none ---


def test_two_who_vote_at_the_same_moment_do_not_both_vote(tmp_path: Path) -> None:
    """Two daemons on a copied folder share no database, but two connections to one do not interleave."""
    path = tmp_path / "state.sqlite"
    with state_made(path) as one, state_made(path) as two:
        two.database.execute("PRAGMA busy_timeout=0")
        one.database.execute("BEGIN IMMEDIATE")
        with pytest.raises(WrongStateError):
            VoteLog(two).lock(a_ballot(), a_question())
        one.database.execute("ROLLBACK")
        VoteLog(two).lock(a_ballot(), a_question())
        with pytest.raises(VoteRefusedError):
            VoteLog(one).lock(a_ballot(digest="other"), a_question())


_VOTE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from quorate.secagg.participant import Ballot
from quorate_client.rounds.sums.votes import VoteLog, Question
from quorate_client.site.database import open_state

state = open_state(Path(sys.argv[1]))
ballot = Ballot(b"first".ljust(32), ("a", "b", "c"), b"sum".ljust(32))
if sys.argv[2] == "before":
    state.database.set_trace_callback(
        lambda statement: os.kill(os.getpid(), signal.SIGKILL) if statement == "COMMIT" else None
    )
roster = dict.fromkeys("abc", bytes(32))
VoteLog(state).lock(ballot, Question("run-1", 1, b"query".ljust(32), b"state", roster, 1))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "voted"), [("before", False), ("after", True)])
def test_a_site_that_is_killed_has_voted_if_and_only_if_the_vote_was_committed(
    tmp_path: Path, moment: str, voted: bool
) -> None:
    path = tmp_path / "state.sqlite"
    make_state(path)
    done = subprocess.run(
        [sys.executable, "-c", _VOTE_AND_DIE, str(path), moment],
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    survivors = tuple(SiteName(name) for name in "abc")
    question = replace(a_question(), roster=dict.fromkeys(survivors, bytes(32)))
    with state_made(path) as state:
        assert bool(kept(state)) == voted
        if voted:
            with pytest.raises(VoteRefusedError):
                VoteLog(state).lock(a_ballot(survivors=survivors, digest="other"), question)
        else:
            VoteLog(state).lock(a_ballot(survivors=survivors, digest="other"), question)


def test_with_a_full_disk_no_vote_leaves(tmp_path: Path) -> None:
    consortium = Consortium(4)
    run = consortium.begin(consortium.terms())
    run.upload_all()
    voter = run.here[0].name
    with state_made(tmp_path / "state.sqlite") as state:
        ballots = VoteLog(state)
        (pages,) = state.database.execute("PRAGMA page_count").fetchone()
        state.database.execute(f"PRAGMA max_page_count={pages}")

        def lock(ballot: Ballot) -> None:
            """So many names that they need pages of their own."""
            many = tuple(SiteName(f"{site}-{number}") for site in ballot.survivors for number in range(300))
            question = replace(a_question(), roster=dict.fromkeys(many, bytes(32)))
            ballots.lock(replace(ballot, survivors=many), question)

        with pytest.raises(DiskFullError):
            run.sites[voter].vote(run.survivors, run.digest, run.boxes_for(voter), lock)
        assert kept(state) == []
        with pytest.raises(VoteRefusedError):
            run.sites[voter].reveal([])

        state.database.execute("PRAGMA max_page_count=100000")
        run.sites[voter].vote(run.survivors, run.digest, run.boxes_for(voter), lock)
        assert len(kept(state)) == 1
