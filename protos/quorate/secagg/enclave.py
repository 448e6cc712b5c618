"""Sums that an attested machine makes: whom the sites vote for, and what opens such a sum to them alone.

The machine sees single updates. What keeps whoever runs it from two sums that differ in one site, by starting it again
in the middle of one, are the sites' votes: it releases a sum once enough sites voted for exactly this sum over exactly
these survivors, and a site votes once in a sum, for ever, and for few sets of survivors of one input
(``survivor_sets``).

Everything that is drawn for a sum follows from what the sites sealed to the machine, so a machine that was started
again makes the very same sum of the same uploads, and no site computes again. Each upload brings a salt, which nobody
but the machine is told; from all of them, and from all that is added, comes the sum's secret. Sums leave the machine
under a key of that secret, and the key under the study key, which only the sites have.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quorate.identity import SiteName
from quorate.secagg.terms import Layout, Roster, Terms, Vote, ballot, bound, round_id, sum_digest, valid_votes
from quorate.study.rules import Rules

SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Added:
    """What one site's upload adds to a sum, and its salt."""

    salt: bytes
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SumSecret:
    """Of one sum. Only the machine has it; other uploads have another one."""

    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, terms: Terms, added: Mapping[SiteName, Added], contents: Iterable[bytes]) -> SumSecret:
        """
        Args:
            added: By the survivors. Who lacks one of the salts has nothing.
            contents: The digests of their updates.
        """
        parts = [terms.encoded()]
        for site in sorted(added):
            parts += [site.encode(), added[site].salt, _encoded(added[site].counts)]
        return cls(hashlib.sha256(bound(b"attested secret", *parts, *sorted(contents))).digest())

    @property
    def key(self) -> bytes:
        """Under which the summed words leave; told to the sites once they voted."""
        return hmac.digest(self.secret, bound(b"attested key"), "sha256")

    @property
    def noise(self) -> bytes:
        """The key of the noise on the average; told to nobody."""
        return hmac.digest(self.secret, bound(b"attested noise"), "sha256")


def voted_digest(updates: bytes, counts: tuple[int, ...], key: bytes) -> bytes:
    """What a vote says of a sum that nobody can read yet: nothing can be guessed from it without the key.

    Args:
        updates: The name of the summed words under ``key``; empty where only counts were summed.
    """
    return sum_digest(updates, hashlib.sha256(bound(b"attested counts", key, _encoded(counts))).digest())


def identity_of(terms: Terms, rules: Rules, layout: Layout, model: bytes) -> bytes:
    """The name of such a sum, 32 bytes.

    Args:
        layout: ``polynomials`` are parameters of the model here.
        model: The keyed digest of the state that it starts from.
    """
    return round_id((), terms, rules, layout, model)


def is_voted(
    votes: Iterable[Vote],
    identity: bytes,
    survivors: tuple[SiteName, ...],
    digest: bytes,
    roster: Roster,
    rules: Rules,
) -> bool:
    """Whether enough of the survivors voted for this sum over them."""
    signed = ballot(identity, survivors, digest)
    return len(valid_votes(votes, signed, roster, set(survivors))) >= rules.votes


def are_acceptable(survivors: tuple[SiteName, ...], roster: Roster, rules: Rules) -> bool:
    """Whether a sum over these may be at all: sites of the study, in order, and no fewer than the floor."""
    names = list(survivors)
    return names == sorted(set(names)) and set(names) <= set(roster) and len(names) >= rules.floor


def opening_purpose(terms: Terms) -> bytes:
    """What the opening of a sum is sealed for, under the study key."""
    return b"attested opening" + terms.encoded()


def _encoded(counts: tuple[int, ...]) -> bytes:
    return b"".join(count.to_bytes(8, "big", signed=True) for count in counts)
