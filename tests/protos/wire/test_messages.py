"""Values to protos and back: nothing is lost, and bytes that mean nothing raise one kind of error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import FrameError, KeyMismatchError, QuorumMissingError
from quorate.identity import Member, RunId, SiteName, sealing_proof
from quorate.rounds.blobs import FRAME_BYTES, INLINE_BYTES, Blob, Frame, blob_id, cut
from quorate.rounds.instruction import (
    Instruction,
    MessageId,
    Phase,
    Reply,
    message_id,
)
from quorate.rounds.run import Progress, RoundResult, RunState, RunView, SiteProgress
from quorate.v1 import common_pb2
from quorate.wire.messages import (
    blob_from_proto,
    blob_to_proto,
    frame_from_proto,
    frame_to_proto,
    instruction_from_bytes,
    instruction_to_bytes,
    instruction_to_proto,
    member_from_proto,
    member_to_proto,
    reply_from_bytes,
    reply_to_bytes,
    reply_to_proto,
    run_from_proto,
    run_to_proto,
)

RUN, SITE = RunId("malignancy-0a1b2c"), SiteName("north")

names = st.sampled_from(["north", "south", "a", "x" * 63])
digests = st.binary(min_size=32, max_size=32)
seconds = st.floats(min_value=0, max_value=1e9, allow_nan=False)
uint32 = st.integers(min_value=0, max_value=2**32 - 1)
uint64 = st.integers(min_value=0, max_value=2**64 - 1)
sint64 = st.lists(st.integers(min_value=-(2**63), max_value=2**63 - 1), max_size=8).map(tuple)
blobs = st.builds(Blob.of, st.binary(max_size=200)) | st.builds(
    lambda content: Blob(blob_id(content), len(content)), st.binary(min_size=1, max_size=200)
)
message_ids = digests.map(MessageId)
instructions = st.builds(
    Instruction,
    message_id=message_ids,
    run=st.sampled_from([RUN]),
    round_number=uint32,
    phase=st.sampled_from(Phase),
    attempt=uint32,
    study_digest=digests,
    deadline_s=seconds,
    body=st.binary(max_size=100),
    blobs=st.lists(blobs, max_size=3).map(tuple),
)
replies = st.builds(
    Reply,
    message_id=message_ids,
    code=st.sampled_from(["", "task_failed", "a_code_of_a_newer_version"]),
    body=st.binary(max_size=100),
    blobs=st.lists(blobs, max_size=3).map(tuple),
    working_s=seconds,
)


@given(instructions)
def test_an_instruction_survives_the_wire(value: Instruction) -> None:
    assert instruction_from_bytes(instruction_to_bytes(value)) == value


@given(replies)
def test_a_reply_survives_the_wire(value: Reply) -> None:
    assert reply_from_bytes(reply_to_bytes(value)) == value


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES])
def test_a_blob_survives_the_wire_inline_and_by_name(size: int) -> None:
    inline = Blob.of(bytes(size))
    assert blob_from_proto(blob_to_proto(inline)) == inline
    named = Blob(inline.id, inline.size)
    assert blob_from_proto(blob_to_proto(named)) == (inline if size == 0 else named)


def test_a_frame_survives_the_wire() -> None:
    for frame in cut([bytes(FRAME_BYTES + 3)]):
        assert frame_from_proto(frame_to_proto(frame)) == frame
    assert frame_from_proto(frame_to_proto(Frame(2**32 - 1, b"", b""))) == Frame(2**32 - 1, b"", b"")


def test_a_member_survives_the_wire_and_a_changed_key_does_not() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    member = Member(SITE, key.public_key().public_bytes_raw(), bytes(32), sealing_proof(key, bytes(32)))
    proto = member_to_proto(member)
    assert member_from_proto(proto) == member
    proto.sealing_key = b"\x01" * 32
    with pytest.raises(KeyMismatchError):
        member_from_proto(proto)


# --- golden bytes: a server of today talks to a site of yesterday ---


def test_the_bytes_of_an_instruction_never_change() -> None:
    value = Instruction(
        message_id(RUN, 7, Phase.UPLOAD, 1, SITE),
        RUN,
        7,
        Phase.UPLOAD,
        1,
        bytes(range(32)),
        600.0,
        b"body",
        (Blob.of(b"x"),),
    )
    assert instruction_to_bytes(value).hex() == (
        "0a200e9ffcdee929232301e491b45c7dd9a2574d8c70acca9892befd42711342a3cc12116d616c69676e616e63792d306131"
        "6232631807220675706c6f616428013220000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f39"
        "0000000000c082404204626f64794a270a204aaaf5e27c0df39dd185dfcafecf894d8f8733a82775d9745a8d7ad617261a45"
        "10011a0178"
    )


def test_the_bytes_of_a_reply_never_change() -> None:
    value = Reply(message_id(RUN, 7, Phase.UPLOAD, 1, SITE), "task_failed", b"body", (Blob(blob_id(b"x"), 1),), 1.5)
    assert reply_to_bytes(value).hex() == (
        "0a200e9ffcdee929232301e491b45c7dd9a2574d8c70acca9892befd42711342a3cc120b7461736b5f6661696c65641a0462"
        "6f647922240a204aaaf5e27c0df39dd185dfcafecf894d8f8733a82775d9745a8d7ad617261a45100129000000000000f83f"
    )


# --- anything at all ---

READERS: tuple[tuple[Callable[[bytes], Any], bytes], ...] = (
    (
        instruction_from_bytes,
        instruction_to_bytes(Instruction(MessageId(bytes(32)), RUN, 1, Phase.UPLOAD, 0, bytes(32), 1.0)),
    ),
    (reply_from_bytes, reply_to_bytes(Reply(MessageId(bytes(32)), blobs=(Blob.of(b"content"),)))),
)


@pytest.mark.parametrize("reader", [reader for reader, _ in READERS], ids=lambda reader: reader.__name__)
@given(data=st.binary(max_size=200))
def test_bytes_that_mean_nothing_raise_a_frame_error(reader: Callable[[bytes], Any], data: bytes) -> None:
    with contextlib.suppress(FrameError):
        reader(data)


@pytest.mark.parametrize(("reader", "good"), READERS, ids=[reader.__name__ for reader, _ in READERS])
@settings(max_examples=200)
@given(data=st.data())
def test_good_bytes_with_some_changed_raise_a_frame_error_or_mean_something(
    reader: Callable[[bytes], Any], good: bytes, data: st.DataObject
) -> None:
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(FrameError):
        reader(bytes(changed))


def test_a_phase_of_a_newer_version_is_refused() -> None:
    proto = instruction_to_proto(Instruction(MessageId(bytes(32)), RUN, 1, Phase.UPLOAD, 0, bytes(32), 1.0))
    proto.phase = "unlearn"
    with pytest.raises(FrameError, match="phase"):
        instruction_from_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "blob",
    [
        common_pb2.Blob(id=blob_id(b"x"), size=4000, inline=b"x"),
        common_pb2.Blob(id=blob_id(b"y"), size=1, inline=b"x"),
        common_pb2.Blob(id=b"x", size=1),
        common_pb2.Blob(id=bytes(32), size=2**63),
        common_pb2.Blob(id=bytes(32), size=0),
    ],
    ids=["longer than it is", "another content", "no name", "too large", "not the name of nothing"],
)
def test_a_reply_whose_blob_lies_is_refused(blob: common_pb2.Blob) -> None:
    proto = reply_to_proto(Reply(MessageId(bytes(32))))
    proto.blobs.append(blob)
    with pytest.raises(FrameError):
        reply_from_bytes(proto.SerializeToString())


# --- runs, for operators ---

VIEW = RunView(
    run=RUN,
    study="malignancy",
    study_digest=bytes(32),
    kind="study",
    protection="none",
    state=RunState.PAUSED,
    rounds=10,
    round_number=3,
    phase="train",
    reason=QuorumMissingError("Too few sites", expected="3", got="2", action="Resume"),
    sites=(SiteProgress(SITE, Progress.REFUSED, "task_failed"),),
    results=(RoundResult(2, (SITE,), {"auc": 0.5}, {"train": 1.5}, 10, 20, {"south": "absent"}),),
    started_unix_s=1.0,
    changed_unix_s=2.0,
    model_available=True,
)


def test_a_run_survives_the_wire_with_its_reason() -> None:
    arrived = run_from_proto(run_to_proto(VIEW))
    assert isinstance(arrived.reason, QuorumMissingError)
    assert str(arrived.reason) == str(VIEW.reason)
    assert run_to_proto(arrived) == run_to_proto(VIEW)


@pytest.mark.parametrize("field", ["state", "site"])
def test_a_state_of_a_newer_version_is_refused(field: str) -> None:
    proto = run_to_proto(VIEW)
    if field == "state":
        proto.state = "hibernating"
    else:
        proto.sites[0].state = "dreaming"
    with pytest.raises(FrameError):
        run_from_proto(proto)
