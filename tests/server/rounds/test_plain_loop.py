"""The study loop with simulated sites: what counts, what does not, and what a kill at any moment changes (nothing)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import DiskFullError, ModelDisagreementError, QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import Progress
from quorate.wire.messages import work_from_bytes
from quorate_server.rounds.phases import Presence
from tests.server.study_kit import (
    DIMENSION,
    NAMES,
    Killed,
    MemoryExchange,
    Tamper,
    a_consortium,
    a_tally,
    with_contribution,
)

EAST, NORTH, SOUTH, WEST = NAMES


def run_to_its_end(exchange: MemoryExchange) -> MemoryExchange:
    exchange.loop().run()
    return exchange


def final_state(exchange: MemoryExchange) -> tuple[Any, ...]:
    """What must not depend on how often the process died: the model, the sums, the results."""
    results = {
        number: (result.contributed, dict(result.metrics), dict(result.missing))
        for number, result in exchange.results.items()
    }
    progress = exchange.progress
    return exchange.model, progress.agreed_digest, progress.sums, progress.checkpoint, results


def asked(exchange: MemoryExchange, phase: Phase) -> list[tuple[SiteName, int, int]]:
    return [(s, i.round_number, i.attempt) for s, i in exchange.sent if i.phase is phase]


def only(sites: Iterable[SiteName], phase: Phase, change: Any) -> Tamper:
    """These sites reply something else in this phase."""

    def tamper(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        return (change(reply),) if site in sites and instruction.phase is phase else (reply,)

    return tamper


# --- all goes well ---


def test_three_rounds_train_the_model_and_count_each_round_once() -> None:
    exchange = run_to_its_end(a_consortium())
    assert sorted(exchange.results) == [1, 2, 3]
    assert all(result.contributed == NAMES for result in exchange.results.values())
    assert all(not result.missing for result in exchange.results.values())
    assert all(site.trained == [1, 2, 3] for site in exchange.sites.values())

    # The weighted mean of the sites' targets, approached by half each round.
    target = sum(site.target * site.records for site in exchange.sites.values()) / 100
    model = np.frombuffer(exchange.model or b"", dtype="<f8")
    assert model == pytest.approx(np.full(DIMENSION, target * (1 - 0.5**3)), abs=1e-6)
    assert all(site.state() == exchange.model for site in exchange.sites.values())

    result = exchange.results[3]
    assert result.metrics["train_loss"] == pytest.approx(0.5)
    assert result.metrics["loss"] == pytest.approx(0.25)
    assert result.metrics["accuracy"] == result.metrics["auc"] == 1.0
    assert set(result.phase_seconds) == {"train", "evaluate"}
    assert result.bytes_up > 4 * 4 * DIMENSION
    assert exchange.progress.released


def test_what_is_obsolete_is_removed_and_what_a_latecomer_needs_is_kept() -> None:
    exchange = run_to_its_end(a_consortium())
    progress = exchange.progress
    assert progress.checkpoint_round == 2
    assert [stored.round_number for stored in progress.sums] == [3]
    assert set(exchange.blobs.content) == progress.blobs()
    assert progress.checkpoint is not None
    assert progress.checkpoint.id == next(c.agreed_digest for c in exchange.commits if c.evaluated == 2)


def test_a_site_that_missed_rounds_gets_all_that_it_needs_and_nothing_more() -> None:
    exchange = run_to_its_end(a_consortium())
    for _, instruction in exchange.sent:
        work = work_from_bytes(instruction.body)
        known = [ref.round_number for ref in work.sums]
        reached = instruction.round_number - (instruction.phase is Phase.TRAIN)
        if instruction.phase is not Phase.PREPARE:
            assert known == list(range(work.checkpoint_round + 1, reached + 1))
            assert {blob.id for blob in instruction.blobs} >= {ref.blob.id for ref in work.sums}


def test_statistics_and_weights_are_the_sums_of_all_sites() -> None:
    exchange = run_to_its_end(a_consortium())
    assert exchange.progress.total_weight == 100
    assert exchange.progress.statistics == (100, 300)
    assert exchange.progress.dimension == DIMENSION
    assert all(abs(stored.weight - WEIGHT_ONE) <= 4 for stored in exchange.progress.sums)


def test_without_a_release_the_model_stays_at_the_sites() -> None:
    exchange = run_to_its_end(a_consortium(release={"model": "sites"}))
    assert exchange.model is None
    assert {site for site, i in exchange.sent if i.phase is Phase.RELEASE} == set(NAMES)


def test_whoever_watches_sees_the_phases_and_who_has_replied() -> None:
    exchange = run_to_its_end(a_consortium())
    assert {status.phase for status in exchange.statuses} >= {"prepare", "train", "evaluate", "checkpoint", "release"}
    assert exchange.statuses[0].sites[0].state is Progress.WORKING
    assert exchange.statuses[-1].round_number == 3


# --- sites that are not there ---


def test_an_absent_site_costs_its_grace_and_not_the_deadline() -> None:
    exchange = a_consortium()
    exchange.gone = {WEST}
    began = exchange.clock.now_s
    run_to_its_end(exchange)
    assert exchange.results[1].missing == {WEST: "absent"}
    assert exchange.results[1].contributed == (EAST, NORTH, SOUTH)
    assert exchange.clock.now_s - began <= 7 * 5.0


def test_a_site_that_never_answers_costs_the_deadline_and_is_told_to_stop() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = lambda site, i, reply: () if site == WEST and i.phase is Phase.TRAIN else (reply,)
    run_to_its_end(exchange)
    assert exchange.results[1].missing == {WEST: "late"}
    (withdrawn,) = [i for s, i in exchange.sent if s == WEST and i.phase is Phase.TRAIN]
    assert withdrawn.message_id in exchange.withdrawn


def test_a_site_that_comes_back_is_in_the_next_round() -> None:
    exchange = a_consortium()
    exchange.gone = {WEST}

    def back_after_the_first_round(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        if site == EAST and instruction.phase is Phase.EVALUATE and instruction.round_number == 1:
            exchange.gone = set()
            exchange.events.append(Presence({}))
        return (reply,)

    exchange.tamper = back_after_the_first_round
    run_to_its_end(exchange)
    assert exchange.results[1].missing == {WEST: "absent"}
    assert exchange.results[2].contributed == NAMES
    assert exchange.sites[WEST].state() == exchange.sites[EAST].state()


def test_a_site_that_refuses_is_named_with_its_code_and_the_others_go_on() -> None:
    exchange = a_consortium()
    exchange.tamper = only([WEST], Phase.TRAIN, lambda reply: Reply(reply.message_id, "policy_refused"))
    run_to_its_end(exchange)
    assert all(result.missing == {WEST: "policy_refused"} for result in exchange.results.values())
    assert all(result.contributed == (EAST, NORTH, SOUTH) for result in exchange.results.values())


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.TRAIN, Phase.EVALUATE])
def test_without_a_quorum_nothing_is_counted_and_the_run_pauses_with_the_reason(phase: Phase) -> None:
    exchange = a_consortium()
    exchange.tamper = only([SOUTH, WEST], phase, lambda reply: Reply(reply.message_id, "task_failed"))
    with pytest.raises(QuorumMissingError) as caught:
        exchange.loop().run()
    assert "south (task_failed), west (task_failed)" in str(caught.value)
    assert not exchange.results
    assert exchange.progress.evaluated == 0
    assert exchange.progress.trained == (phase is Phase.EVALUATE)
    if phase is Phase.TRAIN:
        assert not exchange.progress.sums


def test_a_run_that_was_resumed_asks_only_those_again_who_did_not_contribute() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([SOUTH, WEST], Phase.TRAIN, lambda reply: Reply(reply.message_id, "task_failed"))
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    exchange.tamper = lambda _, __, reply: (reply,)
    exchange.sent.clear()
    exchange.resume().run()
    assert asked(exchange, Phase.TRAIN) == [(EAST, 1, 0), (NORTH, 1, 0), (SOUTH, 1, 1), (WEST, 1, 1)]
    assert exchange.results[1].contributed == NAMES
    assert exchange.sites[EAST].trained == [1]


# --- sites that send something else ---


def sums_of(exchange: MemoryExchange) -> list[tuple[int, BlobId, int]]:
    return [(stored.round_number, stored.blob.id, stored.weight) for c in exchange.commits for stored in c.sums]


def another_blob(reply: Reply, blob: Blob | None) -> Reply:
    return replace(reply, blobs=() if blob is None else (blob,))


TRAIN_ATTACKS: dict[str, tuple[Any, str]] = {
    "another dimension": (lambda reply: with_contribution(reply, dimension=DIMENSION + 1), "bad_contribution"),
    "a weight that is too high": (lambda reply: with_contribution(reply, weight=WEIGHT_ONE + 1), "bad_contribution"),
    "no weight": (lambda reply: with_contribution(reply, weight=0), "bad_contribution"),
    "another model": (lambda reply: with_contribution(reply, model_digest=b"\x01" * 32), "base_model_mismatch"),
    "no model": (lambda reply: with_contribution(reply, model_digest=b""), "bad_contribution"),
    "no counts": (lambda reply: with_contribution(reply, extras=()), "bad_contribution"),
    "two counts": (lambda reply: with_contribution(reply, extras=(1, 1)), "bad_contribution"),
    "no records": (lambda reply: with_contribution(reply, extras=(0, 0, 0)), "bad_contribution"),
    "a huge count": (lambda reply: with_contribution(reply, extras=(2**63 - 1, 0, 0)), "bad_contribution"),
    "no update": (lambda reply: another_blob(reply, None), "bad_contribution"),
    "a short update": (lambda reply: another_blob(reply, Blob.of(bytes(8))), "bad_contribution"),
    "a long update": (lambda reply: another_blob(reply, Blob.of(bytes(4 * DIMENSION + 4))), "bad_contribution"),
    "an update that is not there": (
        lambda reply: another_blob(reply, Blob(BlobId(b"\x02" * 32), 4 * DIMENSION)),
        "blob_missing",
    ),
    "an update that is shorter than said": (
        lambda reply: another_blob(reply, Blob(blob_id(bytes(8)), 4 * DIMENSION)),
        "blob_missing",
    ),
    "nonsense": (lambda reply: replace(reply, body=b"\xff\xff"), "bad_frame"),
}


@pytest.mark.parametrize("first", [False, True], ids=["last to answer", "first to answer"])
@pytest.mark.parametrize("attack", TRAIN_ATTACKS)
def test_an_update_of_another_form_is_refused_with_its_code_and_the_sum_is_that_of_the_others(
    attack: str, first: bool
) -> None:
    change, code = TRAIN_ATTACKS[attack]
    liar = EAST if first else WEST
    exchange = a_consortium(rounds={"count": 2})
    exchange.blobs.put(bytes(8))
    exchange.tamper = only([liar], Phase.TRAIN, change)
    run_to_its_end(exchange)

    without = a_consortium(rounds={"count": 2})
    without.tamper = only([liar], Phase.TRAIN, lambda reply: Reply(reply.message_id, code))
    run_to_its_end(without)
    assert sums_of(exchange) == sums_of(without)
    assert exchange.results[1].missing == {liar: code}
    assert exchange.results[1].contributed == tuple(name for name in NAMES if name != liar)
    assert set(exchange.refused.values()) <= {code}


def test_updates_whose_weights_are_too_high_together_are_refused() -> None:
    exchange = a_consortium(rounds={"count": 2, "quorum": 2})
    heavy = only([NORTH, SOUTH, WEST], Phase.TRAIN, lambda reply: with_contribution(reply, weight=WEIGHT_ONE))
    exchange.tamper = heavy
    run_to_its_end(exchange)
    assert exchange.results[1].contributed == (EAST, NORTH)
    assert exchange.results[1].missing == {SOUTH: "bad_contribution", WEST: "bad_contribution"}


PREPARE_ATTACKS: dict[str, Any] = {
    "no records": lambda reply: with_contribution(reply, extras=(0, 0)),
    "no counts": lambda reply: with_contribution(reply, extras=()),
    "a record count below nothing": lambda reply: with_contribution(reply, extras=(-5, 0)),
    "counts that overflow the sum": lambda reply: with_contribution(reply, extras=(2**62, 2**62)),
    "no model": lambda reply: with_contribution(reply, dimension=0),
    "a weight": lambda reply: with_contribution(reply, weight=1),
    "another dimension": lambda reply: with_contribution(reply, dimension=DIMENSION + 1),
    "more counts": lambda reply: with_contribution(reply, extras=(1, 2, 3)),
}


@pytest.mark.parametrize("attack", PREPARE_ATTACKS)
def test_whoever_answers_first_does_not_decide_what_all_prepare_for(attack: str) -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([EAST], Phase.PREPARE, PREPARE_ATTACKS[attack])
    run_to_its_end(exchange)
    assert exchange.progress.statistics == (70, 210)
    assert exchange.progress.dimension == DIMENSION


def test_whoever_answers_first_does_not_decide_which_model_the_first_round_is_about() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([EAST], Phase.TRAIN, lambda reply: with_contribution(reply, model_digest=b"\x01" * 32))
    run_to_its_end(exchange)
    assert exchange.results[1].missing == {EAST: "base_model_mismatch"}


def test_a_study_that_evaluates_at_its_end_has_metrics_of_the_last_round_only() -> None:
    exchange = run_to_its_end(a_consortium(rounds={"evaluate": "last"}))
    assert [set(exchange.results[number].metrics) for number in (1, 2)] == [{"train_loss"}] * 2
    assert exchange.results[3].metrics["accuracy"] == 1.0
    assert exchange.refused == {}


def test_counts_that_the_study_does_not_ask_for_are_refused() -> None:
    """Whoever tells them tells of held-out records what nobody agreed to."""
    exchange = a_consortium(rounds={"count": 2, "evaluate": "last"})
    exchange.tamper = only([WEST], Phase.EVALUATE, lambda reply: with_contribution(reply, extras=a_tally(10)))
    run_to_its_end(exchange)
    assert list(exchange.refused.values()) == ["bad_contribution"]


@pytest.mark.parametrize("extras", [(), (1, 2, 3), a_tally(10)[:-1], (-1, *a_tally(10)[1:])])
def test_counts_that_are_no_evaluation_are_refused(extras: tuple[int, ...]) -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([WEST], Phase.EVALUATE, lambda reply: with_contribution(reply, extras=extras))
    run_to_its_end(exchange)
    assert list(exchange.refused.values()) == ["bad_contribution"]
    assert exchange.results[1].metrics["accuracy"] == 1.0


def test_a_site_with_another_model_is_left_out_of_the_metrics_and_named() -> None:
    exchange = a_consortium(rounds={"count": 1})

    def diverged(reply: Reply) -> Reply:
        wrong = list(a_tally(10))
        wrong[1], wrong[2] = 0, 5  # every negative predicted positive
        return with_contribution(reply, model_digest=b"\x01" * 32, extras=tuple(wrong))

    exchange.tamper = only([EAST], Phase.EVALUATE, diverged)
    run_to_its_end(exchange)
    assert exchange.results[1].missing == {EAST: "base_model_mismatch"}
    assert exchange.results[1].metrics["accuracy"] == 1.0
    assert exchange.progress.agreed_digest == exchange.sites[NORTH].digest


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.EVALUATE])
def test_sites_that_do_not_hold_the_same_model_pause_the_run_and_are_all_asked_anew_after_it(phase: Phase) -> None:
    exchange = a_consortium(rounds={"count": 1})

    def everybody_else(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        if instruction.phase is phase:
            number = NAMES.index(site) // 2
            return (with_contribution(reply, model_digest=bytes([number]) * 32),)
        return (reply,)

    exchange.tamper = everybody_else
    with pytest.raises(ModelDisagreementError):
        exchange.loop().run()
    assert not exchange.results
    exchange.tamper = lambda _, __, reply: (reply,)
    exchange.sent.clear()
    exchange.resume().run()
    assert asked(exchange, phase) == [(name, 1, 1) for name in NAMES]
    assert exchange.results[1].contributed == NAMES


def test_a_contribution_that_the_loop_refused_is_asked_for_again_after_a_resumption() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([SOUTH, WEST], Phase.TRAIN, lambda reply: with_contribution(reply, weight=0))
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    exchange.tamper = lambda _, __, reply: (reply,)
    exchange.resume().run()
    assert exchange.results[1].contributed == NAMES


# --- replies that come twice, late, or from elsewhere ---


def test_a_reply_that_arrives_twice_counts_once() -> None:
    exchange, once = a_consortium(), a_consortium()
    exchange.tamper = lambda _, __, reply: (reply, reply, reply)
    assert final_state(run_to_its_end(exchange)) == final_state(run_to_its_end(once))


def test_a_second_reply_that_differs_changes_nothing() -> None:
    exchange, once = a_consortium(), a_consortium()
    exchange.tamper = lambda _, __, reply: (reply, Reply(reply.message_id, "task_failed"))
    assert final_state(run_to_its_end(exchange)) == final_state(run_to_its_end(once))


def test_a_reply_to_something_else_changes_nothing() -> None:
    exchange, once = a_consortium(), a_consortium()
    exchange.tamper = lambda _, __, reply: (replace(reply, message_id=MessageId(b"\x07" * 32)), reply)
    assert final_state(run_to_its_end(exchange)) == final_state(run_to_its_end(once))


# --- one site for all: checkpoints and the release ---


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: another_blob(reply, Blob.of(b"a model with a back door")),
        lambda reply: another_blob(reply, None),
        lambda reply: Reply(reply.message_id, "base_model_mismatch"),
        lambda reply: replace(reply, body=b"\xff"),
    ],
    ids=["a lie", "nothing", "a refusal", "nonsense"],
)
def test_a_checkpoint_that_is_not_the_agreed_model_is_refused_and_another_site_is_asked(change: Any) -> None:
    exchange = a_consortium(rounds={"count": 2})
    exchange.tamper = only([EAST], Phase.CHECKPOINT, change)
    run_to_its_end(exchange)
    assert [site for site, *_ in asked(exchange, Phase.CHECKPOINT)] == [EAST, NORTH]
    assert exchange.progress.checkpoint is not None
    assert exchange.progress.checkpoint.id == exchange.progress.agreed_digest


def test_a_checkpoint_that_failed_is_tried_again_after_the_next_round() -> None:
    exchange = a_consortium()

    def only_at_first(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        failing = instruction.phase is Phase.CHECKPOINT and instruction.round_number == 2
        return (Reply(reply.message_id, "task_failed") if failing else reply,)

    exchange.tamper = only_at_first
    run_to_its_end(exchange)
    assert exchange.progress.checkpoint_round == 3
    assert exchange.progress.sums == ()


def test_without_any_checkpoint_the_sums_stay_and_the_run_goes_on() -> None:
    exchange = a_consortium()
    exchange.tamper = only(NAMES, Phase.CHECKPOINT, lambda reply: another_blob(reply, Blob.of(b"a lie")))
    run_to_its_end(exchange)
    assert exchange.progress.checkpoint is None
    assert [stored.round_number for stored in exchange.progress.sums] == [1, 2, 3]
    assert sorted(exchange.results) == [1, 2, 3]


def test_a_silent_site_does_not_prevent_the_release() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = lambda site, i, reply: () if site == EAST and i.phase is Phase.RELEASE else (reply,)
    run_to_its_end(exchange)
    assert exchange.model == exchange.sites[NORTH].state()
    (slow,) = [i.message_id for s, i in exchange.sent if s == EAST and i.phase is Phase.RELEASE]
    assert slow in exchange.withdrawn


def test_one_site_alone_cannot_decide_what_is_released() -> None:
    exchange = a_consortium(rounds={"count": 1})
    forged = Blob.of(b"another model")
    exchange.tamper = only({EAST}, Phase.RELEASE, lambda reply: replace(reply, blobs=(forged,)))
    run_to_its_end(exchange)
    assert exchange.model == exchange.sites[NORTH].state()


def test_when_nobody_can_release_the_run_pauses_and_the_rounds_stay_counted() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only(NAMES, Phase.RELEASE, lambda reply: Reply(reply.message_id, "policy_refused"))
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    assert sorted(exchange.results) == [1]
    exchange.tamper = lambda _, __, reply: (reply,)
    exchange.resume().run()
    assert exchange.model == exchange.sites[EAST].state()


def backdoor(reply: Reply) -> Reply:
    return another_blob(reply, Blob.of(b"a model with a back door"))


def test_different_models_are_not_released_and_all_sites_are_asked_again_after_a_resumption() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([EAST, WEST], Phase.RELEASE, backdoor)
    with pytest.raises(ModelDisagreementError):
        exchange.loop().run()
    assert exchange.model is None
    exchange.tamper = lambda _, __, reply: (reply,)
    exchange.sent.clear()
    exchange.resume().run()
    assert asked(exchange, Phase.RELEASE) == [(name, 1, 1) for name in NAMES]
    assert exchange.model == exchange.sites[NORTH].state()


def test_a_release_of_another_model_than_the_agreed_one_is_refused() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = only([EAST], Phase.RELEASE, lambda reply: with_contribution(reply, model_digest=b"\x01" * 32))
    run_to_its_end(exchange)
    assert set(exchange.refused.values()) == {"base_model_mismatch"}
    assert exchange.model == exchange.sites[NORTH].state()


# --- the server's disk ---


def test_a_disk_without_room_is_noticed_before_anybody_trains() -> None:
    exchange = a_consortium()
    exchange.free = 4 * DIMENSION * 5 - 1
    with pytest.raises(DiskFullError):
        exchange.loop().run()
    assert not asked(exchange, Phase.TRAIN)
    exchange.free += 1
    exchange.loop().run()
    assert sorted(exchange.results) == [1, 2, 3]


def test_an_update_that_repeats_an_earlier_sum_does_not_remove_that_sum() -> None:
    exchange = a_consortium(rounds={"count": 2, "checkpoint_every": 10})

    def echo(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        sums = exchange.progress.sums
        if site == WEST and instruction.phase is Phase.TRAIN and sums:
            return (replace(reply, blobs=(sums[0].blob,)),)
        return (reply,)

    exchange.tamper = echo
    run_to_its_end(exchange)
    assert exchange.results[2].contributed == NAMES
    assert all(stored.blob.id in exchange.blobs.content for stored in exchange.progress.sums)


# --- killed ---


def how_many_steps() -> int:
    exchange = run_to_its_end(a_consortium())
    return exchange.calls


def test_a_kill_at_any_step_changes_nothing_of_the_outcome_and_nobody_trains_twice() -> None:
    wanted = final_state(run_to_its_end(a_consortium()))
    for step in range(1, how_many_steps() + 1):
        exchange = a_consortium()
        exchange.kill_at = step
        with pytest.raises(Killed):
            exchange.loop().run()
        before = exchange.progress
        exchange.loop().run()
        assert final_state(exchange) == wanted, f"killed at step {step}"
        assert all(site.trained == [1, 2, 3] for site in exchange.sites.values()), f"killed at step {step}"
        assert exchange.progress.evaluated >= before.evaluated


def test_a_process_that_dies_again_and_again_still_comes_to_the_same_end() -> None:
    wanted = final_state(run_to_its_end(a_consortium()))
    exchange = a_consortium()
    deaths = 0
    while not exchange.progress.released:
        exchange.calls, exchange.kill_at = 0, 29
        try:
            exchange.loop().run()
        except Killed:
            deaths += 1
    assert deaths > 3
    assert final_state(exchange) == wanted


def test_a_restart_with_a_site_away_counts_the_reply_that_it_left() -> None:
    exchange = a_consortium(rounds={"count": 1})
    exchange.tamper = lambda _, i, reply: (reply,)
    exchange.kill_at = 14  # all four updates are stored, none is committed
    with pytest.raises(Killed):
        exchange.loop().run()
    stored = {site for site, instruction, _ in exchange.stored.values() if instruction.phase is Phase.TRAIN}
    assert WEST in stored or EAST in stored
    exchange.gone = {next(iter(stored))}
    exchange.loop().run()
    assert set(exchange.results[1].contributed) >= stored
