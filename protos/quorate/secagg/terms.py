"""What one secure sum is about, who takes part and what they sign: values and rules, no secrets.

In the *hello* each site shows a fresh key for this sum; it says the next one with the reveal of the sum before, so that
an undisturbed run has three exchanges to a sum. All hellos together, and the state that a site itself arrived at, make
the round id, to which everything later is bound: whoever was told another roster, parameter, earlier sum or model
computes another id, and nothing of his fits (the model inconsistency attack of Pasquini et al. 2022 ends here). In the
*upload* each site sends ciphertext and shares of its key, and says under the study key which state it holds. In the
*vote* each site signs the one set of survivors and the one sum that it will help to open. In the *reveal* each site
gives its share of the sum of the survivors' keys, never of a single one (Bonawitz et al. 2017, section 4, with votes in
the place of their consistency check).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from quorate.errors import FrameError, RosterRefusedError
from quorate.identity import RunId, SiteName, has_signed
from quorate.study.rules import Rules

SUITE: Final = b"quorate/secagg/3"
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
REMEMBERED_BYTES = 8 * 1024
"""Longest message whose signature is remembered: nobody fills a site's memory with long ones."""

Sign = Callable[[bytes], bytes]
"""Gives the site's Ed25519 signature."""

Roster = Mapping[SiteName, bytes]
"""The sites that the study names, with their Ed25519 public keys: nobody else counts, whoever the server admitted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Which sum. Sites and server know it before the first exchange.

    Args:
        study: The study's digest, 32 bytes; it binds the roster, the task and the packing.
        attempt: Each is a sum of its own; a site lets few of them be opened.
    """

    study: bytes
    run: RunId
    round_number: int
    attempt: int

    def __post_init__(self) -> None:
        if len(self.study) != DIGEST_BYTES or min(self.round_number, self.attempt) < 0:
            raise FrameError("The terms of a secure sum are malformed")

    def encoded(self) -> bytes:
        numbers = b"".join(number.to_bytes(8, "big") for number in (self.round_number, self.attempt))
        return bound(b"terms", self.study, self.run.encode(), numbers)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is added in a sum. A site takes it from the state that it arrived at, and never from a message.

    Args:
        polynomials: Of ciphertext; 0 where only counts are summed.
        counts: Integers beside them, without the tags.
    """

    polynomials: int
    counts: int

    def __post_init__(self) -> None:
        if not (0 <= self.polynomials < 1 << 32 and 0 <= self.counts < 1 << 32):
            raise FrameError("The layout of a secure sum is malformed")

    def encoded(self) -> bytes:
        return self.polynomials.to_bytes(8, "big") + self.counts.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Hello:
    """A site's first word. It says nothing of a state: it may be said before the one that the sum starts from is known.

    Args:
        round_key: X25519 public key, made for this sum, 32 bytes.
        signature: By the site's signing key, over the terms and all of this.
    """

    site: SiteName
    round_key: bytes
    signature: bytes

    def signed(self, terms: Terms) -> bytes:
        return bound(b"hello", terms.encoded(), self.site.encode(), self.round_key)


@dataclass(frozen=True, slots=True)
class Vote:
    """A site's word that it helps to open this sum over these survivors, and no other; in the release, that this is the
    model."""

    site: SiteName
    signature: bytes


@dataclass(frozen=True, slots=True)
class Reveal:
    """A site's share of the sum of the survivors' keys, sealed under the study key."""

    site: SiteName
    sealed: bytes
    signature: bytes


def bound(kind: bytes, *parts: bytes) -> bytes:
    """Bytes to hash or sign that can be read in one way only."""
    return SUITE + b"\x00" + b"".join(len(part).to_bytes(8, "big") + part for part in (kind, *parts))


def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature is by a key. Hellos and votes come again with the opening: they are checked once."""
    if len(signature) != SIGNATURE_BYTES or len(message) > REMEMBERED_BYTES:
        return has_signed(key, signature, message)
    return _remembered(key, signature, message)


_remembered = lru_cache(maxsize=1024)(has_signed)


def say_hello(terms: Terms, site: SiteName, round_key: bytes, sign: Sign) -> Hello:
    unsigned = Hello(site, round_key, b"")
    return Hello(site, round_key, sign(unsigned.signed(terms)))


def check_hellos(hellos: Sequence[Hello], terms: Terms, roster: Roster, rules: Rules) -> None:
    """That these are signed by distinct sites of the roster, in order, and enough of them.

    Raises:
        RosterRefusedError: they are not.
    """
    names = [hello.site for hello in hellos]
    problem = ""
    if names != sorted(set(names)) or not set(names) <= set(roster):
        problem = "sites that the study does not name, or one of them twice"
    elif len(names) < rules.floor:
        problem = f"{len(names)} sites"
    elif len({hello.round_key for hello in hellos}) != len(hellos):
        problem = "one key for two sites"
    elif not all(is_signed(roster[hello.site], hello.signature, hello.signed(terms)) for hello in hellos):
        problem = "a signature that is not the site's, or is for another sum"
    if problem:
        raise RosterRefusedError(
            "The sites that are said to take part in a secure sum are not acceptable",
            expected=f"at least {rules.floor} of the study's sites, each with its own key",
            got=problem,
            action="If this comes again, have the administrators compare what their sites logged; distrust the server",
        )


def round_id(hellos: Sequence[Hello], terms: Terms, rules: Rules, layout: Layout, model: bytes) -> bytes:
    """The name of a sum, 32 bytes: everything that was agreed on, everybody's hello, and the state.

    Args:
        model: The keyed digest (``StudyKey.model``) of the state that the sum starts from. A site takes that of the
            state that it arrived at, whatever anybody says: sites in different states are in different sums. The state
            binds what was opened in all sums before it: a colluder's second, signed reveal opens one set of votes to
            two totals, and only who shows the same totals to all has them in one sum.
    """
    said = (hello.signed(terms) + hello.signature for hello in hellos)
    parts = (terms.encoded(), rules.encoded(), layout.encoded(), model, *said)
    return hashlib.sha256(bound(b"round", *parts)).digest()


def sum_digest(ciphertext: bytes, counts: bytes) -> bytes:
    """What a vote is about: the name of the summed ciphertext (empty without one) and the summed masked counts."""
    return hashlib.sha256(bound(b"sum", ciphertext, counts)).digest()


def ballot(identity: bytes, survivors: Iterable[SiteName], digest: bytes) -> bytes:
    """What a vote signs."""
    return bound(b"vote", identity, digest, *(site.encode() for site in survivors))


def valid_votes(votes: Iterable[Vote], signed: bytes, roster: Roster, among: set[SiteName]) -> set[SiteName]:
    """Who of these sites voted for exactly this."""
    return {
        vote.site
        for vote in votes
        if vote.site in among and vote.site in roster and is_signed(roster[vote.site], vote.signature, signed)
    }


def checkpointed(study: bytes, run: RunId, round_number: int, sealed: bytes) -> bytes:
    """What the signature under a sealed state covers: who sealed what is of no use has a name.

    Args:
        sealed: The name of the sealed bytes.
    """
    return bound(b"checkpoint", study, run.encode(), round_number.to_bytes(8, "big"), sealed)


def revealed(identity: bytes, site: SiteName, sealed: bytes) -> bytes:
    """What the signature under a reveal covers."""
    return bound(b"reveal", identity, site.encode(), hashlib.sha256(sealed).digest())
