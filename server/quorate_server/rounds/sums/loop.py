"""The loop of a study: sums over any transport, a commit after every one of them.

One sum of record counts and statistics; one for each round (updates, and an evaluation of the model that they start
from); and one that evaluates the final model. In each the sites upload, what they sent is added, and what opens the sum
goes to them with the next upload. Every few rounds there is a ``checkpoint`` of the model's state from one site, at the
end the ``release``. The loop never opens a sum: whether it could is the scheme's matter (``rounds/schemes``), as are
the exchanges before and after the upload.

Only a sum that is closed is committed. Until then all is in the replies, which are written down: a new process asks the
same again, gets the same replies, and makes the same of them. What a site did not answer when an exchange closed was
withdrawn before the next one began, so it cannot come in later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from quorate.errors import DiskFullError, QuorateError, QuorumMissingError, SumRefusedError, WrongStateError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.run import RoundResult, SumOutcome
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate_server.rounds.phases import Exchange, Phases, PhaseTally, Status, inlined, require_room
from quorate_server.rounds.progress import StoredSum, StudyProgress, result_to_json
from quorate_server.rounds.schemes.enclave import EnclaveScheme
from quorate_server.rounds.schemes.plain import PlainScheme
from quorate_server.rounds.schemes.secagg import SecaggScheme
from quorate_server.rounds.sum_figures import Stopwatch, SumFigures
from quorate_server.rounds.sums.model import checkpoint_if_due, release
from quorate_server.rounds.sums.results import note_done, round_result, with_metrics
from quorate_server.rounds.sums.scheme import Closed, Scheme
from quorate_server.rounds.sums.state import RunState
from quorate_server.rounds.sums.uploads import Added, collect

log = structlog.get_logger()

MAX_ATTEMPTS = 2
"""At a sum that may be begun anew, before the run pauses."""


class SumLoop:
    """Runs one study to its end.

    Args:
        attempts: As for ``Phases``.

    ``run`` raises QuorateError when it has to pause (a missing quorum, a disagreement, a full disk): what was committed
    stays committed.
    """

    def __init__(
        self,
        run: RunId,
        study: Study,
        exchange: Exchange,
        progress: StudyProgress,
        attempts: Mapping[tuple[int, str, SiteName], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        phases = Phases(run, study, exchange, attempts, monotonic)
        self._state = RunState(run, study, study.rounds.quorum, exchange, phases, progress, Stopwatch(monotonic))
        self._scheme: Scheme
        if study.protection.mode == "none":
            self._scheme = PlainScheme(self._state)
        else:
            rules = Rules(len(study.sites), study.protection.colluders)
            self._state.quorum = max(study.rounds.quorum, rules.floor)
            scheme = EnclaveScheme if study.protection.mode == "enclave" else SecaggScheme
            self._scheme = scheme(self._state, rules)
        self._tries = 0

    def run(self) -> None:
        """All that is left to do, in order."""
        state = self._state
        if state.progress.is_of_an_older_version:
            raise WrongStateError(
                "This run was begun by an older version of Quorate, which did its rounds in other steps",
                action="`quorate run stop` it, and start the study again: what it trained cannot be continued",
            )
        self._scheme.prepare()
        while state.progress.summed < state.study.rounds.count + 2:
            self._next_sum()
        if not state.progress.released:
            self._release()
        state.exchange.report(Status(state.progress.evaluated, ""))

    def _next_sum(self) -> None:
        """One sum further. Where the scheme says so, or one attempt: a sum that lost too many sites on the way, or that
        does not open, is begun anew with new keys, and trained anew."""
        number = self._state.progress.summed
        try:
            self._sum(number)
        except DiskFullError:
            raise
        except QuorateError as error:
            if not self._scheme.begins_anew:
                raise
            self._tries += 1
            self._give_up(number, error)
            if not isinstance(error, QuorumMissingError) or self._tries >= MAX_ATTEMPTS:
                raise
            summed = self._state.progress.summed
            log.warning("a sum is begun anew", run=self._state.run, round=summed, reason=str(error))

    def _give_up(self, number: int, error: QuorateError) -> None:
        """The attempt at a sum; the one before it is taken back as well where it is what does not open."""
        state, before = self._state, self._state.progress
        progress, outcomes = before.after(attempt=before.attempt + 1), [SumOutcome.BEGUN_ANEW]
        # Once sites arrived there, they may have voted on a sum that starts from the last one.
        is_undecided = number > before.reached
        if is_undecided and self._does_not_open(error) and before.sums and before.sums[-1].round_number == number - 1:
            progress = _without_the_last(progress)
            outcomes.append(SumOutcome.NOT_OPENED)
        state.commit(progress, obsolete=state.passing | (before.blobs() - progress.blobs()))
        state.passing, state.newest = set(), None
        state.exchange.measured(SumFigures(tuple(outcomes), state.stopwatch.read()))

    def _does_not_open(self, error: QuorateError) -> bool:
        """Whether the last sum kept sites from the next one, by the word of more than may lie.

        An exchange is given up as soon as its quorum is out of reach, so no more than that many refusals are heard.
        """
        study = self._state.study
        refusals = error.codes.count(SumRefusedError.code) if isinstance(error, QuorumMissingError) else 0
        return refusals > min(study.protection.colluders, len(study.sites) - study.rounds.quorum)

    def _sum(self, number: int) -> None:
        state, scheme = self._state, self._scheme
        require_room(state.exchange, scheme.update_bytes(number), len(state.study.sites), scheme.beside_bytes(number))
        opened = scheme.begin(number)
        added = collect(state, scheme, opened, number)
        if number > state.progress.reached:  # the sites could open what was before, and may vote from there
            self._tries = 0
            state.commit(state.progress.after(reached=number))
            if number > 0:
                self._note_last_sum(SumOutcome.OPENED)
        checkpoint_if_due(state, scheme, number, added.survivors)
        closed = opened.close(added.survivors, added.updates)
        self._close(number, added, closed, (*opened.greeted, added.tally, *closed.tallies))

    def _close(self, number: int, added: Added, closed: Closed, tallies: tuple[PhaseTally, ...]) -> None:
        """Commits a sum that the sites can open, with the result that it completes where the server can tell it."""
        state, updates = self._state, added.updates
        stored = state.exchange.put([closed.opening])
        state.newest = (
            inlined(state.exchange, updates) if updates is not None else None,
            Blob(stored.id, stored.size, closed.opening if stored.size <= INLINE_BYTES else None),
        )
        attempt = state.progress.attempt
        last = StoredSum(round_number=number, attempt=attempt, updates=updates, opening=stored)
        waiting, done = state.progress.waiting, list[RoundResult]()
        if updates is not None:
            waiting = (*waiting, result_to_json(round_result(number, added.survivors, tallies)))
            log.info("round summed", run=state.run, round=number, sites=len(added.survivors))
        if closed.metrics is not None:
            waiting, done = with_metrics(waiting, closed.metrics, before=number)
        progress = state.progress.after(
            sums=(*state.progress.sums, last),
            summed=number + 1,
            waiting=waiting,
            trained=min(number, state.study.rounds.count),
            evaluated=max([state.progress.evaluated, *(result.round_number for result in done)]),
        )
        result = done[0] if done else None  # no more than that of the round before
        state.commit(progress, result, obsolete=state.passing.union(*(tally.reply_blobs for tally in tallies)))
        state.passing = set()
        state.exchange.measured(SumFigures(seconds=state.stopwatch.read()))
        if result is not None:
            note_done(state, result)

    def _release(self) -> None:
        """The end of a run, for which the sites have to open the last sum."""
        try:
            release(self._state, self._scheme)
        except QuorateError as error:
            if self._does_not_open(error):
                self._note_last_sum(SumOutcome.NOT_OPENED)
            raise
        self._note_last_sum(SumOutcome.OPENED)

    def _note_last_sum(self, outcome: SumOutcome) -> None:
        """Without protection there is nothing to open."""
        if self._state.study.protection.mode != "none":
            self._state.exchange.measured(SumFigures((outcome,)))


def _without_the_last(progress: StudyProgress) -> StudyProgress:
    """Before the last sum was closed: the sites cannot open it."""
    number = progress.summed - 1
    return progress.after(
        summed=number,
        sums=progress.sums[:-1],
        trained=max(0, number - 1),
        waiting=tuple(stored for stored in progress.waiting if stored["round_number"] != number),
    )
