"""The loop with simulated sites, under both schemes: what counts, what does not, and what a kill at any moment changes
(nothing). What only one of them has is in test_plain_scheme.py and test_secagg_scheme.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pytest

from quorate.errors import DiskFullError, ModelDisagreementError, QuorumMissingError, WrongStateError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import Progress, RoundResult, SumOutcome, SumStep
from quorate.secagg.release import ReleaseTerms, released
from quorate.secagg.terms import Vote
from quorate.wire.sum_messages import sum_work_from_bytes
from quorate_server.rounds.phases import Presence
from quorate_server.rounds.progress import StudyProgress
from tests.server.sites_kit import a_consortium, exact_sum, opened, opening_of
from tests.server.study_kit import (
    DIMENSION,
    NAMES,
    RUN,
    Killed,
    MemoryExchange,
    each_of,
    honest,
    silent,
    when,
    with_answer,
)

EAST, NORTH, SOUTH, WEST = NAMES
OTHERS = (EAST, NORTH, SOUTH)


@pytest.fixture(params=["none", "secagg"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run_to_its_end(exchange: MemoryExchange) -> MemoryExchange:
    exchange.loop().run()
    return exchange


def asked(exchange: MemoryExchange, phase: Phase, round_number: int = 1) -> list[tuple[SiteName, int]]:
    return [(s, i.attempt) for s, i in exchange.sent if (i.phase, i.round_number) == (phase, round_number)]


def refusing(code: str) -> Callable[[Reply], Reply]:
    return lambda reply: Reply(reply.message_id, code)


def assert_exact(exchange: MemoryExchange, number: int, survivors: Iterable[SiteName], attempt: int = 0) -> None:
    """What the sites opened is what exactly these sites sent, to the last bit, and the sites agree on it."""
    assert opening_of(exchange, number).survivors == tuple(sorted(survivors))
    wanted = exact_sum(exchange, survivors, (number, attempt))
    for site in exchange.sites.values():
        if number in site.opened:
            sums, counts = site.opened[number]
            np.testing.assert_array_equal(sums, wanted)
            if exchange.study.protection.mode == "secagg":  # without protection the server alone has them
                assert counts[1] == sum(exchange.sites[name].records for name in survivors)


def contributions(exchange: MemoryExchange) -> dict[int, tuple[tuple[SiteName, ...], dict[str, str]]]:
    return {number: (result.contributed, dict(result.missing)) for number, result in exchange.results.items()}


# --- all goes well ---


def test_three_rounds_train_one_model_whose_every_sum_is_exact_and_each_round_counts_once(mode: str) -> None:
    exchange = run_to_its_end(a_consortium(mode=mode, rounds={"checkpoint_every": 10}))
    for number in (1, 2, 3):
        assert_exact(exchange, number, NAMES)
    assert contributions(exchange) == dict.fromkeys((1, 2, 3), (NAMES, {}))
    assert all(site.trained == [(1, 0), (2, 0), (3, 0)] for site in exchange.sites.values())
    assert {site.state() for site in exchange.sites.values()} == {opened(exchange)}
    # The weighted mean of the sites' targets, approached by half each round.
    target = sum(site.target * site.records for site in exchange.sites.values()) / 100
    assert exchange.sites[EAST].model == pytest.approx(np.full(DIMENSION, target * (1 - 0.5**3)), abs=1e-5)
    for result in exchange.results.values():
        assert set(result.phase_seconds) == ({"upload"} if mode == "none" else {"upload", "vote", "reveal"})
        assert result.bytes_up > 4 * 4 * DIMENSION
        assert result.bytes_down > 0
    assert exchange.progress.released
    assert exchange.refused == {}


def test_each_sum_tells_what_the_server_itself_needed_and_not_how_long_it_waited(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1, "checkpoint_every": 10})
    exchange.tamper = silent([WEST], Phase.UPLOAD)  # the deadline is waited for
    opening = exchange.open

    def slow(blob: Blob) -> BinaryIO:
        exchange.clock.now_s += 0.25
        return opening(blob)

    exchange.open = slow  # type: ignore[method-assign]
    run_to_its_end(exchange)
    statistics, trained, final = exchange.seconds
    assert set(statistics) == set(SumStep) == set(final)
    assert trained[SumStep.ADD] >= 3 * 0.25, "each update is opened to be added"
    assert (trained[SumStep.CHECK] > 0) == (mode == "secagg"), "there the shares are looked at"
    assert sum(trained.values()) < exchange.study.rounds.deadline_s
    assert exchange.outcomes == [SumOutcome.OPENED] * 3 * (mode == "secagg")


def test_a_checkpoint_takes_the_place_of_the_sums_before_it_and_nothing_else_is_kept(mode: str) -> None:
    exchange = run_to_its_end(a_consortium(mode=mode))
    progress = exchange.progress
    assert progress.checkpoint_round == 2
    assert [stored.round_number for stored in progress.sums] == [3, 4]
    assert set(exchange.blobs.content) == progress.blobs()
    assert progress.checkpoint is not None
    assert exchange.sites[EAST].state() not in exchange.blobs.content[progress.checkpoint.id], "it is of round 2"


def test_the_results_are_committed_once_each_in_order_when_their_evaluation_is_known(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 4})
    commits: list[tuple[int, int, int | None]] = []
    committing = exchange.commit

    def commit(progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        commits.append((progress.summed, progress.evaluated, result and result.round_number))
        committing(progress, result, obsolete)

    exchange.commit = commit  # type: ignore[method-assign]
    run_to_its_end(exchange)
    assert [result for *_, result in commits if result is not None] == [1, 2, 3, 4]
    assert all(number == evaluated for _, evaluated, number in commits if number is not None)
    for column in (0, 1):
        numbers = [commit[column] for commit in commits]
        assert numbers == sorted(numbers)


def test_every_blob_that_a_site_needs_is_among_those_it_may_fetch(mode: str) -> None:
    """Seven sites, so that shares are not inline, and one that comes late and needs the whole way."""
    names = [SiteName(f"site-{number}") for number in range(7)]
    exchange = a_consortium(names, [10] * 7, mode, rounds={"count": 3, "quorum": 5})
    late = exchange.sites[names[0]]
    answer = late.answer
    late.answer = lambda i: Reply(i.message_id, "paused") if i.round_number == 2 else answer(i)
    run_to_its_end(exchange)
    fetched = 0
    for _, instruction in exchange.sent:
        work = sum_work_from_bytes(instruction.body)
        named = [blob for ref in work.sums for blob in (ref.updates, ref.opening)] + [work.shares, work.checkpoint]
        needed = {blob.id for blob in named if blob is not None and blob.inline is None}
        assert needed <= {blob.id for blob in instruction.blobs}
        fetched += len(needed)
    assert fetched >= 3
    assert late.state() == exchange.sites[names[1]].state()


def test_whoever_watches_sees_the_phases_and_who_has_replied(mode: str) -> None:
    exchange = run_to_its_end(a_consortium(mode=mode))
    assert {status.phase for status in exchange.statuses} >= {"upload", "checkpoint", "release"}
    assert exchange.statuses[0].sites[0].state is Progress.WORKING
    assert exchange.statuses[-1].round_number == 3


def test_a_run_that_an_older_version_began_without_protection_says_what_to_do() -> None:
    exchange = a_consortium()
    exchange.progress = StudyProgress(is_of_an_older_version=True)
    with pytest.raises(WrongStateError, match="older version"):
        exchange.loop().run()
    assert not exchange.sent


# --- sites that are not there ---


def test_an_absent_site_costs_its_grace_and_not_the_deadline(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.gone = {WEST}
    began = exchange.clock.now_s
    run_to_its_end(exchange)
    assert contributions(exchange) == {1: (OTHERS, {WEST: "absent"})}
    assert exchange.clock.now_s - began <= 5.0 + 1e-6, "one grace period for the whole run"
    assert_exact(exchange, 1, OTHERS)


def test_a_site_that_never_answers_costs_the_deadline_and_is_told_to_stop(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = silent([WEST], Phase.UPLOAD)
    run_to_its_end(exchange)
    assert contributions(exchange) == {1: (OTHERS, {WEST: "late"})}
    (withdrawn,) = [i for s, i in exchange.sent if (s, i.phase, i.round_number) == (WEST, Phase.UPLOAD, 1)]
    assert withdrawn.message_id in exchange.withdrawn


def test_a_site_that_comes_back_is_in_the_next_round(mode: str) -> None:
    exchange = a_consortium(mode=mode)
    exchange.gone = {WEST}

    def back(reply: Reply) -> Reply:
        exchange.gone = set()
        exchange.events.append(Presence({}))
        return reply

    exchange.tamper = when([EAST], Phase.UPLOAD, back, round_number=2)
    run_to_its_end(exchange)
    assert exchange.results[1].missing == {WEST: "absent"}
    assert exchange.results[3].contributed == NAMES
    assert exchange.sites[WEST].state() == exchange.sites[EAST].state()


def test_a_site_that_missed_what_came_before_a_checkpoint_arrives_from_it(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 5})
    absent = exchange.sites[WEST]
    answer = absent.answer
    absent.answer = lambda i: Reply(i.message_id, "paused") if 0 < i.round_number < 5 else answer(i)
    run_to_its_end(exchange)
    assert exchange.results[5].contributed == NAMES
    assert exchange.results[4].missing == {WEST: "paused"}
    assert set(absent.opened) == {3, 4, 5}
    assert absent.state() == exchange.sites[EAST].state()
    np.testing.assert_array_equal(absent.opened[5][0], exact_sum(exchange, NAMES, (5, 0)))


def test_a_site_that_refuses_is_named_with_its_code_and_the_others_go_on(mode: str) -> None:
    exchange = a_consortium(mode=mode)
    exchange.tamper = when([WEST], Phase.UPLOAD, refusing("policy_refused"))
    run_to_its_end(exchange)
    assert contributions(exchange)[1] == (OTHERS, {WEST: "policy_refused"})
    assert exchange.results[2].contributed == NAMES


@pytest.mark.parametrize("number", [0, 1, 4])
def test_without_a_quorum_nothing_is_counted_and_the_run_pauses_with_the_reason(mode: str, number: int) -> None:
    exchange = a_consortium(mode=mode)
    exchange.tamper = when([SOUTH, WEST], Phase.UPLOAD, refusing("task_failed"), number)
    with pytest.raises(QuorumMissingError) as caught:
        exchange.loop().run()
    assert "south (task_failed), west (task_failed)" in str(caught.value)
    assert exchange.progress.summed == number
    assert 3 not in exchange.results
    exchange.tamper = honest
    exchange.resume().run()
    assert sorted(exchange.results) == [1, 2, 3]


# --- sites that hold, or send, something else ---


@pytest.mark.parametrize("liar", [EAST, WEST], ids=["first to answer", "last to answer"])
def test_a_site_with_another_model_is_left_out_and_named(mode: str, liar: SiteName) -> None:
    exchange = a_consortium(mode=mode, rounds={"checkpoint_every": 10})

    def drift(reply: Reply) -> Reply:
        exchange.sites[liar].model = exchange.sites[liar].model + 1
        return reply

    exchange.tamper = when([liar], Phase.UPLOAD, drift)
    run_to_its_end(exchange)
    others = tuple(name for name in NAMES if name != liar)
    assert exchange.results[1].contributed == NAMES, "it drifted after its upload"
    assert contributions(exchange)[2] == (others, {liar: "base_model_mismatch"})
    assert_exact(exchange, 2, others)
    assert opened(exchange) == exchange.sites[others[0]].state()


def test_whoever_answers_first_does_not_decide_how_large_the_model_is(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = when([EAST], Phase.UPLOAD, lambda reply: with_answer(reply, dimension=DIMENSION + 1), 0)
    run_to_its_end(exchange)
    assert exchange.progress.dimension == DIMENSION
    assert opening_of(exchange, 0).survivors == (NORTH, SOUTH, WEST)


def test_halves_that_hold_different_models_stop_the_run_and_a_resumption_asks_all_anew(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    for site in (EAST, WEST):
        exchange.sites[site].model = exchange.sites[site].model + 1
    with pytest.raises(ModelDisagreementError, match="groups of 2, 2"):
        exchange.loop().run()
    assert exchange.results == {}
    assert asked(exchange, Phase.VOTE) == []
    for site in (EAST, WEST):
        exchange.sites[site].model = exchange.sites[site].model - 1
    exchange.sent.clear()
    exchange.resume().run()
    assert asked(exchange, Phase.UPLOAD) == [(name, 1) for name in NAMES]
    assert_exact(exchange, 1, NAMES, attempt=1)


def of_length(exchange: MemoryExchange, change: Callable[[bytes], bytes]) -> Callable[[Reply], Reply]:
    """An upload with another update."""

    def changed(reply: Reply) -> Reply:
        update, *others = reply.blobs
        return replace(reply, blobs=(exchange.blobs.put(change(exchange.blobs.content[update.id])), *others))

    return changed


def missing(reply: Reply) -> Reply:
    return replace(reply, blobs=(replace(reply.blobs[0], id=BlobId(bytes(32))), *reply.blobs[1:]))


@pytest.mark.parametrize("first", [False, True], ids=["last to answer", "first to answer"])
@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("shorter", "bad_contribution"),
        ("longer", "bad_contribution"),
        ("absent", "blob_missing"),
        ("another dimension", "base_model_mismatch"),
        ("nonsense", "bad_frame"),
        ("nothing", "bad_contribution"),
        ("counts of the other scheme", "bad_contribution"),
    ],
)
def test_a_malformed_upload_is_left_out_and_the_sum_of_the_others_is_exact(
    mode: str, attack: str, code: str, first: bool
) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    changes: dict[str, Callable[[Reply], Reply]] = {
        "shorter": of_length(exchange, lambda content: content[:-4]),
        "longer": of_length(exchange, lambda content: content + bytes(4)),
        "absent": missing,
        "another dimension": lambda reply: with_answer(reply, dimension=DIMENSION + 1),
        "nonsense": lambda reply: replace(reply, body=b"\xff\xff"),
        "nothing": lambda reply: replace(reply, body=b"", blobs=()),
        "counts of the other scheme": lambda reply: with_answer(
            reply, **({"counts": bytes(13)} if mode == "none" else {"plain_counts": (1, 10, 0, 0)})
        ),
    }
    liar = EAST if first else WEST
    others = tuple(name for name in NAMES if name != liar)
    exchange.tamper = when([liar], Phase.UPLOAD, changes[attack])
    run_to_its_end(exchange)
    assert_exact(exchange, 1, others)
    assert contributions(exchange) == {1: (others, {liar: code})}
    assert exchange.progress.attempt == 0
    if code != "base_model_mismatch":  # it is told to the journal, so that the site is not thought to have contributed
        assert list(exchange.refused.values()) == [code]


# --- replies that come twice, late, or from elsewhere ---


@pytest.mark.parametrize(
    "tamper",
    [
        lambda reply: (reply, reply, reply),
        lambda reply: (reply, Reply(reply.message_id, "task_failed")),
        lambda reply: (replace(reply, message_id=MessageId(b"\x07" * 32)), reply),
    ],
    ids=["again", "another one", "to something else"],
)
def test_whatever_comes_beside_the_first_reply_changes_nothing(mode: str, tamper: Any) -> None:
    exchange = a_consortium(mode=mode)
    exchange.tamper = lambda _, __, reply: tamper(reply)
    run_to_its_end(exchange)
    assert contributions(exchange) == dict.fromkeys((1, 2, 3), (NAMES, {}))
    assert_exact(exchange, 3, NAMES)


# --- one site for all: checkpoints and the release ---


def test_checkpoints_are_asked_of_one_site_after_the_other(mode: str) -> None:
    exchange = run_to_its_end(a_consortium(mode=mode, rounds={"count": 6, "checkpoint_every": 1}))
    assert {site for site, i in exchange.sent if i.phase is Phase.CHECKPOINT} == set(NAMES)


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: replace(reply, blobs=(Blob.of(b"a model with a back door"),)),
        lambda reply: replace(reply, blobs=()),
        refusing("base_model_mismatch"),
        lambda reply: replace(reply, body=b"\xff"),
    ],
    ids=["a lie", "nothing", "a refusal", "nonsense"],
)
def test_a_checkpoint_that_is_not_the_agreed_model_is_refused_and_another_site_is_asked(mode: str, change: Any) -> None:
    exchange = a_consortium(mode=mode)
    exchange.tamper = when([EAST], Phase.CHECKPOINT, change, 4)  # the fourth sum's turn is the first name's
    run_to_its_end(exchange)
    assert [site for site, _ in asked(exchange, Phase.CHECKPOINT, 4)] == [EAST, NORTH]
    assert exchange.progress.checkpoint_round == 2


def test_without_any_checkpoint_the_sums_stay_the_run_goes_on_and_it_is_tried_again(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 4})
    exchange.tamper = when(NAMES, Phase.CHECKPOINT, refusing("task_failed"), 4)
    run_to_its_end(exchange)
    assert max(len(progress.sums) for progress in exchange.commits) == 5
    assert exchange.progress.checkpoint_round == 3
    assert sorted(exchange.results) == [1, 2, 3, 4]


def test_without_a_release_the_model_stays_at_the_sites_and_all_are_asked_to_keep_it(mode: str) -> None:
    exchange = run_to_its_end(a_consortium(mode=mode, rounds={"count": 1}, release={"model": "sites"}))
    assert exchange.model is None
    asked_sites = [(site, i) for site, i in exchange.sent if i.phase is Phase.RELEASE]
    assert {site for site, _ in asked_sites} == set(NAMES)
    assert all(not exchange.stored[i.message_id][2].blobs for _, i in asked_sites)


def test_a_silent_site_does_not_prevent_the_release(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = silent([EAST], Phase.RELEASE, 2)
    run_to_its_end(exchange)
    assert opened(exchange) == exchange.sites[NORTH].state()
    (slow,) = [i.message_id for s, i in exchange.sent if s == EAST and i.phase is Phase.RELEASE]
    assert slow in exchange.withdrawn


def backdoored(exchange: MemoryExchange, *sites: SiteName) -> Callable[[SiteName, Instruction, Reply], Iterable[Reply]]:
    """These sites release another model, signed where models are."""
    forged = Blob.of(b"a model with a back door")

    def of(site: SiteName) -> Callable[[Reply], Reply]:
        def change(reply: Reply) -> Reply:
            changed = replace(reply, blobs=(forged,))
            if exchange.study.protection.mode == "none":
                return changed
            signed = released(ReleaseTerms.of(exchange.study, RUN), forged.id)
            return with_answer(changed, vote=Vote(site, exchange.sites[site].keys.signing.sign(signed)))

        return change

    return each_of(*(when([site], Phase.RELEASE, of(site), 2) for site in sites))


def test_one_site_alone_cannot_decide_what_is_released(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = backdoored(exchange, EAST)
    run_to_its_end(exchange)
    assert opened(exchange) == exchange.sites[NORTH].state()


def test_different_models_are_not_released_and_all_sites_are_asked_again_after_a_resumption(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = backdoored(exchange, EAST, WEST)
    with pytest.raises(ModelDisagreementError):
        exchange.loop().run()
    assert exchange.model is None
    exchange.tamper = honest
    exchange.sent.clear()
    exchange.resume().run()
    assert asked(exchange, Phase.RELEASE, 2) == [(name, 1) for name in NAMES]
    assert opened(exchange) == exchange.sites[NORTH].state()


def test_when_nobody_can_release_the_run_pauses_and_the_rounds_that_are_done_stay_counted(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 2})
    exchange.tamper = when(NAMES, Phase.RELEASE, refusing("policy_refused"), 3)
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    assert 1 in exchange.results
    exchange.tamper = honest
    exchange.resume().run()
    assert sorted(exchange.results) == [1, 2]
    assert opened(exchange) == exchange.sites[EAST].state()


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda reply: with_answer(reply, model=b""), ("bad_contribution", "bad_contribution")),
        (lambda reply: with_answer(reply, model=b"\x01" * 32), ("base_model_mismatch", None)),
        (lambda reply: replace(reply, blobs=()), ("bad_contribution", "bad_contribution")),
    ],
    ids=["no name", "another model", "nothing"],
)
def test_a_release_of_another_model_or_of_none_is_not_what_is_released(
    mode: str, change: Any, codes: tuple[str, str | None]
) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = when([EAST], Phase.RELEASE, change, 2)
    run_to_its_end(exchange)
    code = codes[mode == "secagg"]  # what is encrypted shows when the others' models are compared with it
    assert list(exchange.refused.values()) == ([code] if code else [])
    assert opened(exchange) == exchange.sites[NORTH].state()


# --- killed ---


@pytest.mark.parametrize("mode", ["none", pytest.param("secagg", marks=pytest.mark.slow)])
def test_a_kill_at_any_step_changes_nothing_of_the_outcome_and_nobody_works_twice(mode: str) -> None:
    """The replies that were there are all that a new process has: everything else has to follow from them."""

    def three() -> MemoryExchange:
        rounds = {"count": 3 if mode == "none" else 1}
        return a_consortium(OTHERS, (30, 20, 40), mode, rounds=rounds)

    whole = run_to_its_end(three())
    rounds = whole.study.rounds.count
    for step in range(1, whole.calls + 1):
        exchange = three()
        exchange.kill_at = step
        with pytest.raises(Killed):
            exchange.loop().run()
        stored, before = dict(exchange.stored), exchange.progress
        exchange.loop().run()
        context = f"killed at step {step}"
        assert contributions(exchange) == contributions(whole), context
        assert [r.metrics for r in exchange.results.values()] == [r.metrics for r in whole.results.values()], context
        assert_exact(exchange, rounds, OTHERS)
        assert {site.state() for site in exchange.sites.values()} == {opened(exchange)}, context
        assert all(site.trained == [(n, 0) for n in range(1, rounds + 1)] for site in exchange.sites.values()), context
        assert all(len({b.identity for b in site.ballots}) == len(site.ballots) for site in exchange.sites.values())
        assert exchange.progress.attempt == 0, context
        assert exchange.progress.evaluated >= before.evaluated, context
        assert all(exchange.stored[message] == reply for message, reply in stored.items()), context
        assert set(exchange.blobs.content) == exchange.progress.blobs(), context


def test_a_process_that_dies_again_and_again_still_comes_to_the_end(mode: str) -> None:
    exchange = a_consortium(mode=mode)
    deaths = 0
    while not exchange.progress.released:
        exchange.calls, exchange.kill_at = 0, 29 if mode == "none" else 60
        try:
            exchange.loop().run()
        except Killed:
            deaths += 1
    assert deaths > 2
    assert contributions(exchange) == dict.fromkeys((1, 2, 3), (NAMES, {}))
    assert_exact(exchange, 3, NAMES)
    assert all(site.trained == [(1, 0), (2, 0), (3, 0)] for site in exchange.sites.values())


# --- the server's disk ---


def test_an_upload_that_repeats_what_the_server_keeps_does_not_remove_it(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 2})

    def echo(reply: Reply) -> Reply:
        (kept,) = [stored.updates for stored in exchange.progress.sums if stored.round_number == 1]
        assert kept is not None
        return replace(reply, blobs=(kept, *reply.blobs[1:]))

    exchange.tamper = when([WEST], Phase.UPLOAD, echo, round_number=2)
    if mode == "none":
        assert run_to_its_end(exchange).results[2].contributed == NAMES
    else:
        with pytest.raises(QuorumMissingError):  # it is no ciphertext of this sum, in no attempt
            exchange.loop().run()
        assert len({site.state() for site in exchange.sites.values()}) == 1, "nobody took anything of it"
    assert exchange.progress.blobs() <= set(exchange.blobs.content)
    assert exchange.progress.sums[1].round_number == 1


def test_a_disk_without_room_is_noticed_before_anybody_trains_and_costs_no_attempt(mode: str) -> None:
    exchange = a_consortium(mode=mode, rounds={"count": 1})
    exchange.tamper = when([EAST], Phase.UPLOAD, lambda reply: _fill(exchange, reply), 0)
    with pytest.raises(DiskFullError):
        exchange.loop().run()
    assert not any(site.trained for site in exchange.sites.values())
    exchange.free = 10**12
    exchange.loop().run()
    assert_exact(exchange, 1, NAMES)


def _fill(exchange: MemoryExchange, reply: Reply) -> Reply:
    exchange.free = 4 * DIMENSION * 5 - 1
    return reply
