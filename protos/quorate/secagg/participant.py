"""A site's part in one secure sum, step by step. Its secrets live here, in memory, and nowhere else.

The steps have an order and each is taken once: hello, upload, vote, reveal. A site that restarts has lost the secrets
and sits the sum out; its upload counts all the same, for the others hold shares of its key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.aggregation import one_time_pad, ring, rlwe
from quorate.aggregation.words import Words, pack_words
from quorate.errors import ContributionError, RosterRefusedError, VoteRefusedError
from quorate.identity import SiteName
from quorate.process.randomness import Randomness
from quorate.secagg import secret_sharing, share_boxes
from quorate.secagg.linear_mac import TAGS, Tagger, TagKey
from quorate.secagg.sizes import shares_bytes
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
    revealed,
    round_id,
    say_hello,
    valid_votes,
)
from quorate.study.rules import Rules

Lanes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a site is about to vote for. A site votes for one of them in each sum, for ever."""

    identity: bytes
    survivors: tuple[SiteName, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Member:
    """This site in this study: what every sum of the run needs of it."""

    site: SiteName
    roster: Roster
    rules: Rules
    signing_key: Ed25519PrivateKey = field(repr=False)
    study_key: StudyKey = field(repr=False)


class _Step(IntEnum):
    BEGUN = 0
    GREETED = 1
    ENCRYPTING = 2
    UPLOADED = 3
    VOTED = 4
    OVER = 5


class Participant:
    """One site in one sum.

    Args:
        randomness: The source of this sum's secrets; in production ``SystemRandomness``.
    """

    def __init__(self, terms: Terms, member: Member, randomness: Randomness) -> None:
        self.terms = terms
        self.site = member.site
        self.member = member
        self._randomness = randomness
        self._step = _Step.BEGUN
        self._round_key = share_boxes.RoundKey()
        self._hellos: tuple[Hello, ...] = ()
        self._key: Words | None = None
        self._own_share: Words | None = None
        self._share_sum: Words | None = None
        self._words = 0
        self._layout = Layout(0, 0)
        self._ballot: Ballot | None = None
        self.identity = b""
        """The round id, once all hellos are known."""
        self.model = b""
        """The keyed digest of this site's state, by which the server finds those who hold the same."""

    def hello(self) -> Hello:
        """This site's first word, said once: two keys for one sum would be two sums."""
        self._advance(_Step.BEGUN, _Step.GREETED)
        self._hello = say_hello(self.terms, self.site, self._round_key.public_key, self.member.signing_key.sign)
        return self._hello

    def check(self, hellos: Sequence[Hello]) -> None:
        """Whether this site takes part with these, before it does anything for them.

        Raises:
            RosterRefusedError: not the study's sites, too few, or not this site's own hello.
            VoteRefusedError: it has not said hello, or takes part already.
        """
        if self._step is not _Step.GREETED:
            raise _out_of_order()
        check_hellos(hellos, self.terms, self.member.roster, self.member.rules)
        if self._hello not in hellos:
            raise RosterRefusedError(
                "What is said to be this site's hello is not what it said", action="Distrust the server"
            )

    def begin_upload(self, hellos: Sequence[Hello], model: bytes, layout: Layout) -> None:
        """Accept who takes part, and draw the key of this sum. Only once: one hello leads to one upload.

        Args:
            model: The digest of the state that this site arrived at, 32 bytes; empty before there is one. Bound into
                the round id: a site in another state has no part in what the others open.
            layout: What this site adds, by that state.

        Raises:
            RosterRefusedError, VoteRefusedError: as in ``check``.
        """
        self.check(hellos)
        self._advance(_Step.GREETED, _Step.ENCRYPTING)
        self._hellos = tuple(hellos)
        self.model = self.member.study_key.model(model)
        self.identity = round_id(hellos, self.terms, self.member.rules, layout, self.model)
        self._layout = layout
        self._tagger = Tagger(TagKey.derive(self.member.study_key.secret, self.identity))
        if layout.polynomials:
            self._key = rlwe.uniform(self._randomness, ring.DEGREE)

    def encrypt(self, first: int, lanes: Lanes, shift: int) -> Words:
        """The next polynomials of the update, encrypted; each is given once, in order.

        Args:
            first: The position of the first of them.
            lanes: int64[p, DEGREE], lanes joined.
            shift: The bits below them that take up the noise.

        Returns:
            uint64[p, DEGREE], below q.
        """
        if self._step is not _Step.ENCRYPTING or self._key is None or first != self._words:
            raise VoteRefusedError("A piece of an update was given out of order")
        if first + len(lanes) > self._layout.polynomials:
            raise ContributionError("An update is longer than its sum")
        self._tagger.update(first, lanes)
        self._words += len(lanes)
        return rlwe.encrypt(lanes << shift, self._key, self.identity, first, self._randomness)

    def finish_upload(self, counts: Sequence[int]) -> tuple[Words, dict[SiteName, bytes]]:
        """The masked counts and tags, and for every other site its share of the keys. The keys are gone then.

        Args:
            counts: The layout's integers, which are summed beside the update.

        Returns:
            uint64[m + 2], and a sealed share by recipient.
        """
        if self._words != self._layout.polynomials or len(counts) != self._layout.counts:
            raise ContributionError("An upload is not of its sum's layout")
        self._advance(_Step.ENCRYPTING, _Step.UPLOADED)
        self._tagger.extras(counts)
        padding = rlwe.uniform(self._randomness, len(counts) + TAGS)
        masked = one_time_pad.mask([*counts, *self._tagger.result()], padding)
        secret = padding if self._key is None else np.concatenate([self._key, padding])
        self._key = None
        rules, me = self.member.rules, self.member.site
        dealt = secret_sharing.split(secret, rules.threshold, len(self._hellos), self._randomness)
        boxes = {}
        for place, hello in enumerate(self._hellos):
            if hello.site == me:
                # A view would keep all the shares with it, and with them the key.
                self._own_share = dealt[place].copy()
            else:
                boxes[hello.site] = share_boxes.deal(
                    dealt[place], self.identity, me, hello.site, self.member.signing_key, hello.round_key
                )
        self._words = len(secret)
        return masked, boxes

    def shares_bytes(self, survivors: Sequence[SiteName]) -> int:
        """How long all is that the server passes on for a vote over these: a share from each of the others.

        Raises:
            VoteRefusedError: this site does not vote over these.
        """
        self._require_acceptable(survivors)
        return shares_bytes((site for site in survivors if site != self.site), self._words)

    def vote(
        self,
        survivors: Sequence[SiteName],
        digest: bytes,
        boxes: Mapping[SiteName, bytes],
        lock: Callable[[Ballot], None],
    ) -> Vote:
        """This site's word for one opening.

        Args:
            survivors: U, whose updates are in the sum, by name.
            digest: Of the sum (``terms.sum_digest``).
            boxes: The shares that the others in U dealt to this site.
            lock: Writes the ballot down for good before the vote leaves; raises VoteRefusedError if it may not be.

        Raises:
            VoteRefusedError: too few survivors, strangers among them, or no vote may be given any more.
            FrameError: a share is missing or refused.
        """
        me = self.member.site
        self._require_acceptable(survivors)
        if self._step is not _Step.UPLOADED or self._own_share is None:
            raise VoteRefusedError("This site has no part in the sum that it should vote for, or has voted")
        total = np.zeros(self._words, np.uint64)
        for site in survivors:
            share = self._own_share if site == me else self._received(site, boxes.get(site, b""))
            ring.add(total, share)
        vote = Ballot(self.identity, tuple(survivors), digest)
        lock(vote)
        self._advance(_Step.UPLOADED, _Step.VOTED)
        self._share_sum, self._own_share, self._ballot = total, None, vote
        self._round_key.forget()
        return Vote(me, self.member.signing_key.sign(ballot(vote.identity, vote.survivors, digest)))

    def reveal(self, votes: Sequence[Vote]) -> Reveal:
        """This site's share of the sum of the survivors' keys, for the other sites.

        Raises:
            VoteRefusedError: too few sites voted for what this site voted for.
        """
        member, vote = self.member, self._ballot
        if self._step is not _Step.VOTED or vote is None or self._share_sum is None:
            raise VoteRefusedError("This site did not vote for what it should help to open, or did so before")
        signed = ballot(vote.identity, vote.survivors, vote.digest)
        agreeing = valid_votes(votes, signed, member.roster, {hello.site for hello in self._hellos})
        if len(agreeing) < member.rules.votes:
            raise VoteRefusedError(
                "Too few sites voted for the sum that this site voted for",
                expected=f"{member.rules.votes} votes",
                got=f"{len(agreeing)}",
            )
        self._advance(_Step.VOTED, _Step.OVER)
        content = pack_words(self._share_sum)
        self._share_sum = None
        sealed = member.study_key.seal_once(content, b"reveal", self.identity, member.site.encode())
        return Reveal(member.site, sealed, member.signing_key.sign(revealed(self.identity, member.site, sealed)))

    def _require_acceptable(self, survivors: Sequence[SiteName]) -> None:
        rules = self.member.rules
        greeted = {hello.site for hello in self._hellos}
        if list(survivors) != sorted(set(survivors)) or not set(survivors) <= greeted or len(survivors) < rules.floor:
            raise VoteRefusedError(
                "The server asks to open a sum over sites that this site does not accept",
                expected=f"at least {rules.floor} of the sites that said hello",
                got=f"{len(survivors)}",
            )

    def _received(self, sender: SiteName, box: bytes) -> Words:
        key = self.member.roster[sender]
        me = self.member.site
        return share_boxes.receive(box, self.identity, sender, me, key, self._round_key, self._words).words

    def _advance(self, before: _Step, after: _Step) -> None:
        if self._step is not before:
            raise _out_of_order()
        self._step = after


def _out_of_order() -> VoteRefusedError:
    return VoteRefusedError("The server asks for a step of a secure sum out of order, or for one again")
