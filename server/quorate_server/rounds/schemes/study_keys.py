"""The parts of the study key: every site seals one for every site; the server stores what it cannot open."""

from __future__ import annotations

from collections.abc import Mapping

from quorate.errors import ContributionError
from quorate.identity import SiteName
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg.aggregator import Members, check_parts
from quorate.secagg.study_key import SealedPart
from quorate.wire.sum_messages import (
    SumAnswer,
    SumWork,
    shares_from_bytes,
    shares_to_bytes,
    sum_work_from_bytes,
    sum_work_to_bytes,
)
from quorate_server.rounds.sums.state import RunState


def collect_keys(state: RunState, members: Members) -> None:
    """Asks all sites for their parts, once in a run, and commits them sorted by recipient."""
    made: dict[SiteName, Mapping[SiteName, SealedPart]] = {}

    def take(site: SiteName, answer: SumAnswer, _: Reply) -> None:
        check_parts(site, answer.parts, members)
        made[site] = answer.parts

    done = state.phases.open(Phase.KEYS, 0, lambda _: (b"", ()), state.parsed(take))
    boxes = {
        site: sum_work_to_bytes(SumWork(parts=tuple(made[sender][site] for sender in sorted(made))))
        for site in members.roster
    }
    keys = state.exchange.put([shares_to_bytes(boxes)])
    state.commit(state.progress.after(keys=keys), obsolete=done.reply_blobs)


def read_keys(state: RunState) -> dict[SiteName, tuple[SealedPart, ...]]:
    """The parts by recipient. Raises ContributionError: there are none."""
    if state.progress.keys is None:
        raise ContributionError("There is no study key")
    with state.exchange.open(state.progress.keys) as file:
        boxes = shares_from_bytes(file.read())
    return {site: sum_work_from_bytes(box).parts for site, box in boxes.items()}
