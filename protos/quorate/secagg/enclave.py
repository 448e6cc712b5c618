"""Sums that an attested machine makes: whom the sites vote for, and what opens such a sum to them alone.

The machine sees single updates. What keeps whoever runs it from two sums that differ in one site, by starting it again
in the middle of one, are the sites' votes: it releases a sum once enough sites voted for exactly its survivors, and a
site votes for one set of them in a sum, for ever, and for few sets of one input (``survivor_sets``). A sum over the
same survivors is the same sum: sites do not train again for a machine that was started again, and adding is exact.

Sums leave the machine under a fresh key, and that key under the study key, which only the sites have; they tell it to
the machine inside of what they seal to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from quorate.identity import SiteName
from quorate.secagg.terms import Layout, Roster, Terms, Vote, ballot, round_id, sum_digest, valid_votes
from quorate.study.rules import Rules

DIGEST = sum_digest(b"", b"attested")
"""In the place of a sum's digest in a vote: the survivors are what is voted on."""


def identity_of(terms: Terms, rules: Rules, layout: Layout, model: bytes) -> bytes:
    """The name of such a sum, 32 bytes.

    Args:
        layout: ``polynomials`` are parameters of the model here.
        model: The keyed digest of the state that it starts from.
    """
    return round_id((), terms, rules, layout, model)


def is_voted(
    votes: Iterable[Vote], identity: bytes, survivors: tuple[SiteName, ...], roster: Roster, rules: Rules
) -> bool:
    """Whether enough of the survivors voted for them."""
    signed = ballot(identity, survivors, DIGEST)
    return len(valid_votes(votes, signed, roster, set(survivors))) >= rules.votes


def are_acceptable(survivors: tuple[SiteName, ...], roster: Roster, rules: Rules) -> bool:
    """Whether a sum over these may be at all: sites of the study, in order, and no fewer than the floor."""
    names = list(survivors)
    return names == sorted(set(names)) and set(names) <= set(roster) and len(names) >= rules.floor


def opening_purpose(terms: Terms) -> bytes:
    """What the opening of a sum is sealed for, under the study key."""
    return b"attested opening" + terms.encoded()
