"""Under secure aggregation: the server carries messages between the sites and adds what it cannot read.

First the sites make a key for each other. Each sum is then three exchanges: upload, vote, reveal. With its reveal a
site says hello for the next sum. Who did not is asked for a ``hello`` before the upload: all sites at the first sum and
where one is begun anew, otherwise those who missed the reveal. The hellos for the next sum are committed with what
opens this one.

What of a reply counts is decided in ``secagg.aggregator``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from quorate.aggregation import words
from quorate.aggregation.schemes import packing_of
from quorate.errors import ContributionError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.rounds.run import SumStep
from quorate.secagg import aggregator as secagg
from quorate.secagg.aggregator import AddedSum, Aggregator, Members
from quorate.secagg.sizes import share_words, shares_bytes
from quorate.secagg.terms import Hello, Terms
from quorate.study.rules import Rules
from quorate.wire.sum_messages import (
    SumAnswer,
    SumWork,
    box_places,
    opening_from_bytes,
    opening_to_bytes,
    sum_work_to_bytes,
)
from quorate_server.rounds.aggregate import CipherAdder
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.schemes.keyed import KeyedScheme
from quorate_server.rounds.schemes.votes import collect_reveals, collect_votes
from quorate_server.rounds.sums.scheme import Closed, Signed, Upload
from quorate_server.rounds.sums.state import RunState

USUAL_COUNTS = 1024
"""Words beside an update for which room is kept until a sum has shown how many they are: an evaluation of two classes
has half as many."""


class SecaggScheme(KeyedScheme):
    """The sums of one run under secure aggregation."""

    def __init__(self, state: RunState, rules: Rules) -> None:
        super().__init__(state, rules)
        self._counts = USUAL_COUNTS

    def update_bytes(self, number: int) -> int:
        return self._polynomials(number) * words.POLYNOMIAL_BYTES

    def beside_bytes(self, number: int) -> int:
        """A sum's sealed shares: as they were dealt, and again as each site gets them."""
        roster = self.members.roster
        return 2 * len(roster) * shares_bytes(roster, share_words(self._polynomials(number), self._counts))

    def adder(self, number: int) -> CipherAdder:
        return CipherAdder(self._polynomials(number))

    def begin(self, number: int) -> SecaggSum:
        """Who takes part: those who said hello with their last reveal, and those of the others who say it now."""
        terms = Terms(self.members.study, self.members.run, number, self.attempt)
        aggregator = Aggregator(terms, self.members, self._polynomials(number), self._said_before(terms))
        greeted = (self._greet(aggregator),) if aggregator.unheard else ()
        return SecaggSum(self, self._state, self.members, aggregator, greeted)

    def note_counts(self, count: int) -> None:
        """How many words were beside an update."""
        self._counts = max(self._counts, count)

    def checked_checkpoint(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob], model_round: int) -> Signed:
        _require_sealed(answer)
        return super().checked_checkpoint(site, answer, blobs, model_round)

    def checked_release(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob]) -> Signed | None:
        _require_sealed(answer)
        return super().checked_release(site, answer, blobs)

    def _polynomials(self, number: int) -> int:
        """Of an update in this sum; 0 where nobody trains."""
        state = self._state
        return packing_of(state.study).polynomials(state.progress.dimension) if state.trains(number) else 0

    def _greet(self, aggregator: Aggregator) -> PhaseTally:
        def take(site: SiteName, answer: SumAnswer, _: Reply) -> None:
            _require_sealed(answer)
            aggregator.hello(site, answer.hello)

        return self._state.phases.open(
            Phase.HELLO,
            aggregator.terms.round_number,
            lambda site: (sum_work_to_bytes(SumWork(parts=self.parts(site))), ()),
            self._state.parsed(take),
            invited=aggregator.unheard,
            quorum=max(0, self.members.quorum - len(aggregator.greeted)),
            attempt=aggregator.terms.attempt,
        )

    def _said_before(self, terms: Terms) -> tuple[Hello, ...]:
        """The hellos for this sum that came with the reveals of the last one.

        They are of the last sum's attempt: a sum that is begun anew, or of which the last one is, has none.
        """
        last = self._state.progress.sums[-1:]
        if not last or (last[0].round_number + 1, last[0].attempt) != (terms.round_number, terms.attempt):
            return ()
        with self._state.exchange.open(last[0].opening) as file:
            return opening_from_bytes(file.read()).following


class SecaggSum:
    """One sum whose parts the server cannot read.

    Args:
        greeted: The exchange of hellos, if there was one.
    """

    def __init__(
        self,
        scheme: SecaggScheme,
        state: RunState,
        members: Members,
        aggregator: Aggregator,
        greeted: tuple[PhaseTally, ...],
    ) -> None:
        self._scheme, self._state, self._members, self._aggregator = scheme, state, members, aggregator
        self.greeted = greeted
        self.invited = aggregator.greeted
        self.hellos = aggregator.hellos
        # As many refusals are heard as if all sites were asked: they may say that the last sum does not open.
        self.quorum = members.quorum - len(aggregator.unheard)

    def accept(self, site: SiteName, answer: SumAnswer, blobs: tuple[Blob, ...]) -> Upload:
        """Raises as ``Aggregator.upload``."""
        _require_sealed(answer)
        said = secagg.Upload(answer.counts, answer.has_update, blobs, answer.model, answer.dimension, answer.opened)
        self._aggregator.upload(site, said, self._places_in)
        accepted = self._aggregator.uploads[site]
        return Upload(accepted.ciphertext, *accepted.form)

    def choose(self, agreeing: frozenset[SiteName]) -> frozenset[SiteName]:
        """The largest set for which enough of them may vote."""
        uploads = self._aggregator.uploads
        self._scheme.note_counts(max(len(uploads[site].masked) for site in agreeing))
        return self._aggregator.survivors(agreeing)

    def leaving(self, survivors: tuple[SiteName, ...], blocks: Iterator[bytes]) -> Iterator[bytes]:
        del survivors
        return blocks

    def close(self, survivors: tuple[SiteName, ...], updates: Blob | None) -> Closed:
        """The votes for it, and the reveals that open it. The server cannot: the sites tell its metrics."""
        terms = self._aggregator.terms
        with self._state.stopwatch.on(SumStep.ADD):
            added = AddedSum(self._aggregator, survivors, updates)
        voted = collect_votes(self._state, self._members, terms, added)
        revealed = collect_reveals(self._state, self._members, terms, added)
        return Closed(opening_to_bytes(added.opening()), (voted, revealed))

    def _places_in(self, shares: Blob) -> Mapping[SiteName, range]:
        with self._state.exchange.open(shares) as file:
            return box_places(file.read())


def _require_sealed(answer: SumAnswer) -> None:
    """Raises ContributionError: counts that anybody can read. Nothing here would add them."""
    if answer.plain_counts:
        raise ContributionError("A site sent what belongs to a study without protection", expected="masked counts")
