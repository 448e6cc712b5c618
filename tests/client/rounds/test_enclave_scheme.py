"""Sites with real engines, and the loop of an attested machine: what they vote for, what opens, and what whoever runs
the machine gets by starting it again. Nothing is sealed to the machine here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import QuorateError, SumRefusedError, VoteRefusedError
from quorate.identity import SiteName
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.secagg.enclave import opening_purpose
from quorate.secagg.study_key import StudyKey, open_stream, seal_stream
from quorate.secagg.terms import Terms
from quorate.study.attestation_section import Attestation
from quorate.study.robust_section import Robust
from quorate.study.study import Rounds
from quorate.wire.sum_messages import (
    PlainOpening,
    SumWork,
    plain_opening_from_bytes,
    plain_opening_to_bytes,
    sum_answer_from_bytes,
    sum_work_from_bytes,
    sum_work_to_bytes,
)
from quorate_server.rounds.progress import StoredSum
from tests.client.engine_kit import (
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
)
from tests.client.run_kit import NAMES, EngineSite, engines
from tests.server.study_kit import RUN, Killed, MemoryExchange, when, with_answer

EAST, NORTH, SOUTH, WEST = NAMES
OTHERS = (EAST, NORTH, SOUTH)
ATTESTATION = Attestation.model_validate(
    {"required": True, "policy": {"environment": "development", "software": {"keys": ["ab" * 32]}}}
)
ROUNDS = Rounds(count=2, quorum=3, weights="equal")
pytestmark = pytest.mark.usefixtures("installed")


def an_enclave(folder: Path, **changes: Any) -> AbstractContextManager[MemoryExchange]:
    return engines(folder, mode="enclave", **{"attestation": ATTESTATION, "rounds": ROUNDS} | changes)


def dies_in(exchange: MemoryExchange, phase: Phase, round_number: int = 1) -> None:
    """The machine, when the last site's reply is stored."""

    def tamper(site: SiteName, instruction: Instruction, reply: Reply) -> Iterator[Reply]:
        yield reply
        if (site, instruction.phase, instruction.round_number) == (WEST, phase, round_number):
            raise Killed

    exchange.tamper = tamper
    with pytest.raises(Killed):
        exchange.loop().run()
    exchange.tamper = lambda _, __, reply: (reply,)


def asked(exchange: MemoryExchange, phase: Phase, round_number: int = 1) -> list[tuple[int, SumWork]]:
    """With the attempt."""
    return [
        (sent.attempt, sum_work_from_bytes(sent.body))
        for _, sent in exchange.sent
        if (sent.phase, sent.round_number) == (phase, round_number)
    ]


def study_key(exchange: MemoryExchange) -> StudyKey:
    """Whoever works with a site has it."""
    return StudyKey(exchange.sites[WEST].study_key_path.read_bytes())


@contextmanager
def opening_of(exchange: MemoryExchange, number: int) -> Iterator[list[PlainOpening]]:
    """What opens a sum, as a colluder reads it; what is put in its place is sealed as the machine would seal it."""
    sums = exchange.progress.sums
    (stored,) = [one for one in sums if one.round_number == number]
    purpose = opening_purpose(Terms(exchange.study.digest(), RUN, number, stored.attempt))
    with exchange.open(stored.opening) as file:
        held = [plain_opening_from_bytes(b"".join(open_stream(file, study_key(exchange), purpose)))]
    yield held
    sealed = exchange.blobs.put(b"".join(seal_stream([plain_opening_to_bytes(held[0])], study_key(exchange), purpose)))
    changed = StoredSum(round_number=number, attempt=stored.attempt, updates=stored.updates, opening=sealed)
    exchange.progress = exchange.progress.after(sums=tuple(changed if one is stored else one for one in sums))


# --- a run ---


def test_the_model_is_the_one_without_protection_at_every_site(tmp_path: Path) -> None:
    weights = {}
    for mode in ("enclave", "none"):
        changes = {"attestation": ATTESTATION} if mode == "enclave" else {}
        with engines(tmp_path / mode, mode=mode, rounds=ROUNDS, **changes) as exchange:
            exchange.loop().run()
            assert all(not site.errors for site in exchange.sites.values())
            weights[mode] = [site.weights() for site in exchange.sites.values()]
    assert all(np.array_equal(weights["none"][0], each) for each in weights["enclave"])


def test_a_robust_value_in_the_place_of_the_average_is_one_model_at_every_site(tmp_path: Path) -> None:
    with an_enclave(tmp_path, robust=Robust(rule="median", largest_norm=2.0)) as exchange:
        exchange.loop().run()
        first, *others = [site.weights() for site in exchange.sites.values()]
        assert all(np.array_equal(first, other) for other in others)


def test_what_the_server_keeps_and_passes_on_holds_no_words_and_no_counts_in_the_clear(tmp_path: Path) -> None:
    with an_enclave(tmp_path) as exchange:
        exchange.loop().run()
        with opening_of(exchange, 1) as held:
            words = exchange.blobs.content[held[0].updates]
        updates = [
            exchange.blobs.content[blob.id] if blob.inline is None else blob.inline
            for _, instruction, reply in exchange.stored.values()
            if (instruction.phase, instruction.round_number) == (Phase.UPLOAD, 1)
            for blob in reply.blobs
        ]
        total = sum(np.frombuffer(update, "<u4") for update in updates).astype("<u4").tobytes()
        assert len(updates) == 4
        assert total[:64] not in words
        assert held[0].survivors == NAMES


# --- the machine is started again ---


@pytest.mark.parametrize("phase", [Phase.UPLOAD, Phase.VOTE])
@pytest.mark.parametrize("number", [0, 1])
def test_a_machine_that_is_started_again_makes_the_very_same_sum(tmp_path: Path, phase: Phase, number: int) -> None:
    with an_enclave(tmp_path) as exchange:
        dies_in(exchange, phase, number)
        exchange.loop().run()
        votes = asked(exchange, Phase.VOTE, number)
        assert {attempt for attempt, _ in votes} == {0}
        assert len({work.digest for _, work in votes}) == 1
        assert exchange.results[1].contributed == NAMES


def test_votes_are_for_one_sum_whatever_a_colluder_brings_to_a_machine_that_is_started_again(tmp_path: Path) -> None:
    """Else who runs the machine and a site get the median of the others beside as many values as they like."""
    with an_enclave(tmp_path, robust=Robust(rule="median")) as exchange:
        dies_in(exchange, Phase.VOTE)
        for message, (site, instruction, reply) in list(exchange.stored.items()):
            if (site, instruction.phase, instruction.round_number) == (WEST, Phase.UPLOAD, 1):
                (blob,) = reply.blobs
                update = exchange.blobs.put(b"\xff\xff\xff\x0f" * (blob.size // 4))
                exchange.stored[message] = (site, instruction, replace(reply, blobs=(update,)))
        exchange.loop().run()
        digests = {
            attempt: {work.digest for a, work in asked(exchange, Phase.VOTE) if a == attempt} for attempt in (0, 1)
        }
        assert len(digests[0]) == 2
        assert [stored.attempt for stored in exchange.progress.sums if stored.round_number == 1] == [1]


def test_a_site_votes_for_one_sum_over_the_same_survivors(tmp_path: Path) -> None:
    with an_enclave(tmp_path) as exchange:
        dies_in(exchange, Phase.VOTE)
        site: EngineSite = exchange.sites[EAST]
        (vote,) = [sent for who, sent in exchange.sent if (who, sent.phase, sent.round_number) == (EAST, Phase.VOTE, 1)]
        work = sum_work_from_bytes(vote.body)
        other = replace(vote, message_id=b"o" * 32, body=sum_work_to_bytes(replace(work, digest=b"d" * 32)))
        assert site.answer(other).code == VoteRefusedError.code
        fewer = replace(vote, message_id=b"f" * 32, body=sum_work_to_bytes(replace(work, survivors=OTHERS)))
        assert site.answer(fewer).code == VoteRefusedError.code
        nothing = replace(vote, message_id=b"n" * 32, body=sum_work_to_bytes(replace(work, digest=b"")))
        assert site.answer(nothing).code == VoteRefusedError.code


# --- what opens a sum, put together by a colluder who has the study key ---


FORGED: dict[str, Callable[[PlainOpening], PlainOpening]] = {
    "other counts": lambda it: replace(it, counts=(it.counts[0] // 2, *it.counts[1:])),
    "another key": lambda it: replace(it, key=b"k" * 32),
    "other survivors": lambda it: replace(it, survivors=it.survivors[:3]),
    "another model": lambda it: replace(it, model=b"m" * 32),
    "too few votes": lambda it: replace(it, votes=it.votes[:2]),
    "one vote three times": lambda it: replace(it, votes=it.votes[:1] * 3),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_sum_that_was_not_voted_for_is_refused_though_it_is_sealed_under_the_study_key(
    tmp_path: Path, change: Callable[[PlainOpening], PlainOpening]
) -> None:
    with an_enclave(tmp_path) as exchange:
        dies_in(exchange, Phase.UPLOAD, 2)
        exchange.progress = exchange.progress.after(attempt=1, reached=1)
        with opening_of(exchange, 1) as held:
            held[0] = change(held[0])
        for site in exchange.sites.values():
            for state in (site.folder / "runs" / RUN).glob("model-*.state"):
                state.unlink()
            site.restart()
        exchange.loop().run()  # it is taken back, and trained anew
        refused = [site.errors["upload", 2] for site in exchange.sites.values() if site.errors]
        assert len(refused) >= 2
        assert {type(error) for error in refused} == {SumRefusedError}
        assert [stored.attempt for stored in exchange.progress.sums if stored.round_number == 1] == [2]


# --- sites that do not play fair ---


def changed(**said: Any) -> Callable[[Reply], Reply]:
    return lambda reply: with_answer(reply, **said)


def weighing(weight: int) -> Callable[[Reply], Reply]:
    def change(reply: Reply) -> Reply:
        _, *counts = sum_answer_from_bytes(reply.body).plain_counts
        return with_answer(reply, plain_counts=(weight, *counts))

    return change


UNFAIR: dict[str, tuple[Callable[[Reply], Reply], str]] = {
    "another study key": (changed(study_key=b"w" * 32), "base_model_mismatch"),
    "another model": (changed(model=b"w" * 32), "base_model_mismatch"),
    "no salt": (changed(salt=b""), "bad_contribution"),
    "a weight that outweighs the others": (weighing(WEIGHT_ONE), "bad_contribution"),
    "no weight to speak of": (weighing(1), "bad_contribution"),
    "more sets than a site votes for": (changed(opened=(OTHERS,) * 3), "bad_contribution"),
    "a count out of range": (changed(plain_counts=(WEIGHT_ONE // 4, 2**62, 0, 0)), "bad_contribution"),
}


@pytest.mark.parametrize(("change", "code"), UNFAIR.values(), ids=UNFAIR)
def test_who_brings_what_would_keep_the_others_from_the_sum_is_named_and_left_out(
    tmp_path: Path, change: Callable[[Reply], Reply], code: str
) -> None:
    with an_enclave(tmp_path) as exchange:
        exchange.tamper = when([WEST], Phase.UPLOAD, change)
        exchange.loop().run()
        assert exchange.results[1].contributed == OTHERS
        assert exchange.results[1].missing == {WEST: code}


def test_a_sum_that_is_larger_than_clipped_updates_together_is_refused(tmp_path: Path) -> None:
    """Else one site makes the average what it likes; a robust rule leaves it out."""

    def huge(reply: Reply) -> Reply:
        (blob,) = reply.blobs
        return replace(reply, blobs=(exchange.blobs.put(b"\xff\xff\xff\x7f" * (blob.size // 4)),))

    with an_enclave(tmp_path / "mean") as exchange:
        exchange.tamper = when([WEST], Phase.UPLOAD, huge)
        with pytest.raises(QuorateError):
            exchange.loop().run()
        assert {type(site.errors["upload", 2]) for site in exchange.sites.values()} == {SumRefusedError}
    with an_enclave(tmp_path / "median", robust=Robust(rule="median")) as exchange:
        exchange.tamper = when([WEST], Phase.UPLOAD, huge)
        exchange.loop().run()
        assert exchange.results[1].contributed == NAMES
