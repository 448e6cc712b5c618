from __future__ import annotations

import io

import pytest

from quorate.process.terminal import Terminal
from quorate.rounds.run import RunState
from quorate_operator import watch
from quorate_operator.json_output import Json
from tests.operator.samples import NOW, RUNNING, a_run, changed


def test_off_a_terminal_each_thing_that_happens_is_one_line() -> None:
    lines: list[str] = []
    assert watch.watch_lines(a_run(), lines.append) is RunState.COMPLETED
    run = "malignancy-0a1b2c"
    assert [line.removeprefix("08:00:00Z ") for line in lines] == [
        'WARNING: protection "none": the server can read every update of this study',
        f"{run} is running",
        "round 1, train: south refused (site_paused)",
        "round 1, evaluate: south refused (site_paused)",
        "round 1 of 2: 1 sites (without south site_paused)  loss 0.5000  auc 0.7500  recall 0.2500  1.50 s",
        f"{run} is paused: 1 of 2 sites.",
        f"{run} is running",
        "round 2 of 2: 2 sites  loss 0.2500  auc 0.8750  1.00 s",
        f"{run} is completed",
    ]


def test_a_round_is_told_once_though_its_view_comes_again_after_a_restart_of_the_server() -> None:
    lines: list[str] = []
    watch.watch_lines([*a_run()[:4], a_run()[3], a_run()[3]], lines.append)
    assert sum("round 1 of 2" in line for line in lines) == 1


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FAILED, RunState.COMPLETED])
def test_every_form_of_watching_tells_how_the_run_ended(state: RunState) -> None:
    views = [RUNNING, changed(state=state)]
    terminal = Terminal(file=io.StringIO(), force_terminal=True, width=120)
    assert watch.watch_live(views, terminal, lambda: NOW) is state
    assert watch.watch_lines(views, lambda line: None) is state
    assert watch.watch_json(views, lambda line: None) is state


def test_for_programs_each_view_is_one_value() -> None:
    told: list[Json] = []
    watch.watch_json(a_run(), told.append)
    assert [value["state"] for value in told] == [view.state for view in a_run()]


def test_a_terminal_shows_the_warning_and_the_rounds() -> None:
    output = io.StringIO()
    watch.watch_live(a_run(), Terminal(file=output, force_terminal=True, width=120), lambda: NOW)
    assert "WARNING" in output.getvalue()
    assert "2 of 2 rounds" in output.getvalue()
