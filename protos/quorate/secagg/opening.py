"""Opening a secure sum: what any site of the study can do, then or later, with what the server keeps.

An ``Opening`` holds all that is needed beside the ciphertext: who took part, who voted for what, and the sealed shares
of the key's sum. It is checked from the first signature to the last tag, against the study's own roster and rules, and
whatever is wrong is one error: an answer that says more would be an oracle for the encryption's errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate.aggregation import one_time_pad, ring, rlwe
from quorate.aggregation.packing import Packing
from quorate.aggregation.words import Words, unpack_words
from quorate.errors import QuorateError, SumRefusedError
from quorate.identity import SiteName
from quorate.process.randomness import SystemRandomness
from quorate.secagg import secret_sharing
from quorate.secagg.linear_mac import TAGS, Tagger, TagKey
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import (
    Hello,
    Layout,
    Reveal,
    Roster,
    Terms,
    Vote,
    ballot,
    check_hellos,
    is_signed,
    revealed,
    round_id,
    sum_digest,
    valid_votes,
)
from quorate.study.rules import Rules


@dataclass(frozen=True, slots=True)
class Opening:
    """What the server passes on.

    Args:
        hellos: Of all who took part, by name.
        model: The keyed digest of the state that the survivors held.
        survivors: U, by name.
        counts: The sum of the masked counts and tags, 52 bits a word.
        ciphertext: The name of the summed ciphertext; empty where only counts were summed.
        following: The hellos for the next sum that came with the reveals. They open nothing.
    """

    hellos: tuple[Hello, ...]
    model: bytes
    survivors: tuple[SiteName, ...]
    counts: bytes
    ciphertext: bytes
    votes: tuple[Vote, ...]
    reveals: tuple[Reveal, ...]
    following: tuple[Hello, ...] = ()


class Opener:
    """Opens one sum piece by piece. Nothing that came out may be used before ``counts`` has returned.

    Args:
        opening: As it came from the server.
        polynomials: Of the ciphertext, by the state that the sum starts from; 0 where only counts were summed.

    Raises:
        SumRefusedError: it is not what enough of the study's sites agreed on.
    """

    def __init__(
        self, opening: Opening, terms: Terms, polynomials: int, roster: Roster, rules: Rules, study_key: StudyKey
    ) -> None:
        try:
            self._masked = unpack_words(opening.counts)
            layout = Layout(polynomials, len(self._masked) - TAGS)
            self.identity, key_sum = _checked(opening, terms, layout, roster, rules, study_key)
        except SumRefusedError:
            raise
        except QuorateError as error:
            raise _refusal() from error
        self.model = opening.model
        """The keyed digest of the state that the sum started from."""
        self.survivors = opening.survivors
        """Whose uploads are in the sum."""
        split = ring.DEGREE if polynomials else 0
        self._key, self._padding = key_sum[:split], key_sum[split:]
        if len(self._masked) != len(self._padding):
            raise _refusal()
        self._tagger = Tagger(TagKey.derive(study_key.secret, self.identity))
        self._polynomials, self._next = polynomials, 0

    def piece(self, total: Words, packing: Packing) -> npt.NDArray[np.int64]:
        """The next polynomials of the sum, opened and free of noise: int64[p, DEGREE], for ``packing.decode``.

        Raises:
            SumRefusedError: they do not open.
        """
        try:
            lanes = packing.round_noise(rlwe.open_sum(total, self._key, self.identity, self._next))
            self._tagger.update(self._next, lanes)
        except QuorateError as error:
            raise _refusal() from error
        self._next += len(total)
        return lanes << packing.delta_bits

    def claimed_counts(self) -> tuple[int, ...]:
        """The summed counts before the tags say whether they are true: for dividing by a weight on the way."""
        try:
            return one_time_pad.unmask(self._masked, self._padding)[:-TAGS]
        except QuorateError as error:
            raise _refusal() from error

    def counts(self) -> tuple[int, ...]:
        """The summed counts, once all pieces are opened: the sum is exactly what the survivors sent.

        Raises:
            SumRefusedError: the tags of the sum are not the sum of the tags.
        """
        try:
            values = one_time_pad.unmask(self._masked, self._padding)
            counts, tags = values[:-TAGS], values[-TAGS:]
            self._tagger.extras(counts)
        except QuorateError as error:
            raise _refusal() from error
        if self._next != self._polynomials or not self._tagger.agrees((tags[0], tags[1])):
            raise _refusal()
        return counts


def _checked(
    opening: Opening, terms: Terms, layout: Layout, roster: Roster, rules: Rules, study_key: StudyKey
) -> tuple[bytes, Words]:
    """The round id and the sum of the survivors' keys."""
    check_hellos(opening.hellos, terms, roster, rules)
    greeted = [hello.site for hello in opening.hellos]
    survivors = list(opening.survivors)
    if survivors != sorted(set(survivors)) or not set(survivors) <= set(greeted) or len(survivors) < rules.floor:
        raise _refusal()
    identity = round_id(opening.hellos, terms, rules, layout, opening.model)
    signed = ballot(identity, survivors, sum_digest(opening.ciphertext, opening.counts))
    if len(valid_votes(opening.votes, signed, roster, set(greeted))) < rules.votes:
        raise _refusal()
    found = _revealed(opening.reveals, identity, greeted, roster, study_key)
    # Where more shares came than are needed, a few wrong ones do not spoil the sum. Whether the names are right shows
    # when the tags agree: sites that work together can make others look wrong. Where too many are wrong to be told
    # apart, no choice among them is any better than another.
    wrong = secret_sharing.faulty(found, rules.threshold, SystemRandomness())
    if wrong is None:
        raise _refusal()
    return identity, secret_sharing.combine(
        {place: found[place] for place in found if place not in wrong}, rules.threshold
    )


def _revealed(
    reveals: Sequence[Reveal], identity: bytes, greeted: list[SiteName], roster: Roster, study_key: StudyKey
) -> dict[int, Words]:
    """The shares of the key's sum by place, those that their sites signed."""
    found: dict[int, Words] = {}
    if len({reveal.site for reveal in reveals}) != len(reveals):
        raise _refusal()
    for reveal in reveals:
        if reveal.site not in greeted or not is_signed(
            roster[reveal.site], reveal.signature, revealed(identity, reveal.site, reveal.sealed)
        ):
            raise _refusal()
        content = study_key.open_once(reveal.sealed, b"reveal", identity, reveal.site.encode())
        found[greeted.index(reveal.site) + 1] = unpack_words(content)
    return found


def _refusal() -> SumRefusedError:
    return SumRefusedError(
        "A secure sum does not open, so the model stays as it was",
        expected="the sum of what the survivors sent, and shares of its key from enough of them",
        action="The round can be repeated; if this comes again, one site or the server does not play fair",
    )
