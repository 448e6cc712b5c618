"""What passes in the sums of a study, as values and protos. Reading is strict: what is wrong is a ``FrameError``.

What has one length in all sums has it here, whoever reads: the server before it keeps anything, a site before it uses
anything. What depends on the sum is for those to check who know it (``secagg/sizes.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from quorate.aggregation.words import Words, pack_words, packed_bytes, unpack_words
from quorate.errors import FrameError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import MAX_EXTRAS
from quorate.secagg.opening import Opening
from quorate.secagg.sizes import (
    KEY_PART_BYTES,
    MAX_MASKED,
    MAX_NAME_BYTES,
    ROUND_KEY_BYTES,
    require_at_most,
    require_bytes,
)
from quorate.secagg.study_key import SealedPart
from quorate.secagg.terms import DIGEST_BYTES, SIGNATURE_BYTES, Hello, Reveal, Vote
from quorate.tally import RATES
from quorate.v1 import sums_pb2
from quorate.wire.messages import blob_from_proto, blob_to_proto


@dataclass(frozen=True, slots=True)
class SumRef:
    """A closed sum: where the summed updates (if any) and what opens them lie."""

    round_number: int
    attempt: int
    updates: Blob | None
    opening: Blob


@dataclass(frozen=True, slots=True)
class SumWork:
    """What a site is asked in one exchange; which parts are filled depends on the exchange.

    Without protection it is the way to the newest model and no more.
    """

    parts: tuple[SealedPart, ...] = ()
    sums: tuple[SumRef, ...] = ()
    hellos: tuple[Hello, ...] = ()
    survivors: tuple[SiteName, ...] = ()
    digest: bytes = b""
    shares: Blob | None = None
    votes: tuple[Vote, ...] = ()
    checkpoint: Blob | None = None
    checkpoint_round: int = 0
    checkpoint_sealer: Vote | None = None


@dataclass(frozen=True, slots=True)
class SumAnswer:
    """What a site answers in one exchange. ``metrics`` holds rates of all sites together, by round; ``opened`` the sets
    of survivors for which the site voted before, where this sum is of the same input.

    Without protection: ``plain_counts``, ``dimension``, ``has_update`` and ``model``, and nothing else. To an attested
    machine, inside of what is sealed to it: the same with ``metrics``, ``opened``, ``study_key`` and ``salt``. How long
    that is does not depend on how large the counts are: they are numbers of records.
    """

    parts: Mapping[SiteName, SealedPart] = field(default_factory=dict)
    hello: Hello | None = None
    counts: bytes = b""
    dimension: int = 0
    has_update: bool = False
    vote: Vote | None = None
    reveal: Reveal | None = None
    model: bytes = b""
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    opened: tuple[tuple[SiteName, ...], ...] = ()
    plain_counts: tuple[int, ...] = ()
    study_key: bytes = field(default=b"", repr=False)
    salt: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class PlainOpening:
    """What goes with a sum without protection, or with one that an attested machine made.

    Args:
        survivors: Whose updates and counts are in it, by name.
        counts: Of the first sum the totals, of a later one the sum of the weights alone: what else is counted is for
            the server's metrics, and no site needs it. An attested machine tells all of them, sealed.
        updates: The name of the summed words; empty where only counts were summed.
        model: The digest of the state that they held.
        votes: For this sum over these survivors; of an attested machine's sum.
        key: Under which an attested machine sealed the summed words.
    """

    survivors: tuple[SiteName, ...]
    counts: tuple[int, ...]
    updates: bytes
    model: bytes
    votes: tuple[Vote, ...] = ()
    key: bytes = field(default=b"", repr=False)


def sum_work_to_bytes(value: SumWork) -> bytes:
    return sums_pb2.SumWork(
        parts=[_part_to(part) for part in value.parts],
        sums=[
            sums_pb2.SumRef(
                round=ref.round_number,
                attempt=ref.attempt,
                updates=blob_to_proto(ref.updates) if ref.updates else None,
                opening=blob_to_proto(ref.opening),
            )
            for ref in value.sums
        ],
        hellos=[_hello_to(hello) for hello in value.hellos],
        survivors=value.survivors,
        digest=value.digest,
        shares=blob_to_proto(value.shares) if value.shares else None,
        votes=[_vote_to(vote) for vote in value.votes],
        checkpoint=blob_to_proto(value.checkpoint) if value.checkpoint else None,
        checkpoint_round=value.checkpoint_round,
        checkpoint_sealer=_vote_to(value.checkpoint_sealer) if value.checkpoint_sealer else None,
    ).SerializeToString(deterministic=True)


def sum_work_from_bytes(data: bytes) -> SumWork:
    try:
        proto = sums_pb2.SumWork.FromString(data)
    except DecodeError as error:
        raise FrameError("The content of an instruction could not be read") from error
    return SumWork(
        parts=tuple(_part_from(part) for part in proto.parts),
        sums=tuple(
            SumRef(
                ref.round,
                ref.attempt,
                blob_from_proto(ref.updates) if ref.HasField("updates") else None,
                blob_from_proto(ref.opening),
            )
            for ref in proto.sums
        ),
        hellos=tuple(_hello_from(hello) for hello in proto.hellos),
        survivors=tuple(_name(site) for site in proto.survivors),
        digest=_digest("The digest of a sum", proto.digest),
        shares=blob_from_proto(proto.shares) if proto.HasField("shares") else None,
        votes=tuple(_vote_from(vote) for vote in proto.votes),
        checkpoint=blob_from_proto(proto.checkpoint) if proto.HasField("checkpoint") else None,
        checkpoint_round=proto.checkpoint_round,
        checkpoint_sealer=_vote_from(proto.checkpoint_sealer) if proto.HasField("checkpoint_sealer") else None,
    )


def sum_answer_to_bytes(value: SumAnswer) -> bytes:
    vote, reveal = value.vote, value.reveal
    return sums_pb2.SumAnswer(
        parts={site: _part_to(part) for site, part in value.parts.items()},
        hello=_hello_to(value.hello) if value.hello else None,
        counts=value.counts,
        dimension=value.dimension,
        has_update=value.has_update,
        vote=_vote_to(vote) if vote else None,
        reveal=_reveal_to(reveal) if reveal else None,
        model=value.model,
        metrics=[sums_pb2.PooledMetrics(round=number, values=values) for number, values in value.metrics.items()],
        opened=[sums_pb2.Survivors(sites=sites) for sites in value.opened],
        plain_counts=() if value.study_key else value.plain_counts,
        study_key=value.study_key,
        salt=value.salt,
        sealed_counts=value.plain_counts if value.study_key else (),
    ).SerializeToString(deterministic=True)


def sum_answer_from_bytes(data: bytes) -> SumAnswer:
    try:
        proto = sums_pb2.SumAnswer.FromString(data)
    except DecodeError as error:
        raise FrameError("A contribution could not be read") from error
    return SumAnswer(
        parts={_name(site): _part_from(part) for site, part in proto.parts.items()},
        hello=_hello_from(proto.hello) if proto.HasField("hello") else None,
        counts=_counts(proto.counts),
        dimension=proto.dimension,
        has_update=proto.has_update,
        vote=_vote_from(proto.vote) if proto.HasField("vote") else None,
        reveal=_reveal_from(proto.reveal) if proto.HasField("reveal") else None,
        model=_digest("The digest of a model", proto.model),
        metrics={told.round: _rates(told.values) for told in proto.metrics},
        opened=tuple(tuple(_name(site) for site in told.sites) for told in proto.opened),
        plain_counts=_plain_counts(proto.sealed_counts if proto.study_key else proto.plain_counts),
        study_key=_digest("The study key", proto.study_key),
        salt=_digest("The salt of an upload", proto.salt),
    )


def opening_to_bytes(value: Opening) -> bytes:
    return sums_pb2.Opening(
        hellos=[_hello_to(hello) for hello in value.hellos],
        survivors=value.survivors,
        counts=value.counts,
        ciphertext=value.ciphertext,
        votes=[_vote_to(vote) for vote in value.votes],
        reveals=[_reveal_to(reveal) for reveal in value.reveals],
        model=value.model,
        following=[_hello_to(hello) for hello in value.following],
    ).SerializeToString(deterministic=True)


def opening_from_bytes(data: bytes) -> Opening:
    try:
        proto = sums_pb2.Opening.FromString(data)
    except DecodeError as error:
        raise FrameError("What opens a secure sum could not be read") from error
    return Opening(
        hellos=tuple(_hello_from(hello) for hello in proto.hellos),
        survivors=tuple(_name(site) for site in proto.survivors),
        counts=_counts(proto.counts),
        ciphertext=_digest("The name of a ciphertext", proto.ciphertext),
        votes=tuple(_vote_from(vote) for vote in proto.votes),
        reveals=tuple(_reveal_from(reveal) for reveal in proto.reveals),
        model=_digest("The digest of a model", proto.model),
        following=tuple(_hello_from(hello) for hello in proto.following),
    )


def plain_opening_to_bytes(value: PlainOpening) -> bytes:
    return sums_pb2.PlainOpening(
        survivors=value.survivors,
        counts=() if value.key else value.counts,
        updates=value.updates,
        model=value.model,
        votes=[_vote_to(vote) for vote in value.votes],
        key=value.key,
        sealed_counts=value.counts if value.key else (),
    ).SerializeToString(deterministic=True)


def plain_opening_from_bytes(data: bytes) -> PlainOpening:
    """Raises FrameError: it is none, or that of an encrypted sum."""
    try:
        proto = sums_pb2.PlainOpening.FromString(data)
    except DecodeError as error:
        raise FrameError("What goes with a sum could not be read") from error
    counts = proto.sealed_counts if proto.key else proto.counts
    if not proto.survivors or not counts:
        raise FrameError("What goes with a sum names no site or no counts")
    return PlainOpening(
        survivors=tuple(_name(site) for site in proto.survivors),
        counts=_plain_counts(counts),
        updates=_digest("The name of a sum", proto.updates),
        model=_digest("The digest of a model", proto.model),
        votes=tuple(_vote_from(vote) for vote in proto.votes),
        key=_digest("The key of a sum", proto.key),
    )


def shares_to_bytes(boxes: Mapping[SiteName, bytes]) -> bytes:
    by_name = {str(site): box for site, box in boxes.items()}
    return sums_pb2.SealedShares(boxes=by_name).SerializeToString(deterministic=True)


def shares_from_bytes(data: bytes) -> dict[SiteName, bytes]:
    try:
        return {SiteName(site): box for site, box in sums_pb2.SealedShares.FromString(data).boxes.items()}
    except DecodeError as error:
        raise FrameError("Sealed shares could not be read") from error


def box_places(data: bytes) -> dict[SiteName, range]:
    """Where each box lies in sealed shares, so that one of them can be read later without the others.

    Walks the bytes by itself: protobuf says what is in a map and not where, and in which order it writes the entries
    is each version's own affair. An entry is a field that holds a name and a box; nothing else is let through.

    Raises:
        FrameError: they are not one box for each site and nothing else.
    """
    places: dict[SiteName, range] = {}
    rest = range(len(data))
    while rest:
        entry = _field(data, rest, 1)
        name = _field(data, entry, 1)
        box = _field(data, range(name.stop, entry.stop), 2)
        try:
            site = SiteName(data[name.start : name.stop].decode())
        except UnicodeDecodeError as error:
            raise FrameError("Sealed shares could not be read") from error
        if box.stop != entry.stop or site in places:
            raise FrameError("Sealed shares are malformed", expected="one box for each site and nothing else")
        places[site] = box
        rest = range(entry.stop, len(data))
    return places


def _field(data: bytes, within: range, number: int) -> range:
    """Where the content of the field of bytes lies that begins here, which has to have this number."""
    at, size = within.start + 1, 0
    if not within or data[within.start] != number << 3 | 2:
        raise FrameError("Sealed shares could not be read")
    for shift in range(0, 35, 7):  # the length: 7 bits in a byte, and in the 8th whether another one follows
        if at >= within.stop:
            break
        size |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            if at + size <= within.stop:
                return range(at, at + size)
            break
    raise FrameError("Sealed shares could not be read")


def words_to_bytes(words: Words) -> bytes:
    """Masked counts, or their sum, as they travel: 52 bits a word."""
    return pack_words(words)


def words_from_bytes(data: bytes) -> Words:
    """Raises FrameError: not whole words, or one that is not below q."""
    return unpack_words(data)


def _part_to(part: SealedPart) -> sums_pb2.KeyPart:
    return sums_pb2.KeyPart(sender=part.sender, box=part.box, signature=part.signature)


def _part_from(proto: sums_pb2.KeyPart) -> SealedPart:
    require_bytes("A part of the study key", len(proto.box), KEY_PART_BYTES)
    return SealedPart(_name(proto.sender), proto.box, _signature(proto.signature))


def _hello_to(hello: Hello) -> sums_pb2.SecureHello:
    return sums_pb2.SecureHello(site=hello.site, round_key=hello.round_key, signature=hello.signature)


def _hello_from(proto: sums_pb2.SecureHello) -> Hello:
    require_bytes("The key of a hello", len(proto.round_key), ROUND_KEY_BYTES)
    return Hello(_name(proto.site), proto.round_key, _signature(proto.signature))


def _vote_from(proto: sums_pb2.SecureVote) -> Vote:
    return Vote(_name(proto.site), _signature(proto.signature))


def _vote_to(vote: Vote) -> sums_pb2.SecureVote:
    return sums_pb2.SecureVote(site=vote.site, signature=vote.signature)


def _reveal_to(reveal: Reveal) -> sums_pb2.SecureReveal:
    return sums_pb2.SecureReveal(site=reveal.site, sealed=reveal.sealed, signature=reveal.signature)


def _reveal_from(proto: sums_pb2.SecureReveal) -> Reveal:
    return Reveal(_name(proto.site), proto.sealed, _signature(proto.signature))


def _rates(told: Mapping[str, float]) -> dict[str, float]:
    """Those that this version knows, as far as they are numbers. Names are fields of the server's log and columns of
    the report: one of a site's own choice ended the run's process."""
    return {name: value for name, value in told.items() if name in RATES and math.isfinite(value)}


def _name(text: str) -> SiteName:
    require_at_most("The name of a site", len(text.encode()), MAX_NAME_BYTES)
    return SiteName(text)


def _signature(signature: bytes) -> bytes:
    require_bytes("A signature", len(signature), SIGNATURE_BYTES)
    return signature


def _digest(what: str, digest: bytes) -> bytes:
    """Where there is one."""
    if digest:
        require_bytes(what, len(digest), DIGEST_BYTES)
    return digest


def _plain_counts(counts: Sequence[int]) -> tuple[int, ...]:
    require_at_most("The list of counts", len(counts), MAX_EXTRAS)
    return tuple(counts)


def _counts(counts: bytes) -> bytes:
    require_at_most("What was masked", len(counts), packed_bytes(MAX_MASKED))
    return counts
