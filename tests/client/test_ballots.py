"""Votes that a site gave: what it helped to open, it does not help to open otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import DiskFullError, VoteRefusedError, WrongStateError
from quorate.identity import RunId, SiteName
from quorate.secagg.participant import Ballot
from quorate_client.ballots import MOST_VOTES, Ballots, check
from quorate_client.state import State, open_state, site_state
from tests.patience import PATIENCE_S
from tests.protos.secagg.parties import Consortium

RUN = RunId("run-1")
STUDY = bytes(32)
SITES = tuple(SiteName(f"site-{number}") for number in range(8))


def a_ballot(identity: str = "first", survivors: tuple[SiteName, ...] = SITES, digest: str = "sum") -> Ballot:
    return Ballot(identity.encode().ljust(32), survivors, digest.encode().ljust(32))


def without(*places: int) -> tuple[SiteName, ...]:
    return tuple(site for place, site in enumerate(SITES) if place not in places)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with site_state(tmp_path / "state.sqlite") as opened:
        yield opened


@pytest.fixture
def ballots(state: State) -> Ballots:
    return Ballots(state)


def kept(state: State) -> list[tuple[str, int, bytes]]:
    return state.database.execute("SELECT run, round, identity FROM ballots ORDER BY run, round, identity").fetchall()


# --- the rule ---


def test_the_first_vote_on_a_model_is_free() -> None:
    check(a_ballot(), [], 1)


@pytest.mark.parametrize(
    "other",
    [a_ballot(digest="other"), a_ballot(survivors=without(0)), a_ballot(survivors=without(0, 1, 2, 3))],
    ids=["another sum", "a site fewer", "many fewer"],
)
def test_in_one_sum_there_is_one_value_for_ever(other: Ballot) -> None:
    check(a_ballot(), [a_ballot()], 1)  # the same again says nothing new
    with pytest.raises(VoteRefusedError, match="another vote in the same sum"):
        check(other, [a_ballot()], 1)


@pytest.mark.parametrize("colluders", [0, 1, 3])
def test_the_victim_alone_cannot_be_left_out_of_a_second_sum(colluders: int) -> None:
    """Two sums over U and U without the victim, subtracted, are what the victim sent."""
    for survivors in (without(*range(count)) for count in range(1, colluders + 2)):
        with pytest.raises(VoteRefusedError, match="survivors that differ"):
            check(a_ballot("second", survivors), [a_ballot()], colluders)
        with pytest.raises(VoteRefusedError, match="survivors that differ"):
            check(a_ballot("second"), [a_ballot(survivors=survivors)], colluders)
    check(a_ballot("second", without(*range(colluders + 2))), [a_ballot()], colluders)


def test_a_site_that_is_swapped_for_another_counts_twice_in_the_difference() -> None:
    check(a_ballot("second", without(0)), [a_ballot(survivors=without(1))], 0)
    with pytest.raises(VoteRefusedError, match="differ from the last attempt's by 2"):
        check(a_ballot("second", without(0)), [a_ballot(survivors=without(1))], 1)


def test_a_model_is_voted_on_twice_at_most() -> None:
    check(a_ballot("second"), [a_ballot("first")], 1)
    with pytest.raises(VoteRefusedError, match="vote number 3 on one model"):
        check(a_ballot("third"), [a_ballot("first"), a_ballot("second")], 1)


subsets = st.sets(st.sampled_from(SITES)).map(lambda chosen: tuple(sorted(chosen)))
any_ballots = st.builds(a_ballot, st.sampled_from(["a", "b", "c", "d"]), subsets, st.sampled_from(["sum", "other"]))


@given(any_ballots, st.lists(any_ballots, max_size=4), st.lists(any_ballots, max_size=2), st.integers(0, 6))
def test_the_rule_is_what_it_says(
    ballot: Ballot, earlier: list[Ballot], elsewhere: list[Ballot], colluders: int
) -> None:
    same = [old for old in earlier if old.identity == ballot.identity]
    others = [old for old in earlier if old.identity != ballot.identity]
    differences = [set(old.survivors).symmetric_difference(ballot.survivors) for old in (*others, *elsewhere)]
    allowed = (
        all(old == ballot for old in same)
        and len(others) < MOST_VOTES
        and all(len(difference) == 0 or len(difference) >= colluders + 2 for difference in differences)
    )
    if allowed:
        check(ballot, earlier, colluders, elsewhere)
    else:
        with pytest.raises(VoteRefusedError):
            check(ballot, earlier, colluders, elsewhere)


@given(st.lists(any_ballots, max_size=12), st.integers(0, 6))
def test_whatever_a_server_asks_what_was_voted_for_hides_every_site(asked: list[Ballot], colluders: int) -> None:
    """Of the votes that a site gave on one model, any two differ in nobody or in two more than collude."""
    given_votes: list[Ballot] = []
    for ballot in asked:
        try:
            check(ballot, given_votes, colluders)
        except VoteRefusedError:
            continue
        if ballot not in given_votes:
            given_votes.append(ballot)
    assert len(given_votes) <= MOST_VOTES
    assert len({ballot.identity for ballot in given_votes}) == len(given_votes)
    for one in given_votes:
        for other in given_votes:
            difference = set(one.survivors) ^ set(other.survivors)
            assert not difference or len(difference) >= colluders + 2


# --- on disk ---


def test_a_vote_stands_for_ever_also_after_the_database_was_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with site_state(path) as state:
        Ballots(state).lock(STUDY, RUN, 1, a_ballot(), 1)
    for _ in range(2):
        with site_state(path) as state:
            with pytest.raises(VoteRefusedError, match="another vote in the same sum"):
                Ballots(state).lock(STUDY, RUN, 1, a_ballot(digest="other"), 1)
            with pytest.raises(VoteRefusedError, match="survivors that differ"):
                Ballots(state).lock(STUDY, RUN, 1, a_ballot("second", without(0)), 1)
            Ballots(state).lock(STUDY, RUN, 1, a_ballot(), 1)
            assert kept(state) == [(RUN, 1, a_ballot().identity)]


FULL = 2
"""Of SQLite's ``synchronous``: a commit returns when it is on disk."""


def test_what_is_committed_after_a_vote_waits_for_the_disk_as_before(state: State, ballots: Ballots) -> None:
    """The reply that carries a vote flushes it; it would not, if a vote changed how replies are written."""
    statements: list[str] = []
    state.database.set_trace_callback(statements.append)
    ballots.lock(STUDY, RUN, 1, a_ballot(), 1)
    with pytest.raises(VoteRefusedError):
        ballots.lock(STUDY, RUN, 1, a_ballot(digest="other"), 1)
    assert state.database.execute("PRAGMA synchronous").fetchone() == (FULL,)
    assert [s for s in statements if s.startswith("PRAGMA synchronous=")][-1] == "PRAGMA synchronous=FULL"


def test_a_vote_is_read_back_as_it_was_given(state: State, ballots: Ballots) -> None:
    """Whatever the names: the survivors that are compared are those that were voted for."""
    odd = tuple(SiteName(name) for name in ('a", "b', "a", "b", "é"))
    ballots.lock(STUDY, RUN, 1, a_ballot(survivors=odd), 1)
    ballots.lock(STUDY, RUN, 1, a_ballot("second", survivors=odd), 1)
    assert len(kept(state)) == 2


def test_a_refused_vote_leaves_no_trace(state: State, ballots: Ballots) -> None:
    ballots.lock(STUDY, RUN, 1, a_ballot(), 1)
    before = kept(state)
    for refused in (a_ballot(digest="other"), a_ballot("second", without(0))):
        with pytest.raises(VoteRefusedError):
            ballots.lock(STUDY, RUN, 1, refused, 1)
        assert kept(state) == before
    ballots.lock(STUDY, RUN, 1, a_ballot("second", without(0, 1, 2)), 1)


def test_at_most_two_votes_are_given_on_one_model(state: State, ballots: Ballots) -> None:
    for identity in ("first", "second"):
        ballots.lock(STUDY, RUN, 1, a_ballot(identity), 1)
    with pytest.raises(VoteRefusedError, match="vote number 3"):
        ballots.lock(STUDY, RUN, 1, a_ballot("third"), 1)
    assert len(kept(state)) == 2


def test_a_round_that_is_over_is_not_voted_on_again(state: State, ballots: Ballots) -> None:
    """Else the votes of the round before, which are forgotten, could be given a second time and otherwise."""
    ballots.lock(STUDY, RUN, 2, a_ballot(), 1)
    ballots.lock(STUDY, RUN, 3, a_ballot("second"), 1)
    assert kept(state) == [(RUN, 3, a_ballot("second").identity)]
    for round_number, ballot in ((2, a_ballot("third", without(0))), (2, a_ballot()), (0, a_ballot("fourth"))):
        with pytest.raises(VoteRefusedError, match="a round that is over"):
            ballots.lock(STUDY, RUN, round_number, ballot, 1)
    assert kept(state) == [(RUN, 3, a_ballot("second").identity)]


def test_the_rounds_of_different_runs_have_nothing_to_do_with_each_other(state: State, ballots: Ballots) -> None:
    other = RunId("run-2")
    ballots.lock(STUDY, RUN, 5, a_ballot("a"), 1)
    ballots.lock(STUDY, other, 2, a_ballot("b", without(0)), 1)
    ballots.lock(STUDY, other, 2, a_ballot("c", without(0)), 1)
    ballots.lock(STUDY, RUN, 5, a_ballot("d"), 1)
    assert [row[:2] for row in kept(state)] == [(RUN, 5), (RUN, 5), (other, 2), (other, 2)]


@pytest.mark.parametrize("round_number", [0, 1])
def test_another_run_of_the_study_does_not_open_the_same_over_almost_the_same_sites(
    ballots: Ballots, round_number: int
) -> None:
    """The statistics and the first model are the same in every run, so a second run is as good as a second attempt."""
    ballots.lock(STUDY, RUN, round_number, a_ballot("a"), 1)
    ballots.lock(STUDY, RUN, 7, a_ballot("b"), 1)
    with pytest.raises(VoteRefusedError):
        ballots.lock(STUDY, RunId("run-2"), round_number, a_ballot("c", without(0)), 1)
    ballots.lock(b"t" * 32, RunId("run-2"), round_number, a_ballot("d", without(0)), 1)
    for number in range(3, 7):
        ballots.lock(STUDY, RunId(f"run-{number}"), round_number, a_ballot(f"e{number}"), 1)
    ballots.lock(STUDY, RunId("run-3"), 2, a_ballot("f", without(0)), 1)


def test_two_who_vote_at_the_same_moment_do_not_both_vote(tmp_path: Path) -> None:
    """Two daemons on a copied folder share no database, but two connections to one do not interleave."""
    path = tmp_path / "state.sqlite"
    with site_state(path) as one, site_state(path) as two:
        two.database.execute("PRAGMA busy_timeout=0")
        one.database.execute("BEGIN IMMEDIATE")
        with pytest.raises(WrongStateError):
            Ballots(two).lock(STUDY, RUN, 1, a_ballot(), 1)
        one.database.execute("ROLLBACK")
        Ballots(two).lock(STUDY, RUN, 1, a_ballot(), 1)
        with pytest.raises(VoteRefusedError):
            Ballots(one).lock(STUDY, RUN, 1, a_ballot(digest="other"), 1)


_VOTE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from quorate.secagg.participant import Ballot
from quorate_client.ballots import Ballots
from quorate_client.state import open_state

state = open_state(Path(sys.argv[1]))
ballot = Ballot(b"first".ljust(32), ("a", "b", "c"), b"sum".ljust(32))
if sys.argv[2] == "before":
    state.database.set_trace_callback(
        lambda statement: os.kill(os.getpid(), signal.SIGKILL) if statement == "COMMIT" else None
    )
Ballots(state).lock(bytes(32), "run-1", 1, ballot, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "voted"), [("before", False), ("after", True)])
def test_a_site_that_is_killed_has_voted_if_and_only_if_the_vote_was_committed(
    tmp_path: Path, moment: str, voted: bool
) -> None:
    path = tmp_path / "state.sqlite"
    open_state(path).close()
    done = subprocess.run(
        [sys.executable, "-c", _VOTE_AND_DIE, str(path), moment],
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    survivors = tuple(SiteName(name) for name in "abc")
    with site_state(path) as state:
        assert bool(kept(state)) == voted
        if voted:
            with pytest.raises(VoteRefusedError):
                Ballots(state).lock(STUDY, RUN, 1, a_ballot(survivors=survivors, digest="other"), 1)
        else:
            Ballots(state).lock(STUDY, RUN, 1, a_ballot(survivors=survivors, digest="other"), 1)


def test_with_a_full_disk_no_vote_leaves(tmp_path: Path) -> None:
    consortium = Consortium(4)
    run = consortium.begin(consortium.terms())
    run.upload_all()
    voter = run.here[0].name
    with site_state(tmp_path / "state.sqlite") as state:
        ballots = Ballots(state)
        (pages,) = state.database.execute("PRAGMA page_count").fetchone()
        state.database.execute(f"PRAGMA max_page_count={pages}")

        def lock(ballot: Ballot) -> None:
            """So many names that they need pages of their own."""
            ballots.lock(STUDY, RUN, 1, Ballot(ballot.identity, ballot.survivors * 300, ballot.digest), 1)

        with pytest.raises(DiskFullError):
            run.sites[voter].vote(run.survivors, run.digest, run.boxes_for(voter), lock)
        assert kept(state) == []
        with pytest.raises(VoteRefusedError):
            run.sites[voter].reveal([])

        state.database.execute("PRAGMA max_page_count=100000")
        run.sites[voter].vote(run.survivors, run.digest, run.boxes_for(voter), lock)
        assert len(kept(state)) == 1
