"""When a phase may close: a table of cases, and what must hold in all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.identity import SiteName
from quorate.rounds.instruction import Phase
from quorate_server.rounds.closing_rule import Close, Decision, GiveUp, PhaseState, Rule, Wait

A, B, C, D = (SiteName(name) for name in "abcd")
ALL = frozenset((A, B, C, D))
RULE = Rule(Phase.UPLOAD, ALL, quorum=2, deadline_s=100.0, absent_grace_s=10.0, colluders=1)
OPENED_S = 1000.0


def standing(
    contributed: str = "", refused: str = "", gone: dict[str, float] | None = None, rule: Rule = RULE
) -> PhaseState:
    return PhaseState(
        rule,
        OPENED_S,
        frozenset(SiteName(name) for name in contributed),
        {SiteName(name): "task_failed" for name in refused},
        {SiteName(name): since for name, since in (gone or {}).items()},
    )


@pytest.mark.parametrize(
    ("case", "now_s", "decision"),
    [
        (standing(), 1000, Wait(1100)),
        (standing("a"), 1000, Wait(1100)),
        (standing("ab"), 1000, Wait(1100)),
        (standing("abc"), 1099.9, Wait(1100)),
        (standing("abcd"), 1000, Close()),
        (standing("ab"), 1100, Close()),
        (standing("ab"), 5000, Close()),
        (standing("a"), 1100, GiveUp),
        (standing("ab", "cd"), 1000, Close()),
        (standing("abc", "d"), 1000, Close()),
        (standing("a", "bc"), 1000, Wait(1100)),
        (standing("", "abc"), 1000, GiveUp),
        (standing("a", "bcd"), 1000, GiveUp),
        (standing("ab", gone={"c": 1000, "d": 1000}), 1000, Wait(1010)),
        (standing("ab", gone={"c": 1000, "d": 1000}), 1010, Close()),
        (standing("ab", gone={"c": 1000, "d": 1005}), 1010, Wait(1015)),
        (standing("ab", gone={"c": 1000}), 1050, Wait(1100)),
        (standing("ab", gone={"c": 900, "d": 900}), 1000, Close()),
        (standing("abc", gone={"a": 900}), 1000, Wait(1100)),
        (standing("abc", gone={"d": 1095}), 1096, Wait(1100)),
        (standing("a", gone={"b": 900, "c": 900, "d": 900}), 1050, Wait(1100)),
        (standing("a", gone={"b": 900, "c": 900, "d": 900}), 1100, GiveUp),
    ],
    ids=[
        "nobody yet", "below the quorum", "a quorum, others work", "a moment before the deadline", "everybody",
        "a quorum at the deadline", "woken up late", "no quorum at the deadline", "the rest refused", "one refused",
        "still possible", "impossible", "impossible with one", "two gone, in grace", "two gone, grace over",
        "two graces", "one gone for long, one works", "gone before it began", "gone after it contributed",
        "grace beyond the deadline", "no quorum, all gone", "no quorum, all gone, deadline",
    ],
)  # fmt: skip
def test_a_phase_closes_when_it_should(case: PhaseState, now_s: float, decision: Decision | type[GiveUp]) -> None:
    decided = case.decide(now_s)
    if decision is GiveUp:
        assert isinstance(decided, GiveUp)
    else:
        assert decided == decision


def test_giving_up_says_who_is_missing_and_why() -> None:
    decided = standing("a", "b", {"c": 1000.0}).decide(1100)
    assert isinstance(decided, GiveUp)
    text = str(decided.reason)
    assert "at least 2 of 4" in text
    assert "b (task_failed), c (absent), d (late)" in text
    assert "resume" in text


def test_who_is_missing_has_a_code() -> None:
    assert standing("a", "b", {"a": 1000.0, "c": 1000.0}).missing() == {"b": "task_failed", "c": "absent", "d": "late"}


def test_a_site_that_is_back_is_waited_for_again() -> None:
    gone = standing("ab", gone={"c": 1000, "d": 1000})
    assert gone.decide(1010) == Close()
    assert gone.with_presence({D: 1000.0}).decide(1010) == Wait(1100)


names = st.sampled_from([A, B, C, D])


@st.composite
def standings(draw: st.DrawFn) -> PhaseState:
    invited = draw(st.frozensets(names, min_size=1))
    rule = Rule(
        Phase.UPLOAD,
        invited,
        draw(st.integers(1, len(invited))),
        draw(st.floats(0.1, 1000)),
        draw(st.floats(0, 2000)),
        colluders=1,
    )
    contributed = draw(st.frozensets(st.sampled_from(sorted(invited))))
    refused = draw(st.frozensets(st.sampled_from(sorted(invited)))) - contributed
    gone = draw(st.dictionaries(names, st.floats(0, 3000)))
    return PhaseState(rule, OPENED_S, contributed, dict.fromkeys(refused, "task_failed"), gone)


times = st.floats(OPENED_S, 5000)


@given(standings(), times)
def test_a_phase_never_closes_below_its_quorum(case: PhaseState, now_s: float) -> None:
    if isinstance(case.decide(now_s), Close):
        assert len(case.contributed) >= case.rule.quorum


@given(standings(), times)
def test_a_phase_never_gives_up_what_has_its_quorum(case: PhaseState, now_s: float) -> None:
    if len(case.contributed) >= case.rule.quorum:
        assert not isinstance(case.decide(now_s), GiveUp)


@given(standings(), times)
def test_waiting_ends_in_the_future_and_never_after_the_deadline(case: PhaseState, now_s: float) -> None:
    decided = case.decide(now_s)
    deadline = case.opened_s + case.rule.deadline_s
    if isinstance(decided, Wait):
        assert now_s < decided.until_s <= deadline
    if now_s >= deadline:
        assert not isinstance(decided, Wait)


@given(standings(), times)
def test_nobody_is_waited_for_when_everybody_has_spoken(case: PhaseState, now_s: float) -> None:
    if not case.outstanding:
        assert not isinstance(case.decide(now_s), Wait)


@given(standings(), times)
def test_a_site_that_is_here_is_waited_for_until_the_deadline(case: PhaseState, now_s: float) -> None:
    here = case.outstanding - set(case.gone_since_s)
    possible = len(case.contributed) + len(case.outstanding) >= case.rule.quorum
    if here and possible and now_s < case.opened_s + case.rule.deadline_s:
        assert isinstance(case.decide(now_s), Wait)


@pytest.mark.parametrize(
    ("colluders", "said", "named"),
    [
        (1, {A: C}, ()),
        (1, {A: C, B: C}, (C,)),
        (1, {A: C, B: D}, ()),
        (2, {A: D, B: D}, ()),
        (2, {A: D, B: D, C: D}, (D,)),
        (1, {A: C, C: C}, ()),
        (0, {A: C}, (C,)),
    ],
)
def test_a_site_is_named_only_when_more_sites_blame_it_than_may_lie(
    colluders: int, said: dict[SiteName, SiteName], named: tuple[SiteName, ...]
) -> None:
    now = standing(rule=replace(RULE, colluders=colluders))
    for site, blamed in said.items():
        for _ in range(3):  # however often it says so
            now = now.with_refusal(site, "key_part_refused", blamed)
    assert now.named == named
    decision = replace(now, rule=replace(now.rule, quorum=4)).decide(OPENED_S)
    assert isinstance(decision, GiveUp)
    assert [name for name in "abcd" if f"fault of {name}" in str(decision.reason)] == list(named)
