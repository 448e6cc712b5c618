"""The server's half of a secure sum, step by step: what it accepts from whom, and what it makes of it.

The mirror of ``participant``. The server has no key and cannot read what it adds. What it sees is whether a message is
signed by its site, is for this very sum, and is as long as it has to be. Whatever is not costs its sender's part here,
where the sender is known: passed on, it would spoil the sum for all, and nobody could say whose fault it was.

The steps have an order, and each site takes each of them once: hello, upload, and when the uploads are added, vote and
reveal. Nothing here reads or writes: the bytes of an upload lie in the spool, and what has to be known of them comes as
values. Every refusal of what a site sent is a ``ContributionError`` where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quorate.aggregation import ring
from quorate.aggregation.words import POLYNOMIAL_BYTES, Words, pack_words, unpack_words
from quorate.errors import ContributionError, QuorumMissingError, VoteRefusedError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob
from quorate.secagg import share_boxes
from quorate.secagg.linear_mac import TAGS
from quorate.secagg.opening import Opening
from quorate.secagg.release import ReleaseTerms, released
from quorate.secagg.sizes import reveal_bytes, share_words, shares_bytes
from quorate.secagg.study_key import SealedPart, is_from_sender
from quorate.secagg.survivor_sets import MAX_SETS, may_vote
from quorate.secagg.terms import (
    Hello,
    Layout,
    Reveal,
    Roster,
    Terms,
    Vote,
    ballot,
    checkpointed,
    is_signed,
    revealed,
    round_id,
    sum_digest,
)
from quorate.study.rules import Rules


@dataclass(frozen=True, slots=True)
class Members:
    """The sites of a run: what every sum of it needs of them.

    Args:
        study: The study's digest, 32 bytes.
        quorum: Uploads without which there is no sum; no fewer than ``rules.floor``.
    """

    study: bytes
    run: RunId
    roster: Roster
    rules: Rules
    quorum: int

    def is_by(self, site: SiteName, said: Vote | Reveal, message: bytes) -> bool:
        """Whether a site said this in its own name, and signed it for this message."""
        return said.site == site and self.has_signed(site, said.signature, message)

    def has_signed(self, site: SiteName, signature: bytes, message: bytes) -> bool:
        """Whether a signature is by a site of the roster."""
        return is_signed(self.roster.get(site, b""), signature, message)


@dataclass(frozen=True, slots=True)
class Upload:
    """What a site says that it brings to a sum.

    Args:
        counts: Masked counts and tags, 52 bits a word.
        has_ciphertext: Whether there is one beside them.
        blobs: The ciphertext, if there is one, and the sealed shares of the keys.
        model: The keyed digest of the state that the sum starts from, as the site holds it.
        dimension: Parameters of the model; said in the first sum only.
        opened: The sets of survivors for which the site voted before, where this sum is of the same input.
    """

    counts: bytes
    has_ciphertext: bool
    blobs: tuple[Blob, ...]
    model: bytes = b""
    dimension: int = 0
    opened: tuple[tuple[SiteName, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class AcceptedUpload:
    """An upload that has the form of its sum. ``places`` says where in the blob of shares each recipient's lies."""

    upload: Upload
    masked: Words
    ciphertext: Blob | None
    shares: Blob
    places: Mapping[SiteName, range]

    @property
    def form(self) -> tuple[bytes, int, int]:
        """In what uploads have to be alike to be added: state, masked words and dimension."""
        return self.upload.model, len(self.masked), self.upload.dimension


class Aggregator:
    """One sum at the server, until the uploads are added.

    Args:
        polynomials: Of each update; 0 where only counts are summed.
        said: The hellos for this sum that came with the reveals of the last one, accepted there.
    """

    def __init__(self, terms: Terms, members: Members, polynomials: int, said: Iterable[Hello] = ()) -> None:
        self.terms = terms
        self.members = members
        self.polynomials = polynomials
        self._hellos = {hello.site: hello for hello in said}
        self.uploads: dict[SiteName, AcceptedUpload] = {}

    @property
    def hellos(self) -> tuple[Hello, ...]:
        """Of all who take part, by name."""
        return tuple(self._hellos[site] for site in sorted(self._hellos))

    @property
    def greeted(self) -> frozenset[SiteName]:
        return frozenset(self._hellos)

    @property
    def unheard(self) -> frozenset[SiteName]:
        """Who has not said hello."""
        return frozenset(self.members.roster) - self.greeted

    def hello(self, site: SiteName, hello: Hello | None) -> None:
        """Takes in a site's first word.

        Raises:
            ContributionError: it is none, or not signed by this site for this sum. KeyMismatchError: its key is none.
        """
        if site in self._hellos:
            raise ContributionError("A site said hello twice")
        self._hellos[site] = checked_hello(site, hello, self.terms, self.members, self._hellos.values())

    def upload(self, site: SiteName, upload: Upload, places_in: Callable[[Blob], Mapping[SiteName, range]]) -> None:
        """Takes in what a site brings, if it has the form of this sum.

        Args:
            places_in: Where in the blob of shares each recipient's lies. Asked only for one of the right length.

        Raises:
            ContributionError: another form. FrameError: the counts are no words, or the shares cannot be read.
        """
        if site not in self._hellos or site in self.uploads:
            raise ContributionError("A site has no part in this sum, or sent its part twice")
        if len(upload.opened) > MAX_SETS:  # each is held against each: 29,000 of them took 20 s
            raise ContributionError("A site says that it voted for more sets of survivors than a site votes for")
        masked = unpack_words(upload.counts)
        size, others = self.polynomials * POLYNOMIAL_BYTES, self.greeted - {site}
        *ciphertexts, shares = upload.blobs if upload.blobs else (None,)
        if shares is None or upload.has_ciphertext != bool(size) or len(ciphertexts) != bool(size):
            raise ContributionError("A site did not send what this sum is made of")
        ciphertext = ciphertexts[0] if ciphertexts else None
        if ciphertext is not None and ciphertext.size != size:
            raise ContributionError(
                "A site's ciphertext has the wrong length", expected=f"{size} bytes", got=f"{ciphertext.size}"
            )
        words = share_words(self.polynomials, len(masked))
        if shares.size != shares_bytes(others, words):
            raise ContributionError("A site's shares have the wrong length")
        places = places_in(shares)
        if set(places) != others or {len(place) for place in places.values()} != {share_boxes.message_bytes(words)}:
            raise ContributionError("A site did not deal a share to each of the others")
        self.uploads[site] = AcceptedUpload(upload, masked, ciphertext, shares, places)

    def survivors(self, agreeing: Collection[SiteName]) -> frozenset[SiteName]:
        """Whose uploads are added, of those who uploaded one form. Raises as ``chosen_survivors``."""
        return chosen_survivors({site: self.uploads[site].upload.opened for site in agreeing}, self.members)


class AddedSum:
    """One sum at the server, from the moment at which its uploads are added: who votes for it, and who reveals.

    Args:
        survivors: U; their uploads are of one form.
        ciphertext: The sum of their ciphertexts; None where only counts are summed.
    """

    def __init__(self, aggregator: Aggregator, survivors: Iterable[SiteName], ciphertext: Blob | None) -> None:
        self._members, terms = aggregator.members, aggregator.terms
        self._hellos = aggregator.hellos
        self._next_terms = replace(terms, round_number=terms.round_number + 1)
        self.survivors = tuple(sorted(survivors))
        self.uploads = {site: aggregator.uploads[site] for site in self.survivors}
        self.ciphertext = ciphertext
        first = self.uploads[self.survivors[0]]
        self._model = first.upload.model
        total = np.zeros_like(first.masked)
        for accepted in self.uploads.values():
            ring.add(total, accepted.masked)
        self._counts = pack_words(total)
        layout = Layout(aggregator.polynomials, len(total) - TAGS)
        self.identity = round_id(self._hellos, terms, self._members.rules, layout, self._model)
        self._name: bytes = ciphertext.id if ciphertext is not None else b""
        self.digest = sum_digest(self._name, self._counts)
        """What a vote is about."""
        self._sealed_bytes = reveal_bytes(share_words(aggregator.polynomials, len(total)))
        self._votes: dict[SiteName, Vote] = {}
        self._reveals: dict[SiteName, Reveal] = {}
        self._following: dict[SiteName, Hello] = {}

    @property
    def votes(self) -> tuple[Vote, ...]:
        """By name."""
        return tuple(self._votes[site] for site in sorted(self._votes))

    @property
    def voters(self) -> frozenset[SiteName]:
        return frozenset(self._votes)

    def vote(self, site: SiteName, vote: Vote | None) -> None:
        """Takes in a survivor's word for this sum over these sites."""
        if site not in self.survivors or site in self._votes:
            raise ContributionError("A site has no vote in this sum, or voted twice")
        signed = ballot(self.identity, self.survivors, self.digest)
        if vote is None or not self._members.is_by(site, vote, signed):
            raise ContributionError("A site's vote is not for this sum")
        self._votes[site] = vote

    def reveal(self, site: SiteName, reveal: Reveal | None, hello: Hello | None) -> None:
        """Takes in a voter's share of the key's sum, and with it the hello for the next sum, if one came.

        Raises:
            ContributionError, KeyMismatchError: one of them is refused; neither is taken in then.
        """
        if site not in self._votes or site in self._reveals:
            raise ContributionError("A site has nothing to reveal in this sum, or revealed it twice")
        if reveal is None or not self._members.is_by(site, reveal, revealed(self.identity, site, reveal.sealed)):
            raise ContributionError("A site's share of the key is not for this sum")
        if len(reveal.sealed) != self._sealed_bytes:
            raise ContributionError("A site's share of the key has the wrong length")
        if hello is not None:
            others = self._following.values()
            self._following[site] = checked_hello(site, hello, self._next_terms, self._members, others)
        self._reveals[site] = reveal

    def opening(self) -> Opening:
        """What opens this sum, for the sites."""
        return Opening(
            hellos=self._hellos,
            model=self._model,
            survivors=self.survivors,
            counts=self._counts,
            ciphertext=self._name,
            votes=self.votes,
            reveals=tuple(self._reveals[site] for site in sorted(self._reveals)),
            following=tuple(self._following[site] for site in sorted(self._following)),
        )


def chosen_survivors(opened: Mapping[SiteName, Iterable[Iterable[SiteName]]], members: Members) -> frozenset[SiteName]:
    """Whose uploads are added: the largest set for which enough of the sites in it may vote.

    A site votes for few sets of survivors of one input, in this run or an earlier one, and for none that differ by
    little; each says for which it voted. A lie costs the liar's own vote. Where no set has enough votes, none is
    asked for: one that cannot be opened would only bind those who give it.

    Args:
        opened: The sets for which each of those who are there voted before.

    Raises:
        QuorumMissingError: there is no such set.
    """
    rules, here = members.rules, frozenset(opened)
    told = {site: {frozenset(names) for names in sets} for site, sets in opened.items()}
    sets = {each for each in {here}.union(*told.values()) if each <= here}

    def votes(chosen: frozenset[SiteName]) -> int:
        return sum(may_vote(chosen, told[site], rules.colluders) for site in chosen)

    usable = [each for each in sets if len(each) >= members.quorum and votes(each) >= rules.votes]
    if not usable:
        error = QuorumMissingError(
            "Too few of the sites that are there may vote for a sum over them",
            expected="the sites of an earlier sum of the same input, or many fewer or more",
            action="Have those sites connected, then `quorate run resume`",
        )
        error.codes = (VoteRefusedError.code,)
        raise error
    return max(usable, key=lambda each: (len(each), sorted(each)))


def checked_hello(
    site: SiteName, hello: Hello | None, terms: Terms, members: Members, others: Iterable[Hello]
) -> Hello:
    """A site's hello for a sum.

    Args:
        others: Of the same sum, that came before.

    Raises:
        ContributionError: it is none, or not signed by this site for this sum. KeyMismatchError: its key is none.
    """
    if hello is None or hello.site != site:
        raise ContributionError("A site did not say hello")
    if not members.has_signed(site, hello.signature, hello.signed(terms)):
        raise ContributionError("A site's hello is not signed by it, or is for another sum")
    # All sites refuse a sum in which two show one key. An honest one's is new, and known to nobody before it is here.
    if any(hello.round_key == other.round_key for other in others):
        raise ContributionError("A site shows the key of another one")
    # Nobody could seal a share to a key that is none. KeyMismatchError: only this site is refused then.
    share_boxes.seal(np.zeros(0, np.uint64), hello.round_key, b"")
    return hello


def check_parts(site: SiteName, parts: Mapping[SiteName, SealedPart], members: Members) -> None:
    """Whether a site made a part of the study key for every site: nobody but the recipients can open them."""
    if set(parts) != set(members.roster) or {part.sender for part in parts.values()} != {site}:
        raise ContributionError("A site did not make a part of the study key for every site")
    # Unsigned, it would keep every site from its key, and nobody could say whose fault it was.
    if not all(
        is_from_sender(part, members.study, members.run, recipient, members.roster) for recipient, part in parts.items()
    ):
        raise ContributionError("A site's part of the study key is not signed by it")


def checked_checkpoint(
    site: SiteName, blobs: Sequence[Blob], vote: Vote | None, round_number: int, members: Members
) -> tuple[Blob, Vote]:
    """The state of a round that a site sealed, and its signature."""
    if len(blobs) != 1:
        raise ContributionError(f"{site} did not send one sealed state")
    signed = checkpointed(members.study, members.run, round_number, blobs[0].id)
    if vote is None or not members.is_by(site, vote, signed):
        raise ContributionError(f"{site} did not sign the state that it sealed")
    return blobs[0], vote


def checked_release(
    site: SiteName, blobs: Sequence[Blob], vote: Vote | None, terms: ReleaseTerms, members: Members
) -> tuple[Blob, Vote]:
    """The model that a site sealed to the operator, and its signature."""
    if not blobs:
        raise ContributionError("A site sent no model though the study releases it")
    if vote is None or not members.is_by(site, vote, released(terms, blobs[0].id)):
        raise ContributionError("A site did not sign the model that it sent")
    return blobs[0], vote
