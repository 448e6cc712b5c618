"""Rounds without protection: what the server reads in them, and what it does not take."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import ModelDisagreementError, QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.wire.sum_messages import sum_answer_from_bytes
from quorate_server.rounds.aggregate import PlainAdder
from quorate_server.rounds.schemes.plain import PlainScheme
from tests.server.sites_kit import OWN_COUNTS, a_consortium, opening_of
from tests.server.study_kit import DIMENSION, NAMES, MemoryExchange, a_tally, honest, silent, when, with_answer

EAST, NORTH, SOUTH, WEST = NAMES


def run_to_its_end(exchange: MemoryExchange) -> MemoryExchange:
    exchange.loop().run()
    return exchange


def counting(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[[Reply], Reply]:
    """Other counts beside an update."""
    return lambda reply: with_answer(reply, plain_counts=change(sum_answer_from_bytes(reply.body).plain_counts))


def own(**changes: int) -> Callable[[Reply], Reply]:
    """Other counts of a training."""
    places = {"weight": 0, "records": 1, "loss": 2, "clipped": 3}

    def change(counts: tuple[int, ...]) -> tuple[int, ...]:
        changed = list(counts)
        for name, value in changes.items():
            changed[places[name]] = value
        return tuple(changed)

    return counting(change)


# --- metrics ---


def test_a_round_is_one_exchange_and_its_metrics_are_known_with_the_next_sum() -> None:
    exchange = run_to_its_end(a_consortium())
    steps = [(i.phase, i.round_number) for site, i in exchange.sent if site == WEST]
    assert [step for step in steps if step[0] is not Phase.CHECKPOINT] == [
        *((Phase.UPLOAD, number) for number in range(5)),
        (Phase.RELEASE, 4),
    ]
    for number in (1, 2, 3):
        metrics = exchange.results[number].metrics
        assert metrics["train_loss"] == pytest.approx(0.5)
        assert metrics["loss"] == pytest.approx(0.25)
        assert metrics["accuracy"] == metrics["auc"] == 1.0
    with_results = [progress.summed for progress in exchange.commits if progress.evaluated == 2]
    assert with_results[0] == 4, "with the sum that evaluates the model of round 2"


def test_statistics_and_weights_are_the_sums_of_all_sites() -> None:
    exchange = run_to_its_end(a_consortium(rounds={"count": 1}))
    assert opening_of(exchange, 0).counts == (100, 300)
    (weight,) = opening_of(exchange, 1).counts
    assert abs(weight - WEIGHT_ONE) <= 4


def test_the_sites_get_no_counts_of_each_others_records() -> None:
    """Of two sites each had the other's confusion from the difference: exact, and over however few records."""
    exchange = run_to_its_end(a_consortium(NAMES[:2], records=(30, 3), rounds={"count": 2, "quorum": 2}))
    assert [len(opening_of(exchange, number).counts) for number in range(2, 4)] == [1, 1]
    assert exchange.results[2].metrics["accuracy"] == 1.0


def test_coordinates_that_were_clipped_are_told() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([EAST, WEST], Phase.UPLOAD, own(clipped=2))
    assert run_to_its_end(exchange).results[1].metrics["clipped_coordinates"] == 4


def test_a_study_that_evaluates_at_its_end_has_metrics_of_the_last_round_only() -> None:
    exchange = run_to_its_end(a_consortium(rounds={"evaluate": "last"}))
    assert [set(exchange.results[number].metrics) for number in (1, 2)] == [{"train_loss"}] * 2
    assert exchange.results[3].metrics["accuracy"] == 1.0


def test_rates_over_few_records_are_told_to_nobody() -> None:
    exchange = run_to_its_end(a_consortium(records=(2, 3, 2, 2), rounds={"count": 1}))
    assert exchange.results[1].metrics == {}


def test_of_training_records_nothing_is_told_where_privacy_is_promised() -> None:
    privacy = {"delta": 1e-5, "average": {"clip": 1.0, "noise_multiplier": 1.0}}
    exchange = a_consortium(rounds={"count": 1, "weights": "equal", "evaluate": "never"}, privacy=privacy)
    assert run_to_its_end(exchange).results[1].metrics == {}


# --- sites that send something else ---


TRAIN_ATTACKS: dict[str, Callable[[Reply], Reply]] = {
    "a weight that is too high": own(weight=WEIGHT_ONE + 1),
    "no weight": own(weight=0),
    "no model": lambda reply: with_answer(reply, model=b""),
    "no counts": counting(lambda _: ()),
    "two counts": counting(lambda counts: counts[:2]),
    "no records": own(records=0),
    "a count below nothing": own(clipped=-1),
    "a huge count": own(loss=2**63 - 1),
    "no update": lambda reply: replace(reply, blobs=()),
    "two updates": lambda reply: replace(reply, blobs=reply.blobs * 2),
    "an update that is not told of": lambda reply: with_answer(reply, has_update=False),
    "metrics": lambda reply: with_answer(reply, metrics={1: {"auc": 1.0}}),
}


@pytest.mark.parametrize("liar", [EAST, WEST], ids=["first to answer", "last to answer"])
@pytest.mark.parametrize("attack", TRAIN_ATTACKS)
def test_an_update_of_another_form_is_refused_and_the_sum_is_that_of_the_others(attack: str, liar: Any) -> None:
    exchange = a_consortium(rounds={"count": 2})
    exchange.tamper = when([liar], Phase.UPLOAD, TRAIN_ATTACKS[attack])
    run_to_its_end(exchange)
    without = a_consortium(rounds={"count": 2})
    without.tamper = when([liar], Phase.UPLOAD, lambda reply: Reply(reply.message_id, "bad_contribution"))
    run_to_its_end(without)
    assert exchange.progress.sums == without.progress.sums
    assert exchange.results[1].missing == {liar: "bad_contribution"}
    assert list(exchange.refused.values()) == ["bad_contribution"]


def test_updates_whose_weights_are_too_high_together_are_refused() -> None:
    exchange = a_consortium(rounds={"count": 2, "quorum": 2})
    exchange.tamper = when([NORTH, SOUTH, WEST], Phase.UPLOAD, own(weight=WEIGHT_ONE))
    run_to_its_end(exchange)
    assert exchange.results[1].contributed == (EAST, NORTH)
    assert exchange.results[1].missing == {SOUTH: "bad_contribution", WEST: "bad_contribution"}


def test_the_weights_of_those_who_hold_other_models_take_no_room_from_the_others() -> None:
    """Two liars who answer first, each from a model of its own: the honest sites' updates were refused for them."""
    exchange = a_consortium(rounds={"count": 2, "quorum": 2})

    def elsewhere(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        if site in (EAST, NORTH) and (instruction.phase, instruction.round_number) == (Phase.UPLOAD, 1):
            return (with_answer(own(weight=WEIGHT_ONE)(reply), model=site.encode().ljust(32)),)
        return (reply,)

    exchange.tamper = elsewhere
    run_to_its_end(exchange)
    assert exchange.results[1].contributed == (SOUTH, WEST)


STATISTICS_ATTACKS: dict[str, Callable[[Reply], Reply]] = {
    "no records": counting(lambda _: (0, 0)),
    "no counts": counting(lambda _: ()),
    "a record count below nothing": counting(lambda _: (-5, 0)),
    "counts that overflow the sum": counting(lambda _: (2**62, 2**62)),
    "no model": lambda reply: with_answer(reply, dimension=0),
    "more counts": counting(lambda _: (1, 2, 3)),
    "an update": lambda reply: replace(with_answer(reply, has_update=True), blobs=(Blob.of(bytes(4 * DIMENSION)),)),
}


@pytest.mark.parametrize("attack", STATISTICS_ATTACKS)
def test_whoever_answers_first_does_not_decide_what_is_summed_of_the_statistics(attack: str) -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([EAST], Phase.UPLOAD, STATISTICS_ATTACKS[attack], 0)
    run_to_its_end(exchange)
    assert opening_of(exchange, 0).counts == (70, 210)
    assert exchange.progress.dimension == DIMENSION


def test_counts_that_the_study_does_not_ask_for_are_refused() -> None:
    """Whoever tells them tells of held-out records what nobody agreed to."""
    exchange = a_consortium(rounds={"count": 2, "evaluate": "last"})
    exchange.tamper = when([WEST], Phase.UPLOAD, counting(lambda counts: (*counts, *a_tally(10))), 2)
    run_to_its_end(exchange)
    assert list(exchange.refused.values()) == ["bad_contribution"]


@pytest.mark.parametrize("told", [(), (1, 2, 3), a_tally(10)[:-1], (-1, *a_tally(10)[1:])])
@pytest.mark.parametrize("number", [2, 3])
def test_counts_that_are_no_evaluation_are_refused(told: tuple[int, ...], number: int) -> None:
    exchange = a_consortium(rounds={"count": 2})
    exchange.tamper = when([WEST], Phase.UPLOAD, counting(lambda counts: (*counts[:OWN_COUNTS], *told)), number)
    run_to_its_end(exchange)
    assert list(exchange.refused.values()) == ["bad_contribution"]
    assert exchange.results[number - 1].metrics["accuracy"] == 1.0


def test_a_training_that_is_told_of_in_the_last_sum_is_refused() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([WEST], Phase.UPLOAD, own(records=5), 2)
    run_to_its_end(exchange)
    assert list(exchange.refused.values()) == ["bad_contribution"]


def test_a_site_with_another_model_is_left_out_of_the_metrics() -> None:
    exchange = a_consortium(rounds={"count": 1})
    wrong = list(a_tally(10))
    wrong[1], wrong[2] = 0, 5  # every negative predicted positive

    def diverged(reply: Reply) -> Reply:
        return with_answer(reply, model=b"\x01" * 32, plain_counts=((0,) * OWN_COUNTS + tuple(wrong)))

    exchange.tamper = when([EAST], Phase.UPLOAD, diverged, 2)
    run_to_its_end(exchange)
    assert opening_of(exchange, 2).survivors == (NORTH, SOUTH, WEST)
    assert exchange.results[1].metrics["accuracy"] == 1.0


# --- a sum that failed ---


def test_a_sum_that_failed_is_not_begun_anew_and_only_those_who_did_not_contribute_are_asked_again() -> None:
    """Whoever was asked under another attempt would compute, and pay for privacy, a second time."""
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([SOUTH, WEST], Phase.UPLOAD, lambda reply: Reply(reply.message_id, "task_failed"))
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    assert exchange.progress.attempt == 0
    exchange.tamper = honest
    exchange.sent.clear()
    exchange.resume().run()
    uploads = [(site, i.attempt) for site, i in exchange.sent if (i.phase, i.round_number) == (Phase.UPLOAD, 1)]
    assert uploads == [(EAST, 0), (NORTH, 0), (SOUTH, 1), (WEST, 1)]
    assert exchange.results[1].contributed == NAMES
    assert exchange.sites[EAST].trained == [(1, 0)]


def test_a_contribution_that_was_refused_is_asked_for_again_after_a_resumption() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([SOUTH, WEST], Phase.UPLOAD, own(weight=0))
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    exchange.tamper = honest
    exchange.resume().run()
    assert exchange.results[1].contributed == NAMES


def test_a_disagreement_leaves_what_was_uploaded_for_a_new_process() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([EAST, WEST], Phase.UPLOAD, lambda reply: with_answer(reply, model=b"\x01" * 32))
    with pytest.raises(ModelDisagreementError):
        exchange.loop().run()
    assert exchange.progress.summed == 1
    assert not exchange.removed & {blob.id for *_, reply in exchange.stored.values() for blob in reply.blobs}


def test_the_updates_are_added_anew_where_others_than_the_first_are_chosen() -> None:
    """EAST answers first, with another model: what was added of it is not in the sum."""
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([EAST], Phase.UPLOAD, lambda reply: with_answer(reply, model=b"\x01" * 32))
    without = a_consortium(rounds={"count": 1})
    without.tamper = silent([EAST], Phase.UPLOAD)
    assert run_to_its_end(exchange).progress.sums == run_to_its_end(without).progress.sums


def test_a_site_that_answers_first_from_another_model_does_not_double_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[PlainAdder]] = []
    adder_of = PlainScheme.adder

    def only_one(scheme: PlainScheme, number: int) -> PlainAdder:
        assert all(before() is None for before in made)
        adder = adder_of(scheme, number)
        made.append(weakref.ref(adder))
        return adder

    monkeypatch.setattr(PlainScheme, "adder", only_one)
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = when([EAST], Phase.UPLOAD, lambda reply: with_answer(reply, model=b"\x01" * 32))
    run_to_its_end(exchange)
    assert len(made) == 4, "one for each of three sums, and another one for the round"


def test_a_checkpoint_is_the_models_state_as_the_sites_agreed_on_it() -> None:
    exchange = run_to_its_end(a_consortium())
    checkpoint = exchange.progress.checkpoint
    assert checkpoint is not None
    assert checkpoint.id == opening_of(exchange, 3).model
    model = np.frombuffer(exchange.blobs.content[checkpoint.id][: 8 * DIMENSION], "<f8")
    np.testing.assert_array_equal(model, exchange.sites[EAST].before)
