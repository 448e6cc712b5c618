"""Results of a round, and the rates that the sites tell of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import structlog

from quorate.identity import SiteName
from quorate.rounds.run import RoundResult
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.progress import result_from_json, result_to_json
from quorate_server.rounds.secure.state import RunState

log = structlog.get_logger()


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


def note_rates(state: RunState, told: list[Mapping[int, Mapping[str, float]]], before: int) -> None:
    """What most sites tell of the last rounds; a round is done when its evaluation is known, or will not be."""
    agreed: dict[int, dict[str, float]] = {}
    for number in {number for metrics in told for number in metrics}:
        said = Counter(json.dumps(dict(metrics[number]), sort_keys=True) for metrics in told if number in metrics)
        most_said, sites = said.most_common(1)[0]
        # Else it may be what liars made up where the others had nothing to tell.
        if sites > state.members.rules.colluders:
            agreed[number] = json.loads(most_said)
    waiting = []
    for stored in state.progress.waiting:
        result = result_from_json(stored)
        metrics = {**result.metrics, **agreed.get(result.round_number, {})}
        result = result_from_json(stored | {"metrics": metrics})
        if result.round_number < before:
            done = state.progress.after(evaluated=result.round_number)
            done = done.after(waiting=tuple(w for w in done.waiting if w is not stored))
            state.commit(done, result)
            log.info("round done", run=state.members.run, round=result.round_number, **metrics)
        else:
            waiting.append(result_to_json(result))
    state.progress = state.progress.after(waiting=tuple(waiting))
