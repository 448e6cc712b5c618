"""The loop of a study under secure aggregation: it carries messages between the sites and adds what it cannot read.

First the sites make a key for each other. Then come sums, each of three exchanges (upload, vote, reveal): one of record
counts and statistics, one for each round (updates, and an evaluation of the model that they start from), and one that
evaluates the final model. With its reveal a site says hello for the next sum. Who did not is asked for a ``hello``
before the upload: all sites at the first sum and where one is begun anew, otherwise those who missed the reveal. What
opens a sum goes to the sites with the next upload. At the end the ``release``.

Only a sum that is closed is committed, with the hellos for the next one. Until then all is in the replies, which are
written down: a new process asks the same again, gets the same replies, and makes the same of them. What a site did not
answer when an exchange closed was withdrawn before the next one began, so it cannot come in later.

What of a reply counts is decided in ``secagg.aggregator``; the exchanges have a file each beside this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from quorate.aggregation import words
from quorate.errors import DiskFullError, QuorateError, QuorumMissingError, SumRefusedError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.secagg.aggregator import AddedSum, Members
from quorate.secagg.sizes import share_words, shares_bytes
from quorate.secagg.terms import Terms
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate.wire.secure_messages import opening_to_bytes
from quorate_server.rounds.phases import Exchange, Phases, PhaseTally, Status, inlined, require_room
from quorate_server.rounds.progress import StoredSecureSum, StudyProgress, result_to_json
from quorate_server.rounds.secure.model import checkpoint_if_due, release
from quorate_server.rounds.secure.opening import collect_reveals, collect_votes
from quorate_server.rounds.secure.results import round_result
from quorate_server.rounds.secure.state import RunState
from quorate_server.rounds.secure.study_keys import collect_keys, read_keys
from quorate_server.rounds.secure.uploads import collect, greet

log = structlog.get_logger()

MAX_ATTEMPTS = 2
"""At a sum, before the run pauses."""


class SecureLoop:
    """Runs one study to its end. Arguments and errors as for ``StudyLoop``."""

    def __init__(
        self,
        run: RunId,
        study: Study,
        exchange: Exchange,
        progress: StudyProgress,
        attempts: Mapping[tuple[int, str, SiteName], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        rules = Rules(len(study.sites), study.protection.colluders)
        roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
        members = Members(study.digest(), run, roster, rules, max(study.rounds.quorum, rules.floor))
        phases = Phases(run, study, exchange, attempts, monotonic)
        self._state = RunState(study, members, exchange, phases, progress)
        self._tries = 0

    def run(self) -> None:
        """All that is left to do, in order."""
        state = self._state
        if state.progress.keys is None:
            collect_keys(state)
        read_keys(state)
        while state.progress.summed < state.study.rounds.count + 2:
            self._next_sum()
        if not state.progress.released:
            release(state)
        state.exchange.report(Status(state.progress.evaluated, ""))

    def _next_sum(self) -> None:
        """One sum further, or one attempt: a sum that lost too many sites on the way, or that does not open, is begun
        anew with new keys, and trained anew. What was answered in an attempt is of no use in the next one."""
        number = self._state.progress.summed
        try:
            self._sum(number)
        except DiskFullError:
            raise
        except QuorateError as error:
            self._tries += 1
            self._give_up(number, error)
            if not isinstance(error, QuorumMissingError) or self._tries >= MAX_ATTEMPTS:
                raise
            summed = self._state.progress.summed
            log.warning("a secure sum is begun anew", run=self._state.members.run, round=summed, reason=str(error))

    def _give_up(self, number: int, error: QuorateError) -> None:
        """The attempt at a sum; the one before it is taken back as well where it is what does not open."""
        state, before = self._state, self._state.progress
        progress = before.after(attempt=before.attempt + 1)
        # Once sites arrived there, they may have voted on a sum that starts from the last one.
        is_undecided = number > before.reached
        if (
            is_undecided
            and self._does_not_open(error)
            and before.secure_sums
            and before.secure_sums[-1].round_number == number - 1
        ):
            progress = _without_the_last(progress)
        state.commit(progress, obsolete=state.passing | (before.blobs() - progress.blobs()))
        state.passing, state.newest = set(), None

    def _does_not_open(self, error: QuorateError) -> bool:
        """Whether the last sum kept sites from the next one, by the word of more than may lie.

        An exchange is given up as soon as its quorum is out of reach, so no more than that many refusals are heard.
        """
        rules = self._state.members.rules
        refusals = error.codes.count(SumRefusedError.code) if isinstance(error, QuorumMissingError) else 0
        return refusals > min(rules.colluders, rules.sites - self._state.study.rounds.quorum)

    def _sum(self, number: int) -> None:
        state, members = self._state, self._state.members
        terms = Terms(members.study, members.run, number, state.progress.attempt)
        polynomials = state.polynomials(number)
        update_bytes = polynomials * words.POLYNOMIAL_BYTES
        require_room(state.exchange, update_bytes, len(members.roster), self._share_room(polynomials))
        aggregator, greeted = greet(state, terms, polynomials)
        added, uploaded = collect(state, aggregator)
        if number > state.progress.reached:  # the sites could open what was before, and may vote from there
            self._tries = 0
            state.commit(state.progress.after(reached=number))
        checkpoint_if_due(state, terms, added.survivors)
        voted = collect_votes(state, terms, added)
        revealed = collect_reveals(state, terms, added)
        self._close(terms, added, (*greeted, uploaded, voted, revealed))

    def _close(self, terms: Terms, added: AddedSum, tallies: tuple[PhaseTally, ...]) -> None:
        """Commits a sum that the sites can open."""
        state, number, ciphertext = self._state, terms.round_number, added.ciphertext
        content = opening_to_bytes(added.opening())
        stored = state.exchange.put([content])
        state.newest = (
            inlined(state.exchange, ciphertext) if ciphertext is not None else None,
            Blob(stored.id, stored.size, content if stored.size <= INLINE_BYTES else None),
        )
        closed = StoredSecureSum(round_number=number, attempt=terms.attempt, ciphertext=ciphertext, opening=stored)
        waiting = state.progress.waiting
        if ciphertext is not None:
            waiting = (*waiting, result_to_json(round_result(number, added.survivors, tallies)))
            log.info("round summed", run=terms.run, round=number, sites=len(added.survivors))
        progress = state.progress.after(
            secure_sums=(*state.progress.secure_sums, closed),
            summed=number + 1,
            waiting=waiting,
            trained=min(number, state.study.rounds.count),
        )
        state.commit(progress, obsolete=state.passing.union(*(tally.reply_blobs for tally in tallies)))
        state.passing = set()

    def _share_room(self, polynomials: int) -> int:
        """Bytes of a sum's sealed shares in the spool: as they were dealt, and again as each site gets them."""
        roster = self._state.members.roster
        return 2 * len(roster) * shares_bytes(roster, share_words(polynomials, self._state.counts))


def _without_the_last(progress: StudyProgress) -> StudyProgress:
    """Before the last sum was closed: the sites cannot open it."""
    number = progress.summed - 1
    return progress.after(
        summed=number,
        secure_sums=progress.secure_sums[:-1],
        trained=max(0, number - 1),
        waiting=tuple(stored for stored in progress.waiting if stored["round_number"] != number),
    )
