"""Phases on their own: who is asked, with what, and whose replies count. The whole loop is in test_sum_loop.py."""

from __future__ import annotations

import pytest

from quorate.errors import ContributionError, QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase, Reply, message_id
from quorate_server.rounds.phases import Arrived, Phases
from tests.server.sites_kit import a_consortium
from tests.server.study_kit import NAMES, RUN, MemoryExchange

EAST, NORTH, SOUTH, WEST = NAMES
NOTHING = b"", ()


def phases(exchange: MemoryExchange) -> Phases:
    return Phases(RUN, exchange.study, exchange, {}, exchange.clock)


def same_for_all(_: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
    return NOTHING


def test_all_sites_of_the_study_are_asked_where_nobody_is_named() -> None:
    exchange, taken = a_consortium(), list[SiteName]()
    tally = phases(exchange).open(Phase.UPLOAD, 0, same_for_all, lambda site, _: taken.append(site))
    assert tuple(taken) == tally.contributed == tuple(tally.asked) == NAMES
    assert tally.missing() == {}


def test_only_who_is_invited_is_asked_and_nobody_else_is_missed() -> None:
    exchange, taken = a_consortium(), list[SiteName]()
    tally = phases(exchange).open(
        Phase.UPLOAD, 0, same_for_all, lambda site, _: taken.append(site), invited=frozenset({EAST, NORTH, WEST})
    )
    assert [site for site, _ in exchange.sent] == taken == [EAST, NORTH, WEST]
    assert tally.contributed == (EAST, NORTH, WEST)
    assert tally.missing() == {}
    assert {site.site for status in exchange.statuses for site in status.sites} == {EAST, NORTH, WEST}


def test_a_reply_of_a_site_that_is_not_invited_is_not_taken() -> None:
    exchange, taken = a_consortium(), list[SiteName]()
    uninvited = Reply(message_id(RUN, 0, Phase.UPLOAD, 0, SOUTH))
    exchange.events = [Arrived(SOUTH, uninvited), Arrived(EAST, uninvited)]
    tally = phases(exchange).open(
        Phase.UPLOAD, 0, same_for_all, lambda site, _: taken.append(site), invited=frozenset({EAST, NORTH, WEST})
    )
    assert taken == [EAST, NORTH, WEST]
    assert tally.bytes_up == sum(len(reply.body) for _, _, reply in exchange.stored.values())
    assert exchange.refused == {}


def test_the_quorum_is_the_studys_where_no_other_is_named() -> None:
    exchange = a_consortium()
    exchange.gone = {SOUTH, WEST}
    exchange.events = [exchange.presence()]
    with pytest.raises(QuorumMissingError, match="at least 3 of 4"):
        phases(exchange).open(Phase.UPLOAD, 0, same_for_all, lambda *_: None)

    exchange.events = [exchange.presence()]  # under other names: what was withdrawn stays refused
    tally = phases(exchange).open(Phase.UPLOAD, 0, same_for_all, lambda *_: None, quorum=2, attempt=1)
    assert tally.contributed == (EAST, NORTH)
    assert tally.missing() == {SOUTH: "absent", WEST: "absent"}


def test_a_phase_with_fewer_invited_than_its_quorum_cannot_count() -> None:
    exchange = a_consortium()
    with pytest.raises(QuorumMissingError, match="at least 3 of 2"):
        phases(exchange).open(Phase.UPLOAD, 0, same_for_all, lambda *_: None, invited=frozenset({EAST, NORTH}))


def test_each_site_may_be_asked_something_else() -> None:
    exchange = a_consortium()
    update = exchange.blobs.put(b"for the north")

    def own(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
        return site.encode(), (update,) if site == NORTH else ()

    tally = phases(exchange).open(Phase.UPLOAD, 0, own, lambda *_: None)
    assert {site: sent.body for site, sent in exchange.sent} == {name: name.encode() for name in NAMES}
    assert {site: sent.blobs for site, sent in exchange.sent if sent.blobs} == {NORTH: (update,)}
    assert tally.bytes_down == sum(len(sent.body) for _, sent in exchange.sent) + update.size


def test_a_reply_that_the_loop_refuses_does_not_count_and_its_site_is_remembered() -> None:
    exchange = a_consortium()

    def take(site: SiteName, _: Reply) -> None:
        if site == WEST:
            raise ContributionError("not this one")

    tally = phases(exchange).open(Phase.UPLOAD, 0, same_for_all, take)
    assert tally.contributed == (EAST, NORTH, SOUTH)
    assert tally.missing() == {WEST: "bad_contribution"}
    assert exchange.refused == {tally.asked[WEST].message_id: "bad_contribution"}


def test_one_site_is_asked_at_a_time_until_one_contributes() -> None:
    exchange = a_consortium()

    def take(site: SiteName, _: Reply) -> None:
        if site == SOUTH:
            raise ContributionError("not this one")

    tally = phases(exchange).ask_one(Phase.UPLOAD, 0, same_for_all, take, candidates=[SOUTH, EAST, WEST])
    assert [site for site, _ in exchange.sent] == [SOUTH, EAST]
    assert tally.contributed == (EAST,)


def test_a_site_that_is_away_is_not_the_one_to_be_asked() -> None:
    exchange = a_consortium()
    exchange.gone = {EAST}
    exchange.events = [exchange.presence()]
    both = phases(exchange)
    both.open(Phase.UPLOAD, 0, same_for_all, lambda *_: None)
    exchange.sent.clear()
    tally = both.ask_one(Phase.UPLOAD, 1, same_for_all, lambda *_: None, candidates=[EAST, WEST])
    assert [site for site, _ in exchange.sent] == [WEST]
    assert tally.contributed == (WEST,)
