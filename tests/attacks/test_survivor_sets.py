"""A server that has many sums opened, each over other sites, and solves for one of them.

What an attacker knows are sums over sets of sites and the parts of the sites that it works with. It has a site's part
exactly if some combination of the sets has 1 to k + 1 sites left in it. Here all sets are tried, not only bad ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import combinations, product
from pathlib import Path

import pytest

from quorate.errors import VoteRefusedError
from quorate.identity import RunId, SiteName
from quorate.secagg.participant import Ballot
from quorate.study.rules import Rules
from quorate.study.study import TaskRef
from quorate_client.rounds.sums.query import query_of
from quorate_client.rounds.sums.votes import Members, Question, VoteLog, check
from tests.client.databases import made_state

Set = frozenset[int]


def members(sites: Iterable[int], names: str = "site", keys: str = "key") -> Members:
    return tuple((SiteName(f"{names}-{site}"), f"{keys}-{site}") for site in sorted(sites))


def exposes(sets: Collection[Set], sites: int, colluders: int) -> bool:
    """Whether a combination of so few sets leaves 1 to k + 1 sites: of two or three 0/1 vectors the minimal ones have
    coefficients 0, 1 and -1."""
    for signs in product((-1, 0, 1), repeat=len(sets)):
        left = [sum(sign for sign, chosen in zip(signs, sets, strict=True) if site in chosen) for site in range(sites)]
        if 1 <= sum(map(bool, left)) <= colluders + 1:
            return True
    return False


def is_allowed(new: Set, earlier: Collection[Set], colluders: int) -> bool:
    try:
        check(members(new), [members(old) for old in earlier], colluders)
    except VoteRefusedError:
        return False
    return True


def sets_above(floor: int, sites: int) -> list[Set]:
    return [frozenset(chosen) for size in range(floor, sites + 1) for chosen in combinations(range(sites), size)]


CONSORTIA = [(sites, colluders) for sites in range(3, 9) for colluders in range(1, sites - 1)]


@pytest.mark.parametrize(("sites", "colluders"), CONSORTIA)
def test_no_two_and_no_three_sets_that_sites_vote_for_expose_a_site(sites: int, colluders: int) -> None:
    """All families of sets that are allowed in pairs: what voters let exist at most. Sites can be renamed so that the
    first set has the first sites."""
    rules = Rules(sites, colluders)
    every = sets_above(rules.floor, sites)
    allowed = {(a, b) for a, b in combinations(every, 2) if is_allowed(b, [a], colluders)}
    for first in (Set(range(size)) for size in range(rules.floor, sites + 1)):
        beside = [other for other in every if (first, other) in allowed or (other, first) in allowed]
        for other in beside:
            assert not exposes((first, other), sites, colluders), (first, other)
        for second, third in combinations(beside, 2):
            if (second, third) in allowed:
                assert not exposes((first, second, third), sites, colluders), (first, second, third)


@pytest.mark.parametrize("rule", ["apart only", "in common only"])
def test_half_of_the_rule_would_not_do(rule: str) -> None:
    """The families that taught it: the tests above can fail."""

    def fits(a: Set, b: Set) -> bool:
        return len(a ^ b) >= 3 if rule == "apart only" else len(a & b) >= 3

    families = {
        "apart only": (Set({0, 1, 4, 5}), Set({2, 3, 4, 5}), Set({0, 1, 2, 3})),
        "in common only": (Set({0, 1, 2, 3}), Set({0, 1, 2, 3, 4})),
    }
    family = families[rule]
    assert all(fits(a, b) for a, b in combinations(family, 2))
    assert exposes(family, 6, 1)
    assert not all(is_allowed(b, [a], 1) for a, b in combinations(family, 2))


class Site:
    """What one site remembers, for ever, on its disk."""

    def __init__(self, number: int, folder: Path, rules: Rules) -> None:
        self.number, self.rules = number, rules
        self.ballots = VoteLog(made_state(folder / f"{number}.sqlite"))

    def votes(self, survivors: Set, query: bytes, run: str, round_number: int = 0) -> bool:
        roster = {SiteName(f"site-{site}"): bytes([site]) * 32 for site in range(self.rules.sites)}
        question = Question(RunId(run), round_number, query, b"", roster, self.rules.colluders)
        names = tuple(SiteName(f"site-{site}") for site in sorted(survivors))
        identity = f"{run} {round_number} {sorted(survivors)}".encode().ljust(32)
        try:
            self.ballots.lock(Ballot(identity, names, bytes(32)), question)
        except VoteRefusedError:
            return False
        return True


class Server:
    """Asks for sums, and helps itself with the votes of the sites that it works with."""

    def __init__(self, folder: Path, sites: int, colluders: Set) -> None:
        self.rules = Rules(sites, len(colluders))
        self.sites = [Site(number, folder, self.rules) for number in range(sites) if number not in colluders]
        self.colluders = colluders
        self.opened: list[Set] = []

    def open(self, survivors: Iterable[int], query: bytes, run: str, round_number: int = 0) -> bool:
        chosen = Set(survivors)
        votes = len(chosen & self.colluders)
        votes += sum(site.votes(chosen, query, run, round_number) for site in self.sites if site.number in chosen)
        if votes >= self.rules.votes:
            self.opened.append(chosen)
        return votes >= self.rules.votes

    def close(self) -> None:
        for site in self.sites:
            site.ballots.state.close()


def task(**changes: str) -> TaskRef:
    return TaskRef.model_validate({"name": "tabular-classifier", "digest": "0" * 64, "parameters": changes})


def test_four_runs_that_leave_out_others_each_time_do_not_add_up_to_one_site(tmp_path: Path) -> None:
    """(a + b + c + d) / 3 - a was the first site's exact statistics."""
    server = Server(tmp_path, 7, Set({6}))
    everybody = Set(range(7))
    for number, away in enumerate(({0}, {1, 2}, {3, 4}, {5, 6})):
        server.open(everybody - away, query_of(task(), b""), f"run-{number}")
    assert 1 <= len(server.opened) <= 2
    assert not exposes(server.opened, 7, 1)
    server.close()


def test_six_sites_do_not_give_two_of_them_away(tmp_path: Path) -> None:
    server = Server(tmp_path, 6, Set({5}))
    for number, sites in enumerate(({0, 1, 4, 5}, {2, 3, 4, 5}, {0, 1, 2, 3})):
        server.open(sites, query_of(task(), b""), f"run-{number}")
    assert not exposes(server.opened, 6, 1)
    server.close()


@pytest.mark.parametrize("where", ["another run", "another round", "another study"])
def test_the_same_query_is_the_same_wherever_it_is_asked(tmp_path: Path, where: str) -> None:
    """A table over four sites in one study, and over three of them in another, would give the fourth's."""
    server = Server(tmp_path, 5, Set({4}))
    query = query_of(task(), b"theta")
    assert server.open(range(5), query, "run-1")
    run, number = {"another run": ("run-2", 0), "another round": ("run-1", 1), "another study": ("study-2-1", 0)}[where]
    assert not server.open(range(4), query_of(task(), b"theta"), run, number)
    assert server.open(range(5), query, run, number), "over the same sites it says nothing new"
    server.close()


def test_another_model_another_task_and_another_schema_are_other_queries() -> None:
    queries = {
        query_of(task(), b""),
        query_of(task(), b"theta"),
        query_of(task(), b"other"),
        query_of(task(schema="wide"), b"theta"),
        query_of(task().model_copy(update={"name": "image-classifier"}), b"theta"),
    }
    assert len(queries) == 5


def test_parameters_that_only_steer_training_make_no_other_query() -> None:
    """A learning rate that was tuned again, over all sites but one, gave that site's exact statistics."""
    tuned = task(schema="wide", learning_rate="0.2")
    assert query_of(task(schema="wide"), b"") == query_of(tuned, b"")
    assert query_of(task(schema="wide"), b"theta") == query_of(tuned, b"theta")
    assert query_of(task(), b"") == query_of(task().model_copy(update={"digest": "1" * 64}), b"")


@pytest.mark.parametrize("changed", ["name", "key"])
def test_a_site_under_another_name_or_key_is_not_taken_for_another_site(changed: str) -> None:
    """The server gives names, and a site that is enrolled anew has a new key."""
    before = members(range(7))
    after = [(name, key) for name, key in members({*range(5)})]
    after[0] = (SiteName("zeta"), after[0][1]) if changed == "name" else (after[0][0], "other key")
    now = tuple(sorted(after))
    assert is_allowed(Set({1, 2, 3, 4}), [Set(range(7))], 1), "three others are enough"
    with pytest.raises(VoteRefusedError, match="differ"):
        check(now, [before], 1)


def test_a_fourth_set_never_gets_as_many_votes_as_it_takes() -> None:
    """Each honest site votes for two sets of a query at most, and more than half of them for each that is opened."""
    for sites, colluders in CONSORTIA:
        assert (Rules(sites, colluders).votes - colluders) * 4 > 2 * (sites - colluders)
