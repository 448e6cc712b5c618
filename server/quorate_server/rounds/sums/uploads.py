"""The uploads of a sum: taken as they come, and added."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from quorate.errors import (
    BlobMissingError,
    ContributionError,
    FrameError,
    QuorateError,
    QuorumMissingError,
    VoteRefusedError,
)
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.rounds.run import SumStep
from quorate.wire.sum_messages import SumAnswer
from quorate_server.rounds.aggregate import Adder
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.sums.model import way_to_newest
from quorate_server.rounds.sums.results import Metrics, note_rates
from quorate_server.rounds.sums.scheme import OpenSum, Scheme, Upload
from quorate_server.rounds.sums.state import RunState

log = structlog.get_logger()

Leaving = Callable[[tuple[SiteName, ...], Iterator[bytes]], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Added:
    """The uploads of a sum, added up: whose they are, the sum of the updates (if any), and how it went."""

    survivors: tuple[SiteName, ...]
    updates: Blob | None
    tally: PhaseTally


class _Adding:
    """Adds the updates of the form that came first as they come. Where others are chosen in the end, anew."""

    def __init__(self, state: RunState, fresh: Callable[[], Adder], leaving: Leaving) -> None:
        self._state, self._fresh, self._leaving = state, fresh, leaving
        self._adder = fresh()
        self._form: Hashable = None
        self._folded: set[SiteName] = set()

    def take(self, site: SiteName, upload: Upload) -> None:
        """Raises FrameError, ContributionError, BlobMissingError: the update is not what it was said to be."""
        if upload.update is None:
            return
        if self._form is None or self._form == upload.form:
            self._fold(self._adder, upload.update)
            self._form = upload.form
            self._folded.add(site)
        else:
            with self._state.exchange.open(upload.update):
                pass  # refused now if it is not there

    def total(
        self, chosen: Mapping[SiteName, Upload], leave_out: Callable[[SiteName, QuorateError], None]
    ) -> tuple[tuple[SiteName, ...], Blob | None]:
        """Whose updates are in the sum, and the sum, which lies in the spool."""
        survivors = sorted(chosen)
        if self._form is None:
            return tuple(survivors), None
        if self._folded != set(survivors):
            del self._adder  # first: whoever answered before the others may not double the memory
            self._adder, survivors = self._fresh(), []
            for site, upload in sorted(chosen.items()):
                try:
                    if upload.update is not None:
                        self._fold(self._adder, upload.update)
                except (FrameError, ContributionError, BlobMissingError) as error:
                    leave_out(site, error)
                else:
                    survivors.append(site)
        with self._state.stopwatch.on(SumStep.ADD):
            total = self._state.exchange.put(self._leaving(tuple(survivors), self._adder.blocks()))
        self._state.passing.add(total.id)
        return tuple(survivors), total

    def _fold(self, adder: Adder, update: Blob) -> None:
        with self._state.stopwatch.on(SumStep.ADD):
            adder.fold(partial(self._state.exchange.open, update))


def collect(state: RunState, scheme: Scheme, opened: OpenSum, number: int) -> Added:
    """The uploads of those who are invited, added up: of the largest group that arrived at the same state.

    Whoever answers first does not decide for the others.
    """
    uploads: dict[SiteName, Upload] = {}
    told: dict[SiteName, Metrics] = {}
    adding = _Adding(state, lambda: scheme.adder(number), opened.leaving)

    def take(site: SiteName, answer: SumAnswer, reply: Reply) -> None:
        state.passing |= {blob.id for blob in reply.blobs if blob.inline is None}
        upload = opened.accept(site, answer, reply.blobs)
        adding.take(site, upload)
        uploads[site], told[site] = upload, answer.metrics

    done = state.phases.open(
        Phase.UPLOAD,
        number,
        way_to_newest(state, scheme, opened.hellos),
        state.parsed(take),
        invited=opened.invited,
        quorum=opened.quorum,
        attempt=scheme.attempt,
    )
    _require_quorum(state, len(uploads), done)
    _, agreeing = state.phases.agreement({site: upload.form for site, upload in uploads.items()}, done)
    state.holders = agreeing
    note_rates(state, [told[site] for site in sorted(agreeing)], before=number - 1)
    if number == 0:
        dimension = uploads[min(agreeing)].dimension
        if dimension < 1:
            raise ContributionError("The sites have no model to train")
        state.progress = state.progress.after(dimension=dimension)
    with state.stopwatch.on(SumStep.CHECK):
        chosen = opened.choose(frozenset(agreeing))
    for site in sorted(agreeing - chosen):
        log.warning("left out of a sum: the others may not vote for one with this site", run=state.run, site=site)
        done.left_out[site] = VoteRefusedError.code

    def leave_out(site: SiteName, error: QuorateError) -> None:
        """A reply that was taken turned out to be of no use."""
        log.warning("contribution refused", run=state.run, site=site, code=error.code, reason=str(error))
        state.exchange.refuse(done.asked[site].message_id, error.code)
        done.left_out[site] = error.code

    survivors, updates = adding.total({site: uploads[site] for site in chosen}, leave_out)
    _require_quorum(state, len(survivors), done)
    return Added(survivors, updates, done)


def _require_quorum(state: RunState, count: int, done: PhaseTally) -> None:
    """Of those who are left after some were left out."""
    if count < state.quorum:
        missing = ", ".join(f"{site} ({code})" for site, code in sorted(done.missing().items()))
        error = QuorumMissingError(
            f"Too few sites took part in the phase {done.standing.rule.phase!s}",
            expected=f"at least {state.quorum} of {len(done.standing.rule.invited)} sites",
            got=f"{count}; missing: {missing}",
            action="See what the missing sites' codes mean (docs/reference/errors.md), then `quorate run resume`",
        )
        error.codes = tuple(done.missing().values())
        raise error
