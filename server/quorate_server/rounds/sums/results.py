"""Results of a round, and its metrics: as the sites tell them, or as the server computes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from quorate.identity import SiteName
from quorate.rounds.run import RoundResult
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.progress import result_from_json, result_to_json
from quorate_server.rounds.sums.state import RunState

log = structlog.get_logger()

Metrics = Mapping[int, Mapping[str, float]]
"""By round."""


def round_result(number: int, survivors: tuple[SiteName, ...], tallies: Iterable[PhaseTally]) -> RoundResult:
    """Of a round that is summed, before its evaluation is known."""
    missing: dict[str, str] = {}
    seconds: dict[str, float] = {}
    up = down = 0
    for tally in tallies:
        missing = {**tally.missing(), **missing}
        seconds[tally.standing.rule.phase.value] = tally.seconds
        up, down = up + tally.bytes_up, down + tally.bytes_down
    return RoundResult(
        round_number=number,
        contributed=survivors,
        metrics={},
        phase_seconds=seconds,
        bytes_up=up,
        bytes_down=down,
        missing={site: code for site, code in missing.items() if site not in survivors},
    )


def told_by_most(told: list[Metrics], colluders: int) -> Metrics:
    """What most sites tell of the last rounds."""
    agreed: dict[int, dict[str, float]] = {}
    for number in {number for metrics in told for number in metrics}:
        said = Counter(json.dumps(dict(metrics[number]), sort_keys=True) for metrics in told if number in metrics)
        most_said, sites = said.most_common(1)[0]
        # Else it may be what liars made up where the others had nothing to tell.
        if sites > colluders:
            agreed[number] = json.loads(most_said)
    return agreed


def note_rates(state: RunState, told: list[Metrics], before: int) -> None:
    """What the sites tell of the last rounds; a round is done when its evaluation is known, or will not be."""
    agreed = told_by_most(told, state.study.protection.colluders)
    waiting, done = with_metrics(state.progress.waiting, agreed, before)
    for result in done:
        left = tuple(stored for stored in state.progress.waiting if stored["round_number"] != result.round_number)
        state.commit(state.progress.after(evaluated=result.round_number, waiting=left), result)
        note_done(state, result)
    state.progress = state.progress.after(waiting=waiting)


def with_metrics(
    waiting: tuple[dict[str, Any], ...], metrics: Metrics, before: int
) -> tuple[tuple[dict[str, Any], ...], list[RoundResult]]:
    """Results with what is known of them now: those that still wait, and those of the rounds before one, which are
    done."""
    known = [
        replace(result, metrics={**result.metrics, **metrics.get(result.round_number, {})})
        for result in map(result_from_json, waiting)
    ]
    left = tuple(result_to_json(result) for result in known if result.round_number >= before)
    return left, [result for result in known if result.round_number < before]


def note_done(state: RunState, result: RoundResult) -> None:
    log.info("round done", run=state.run, round=result.round_number, sites=len(result.contributed), **result.metrics)
