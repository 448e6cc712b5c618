"""`quorate study plan`: who would take part, what blocks the others, and whether a run could start."""

from __future__ import annotations

import json

import pytest

from quorate.errors import EXIT_INPUT, EXIT_REFUSED
from quorate.identity import SiteName
from quorate.study.readiness import Readiness
from quorate_operator.json_output import plan_json
from quorate_operator.tables import plan_page
from quorate_operator.views import AnswerView, PlanView, ReportView, StudyView
from tests.operator.samples import NOW
from tests.operator.test_cli import Command, quorate
from tests.operator.test_tables import text_of
from tests.server.door import Door, SiteKeys, a_study

__all__ = ["quorate"]

READY, BLOCKED = Readiness(), Readiness("budget_exhausted")
SITES = ("east", "north", "south")


def a_plan(
    answers: str, reports: tuple[Readiness | None, ...], quorum: int = 2, approvals: int | None = None
) -> PlanView:
    """Of three sites. ``answers``: a letter for each, of approved, rejected, none."""
    words = {"a": "approved", "r": "rejected", "n": "none"}
    study = a_study(
        *(SiteKeys.make(name) for name in SITES),
        rounds={"count": 3, "quorum": quorum},
        approvals=approvals,
        privacy={"delta": 1e-5, "training": {"clip": 1.0, "batch_size": 8, "steps": 2, "epsilon": 2.0}},
    )
    given = tuple(AnswerView(SiteName(name), words[letter], 0.0) for name, letter in zip(SITES, answers, strict=True))
    said = tuple(ReportView(SiteName(name), each, NOW - 60) for name, each in zip(SITES, reports, strict=True) if each)
    return PlanView(StudyView(study.digest(), study, NOW, given), said)


@pytest.mark.parametrize(
    ("answers", "reports", "approvals", "can_start"),
    [
        ("aaa", (READY, READY, READY), None, True),
        ("aan", (READY, READY, READY), None, True),
        ("aan", (READY, READY, READY), 3, False),
        ("ann", (READY, READY, READY), None, False),
        ("ann", (READY, READY, READY), 1, False),
        ("aar", (READY, READY, READY), None, True),
        ("aaa", (READY, BLOCKED, READY), None, True),
        ("aan", (READY, BLOCKED, READY), None, False),
        ("aan", (READY, None, READY), None, True),
        ("aan", (BLOCKED, None, READY), None, False),
        ("aaa", (None, None, None), None, True),
        ("nnn", (None, None, None), None, False),
    ],
)
def test_a_run_can_start_with_enough_approvals_and_a_quorum_that_is_not_blocked(
    answers: str, reports: tuple[Readiness | None, ...], approvals: int | None, can_start: bool
) -> None:
    assert a_plan(answers, reports, approvals=approvals).can_start is can_start


def test_a_page_shows_each_site_and_what_is_there_of_approvals_and_quorum() -> None:
    view = a_plan("aar", (READY, None, BLOCKED))
    text = text_of(plan_page(view, NOW))
    east, north, south = (line for line in text.splitlines() if line.startswith(SITES))
    assert east.split() == ["east", "approved", "would", "take", "part", "1", "minute", "ago"]
    assert north.split() == ["north", "approved", "not", "heard"]
    assert south.split() == ["south", "rejected", "blocked", "by", "budget_exhausted", "1", "minute", "ago"]
    assert "2 of 2 needed approvals; 1 (1 more not heard) of a quorum of 2" in text
    assert "WARNING" in text


def test_a_plan_has_these_keys() -> None:
    view = a_plan("aan", (READY, BLOCKED, None))
    assert plan_json(view) == {
        "study": "malignancy",
        "digest": view.study.digest.hex(),
        "approvals": {"given": 2, "needed": 2},
        "quorum": {"ready": 1, "not_heard": 0, "needed": 2},
        "can_start": False,
        "protection": "none",
        "sites": [
            {
                "name": "east",
                "answer": "approved",
                "would_take_part": True,
                "code": None,
                "told_unix_s": NOW - 60,
            },
            {
                "name": "north",
                "answer": "approved",
                "would_take_part": False,
                "code": "budget_exhausted",
                "told_unix_s": NOW - 60,
            },
            {
                "name": "south",
                "answer": "none",
                "would_take_part": None,
                "code": None,
                "told_unix_s": None,
            },
        ],
    }


def test_the_command_s_exit_code_says_whether_a_run_could_start(quorate: Command, door: Door) -> None:
    study = a_study(*(door.enrol(name)[0] for name in SITES), rounds={"count": 3, "quorum": 2})
    door.registry.publish(study)
    code, out, _ = quorate("study", "plan", "malignancy")
    assert (code, out.count("not heard")) == (EXIT_REFUSED, 3)
    for name, said in (("east", READY), ("north", BLOCKED), ("south", READY)):
        door.registry.record_answer(study.digest(), SiteName(name), "approved", bytes(64))
        door.registry.record_readiness(study.digest(), SiteName(name), said)
    code, out, _ = quorate("study", "plan", study.digest().hex()[:8])
    assert (code, "blocked by budget_exhausted" in out, "it can start" in out) == (0, True, True)
    door.registry.record_readiness(study.digest(), SiteName("east"), BLOCKED)
    code, out, _ = quorate("study", "plan", "malignancy", "--json")
    assert (code, json.loads(out)["quorum"]) == (EXIT_REFUSED, {"ready": 1, "not_heard": 0, "needed": 2})
    assert quorate("study", "plan", "unknown")[0] == EXIT_INPUT
