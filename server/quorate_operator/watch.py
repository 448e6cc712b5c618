"""Following a run: live on a terminal, a line for each change elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.live import Live

from quorate.process.terminal import Terminal
from quorate.rounds.run import Progress, RunState, RunView
from quorate_operator.json_output import UNPROTECTED, Json, run_json
from quorate_operator.tables import round_line, run_page
from quorate_operator.times import clock_time


def watch_live(views: Iterable[RunView], console: Terminal, clock: Callable[[], float]) -> RunState:
    """Redraw the run's page at each change. Returns the state in which it ended."""
    state = RunState.RUNNING
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        for view in views:
            live.update(run_page(view, clock()))
            state = view.state
    return state


def watch_lines(views: Iterable[RunView], write: Callable[[str], None]) -> RunState:
    """Write what changed. Returns the state in which the run ended."""
    state = RunState.RUNNING
    for line, view in changes(views):
        write(line)
        state = view.state
    return state


def watch_json(views: Iterable[RunView], write: Callable[[Json], None]) -> RunState:
    """Write each view as a value for JSON. Returns the state in which the run ended."""
    state = RunState.RUNNING
    for view in views:
        write(run_json(view))
        state = view.state
    return state


def until_rest(views: Iterable[RunView]) -> Iterator[RunView]:
    """The views up to the one in which nothing goes on by itself: the run is over, or paused and waits for somebody."""
    for view in views:
        yield view
        if view.state is not RunState.RUNNING:
            return


def changes(views: Iterable[RunView]) -> Iterator[tuple[str, RunView]]:
    """A line for each thing that happened: a state, a round that counted, a site that refuses or is gone.

    The comings and goings of sites that work are left out: they fill a log and say nothing.
    """
    last_state = ""
    last_rounds = 0
    last_trouble = ""
    for view in views:
        time = clock_time(view.changed_unix_s)
        state = f"{view.run} is {view.state}" + (f": {view.reason}" if view.reason else "")
        if not last_state and view.protection == "none":
            yield f"{time} WARNING: {UNPROTECTED}", view
        starts = not view.state.is_over
        if starts and state != last_state:
            yield f"{time} {state}", view
        for result in view.results:
            if result.round_number > last_rounds:
                last_rounds = result.round_number
                yield f"{time} {round_line(result, view.rounds)}", view
        trouble = _trouble(view)
        if trouble and trouble != last_trouble:
            yield f"{time} {trouble}", view
        if not starts and state != last_state:
            yield f"{time} {state}", view
        last_state, last_trouble = state, trouble


def _trouble(view: RunView) -> str:
    out = [
        f"{site.site} {site.state}" + (f" ({site.code})" if site.code else "")
        for site in view.sites
        if site.state in (Progress.REFUSED, Progress.ABSENT)
    ]
    return f"round {view.round_number}, {view.phase}: {', '.join(out)}" if out else ""
