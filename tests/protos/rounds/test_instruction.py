"""Envelopes: named by everything that makes them a different piece of work, and valid once built."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import FrameError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import (
    MAX_BODY_BYTES,
    Instruction,
    MessageId,
    Phase,
    Reply,
    message_id,
)

RUN, SITE = RunId("malignancy-0a1b2c"), SiteName("north")
ID = MessageId(bytes(32))


def test_the_name_of_an_instruction_never_changes() -> None:
    name = message_id(RUN, 7, Phase.UPLOAD, 0, SITE)
    assert name.hex() == "c573ed710397587952c9c05641be89b929ce79fd9b45bf9dc1c0d5c3cecb4cd6"
    assert (
        message_id(RUN, 0, Phase.GUEST, 3, SITE, b"salt").hex()
        == "e56c958fde2b05ee681d98ec9c126903977b499ab748b8b63f983f1d6fe43909"
    )


def test_whatever_differs_makes_another_name() -> None:
    names = {
        message_id(RunId(run), number, phase, attempt, SiteName(site), salt)
        for run, number, phase, attempt, site, salt in itertools.product(
            ("a", "ab"), (0, 1, 256), (Phase.UPLOAD, Phase.GUEST), (0, 1), ("b", "bb"), (b"", b"\x00")
        )
    }
    assert len(names) == 2 * 3 * 2 * 2 * 2 * 2


@given(st.text(max_size=8), st.text(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.binary(max_size=8))
def test_no_two_divisions_of_the_same_characters_have_one_name(
    run: str, site: str, salt: bytes, other_site: str, other_salt: bytes
) -> None:
    same = (site, salt) == (other_site, other_salt)
    one = message_id(RunId(run), 1, Phase.UPLOAD, 0, SiteName(site), salt)
    other = message_id(RunId(run), 1, Phase.UPLOAD, 0, SiteName(other_site), other_salt)
    assert (one == other) is same


@pytest.mark.parametrize(
    "changes",
    [{"message_id": b"short"}, {"study_digest": b""}, {"body": bytes(MAX_BODY_BYTES + 1)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_malformed_instruction_cannot_be_built(changes: dict[str, Any]) -> None:
    content: dict[str, Any] = {
        "message_id": ID,
        "run": RUN,
        "round_number": 1,
        "phase": Phase.UPLOAD,
        "attempt": 0,
        "study_digest": bytes(32),
        "deadline_s": 1.0,
    }
    Instruction(**content)
    with pytest.raises(FrameError):
        Instruction(**content | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"message_id": bytes(31)},
        {"code": "x" * 65},
        {"body": bytes(MAX_BODY_BYTES + 1)},
        {"blobs": (Blob.of(b""),) * 17},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_malformed_reply_cannot_be_built(changes: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        Reply(**{"message_id": ID} | changes)
