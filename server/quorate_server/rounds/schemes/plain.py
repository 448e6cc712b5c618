"""Without protection: the server reads what it adds, a sum is closed at once, and its metrics are computed here.

Each sum is one exchange. There are no keys and no votes; what a site sends of those is refused, as it is in a study
under secure aggregation what is sent here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

from quorate.aggregation import plain
from quorate.errors import BaseModelMismatchError, ContributionError
from quorate.identity import SiteName
from quorate.privacy.evaluation import tally_form
from quorate.rounds.blobs import Blob
from quorate.rounds.rates import OWN_COUNTS, pooled_rates
from quorate.secagg.study_key import SealedPart
from quorate.secagg.terms import DIGEST_BYTES, Hello
from quorate.tally import ClassificationTally
from quorate.wire.sum_messages import PlainOpening, SumAnswer, plain_opening_from_bytes, plain_opening_to_bytes
from quorate_server.rounds.aggregate import PlainAdder
from quorate_server.rounds.phases import PhaseTally, settled
from quorate_server.rounds.sums.scheme import Closed, Signed, Upload
from quorate_server.rounds.sums.state import RunState


class PlainScheme:
    """The sums of one run without protection."""

    begins_anew = False
    attempt = None

    def __init__(self, state: RunState) -> None:
        self._state = state

    def prepare(self) -> None:
        """Nothing: there are no keys."""

    def update_bytes(self, number: int) -> int:
        return self._state.progress.dimension * plain.WORD_BYTES if self._state.trains(number) else 0

    def beside_bytes(self, number: int) -> int:
        del number
        return 0

    def adder(self, number: int) -> PlainAdder:
        return PlainAdder(self._state.progress.dimension if self._state.trains(number) else 0, self._state.study)

    def parts(self, site: SiteName) -> tuple[SealedPart, ...]:
        del site
        return ()

    def begin(self, number: int) -> PlainSum:
        return PlainSum(self._state, number, self.update_bytes(number))

    def checked_checkpoint(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob], model_round: int) -> Signed:
        _require_plain(answer)
        if len(blobs) != 1 or blobs[0].id != self._start_of(model_round + 1):
            raise BaseModelMismatchError(f"{site} gave another model state than the one agreed on")
        return blobs[0], None

    def checked_release(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob]) -> Signed | None:
        _require_plain(answer)
        if answer.model != self._start_of(self._state.study.rounds.count + 1):
            raise BaseModelMismatchError("A site released another model than the one agreed on")
        if self._state.study.release.model != "operator":
            return None
        if len(blobs) != 1:
            raise ContributionError("A site sent no model though the study releases it")
        return blobs[0], None

    def released(self, sent: Mapping[SiteName, Signed]) -> Blob:
        return settled(self._state.exchange, sent[min(sent)][0])

    def _start_of(self, number: int) -> bytes:
        """The model that a closed sum starts from, on which the sites agreed."""
        stored = next(stored for stored in self._state.progress.sums if stored.round_number == number)
        with self._state.exchange.open(stored.opening) as file:
            return plain_opening_from_bytes(file.read()).model


class PlainSum:
    """One sum that the server reads."""

    hellos: tuple[Hello, ...] = ()
    greeted: tuple[PhaseTally, ...] = ()

    def __init__(self, state: RunState, number: int, update_bytes: int) -> None:
        self._study, self._number, self._update_bytes = state.study, number, update_bytes
        self.invited = frozenset(state.study.site_names)
        self.quorum = state.quorum
        self._answers: dict[SiteName, SumAnswer] = {}
        self._weights = Counter[Hashable]()  # of each form: who holds another model takes no room from the others
        # The sum of all sites' counts must fit 64 bits on the wire, whatever the order of arrival.
        self._largest_count = (2**63 - 1) // len(state.study.sites)

    def accept(self, site: SiteName, answer: SumAnswer, blobs: tuple[Blob, ...]) -> Upload:
        """What a site brings, if it has the form of this sum.

        Raises:
            ContributionError: another form, or a weight or a count out of range.
        """
        _require_plain(answer)
        counts = answer.plain_counts
        if any(abs(count) > self._largest_count for count in counts):
            raise ContributionError("A site sent a count that is out of range")
        if self._number == 0:
            if not counts or counts[0] < 1 or answer.dimension < 1 or answer.model:
                raise ContributionError("A site has no model or no records to train on")
        else:
            self._check_counts(counts)
            if len(answer.model) != DIGEST_BYTES:
                raise ContributionError("A site does not say which model it goes on from")
        if answer.has_update != bool(self._update_bytes) or len(blobs) != bool(self._update_bytes):
            raise ContributionError("A site did not send what this sum is made of")
        if blobs and blobs[0].size != self._update_bytes:
            raise ContributionError(
                "An update has the wrong length", expected=f"{self._update_bytes} bytes", got=f"{blobs[0].size}"
            )
        upload = Upload(blobs[0] if blobs else None, answer.model, len(counts), answer.dimension)
        if self._update_bytes:
            if self._weights[upload.form] + counts[0] > plain.MAX_TOTAL_WEIGHT:
                raise ContributionError("The weights of all updates add up to more than the round allows")
            self._weights[upload.form] += counts[0]
        self._answers[site] = answer
        return upload

    def _check_counts(self, counts: tuple[int, ...]) -> None:
        own, tally = counts[:OWN_COUNTS], counts[OWN_COUNTS:]
        if len(own) != OWN_COUNTS:
            raise ContributionError("What a site tells of its training is malformed")
        weight, records, _, clipped = own
        if self._update_bytes:
            if records < 1 or clipped < 0:
                raise ContributionError("What a site tells of its training is malformed")
            if not 0 < weight <= plain.WEIGHT_ONE:
                raise ContributionError("The weight of an update is out of range", expected="above 0 and at most 1")
        elif any(own):
            raise ContributionError("A site tells of a training in a sum without one")
        if self._study.evaluates(self._number - 1):
            ClassificationTally.decode(tally, tally_form(self._study))
        elif tally:
            raise ContributionError("A site told counts after a round that the study does not evaluate")

    def choose(self, agreeing: frozenset[SiteName]) -> frozenset[SiteName]:
        return agreeing

    def leaving(self, survivors: tuple[SiteName, ...], blocks: Iterator[bytes]) -> Iterator[bytes]:
        del survivors
        return blocks

    def close(self, survivors: tuple[SiteName, ...], updates: Blob | None) -> Closed:
        counts = self.summed(survivors)
        name, model = updates.id if updates is not None else b"", self._answers[survivors[0]].model
        # The sites need the totals and the weights. How the others' records were classified is not theirs to read.
        told = counts if self._number == 0 else counts[:1]
        opening = plain_opening_to_bytes(PlainOpening(survivors, told, name, model))
        return Closed(opening, metrics=self._metrics(counts))

    def summed(self, survivors: tuple[SiteName, ...]) -> tuple[int, ...]:
        """Their counts."""
        return tuple(map(sum, zip(*(self._answers[site].plain_counts for site in survivors), strict=True)))

    def _metrics(self, counts: tuple[int, ...]) -> dict[int, dict[str, float]]:
        if self._number == 0:
            return {}
        metrics = pooled_rates(self._study, self._number, counts)
        if clipped := counts[OWN_COUNTS - 1]:
            metrics.setdefault(self._number, {})["clipped_coordinates"] = float(clipped)
        return metrics


def _require_plain(answer: SumAnswer) -> None:
    """Raises ContributionError: it is a step of secure aggregation, which this study does not have."""
    told = answer.plain_counts, answer.dimension, answer.has_update, answer.model
    if answer != SumAnswer(plain_counts=told[0], dimension=told[1], has_update=told[2], model=told[3]):
        raise ContributionError(
            "A site sent what belongs to secure aggregation", expected="counts and an update that the server can read"
        )
