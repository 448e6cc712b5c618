"""What passes in a secure sum: nothing is lost on the way, and what is malformed is one error."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation.ring import MODULUS
from quorate.errors import FrameError
from quorate.identity import SiteName
from quorate.rounds.blobs import MAX_BLOB_BYTES, Blob, BlobId, blob_id
from quorate.rounds.instruction import MAX_EXTRAS
from quorate.secagg.opening import Opening
from quorate.secagg.study_key import SealedPart
from quorate.secagg.terms import Hello, Reveal, Vote
from quorate.tally import RATES
from quorate.v1 import sums_pb2
from quorate.wire.sum_messages import (
    PlainOpening,
    SumAnswer,
    SumRef,
    SumWork,
    box_places,
    opening_from_bytes,
    opening_to_bytes,
    plain_opening_from_bytes,
    plain_opening_to_bytes,
    shares_from_bytes,
    shares_to_bytes,
    sum_answer_from_bytes,
    sum_answer_to_bytes,
    sum_work_from_bytes,
    sum_work_to_bytes,
    words_from_bytes,
    words_to_bytes,
)

# --- golden bytes: a server of today talks to a site of yesterday ---

EAST, WEST = SiteName("east"), SiteName("west")
DIGEST, KEY, SIGNATURE = bytes(range(32)), bytes(range(32, 64)), bytes(range(64))
PART = SealedPart(EAST, b"a sealed part", SIGNATURE)
HELLO, VOTE, REVEAL = Hello(EAST, KEY, SIGNATURE), Vote(EAST, SIGNATURE), Reveal(EAST, b"sealed", SIGNATURE)
STORED = Blob(blob_id(b"stored"), 6)
WORK = SumWork(
    parts=(PART,),
    sums=(SumRef(7, 1, STORED, Blob.of(b"opening")),),
    hellos=(HELLO,),
    survivors=(EAST, WEST),
    digest=DIGEST,
    shares=STORED,
    votes=(VOTE,),
    checkpoint=STORED,
    checkpoint_round=6,
    checkpoint_sealer=VOTE,
)
ANSWER = SumAnswer(
    parts={WEST: PART, EAST: PART},
    hello=HELLO,
    counts=b"masked",
    dimension=31,
    has_update=True,
    vote=VOTE,
    reveal=REVEAL,
    model=DIGEST,
    metrics={6: {"auc": 0.875, "loss": 0.5}},
    opened=((EAST, WEST),),
    plain_counts=(100, -5, 2**40),
)
PLAIN = PlainOpening((EAST, WEST), (569, -3), blob_id(b"updates"), DIGEST)
OPENING = Opening((HELLO,), DIGEST, (EAST, WEST), b"counts", blob_id(b"updates"), (VOTE,), (REVEAL,), (HELLO,))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (sum_work_to_bytes(WORK), "bb52afeb9eb6fed5096213e95f03a9be65ed9aac76c9768ecc1f84a176fbb51e"),
        (sum_answer_to_bytes(ANSWER), "37a591bc3ec03af067a009491da811816b663bcf38944fa56ee411835028454e"),
        (plain_opening_to_bytes(PLAIN), "0c7f00e35d3b48b77f8a0c183e2b5973bb297c4dc14de9af7fb85f2e30faa8c0"),
        (opening_to_bytes(OPENING), "51c1040fefb0351617b1e718b0fced18fa8e1d103051ef96464a13b4fccaaf53"),
    ],
    ids=["work", "answer", "plain opening", "opening"],
)
def test_the_bytes_of_a_message_never_change(written: bytes, expected: str) -> None:
    """By their SHA-256. Messages may get fields, but none that is there may change its number or its form."""
    assert hashlib.sha256(written).hexdigest() == expected


# --- any value ---

names = st.text(st.characters(codec="utf-8"), max_size=15).map(SiteName)
some_bytes = st.binary(max_size=40)
signatures = st.binary(min_size=64, max_size=64)
digests = st.just(b"") | st.binary(min_size=32, max_size=32)
numbers = st.integers(0, 2**32 - 1)
parts = st.builds(SealedPart, names, st.binary(min_size=80, max_size=80), signatures)
hellos = st.builds(Hello, names, st.binary(min_size=32, max_size=32), signatures)
votes = st.builds(Vote, names, signatures)
reveals = st.builds(Reveal, names, some_bytes, signatures)
stored = st.builds(Blob, st.binary(min_size=32, max_size=32).map(BlobId), st.integers(1, MAX_BLOB_BYTES))
blobs = stored | st.binary(max_size=40).map(Blob.of)
refs = st.builds(SumRef, numbers, numbers, st.none() | blobs, blobs)
rates = st.dictionaries(st.sampled_from(sorted(RATES)), st.floats(allow_nan=False, allow_infinity=False), max_size=3)


def several(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


counts = several(st.integers(-(2**63), 2**63 - 1))
works = st.builds(
    SumWork,
    parts=several(parts),
    sums=several(refs),
    hellos=several(hellos),
    survivors=several(names),
    digest=digests,
    shares=st.none() | blobs,
    votes=several(votes),
    checkpoint=st.none() | blobs,
    checkpoint_round=numbers,
    checkpoint_sealer=st.none() | votes,
)
answers = st.builds(
    SumAnswer,
    parts=st.dictionaries(names, parts, max_size=3),
    hello=st.none() | hellos,
    counts=some_bytes,
    dimension=st.integers(0, 2**64 - 1),
    has_update=st.booleans(),
    vote=st.none() | votes,
    reveal=st.none() | reveals,
    model=digests,
    metrics=st.dictionaries(numbers, rates, max_size=3),
    opened=several(several(names)),
    plain_counts=counts,
)
plain_openings = st.builds(
    PlainOpening,
    survivors=st.lists(names, min_size=1, max_size=3).map(tuple),
    counts=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8).map(tuple),
    updates=digests,
    model=digests,
)
openings = st.builds(
    Opening,
    hellos=several(hellos),
    model=digests,
    survivors=several(names),
    counts=some_bytes,
    ciphertext=digests,
    votes=several(votes),
    reveals=several(reveals),
    following=several(hellos),
)
words = st.lists(st.integers(0, MODULUS - 1), max_size=40).map(lambda values: np.array(values, np.uint64))


@given(works)
def test_what_is_asked_arrives_as_it_was(value: SumWork) -> None:
    assert sum_work_from_bytes(sum_work_to_bytes(value)) == value


@given(answers)
def test_what_is_answered_arrives_as_it_was(value: SumAnswer) -> None:
    assert sum_answer_from_bytes(sum_answer_to_bytes(value)) == value


@given(openings)
def test_what_opens_a_sum_arrives_as_it_was(value: Opening) -> None:
    assert opening_from_bytes(opening_to_bytes(value)) == value


@given(plain_openings)
def test_what_goes_with_a_plain_sum_arrives_as_it_was_and_is_no_opening_of_an_encrypted_one(
    value: PlainOpening,
) -> None:
    data = plain_opening_to_bytes(value)
    assert plain_opening_from_bytes(data) == value
    assert opening_from_bytes(data) == Opening((), b"", (), b"", b"", (), ())


@given(openings)
def test_what_opens_an_encrypted_sum_is_not_read_as_that_of_a_plain_one(value: Opening) -> None:
    with pytest.raises(FrameError):
        plain_opening_from_bytes(opening_to_bytes(value))


def test_more_counts_than_a_study_may_add_are_refused() -> None:
    for proto, read in (
        (sums_pb2.SumAnswer(plain_counts=[1] * (MAX_EXTRAS + 1)), sum_answer_from_bytes),
        (sums_pb2.PlainOpening(survivors=["a"], counts=[1] * (MAX_EXTRAS + 1)), plain_opening_from_bytes),
    ):
        with pytest.raises(FrameError):
            read(proto.SerializeToString())


@given(st.dictionaries(names, some_bytes, max_size=5))
def test_shares_arrive_as_they_were(value: dict[SiteName, bytes]) -> None:
    assert shares_from_bytes(shares_to_bytes(value)) == value


@given(st.dictionaries(names, some_bytes, max_size=5))
def test_each_box_lies_where_it_is_said_to_lie(value: dict[SiteName, bytes]) -> None:
    data = shares_to_bytes(value)
    places = box_places(data)
    assert {site: data[place.start : place.stop] for site, place in places.items()} == value


@given(words)
def test_masked_words_arrive_as_they_were(value: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    arrived = words_from_bytes(words_to_bytes(value))
    np.testing.assert_array_equal(arrived, value)
    assert arrived.dtype == np.uint64


@given(works, answers, openings)
def test_one_value_has_one_form(work: SumWork, answer: SumAnswer, opening: Opening) -> None:
    """What is signed and named by its bytes must not depend on the order of a map."""
    assert sum_work_to_bytes(sum_work_from_bytes(sum_work_to_bytes(work))) == sum_work_to_bytes(work)
    assert opening_to_bytes(opening_from_bytes(opening_to_bytes(opening))) == opening_to_bytes(opening)
    turned = dict(reversed(answer.parts.items()))
    boxes = {SiteName(name): part.box for name, part in turned.items()}
    assert shares_to_bytes(boxes) == shares_to_bytes(dict(reversed(boxes.items())))


def test_an_empty_share_is_not_no_share() -> None:
    assert sum_work_from_bytes(sum_work_to_bytes(SumWork(shares=Blob.of(b"")))).shares == Blob.of(b"")
    assert sum_work_from_bytes(sum_work_to_bytes(SumWork())).shares is None
    assert sum_answer_from_bytes(b"") == SumAnswer()


# --- malformed ---

READERS: list[Callable[[bytes], object]] = [
    sum_work_from_bytes,
    sum_answer_from_bytes,
    opening_from_bytes,
    shares_from_bytes,
    box_places,
    words_from_bytes,
]


@pytest.mark.parametrize("read", READERS)
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_message_are_one_error_and_nothing_else(read: Callable[[bytes], object], data: bytes) -> None:
    with suppress(FrameError):
        read(data)


@given(works, answers, openings, st.data())
def test_messages_with_changed_cut_and_inserted_bytes_are_one_error_and_nothing_else(
    work: SumWork, answer: SumAnswer, opening: Opening, data: st.DataObject
) -> None:
    whole = [
        (sum_work_from_bytes, sum_work_to_bytes(work)),
        (sum_answer_from_bytes, sum_answer_to_bytes(answer)),
        (opening_from_bytes, opening_to_bytes(opening)),
    ]
    read, content = data.draw(st.sampled_from(whole))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 4)))
    with suppress(FrameError):
        read(content[:start] + data.draw(st.binary(max_size=4)) + content[end:])


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (sum_work_from_bytes, b"\xff"),
        (sum_work_from_bytes, b"\x3a\x02\x0a\x00"),
        (sum_work_from_bytes, b"\x2a\x01\xff"),
        (sum_answer_from_bytes, b"\x1a\x7f"),
        (opening_from_bytes, b"\x12\x01\xff"),
        (shares_from_bytes, b"\x0a\x05\x0a\x01\xff"),
        (box_places, b"\x0a\x05\x0a\x01\xff"),
    ],
    ids=["no tag", "no blob's name", "a name that is no text", "cut off", "no text", "cut off in a map", "the same"],
)
def test_what_cannot_be_read_is_refused(read: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(FrameError):
        read(data)


@pytest.mark.parametrize(
    "told", [{"run": 0.5}, {"event": 0.5}, {"x" * 1000: 0.5}, {"auc": math.nan}, {"loss": math.inf}]
)
def test_a_rate_that_is_none_is_passed_over(told: dict[str, float]) -> None:
    """In a study without colluders one site's word counts: a rate by the name of a field of the log ended the run."""
    sent = sum_answer_to_bytes(SumAnswer(metrics={1: {"accuracy": 0.5, **told}}))
    assert sum_answer_from_bytes(sent).metrics == {1: {"accuracy": 0.5}}


def test_an_inline_blob_that_is_not_what_it_is_called_is_refused() -> None:
    content = sum_work_to_bytes(SumWork(shares=Blob.of(b"sealed shares")))
    with pytest.raises(FrameError):
        sum_work_from_bytes(content.replace(b"sealed shares", b"other content"))


def test_the_order_in_which_a_library_writes_boxes_does_not_matter() -> None:
    east, west = (shares_to_bytes({SiteName(site): site.encode() * 100}) for site in ("east", "west"))
    for data in (east + west, west + east):
        places = box_places(data)
        assert {site: data[place.start : place.stop] for site, place in places.items()} == shares_from_bytes(data)


def test_what_is_not_one_box_for_each_site_is_refused() -> None:
    """protobuf lets it pass: the last box of a name counts, and what it does not know it leaves out."""
    entry = shares_to_bytes({SiteName("east"): b"box"})
    assert entry == b"\x0a\x0b\x0a\x04east\x12\x03box"
    for other in (
        entry + entry,
        entry + b"\x12\x01x",
        b"\x12\x01x" + entry,
        b"\x0a\x0e\x0a\x04east\x12\x03box\x1a\x01x",
        b"\x0a\x0b\x12\x03box\x0a\x04east",
        b"\x0a\x05\x12\x03box",
        b"\x0a\x06\x0a\x04east",
        b"\x0a\x00",
    ):
        assert set(shares_from_bytes(other)) <= {"east", ""}
        with pytest.raises(FrameError):
            box_places(other)
    for other in (
        entry[:-1],
        entry[:7],
        entry[:2],
        entry[:1],
        b"\x0a\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x04\x0a\x02\xff\xff",
    ):
        with pytest.raises(FrameError):
            box_places(other)


@given(st.dictionaries(names, some_bytes, max_size=3), st.data())
def test_what_is_said_of_changed_shares_is_what_protobuf_reads_or_an_error(
    value: dict[SiteName, bytes], data: st.DataObject
) -> None:
    content = shares_to_bytes(value)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 3)))
    changed = content[:start] + data.draw(st.binary(max_size=3)) + content[end:]
    try:
        places = box_places(changed)
    except FrameError:
        return
    assert {site: changed[place.start : place.stop] for site, place in places.items()} == shares_from_bytes(changed)


@pytest.mark.parametrize("word", [MODULUS, MODULUS + 1, (1 << 52) - 1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_word_that_is_not_below_q_is_refused_wherever_it_is(word: int, place: int) -> None:
    values = [1, 2, MODULUS - 1]
    assert words_from_bytes(words_to_bytes(np.array(values, np.uint64))).tolist() == values
    values[place] = word
    with pytest.raises(FrameError, match="below the modulus"):
        words_from_bytes(words_to_bytes(np.array(values, np.uint64)))


@pytest.mark.parametrize("length", [1, 6, 8, 12, 14, 16])
def test_words_that_are_cut_are_refused(length: int) -> None:
    with pytest.raises(FrameError, match="whole words"):
        words_from_bytes(bytes(length))
