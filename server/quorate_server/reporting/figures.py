"""Which figures a report shows, and of what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quorate.rounds.instruction import Phase
from quorate.rounds.run import RoundResult, RunView
from quorate.study.study import Study
from quorate_server.reporting import plots
from quorate_server.reporting.plots import MAX_SERIES, Series
from quorate_server.reporting.report import metric_label

MAX_METRIC_FIGURES = 8
MAX_GRID_SITES = 40

_PHASE_ORDER = [str(phase) for phase in Phase]


@dataclass(frozen=True, slots=True)
class Figure:
    """With title and caption. ``svg`` is safe inside HTML: every text in it was escaped when it was drawn."""

    title: str
    caption: str
    svg: str


def draw(view: RunView, study: Study) -> tuple[Figure, ...]:
    """The figures of a run in which at least one round counted."""
    rounds = [result.round_number for result in view.results]
    return (
        *itertools.islice(_metrics(view, rounds), MAX_METRIC_FIGURES),
        _contributions(view.results, study, rounds),
        *_phases(view.results, rounds),
        _bytes(view.results, rounds),
    )


def _metrics(view: RunView, rounds: Sequence[int]) -> Iterator[Figure]:
    """Losses share an axis, figures between 0 and 1 share another, anything else has its own."""
    series = _series(view.results, lambda result: result.metrics)
    losses = [one for one in series if "loss" in one.label]
    shares = [one for one in series if "loss" not in one.label and _is_share(one)]
    is_guest = view.kind == "guest"
    caption = "As the app reported it." if is_guest else "Pooled over the sites that took part in the round."
    # The shipped tasks' loss is a mean cross-entropy; what a guest app means by the word is its own affair.
    yield from _lines("Loss", losses, "loss" if is_guest else "loss per record (nats)", rounds, caption)
    yield from _lines("Quality", shares, "between 0 and 1", rounds, caption, from_zero=False)
    for one in series:
        if one not in losses and one not in shares:
            yield from _lines(metric_label(one.label), [one], metric_label(one.label), rounds, caption, from_zero=False)


def _lines(
    title: str, series: Sequence[Series], unit: str, rounds: Sequence[int], caption: str, *, from_zero: bool = True
) -> Iterator[Figure]:
    for start in range(0, len(series), MAX_SERIES):
        shown = [Series(metric_label(one.label), one.values) for one in series[start : start + MAX_SERIES]]
        yield Figure(title, caption, plots.lines(rounds, shown, unit, from_zero=from_zero))


def _contributions(results: Sequence[RoundResult], study: Study, rounds: Sequence[int]) -> Figure:
    title = "Sites per round"
    if len(study.sites) <= MAX_GRID_SITES:
        contributed = {str(site): [site in result.contributed for result in results] for site in study.site_names}
        caption = (
            "Full cell: the site's update is in the sum of the round. Cross: it is not; the rounds' table says why."
        )
        return Figure(title, caption, plots.grid(rounds, contributed))
    counts = [len(result.contributed) for result in results]
    parts = [Series("contributed", counts), Series("missing", [len(study.sites) - count for count in counts])]
    return Figure(title, "Sites whose updates are in the sum of the round.", plots.stacked(rounds, parts, "sites"))


def _phases(results: Sequence[RoundResult], rounds: Sequence[int]) -> Iterator[Figure]:
    series = _series(results, lambda result: result.phase_seconds)
    series.sort(key=lambda one: _PHASE_ORDER.index(one.label) if one.label in _PHASE_ORDER else len(_PHASE_ORDER))
    if series:
        caption = "From the opening of each phase to its close, work at the sites included."
        yield Figure("Time per round", caption, plots.stacked(rounds, series[:MAX_SERIES], "time (s)"))


def _bytes(results: Sequence[RoundResult], rounds: Sequence[int]) -> Figure:
    largest = max(max(result.bytes_up, result.bytes_down) for result in results)
    power = min(max(0, (len(str(largest)) - 1) // 3), 4)
    unit, factor = ("B", "kB", "MB", "GB", "TB")[power], 1000**power
    series = [
        Series("from the sites", [result.bytes_up / factor for result in results]),
        Series("to the sites", [result.bytes_down / factor for result in results]),
    ]
    return Figure(
        "Data moved per round", "All sites together.", plots.lines(rounds, series, f"data ({unit})", from_zero=True)
    )


def _series(results: Sequence[RoundResult], pick: Callable[[RoundResult], Mapping[str, float]]) -> list[Series]:
    """One series for each key that has a finite value in some round, in the order of appearance."""
    names = dict.fromkeys(name for result in results for name in pick(result))
    series = [Series(name, [pick(result).get(name, math.nan) for result in results]) for name in names]
    return [one for one in series if any(math.isfinite(value) for value in one.values)]


def _is_share(series: Series) -> bool:
    return all(0 <= value <= 1 for value in series.values if math.isfinite(value))
