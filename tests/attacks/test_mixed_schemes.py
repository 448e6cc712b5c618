"""A message of one kind of protection in a run of the other: nothing comes of it, on either side.

Which kind a run is of follows from the study that was approved, and from nothing that is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.secagg.study_key import SealedPart
from quorate.secagg.terms import Hello, Vote
from quorate.study.study import Rounds
from quorate.wire.sum_messages import (
    PlainOpening,
    SumRef,
    SumWork,
    plain_opening_to_bytes,
    sum_work_from_bytes,
    sum_work_to_bytes,
)
from tests.client.engine_kit import installed_fixture  # noqa: F401  # a fixture, found because it is here
from tests.client.run_kit import EngineSite, engines
from tests.server.sites_kit import a_consortium
from tests.server.study_kit import NAMES, MemoryExchange, when, with_answer

EAST, NORTH, SOUTH, WEST = NAMES
SIGNATURE, KEY = bytes(64), bytes(32)
SECRET_WORK: dict[str, dict[str, Any]] = {
    "parts": {"parts": (SealedPart(EAST, bytes(80), SIGNATURE),)},
    "hellos": {"hellos": (Hello(EAST, KEY, SIGNATURE),)},
    "survivors": {"survivors": NAMES},
    "digest": {"digest": KEY},
    "shares": {"shares": Blob.of(b"shares")},
    "votes": {"votes": (Vote(EAST, SIGNATURE),)},
    "sealer": {"checkpoint_sealer": Vote(EAST, SIGNATURE)},
}


@pytest.fixture(params=["none", "secagg"])
def finished(request: pytest.FixtureRequest, installed: Path, tmp_path: Path) -> Iterator[tuple[str, MemoryExchange]]:
    """A run of real sites that went to its end."""
    with engines(tmp_path, mode=request.param, rounds=Rounds(count=2, quorum=3)) as exchange:
        exchange.loop().run()
        yield request.param, exchange


def plain_sum(number: int, updates: Blob | None, counts: tuple[int, ...], model: bytes = b"") -> SumRef:
    opening = PlainOpening(NAMES, counts, updates.id if updates else b"", model)
    return SumRef(number, 0, updates, Blob.of(plain_opening_to_bytes(opening)))


def asked(exchange: MemoryExchange, phase: Phase, number: int) -> Instruction:
    """What EAST was asked, to be asked again under another name."""
    found = next(i for site, i in exchange.sent if (site, i.phase, i.round_number) == (EAST, phase, number))
    return replace(found, message_id=MessageId(bytes(32)))


def assert_nothing(site: EngineSite, instruction: Instruction, *codes: str) -> None:
    before, trained = site.model_states(), list(site.spool.folder.iterdir())
    reply = site.answer(instruction)
    assert reply.code in codes, reply.code
    assert (reply.body, reply.blobs) == (b"", ())
    assert site.model_states() == before
    assert list(site.spool.folder.iterdir()) == trained


@pytest.mark.parametrize("phase", [Phase.UPLOAD, Phase.CHECKPOINT, Phase.RELEASE])
def test_a_server_that_asks_sites_of_a_secret_study_as_if_nothing_were_protected_gets_nothing(
    installed: Path, tmp_path: Path, phase: Phase
) -> None:
    """It makes up the statistics and the sums, in the form in which they are readable, and asks for an update."""
    with engines(tmp_path, rounds=Rounds(count=2, quorum=3)) as exchange:
        exchange.loop().run()
        east: EngineSite = exchange.sites[EAST]
        last = asked(exchange, Phase.UPLOAD, 2)
        updates = Blob.of(bytes(16))
        sums = (
            plain_sum(0, None, (160, 4, 0, 0, 0)),
            plain_sum(1, updates, (1 << 30, 160, 0, 0)),
            plain_sum(3, None, (0,)),
        )
        for hellos in ((), sum_work_from_bytes(last.body).hellos):
            body = sum_work_to_bytes(SumWork(sums=sums, hellos=hellos))
            instruction = replace(last, phase=phase, body=body, message_id=MessageId(bytes([len(hellos)]) * 32))
            assert_nothing(east, instruction, "vote_refused", "sum_refused")


def test_a_site_that_said_hello_opens_no_sum_that_is_readable(installed: Path, tmp_path: Path) -> None:
    """In the middle of a sum, where it has a part: the way to its model leads over a sum without votes."""
    with engines(tmp_path, rounds=Rounds(count=2, quorum=3)) as exchange:
        east: EngineSite = exchange.sites[EAST]
        answer, codes = east.answer, list[str]()

        def readable(instruction: Instruction) -> Reply:
            if (instruction.phase, instruction.round_number) != (Phase.UPLOAD, 2):
                return answer(instruction)
            work = sum_work_from_bytes(instruction.body)
            (ref,) = work.sums
            forged = plain_sum(1, ref.updates, (1 << 30, 160, 0, 0), KEY)
            reply = answer(replace(instruction, body=sum_work_to_bytes(replace(work, sums=(forged,)))))
            codes.append(reply.code)
            assert (reply.body, reply.blobs) == (b"", ())
            return reply

        east.answer = readable  # type: ignore[method-assign]
        exchange.loop().run()
        assert codes == ["sum_refused"]
        assert exchange.results[2].missing == {EAST: "sum_refused"}


@pytest.mark.parametrize("phase", [Phase.KEYS, Phase.HELLO, Phase.VOTE, Phase.REVEAL, Phase.GUEST])
def test_a_site_of_a_study_without_protection_takes_no_step_of_secure_aggregation(
    installed: Path, tmp_path: Path, phase: Phase
) -> None:
    with engines(tmp_path, mode="none", rounds=Rounds(count=1, quorum=3)) as exchange:
        exchange.loop().run()
        instruction = replace(asked(exchange, Phase.UPLOAD, 1), phase=phase)
        assert_nothing(exchange.sites[EAST], instruction, "bad_frame")
        assert not exchange.sites[EAST].study_key_path.exists()


@pytest.mark.parametrize("what", SECRET_WORK)
def test_what_belongs_to_secure_aggregation_spoils_an_instruction_without_protection(
    installed: Path, tmp_path: Path, what: str
) -> None:
    with engines(tmp_path, mode="none", rounds=Rounds(count=1, quorum=3)) as exchange:
        exchange.loop().run()
        for phase, number in ((Phase.UPLOAD, 1), (Phase.RELEASE, 2)):
            instruction = asked(exchange, phase, number)
            work = replace(sum_work_from_bytes(instruction.body), **SECRET_WORK[what])
            changed = replace(instruction, body=sum_work_to_bytes(work), message_id=MessageId(bytes([number]) * 32))
            assert_nothing(exchange.sites[EAST], changed, "bad_frame")


def test_a_site_of_one_kind_of_study_is_not_moved_by_sums_of_the_other(
    finished: tuple[str, MemoryExchange], tmp_path: Path
) -> None:
    mode, exchange = finished
    other = "secagg" if mode == "none" else "none"
    with engines(tmp_path / "other", mode=other, rounds=Rounds(count=2, quorum=3)) as second:
        second.loop().run()
        exchange.blobs.content |= second.blobs.content
        foreign = sum_work_from_bytes(asked(second, Phase.RELEASE, 3).body)
        work = SumWork(sums=foreign.sums)
        instruction = replace(asked(exchange, Phase.RELEASE, 3), body=sum_work_to_bytes(work))
        assert_nothing(exchange.sites[EAST], instruction, "base_model_mismatch", "sum_refused", "bad_frame")


SECRET_ANSWERS: dict[str, dict[str, Any]] = {
    "parts": {"parts": {EAST: SealedPart(EAST, bytes(80), SIGNATURE)}},
    "hello": {"hello": Hello(WEST, KEY, SIGNATURE)},
    "masked counts": {"counts": bytes(13)},
    "vote": {"vote": Vote(WEST, SIGNATURE)},
    "metrics": {"metrics": {1: {"auc": 1.0}}},
    "opened": {"opened": (NAMES,)},
}


@pytest.mark.parametrize("what", SECRET_ANSWERS)
def test_an_answer_that_belongs_to_secure_aggregation_is_not_added_without_protection(what: str) -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([WEST], Phase.UPLOAD, lambda reply: with_answer(reply, **SECRET_ANSWERS[what]))
    exchange.loop().run()
    assert exchange.results[1].contributed == (EAST, NORTH, SOUTH)
    assert exchange.results[1].missing == {WEST: "bad_contribution"}


@pytest.mark.parametrize("phase", [Phase.HELLO, Phase.UPLOAD])
def test_counts_in_the_clear_are_not_added_under_secure_aggregation(phase: Phase) -> None:
    def in_the_clear(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        here = site in (SOUTH, WEST) and instruction.phase is phase
        return (with_answer(reply, plain_counts=(1, 10, 0, 0)),) if here else (reply,)

    exchange = a_consortium(mode="secagg", rounds={"count": 1})
    exchange.tamper = in_the_clear
    with pytest.raises(QuorumMissingError, match=r"south \(bad_contribution\), west \(bad_contribution\)"):
        exchange.loop().run()
    assert exchange.progress.summed == 0
