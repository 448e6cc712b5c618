"""Sites that reveal wrong shares of the key's sum, each signed as it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quorate.aggregation import ring, rlwe
from quorate.aggregation.words import pack_words
from quorate.errors import SumRefusedError
from quorate.process.randomness import SystemRandomness
from quorate.secagg.opening import Opening
from quorate.secagg.terms import Reveal, revealed
from tests.protos.secagg.parties import Consortium, Sum


@pytest.fixture
def consortium() -> Consortium:
    """Of five sites three shares open a sum, and four have to vote."""
    return Consortium(5)


def lied(run: Sum, opening: Opening, places: tuple[int, ...]) -> Opening:
    """These sites reveal something that they made up, and sign it."""
    consortium, reveals = run.consortium, list(opening.reveals)
    for place in places:
        party = consortium.parties[place]
        identity = run.sites[party.name].identity
        words = (ring.DEGREE if run.layout.polynomials else 0) + len(run.counts)
        content = pack_words(rlwe.uniform(SystemRandomness(), words))
        sealed = consortium.study_key.seal_once(content, b"reveal", identity, party.name.encode())
        reveals[place] = Reveal(party.name, sealed, party.signing.sign(revealed(identity, party.name, sealed)))
    return replace(opening, reveals=tuple(reveals))


def test_reveals_that_are_not_one_polynomials_but_for_a_few_are_refused_though_the_lowest_places_are_honest(
    consortium: Consortium,
) -> None:
    """Whoever takes the lowest places lets the server choose, by which reveals it passes on, what is opened."""
    run = consortium.begin(consortium.terms())
    run.upload_all()
    opening = run.opening()
    with pytest.raises(SumRefusedError):
        run.open(lied(run, opening, (3, 4)))
    with pytest.raises(SumRefusedError):
        run.open(lied(run, replace(opening, reveals=opening.reveals[:4]), (3,)))
    run.open(opening)  # nothing was changed by the attempts


def test_as_many_liars_as_can_be_told_apart_spoil_no_sum(consortium: Consortium) -> None:
    run = consortium.begin(consortium.terms())
    run.upload_all()
    opening = run.opening()
    honest = run.open(opening)
    for liar in range(5):
        sums, counts = run.open(lied(run, opening, (liar,)))
        assert np.array_equal(sums, honest[0])
        assert counts == honest[1]
