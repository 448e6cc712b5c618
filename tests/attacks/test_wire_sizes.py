"""A site or a server that sends something longer than it can be, or that opens nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from quorate.errors import FrameError, KeyPartRefusedError, QuorumMissingError, StudyKeyRefusedError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import MAX_BODY_BYTES, MessageId, Phase, Reply
from quorate.secagg.opening import Opening
from quorate.secagg.share_boxes import message_bytes
from quorate.secagg.sizes import KEY_PART_BYTES, most_opening_bytes, require_bytes, shares_bytes
from quorate.secagg.study_key import SealedPart
from quorate.secagg.terms import Hello, Reveal, Vote, bound
from quorate.wire.sum_messages import (
    SumAnswer,
    SumWork,
    opening_from_bytes,
    opening_to_bytes,
    shares_to_bytes,
    sum_answer_from_bytes,
    sum_answer_to_bytes,
    sum_work_from_bytes,
    sum_work_to_bytes,
)
from quorate_server.runs.live_run import max_reply_bytes
from tests.attacks.hand_server import RUN as HAND_RUN
from tests.attacks.hand_server import VICTIM, HandServer, fresh_fixture, server_fixture
from tests.server.sites_kit import a_consortium
from tests.server.study_kit import NAMES, RUN, MemoryExchange, Tamper, each_of, when

__all__ = ["fresh_fixture", "server_fixture"]

EAST, NORTH, SOUTH, WEST = NAMES
OTHERS = (EAST, NORTH, SOUTH)
SIGNATURE = bytes(64)


# --- parts of the study key ---


def signed_boxes(exchange: MemoryExchange, liar: SiteName, box: bytes, of: Iterable[SiteName]) -> Tamper:
    """A site puts other bytes into its parts for these sites, and signs them."""
    recipients = set(of)

    def change(reply: Reply) -> Reply:
        answer = sum_answer_from_bytes(reply.body)
        digest, sign = exchange.study.digest(), exchange.sites[liar].keys.signing.sign
        parts = {
            site: SealedPart(
                liar, box, sign(bound(b"key part", digest, RUN.encode(), liar.encode(), site.encode()) + box)
            )
            if site in recipients
            else part
            for site, part in answer.parts.items()
        }
        return replace(reply, body=sum_answer_to_bytes(replace(answer, parts=parts)))

    return when([liar], Phase.KEYS, change, round_number=0)


@pytest.mark.parametrize("length", [0, KEY_PART_BYTES - 1, KEY_PART_BYTES + 1, MAX_BODY_BYTES - 2000])
def test_a_part_of_the_study_key_of_another_length_costs_the_site_that_sent_it_and_nobody_else(length: int) -> None:
    """Of nearly a megabyte, it made what the others were to be sent too long: the run was dead and nobody named."""
    exchange = a_consortium(mode="secagg", rounds={"count": 1})
    exchange.tamper = signed_boxes(exchange, WEST, os.urandom(length), [EAST])
    exchange.loop().run()
    assert sorted(exchange.results) == [1]
    assert list(exchange.refused.values()) == [FrameError.code]
    (message,) = exchange.refused
    assert exchange.stored[message][0] == WEST


def test_a_part_that_opens_nowhere_names_its_sender_once_more_sites_say_so_than_may_lie() -> None:
    """Each ended in "distrust the server", and nothing said whose part it was."""
    exchange = a_consortium(mode="secagg", rounds={"count": 1})
    exchange.tamper = signed_boxes(exchange, WEST, os.urandom(KEY_PART_BYTES), OTHERS)
    with pytest.raises(QuorumMissingError, match="fault of west") as caught:
        exchange.loop().run()
    assert KeyPartRefusedError.code in caught.value.codes
    assert not any(f"fault of {name}" in str(caught.value) for name in OTHERS)


def test_as_many_sites_as_may_lie_cannot_frame_another_one() -> None:
    exchange = a_consortium(mode="secagg", rounds={"count": 1})

    def accuse(reply: Reply) -> Reply:
        return Reply(reply.message_id, KeyPartRefusedError.code, alleged=EAST)

    def nothing(reply: Reply) -> Reply:
        return Reply(reply.message_id, "site_paused")

    exchange.tamper = each_of(
        when([WEST], Phase.HELLO, accuse, round_number=0), when([NORTH], Phase.HELLO, nothing, round_number=0)
    )
    with pytest.raises(QuorumMissingError) as caught:
        exchange.loop().run()
    assert "key_part_refused" in str(caught.value)
    assert "fault of" not in str(caught.value)


@pytest.mark.parametrize("alleged", ["West", "\x1b]0;owned\x07", "x" * 64])
def test_nobody_is_accused_by_a_name_that_is_none(alleged: str) -> None:
    """It is shown on terminals."""
    with pytest.raises(FrameError):
        Reply(MessageId(bytes(32)), "key_part_refused", alleged=alleged)
    with pytest.raises(FrameError):
        Reply(MessageId(bytes(32)), alleged="west")


def test_a_name_that_is_not_in_the_study_is_passed_over() -> None:
    exchange = a_consortium(mode="secagg", rounds={"count": 1})

    def accuse(reply: Reply) -> Reply:
        return Reply(reply.message_id, KeyPartRefusedError.code, alleged="patient-x")

    exchange.tamper = when([EAST, WEST], Phase.HELLO, accuse, round_number=0)
    with pytest.raises(QuorumMissingError) as caught:
        exchange.loop().run()
    assert "patient-x" not in str(caught.value)


async def test_a_site_says_whose_signed_part_does_not_open_and_keeps_no_key(server: HandServer) -> None:
    liar = server.sites[SiteName("west")]
    box = os.urandom(KEY_PART_BYTES)
    signing, _ = liar.keys.for_secure_sums()
    context = bound(b"key part", server.study.digest(), HAND_RUN.encode(), b"west", VICTIM.encode())
    forged = SealedPart(SiteName("west"), box, signing.sign(context + box))
    path = server.sites[VICTIM].folder / "keys" / "studies" / f"{HAND_RUN}.key"
    kept = path.read_bytes()
    path.unlink()
    way = server.way(VICTIM)
    bad = replace(way, parts=tuple(forged if part.sender == "west" else part for part in way.parts))
    with pytest.raises(KeyPartRefusedError, match="west") as caught:
        await server.ask(VICTIM, Phase.HELLO, 2, bad)
    assert caught.value.alleged == "west"
    unsigned = replace(forged, signature=SIGNATURE)
    worse = replace(way, parts=tuple(unsigned if part.sender == "west" else part for part in way.parts))
    with pytest.raises(StudyKeyRefusedError) as refused:
        await server.ask(VICTIM, Phase.HELLO, 2, worse, attempt=1)
    assert refused.value.alleged == ""  # anybody may have changed it
    assert not path.exists()
    await server.ask(VICTIM, Phase.HELLO, 2, way, attempt=2)
    assert path.read_bytes() == kept


# --- every field that a site sends for another ---

NAME = SiteName("x" * 64)
PART = SealedPart(EAST, bytes(KEY_PART_BYTES), SIGNATURE)
HELLO = Hello(EAST, bytes(32), SIGNATURE)
OPENING = Opening((HELLO,), bytes(32), (EAST,), b"", bytes(32), (Vote(EAST, SIGNATURE),), (), (HELLO,))
ANSWERS: dict[str, SumAnswer] = {
    "a part's box": SumAnswer(parts={WEST: replace(PART, box=bytes(81))}),
    "a part's signature": SumAnswer(parts={WEST: replace(PART, signature=bytes(65))}),
    "a part's sender": SumAnswer(parts={WEST: replace(PART, sender=NAME)}),
    "a part's recipient": SumAnswer(parts={NAME: PART}),
    "a hello's key": SumAnswer(hello=replace(HELLO, round_key=bytes(33))),
    "a hello's signature": SumAnswer(hello=replace(HELLO, signature=bytes(1_000_000))),
    "masked counts": SumAnswer(counts=bytes(13 * 8194)),
    "a vote": SumAnswer(vote=Vote(EAST, b"")),
    "a reveal's signature": SumAnswer(reveal=Reveal(EAST, b"", bytes(63))),
    "a model": SumAnswer(model=bytes(31)),
}
WORKS: dict[str, SumWork] = {
    "a part": SumWork(parts=(replace(PART, box=bytes(79)),)),
    "a hello": SumWork(hellos=(replace(HELLO, round_key=bytes(31)),)),
    "a survivor": SumWork(survivors=(NAME,)),
    "a digest": SumWork(digest=bytes(33)),
    "a vote": SumWork(votes=(Vote(EAST, bytes(65)),)),
}
OPENINGS: dict[str, Opening] = {
    "a hello": replace(OPENING, hellos=(replace(HELLO, round_key=bytes(33)),)),
    "a hello that follows": replace(OPENING, following=(replace(HELLO, round_key=bytes(900_000)),)),
    "a survivor": replace(OPENING, survivors=(NAME,)),
    "counts": replace(OPENING, counts=bytes(13 * 8194)),
    "a name": replace(OPENING, ciphertext=bytes(33)),
    "a model": replace(OPENING, model=bytes(33)),
    "a vote": replace(OPENING, votes=(Vote(EAST, bytes(1)),)),
    "a reveal": replace(OPENING, reveals=(Reveal(EAST, b"", bytes(65)),)),
}


def refuses(read: Callable[[bytes], object], content: bytes) -> bool:
    try:
        read(content)
    except FrameError:
        return True
    return False


@pytest.mark.parametrize("field", ANSWERS)
def test_the_server_keeps_no_field_of_another_length(field: str) -> None:
    assert refuses(sum_answer_from_bytes, sum_answer_to_bytes(ANSWERS[field]))


@pytest.mark.parametrize("field", WORKS)
def test_a_site_uses_no_field_of_another_length(field: str) -> None:
    assert refuses(sum_work_from_bytes, sum_work_to_bytes(WORKS[field]))


@pytest.mark.parametrize("field", OPENINGS)
def test_nothing_of_another_length_opens_a_sum(field: str) -> None:
    assert refuses(opening_from_bytes, opening_to_bytes(OPENINGS[field]))
    assert not refuses(opening_from_bytes, opening_to_bytes(OPENING))


# --- what is announced to a site ---


@pytest.mark.parametrize("extra", [1, 400 * 1024 * 1024])
async def test_a_site_fetches_no_shares_of_another_length(server: HandServer, extra: int) -> None:
    """Announced with 400 MiB, they were fetched and read: the daemon held 903 MiB."""
    summed = server.add(await server.collect(2, await server.greet(2)))
    announced = Blob(BlobId(os.urandom(32)), len(summed.boxes_for(VICTIM)) + extra)
    asked = SumWork(survivors=summed.survivors, digest=summed.digest, shares=announced)
    with server.refused(FrameError.code):
        await server.ask(VICTIM, Phase.VOTE, 2, asked)
    assert (await server.vote(VICTIM, summed)).site == VICTIM


async def test_a_site_fetches_nothing_to_open_a_sum_that_is_longer_than_it_can_be(server: HandServer) -> None:
    last = server.sums[-1]
    longer = replace(last, opening=Blob(BlobId(os.urandom(32)), most_opening_bytes(4) + 1))
    way = replace(server.way(VICTIM), sums=(server.sums[0], longer))
    with server.refused(FrameError.code):
        await server.arrive(VICTIM, 2, way)


def test_what_is_passed_on_of_shares_has_exactly_the_size_of_the_rule() -> None:
    for names in ([EAST], [EAST, SiteName("x" * 63)], [SiteName(f"site-{number}") for number in range(40)]):
        for words in (1, 20, 2500):
            content = shares_to_bytes({name: bytes(message_bytes(words)) for name in names})
            require_bytes("shares", len(content), shares_bytes(names, words))


# --- what a site may upload at all ---


@pytest.mark.parametrize("phase", [Phase.KEYS, Phase.HELLO, Phase.VOTE, Phase.REVEAL])
def test_a_site_uploads_nothing_for_a_reply_that_has_no_bulk_data(phase: Phase) -> None:
    """It filled the server's disk with 64 MiB for each of them, until its reply had been looked at."""
    study = a_consortium(mode="secagg").study
    assert max_reply_bytes(study, 1000, phase) == 0
    assert max_reply_bytes(study, 1000, Phase.UPLOAD) > 0
