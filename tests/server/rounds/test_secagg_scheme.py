"""Rounds under secure aggregation: what is in a sum, what is left out, and when one is begun anew. What they have in
common with those without protection is in test_sum_loop.py."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.aggregation import ring, words
from quorate.errors import ContributionError, DiskFullError, QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.rounds.run import RoundResult, SumOutcome
from quorate.secagg import share_boxes
from quorate.secagg.linear_mac import TAGS
from quorate.secagg.sizes import shares_bytes
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import Vote, checkpointed
from quorate.study.rules import Rules
from quorate.wire.sum_messages import (
    SumAnswer,
    SumWork,
    shares_from_bytes,
    shares_to_bytes,
    sum_answer_from_bytes,
    sum_work_from_bytes,
    words_from_bytes,
    words_to_bytes,
)
from quorate_server.rounds.progress import StoredSum, StudyProgress
from quorate_server.rounds.schemes.secagg import USUAL_COUNTS
from tests.server.sites_kit import OWN_COUNTS, a_consortium, exact_sum, opened, opening_of
from tests.server.study_kit import (
    DIMENSION,
    NAMES,
    RUN,
    Killed,
    MemoryExchange,
    Tamper,
    a_tally,
    each_of,
    honest,
    lost,
    silent,
    when,
    with_answer,
)

EAST, NORTH, SOUTH, WEST = NAMES
EXCHANGES = (Phase.HELLO, Phase.UPLOAD, Phase.VOTE, Phase.REVEAL)
OTHERS = (EAST, NORTH, SOUTH)
TALLY = len(a_tally(10))


def a_secure_consortium(*who: Any, **changes: Any) -> MemoryExchange:
    rounds = {"count": 2, "checkpoint_every": 10} | changes.pop("rounds", {})
    return a_consortium(*who, mode="secagg", rounds=rounds, **changes)


def run_to_its_end(exchange: MemoryExchange) -> MemoryExchange:
    exchange.loop().run()
    return exchange


def with_tamper(tamper: Tamper, *who: Any, **changes: Any) -> MemoryExchange:
    exchange = a_secure_consortium(*who, **changes)
    exchange.tamper = tamper
    return run_to_its_end(exchange)


def asked(exchange: MemoryExchange, phase: Phase, round_number: int = 1) -> list[tuple[SiteName, int]]:
    return [(s, i.attempt) for s, i in exchange.sent if (i.phase, i.round_number) == (phase, round_number)]


def assert_exact(exchange: MemoryExchange, round_number: int, survivors: Iterable[SiteName], attempt: int = 0) -> None:
    """What the sites opened is what exactly these sites sent, to the last bit, and the sites agree on it."""
    assert opening_of(exchange, round_number).survivors == tuple(sorted(survivors))
    wanted = exact_sum(exchange, survivors, (round_number, attempt))
    opened = [site.opened[round_number] for site in exchange.sites.values() if round_number in site.opened]
    assert len(opened) >= 3
    for sums, counts in opened:
        np.testing.assert_array_equal(sums, wanted)
        assert counts[1] == sum(exchange.sites[site].records for site in survivors)


def encrypting(exchange: MemoryExchange, reply: Reply, change: Callable[[bytes], bytes]) -> Reply:
    """An upload with other words in the place of the ciphertext."""
    ciphertext, shares = reply.blobs
    return replace(reply, blobs=(exchange.blobs.put(change(exchange.blobs.content[ciphertext.id])), shares))


def restarting(exchange: MemoryExchange, phase: Phase) -> Tamper:
    """WEST is started again after it replied in this exchange of round 1."""

    def restart(reply: Reply) -> Reply:
        exchange.sites[WEST].restart()
        return reply

    return when([WEST], phase, restart)


def on_commit(exchange: MemoryExchange, look: Callable[[StudyProgress, RoundResult | None], None]) -> None:
    """Before each commit."""
    committing = exchange.commit

    def commit(progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        look(progress, result)
        committing(progress, result, obsolete)

    exchange.commit = commit  # type: ignore[method-assign]


# --- all goes well ---


def test_the_sites_train_one_model_whose_every_sum_is_exact_and_the_server_counts_the_rounds() -> None:
    exchange = run_to_its_end(a_secure_consortium())
    for number in (1, 2):
        assert_exact(exchange, number, NAMES)
    assert all(site.trained == [(1, 0), (2, 0)] for site in exchange.sites.values())
    assert len({site.state() for site in exchange.sites.values()}) == 1
    target = sum(site.records % 7 / 7 * site.records for site in exchange.sites.values()) / 100
    assert exchange.sites[EAST].model == pytest.approx(np.full(DIMENSION, target * (1 - 0.5**2)), abs=1e-5)

    assert [result.round_number for result in exchange.results.values()] == [1, 2]
    for result in exchange.results.values():
        assert result.contributed == NAMES
        assert not result.missing
        assert set(result.phase_seconds) == {"upload", "vote", "reveal"}
        assert result.bytes_up > 4 * words.POLYNOMIAL_BYTES
        assert result.bytes_down > 0
    assert exchange.progress.released
    assert exchange.refused == {}
    greeted = [i.round_number for _, i in exchange.sent if i.phase is Phase.HELLO]
    assert greeted == [0] * 4, "every other hello came with the reveal before it"

    ballots = [site.ballots for site in exchange.sites.values()]
    assert all(len(given) == 4 for given in ballots), "statistics, two rounds, the final model"
    assert all(given == ballots[0] for given in ballots)
    assert {vote.site for vote in opening_of(exchange, 1).votes} == set(NAMES)

    assert [stored.round_number for stored in exchange.progress.sums] == [0, 1, 2, 3]
    assert set(exchange.blobs.content) == exchange.progress.blobs()
    assert len(exchange.progress.blobs()) == 1 + 4 + 2, "keys, openings, and the ciphertexts of two rounds"
    assert exchange.outcomes == [SumOutcome.OPENED] * 4


@pytest.mark.parametrize("sites", [2, 3, 6])
def test_it_works_for_few_sites_and_for_so_many_that_shares_go_through_the_spool(sites: int) -> None:
    names = [SiteName(f"site-{number}") for number in range(sites)]
    quorum = Rules(sites, min(1, sites - 2)).floor
    exchange = run_to_its_end(
        a_secure_consortium(
            names,
            [10 + number for number in range(sites)],
            rounds={"count": 1, "quorum": quorum},
            protection={"mode": "secagg", "colluders": min(1, sites - 2)},
        )
    )
    np.testing.assert_array_equal(exchange.sites[names[0]].opened[1][0], exact_sum(exchange, names, (1, 0)))
    assert len({site.state() for site in exchange.sites.values()}) == 1
    assert set(exchange.blobs.content) == exchange.progress.blobs()


# --- the spool ---


def test_an_attempt_that_was_given_up_leaves_nothing_in_the_spool() -> None:
    names = [SiteName(f"site-{number}") for number in range(6)]
    exchange = with_tamper(silent(names[:3], Phase.VOTE), names, [10] * 6, rounds={"count": 1, "quorum": 4})
    assert asked(exchange, Phase.VOTE)[-1][1] == 1
    assert set(exchange.blobs.content) == exchange.progress.blobs()


def test_votes_that_were_split_by_crashes_do_not_keep_a_run_from_going_on() -> None:
    """EAST voted for all; NORTH and SOUTH for all but WEST, while it was away. A vote that cannot open anything is not
    asked for, and once a set has enough who may vote for it the run goes on."""
    exchange, number = a_secure_consortium(rounds={"count": 2}), 2
    everybody, three = (tuple((site, "") for site in sites) for sites in (NAMES, OTHERS))
    exchange.sites[EAST].locked[number] = [everybody]
    for site in (NORTH, SOUTH):
        exchange.sites[site].locked[number] = [three]
    with pytest.raises(QuorumMissingError, match="may vote for a sum over them"):
        exchange.loop().run()
    assert all(len(site.locked.get(number, [])) <= 1 for site in exchange.sites.values()), "nobody was bound further"
    exchange.sites[EAST].locked[number] = [three]
    exchange.resume().run()
    assert exchange.results[2].contributed == OTHERS


def test_a_sum_from_which_sites_may_have_voted_is_not_taken_back_by_a_new_process_either() -> None:
    exchange = paused_after_two_attempts(Phase.VOTE)
    before = exchange.progress
    assert before.reached == 1
    exchange.tamper = when(NAMES, Phase.UPLOAD, lambda reply: Reply(reply.message_id, "sum_refused"))
    with pytest.raises(QuorumMissingError):
        exchange.resume().run()
    assert exchange.progress.sums == before.sums


def test_a_checkpoint_takes_the_place_of_the_sums_before_it() -> None:
    exchange = run_to_its_end(a_secure_consortium(rounds={"count": 3, "checkpoint_every": 2}))
    progress = exchange.progress
    assert progress.checkpoint_round == 2
    assert [stored.round_number for stored in progress.sums] == [3, 4]
    assert set(exchange.blobs.content) == progress.blobs()
    assert progress.checkpoint is not None
    sealed = exchange.blobs.content[progress.checkpoint.id]
    assert exchange.sites[EAST].state() not in sealed
    assert len({site.state() for site in exchange.sites.values()}) == 1


def test_a_checkpoint_that_its_sealer_did_not_sign_is_asked_of_the_next_site() -> None:
    exchange = a_secure_consortium(rounds={"count": 3, "checkpoint_every": 2})
    signing, digest = exchange.sites[EAST].keys.signing, exchange.study.digest()

    def for_another_round(reply: Reply) -> Reply:
        return with_answer(reply, vote=Vote(EAST, signing.sign(checkpointed(digest, RUN, 3, reply.blobs[0].id))))

    exchange.tamper = when([EAST], Phase.CHECKPOINT, for_another_round, 4)  # the fourth sum's turn is the first name's
    progress = run_to_its_end(exchange).progress
    assert progress.checkpoint_round == 2
    assert progress.checkpoint_sealer is not None
    assert progress.checkpoint_sealer[0] == NORTH


# --- sums that do not open ---


def spoiled(exchange: MemoryExchange, liar: SiteName, attempts: Iterable[int] = (0,)) -> Tamper:
    """In round 1 this site sends words that are no ciphertext of its shares: nobody can say which."""
    lie = partial(encrypting, exchange, change=lambda content: content[::-1][:13] + content[13:])
    return when([liar], Phase.UPLOAD, lie, attempts=attempts)


@pytest.mark.parametrize("how_often", [1, 2])
def test_a_sum_that_the_sites_cannot_open_is_begun_anew_and_nobody_took_anything_of_it(how_often: int) -> None:
    """It may be right next time."""
    exchange = a_secure_consortium(rounds={"count": 2})
    exchange.tamper = spoiled(exchange, WEST, attempts=range(how_often))
    if how_often == 1:
        run_to_its_end(exchange)
        assert exchange.results[1].contributed == NAMES
        assert_exact(exchange, 1, NAMES, attempt=1)
        assert sorted(exchange.results) == [1, 2]
        assert exchange.progress.blobs() <= set(exchange.blobs.content)
    else:
        with pytest.raises(QuorumMissingError):
            exchange.loop().run()
        assert exchange.results == {}
    assert asked(exchange, Phase.UPLOAD)[-1] == (WEST, 1)
    for outcome in (SumOutcome.NOT_OPENED, SumOutcome.BEGUN_ANEW):
        assert exchange.outcomes.count(outcome) == how_often
    assert all(len(site.locked[1]) == 2 for site in exchange.sites.values())


def test_one_liar_and_an_absent_site_do_not_have_a_sum_begun_anew_that_the_others_opened() -> None:
    """Votes on its model would be used up, and it would be trained on again."""

    def lie(reply: Reply) -> Reply:
        return Reply(reply.message_id, "sum_refused")

    exchange = with_tamper(
        each_of(when([WEST], Phase.UPLOAD, lie, 2, attempts=(0,)), silent([EAST], Phase.UPLOAD, round_number=2))
    )
    assert asked(exchange, Phase.UPLOAD, 2)[-1] == (WEST, 1)
    assert all(len(site.locked[1]) == 1 for site in exchange.sites.values())
    assert_exact(exchange, 1, NAMES)
    assert exchange.results[2].contributed == NAMES


@pytest.mark.parametrize("sites", [3, 4, 5])
def test_the_last_sum_is_begun_anew_however_few_refusals_are_heard_before_the_exchange_is_given_up(sites: int) -> None:
    names = [SiteName(f"site-{number}") for number in range(sites)]
    quorum = Rules(sites, 1).floor
    exchange = a_secure_consortium(names, [10] * sites, rounds={"count": 1, "quorum": quorum})
    exchange.tamper = spoiled(exchange, names[-1])
    run_to_its_end(exchange)
    assert exchange.results[1].contributed == tuple(names)
    assert all(len(site.locked[1]) == 2 for site in exchange.sites.values())


def test_a_sum_that_does_not_open_is_begun_anew_though_a_site_is_absent_and_few_are_asked() -> None:
    """Of three sites that are left, one refusal is one too many for the quorum, and still only one site's word."""
    exchange = a_secure_consortium(rounds={"count": 1})

    def leave(reply: Reply) -> None:
        exchange.gone = {EAST}

    exchange.tamper = each_of(spoiled(exchange, WEST), when([EAST], Phase.REVEAL, leave))
    with pytest.raises(QuorumMissingError, match="may vote for a sum over them"):  # not over one site fewer
        run_to_its_end(exchange)
    assert exchange.progress.summed == 1, "the sum was taken back"


def test_a_last_sum_that_does_not_open_is_told_though_nothing_is_begun_anew() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = when(NAMES, Phase.RELEASE, lambda reply: Reply(reply.message_id, "sum_refused"), 2)
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    assert exchange.outcomes == [SumOutcome.OPENED] * 2 + [SumOutcome.NOT_OPENED]


# --- sites that go ---


@pytest.mark.parametrize("phase", EXCHANGES)
def test_a_site_that_falls_silent_costs_its_part_and_no_more(phase: Phase) -> None:
    exchange = with_tamper(lost([WEST], phase))
    survivors = OTHERS if phase in (Phase.HELLO, Phase.UPLOAD) else NAMES
    assert_exact(exchange, 1, survivors)
    assert_exact(exchange, 2, NAMES)
    assert exchange.results[1].contributed == survivors
    assert exchange.results[1].missing == ({} if WEST in survivors else {WEST: "late"})
    assert {i.attempt for _, i in exchange.sent} == {0}
    assert [site for site, _ in asked(exchange, Phase.HELLO)] == ([WEST] if phase is Phase.HELLO else [])
    assert [site for site, _ in asked(exchange, Phase.HELLO, 2)] == [WEST], "who did not reveal is asked for a hello"
    for later in EXCHANGES[EXCHANGES.index(phase) + 1 :]:
        assert WEST not in {site for site, _ in asked(exchange, later)}


def test_one_site_fewer_in_every_exchange_is_stood_as_long_as_enough_are_left() -> None:
    """Five of seven have to vote, four shares open: one is lost at each step."""
    names = [SiteName(f"site-{number}") for number in range(7)]
    first, second, seven = names[:1], names[1:2], {"rounds": {"count": 1, "quorum": 5}}
    gone = [*(silent(first, phase) for phase in EXCHANGES), *(silent(second, phase) for phase in EXCHANGES[1:])]
    exchange = with_tamper(each_of(*gone), names, [10] * 7, **seven)
    assert_exact(exchange, 1, names[2:])
    late = with_tamper(each_of(silent(first, Phase.VOTE), silent(second, Phase.REVEAL)), names, [10] * 7, **seven)
    assert_exact(late, 1, names)
    assert {vote.site for vote in opening_of(late, 1).votes} == set(names[1:])
    assert {reveal.site for reveal in opening_of(late, 1).reveals} == set(names[2:])


def test_a_site_that_was_started_again_between_upload_and_vote_is_in_the_sum_and_does_not_vote() -> None:
    exchange = a_secure_consortium()
    exchange.tamper = restarting(exchange, Phase.UPLOAD)
    run_to_its_end(exchange)
    assert_exact(exchange, 1, NAMES)
    assert {vote.site for vote in opening_of(exchange, 1).votes} == set(OTHERS)
    assert exchange.results[2].contributed == NAMES


@pytest.mark.parametrize("phase", EXCHANGES)
def test_too_few_sites_cost_one_attempt_and_the_sum_is_begun_anew_with_new_keys(phase: Phase) -> None:
    exchange = with_tamper(lost([EAST, NORTH] if phase is not Phase.REVEAL else OTHERS, phase))
    assert [site for site, attempt in asked(exchange, Phase.HELLO) if attempt == 1] == list(NAMES)
    assert_exact(exchange, 1, NAMES, attempt=1)
    assert exchange.outcomes.count(SumOutcome.BEGUN_ANEW) == 1
    assert SumOutcome.NOT_OPENED not in exchange.outcomes
    assert exchange.results[1].contributed == NAMES
    trained = [attempt for number, attempt in exchange.sites[EAST].trained if number == 1]
    assert trained == ([1] if phase is Phase.HELLO else [0, 1]), "nothing that was sent is sent again under other keys"
    keys = [
        {hello.round_key for hello in sum_work_from_bytes(i.body).hellos}
        for s, i in exchange.sent
        if s == WEST and i.phase is Phase.UPLOAD and i.round_number == 1
    ]
    assert len(keys) == 1 or not keys[0] & keys[1]


def paused_after_two_attempts(phase: Phase) -> MemoryExchange:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = lost([EAST, NORTH] if phase is not Phase.REVEAL else OTHERS, phase, range(100))
    with pytest.raises(QuorumMissingError, match=f"in the phase {phase}"):
        exchange.loop().run()
    assert exchange.progress.attempt == 2
    assert exchange.progress.summed == 1
    assert exchange.results == {}
    exchange.sent.clear()
    return exchange


@pytest.mark.parametrize("phase", [Phase.HELLO, Phase.UPLOAD])
def test_after_two_attempts_the_run_pauses_and_a_resumption_tries_two_others(phase: Phase) -> None:
    exchange = paused_after_two_attempts(phase)
    exchange.tamper = silent([EAST, NORTH], phase, attempts=(2,))
    exchange.resume().run()
    assert {attempt for _, attempt in asked(exchange, Phase.HELLO)} == {2, 3}
    assert_exact(exchange, 1, NAMES, attempt=3)


@pytest.mark.parametrize("phase", [Phase.VOTE, Phase.REVEAL])
def test_what_the_sites_voted_for_they_open_over_the_same_sites_however_often_it_was_begun(phase: Phase) -> None:
    exchange = paused_after_two_attempts(phase)
    exchange.tamper = silent([WEST], Phase.UPLOAD, attempts=(2, 3))  # a sum that differs from the voted one by a site
    with pytest.raises(QuorumMissingError, match="may vote for a sum over them"):
        exchange.resume().run()
    assert exchange.results == {}
    exchange.tamper = honest
    exchange.resume().run()
    assert exchange.results[1].contributed == NAMES
    assert all(len(set(site.locked[1])) == 1 for site in exchange.sites.values())


def test_a_site_with_which_the_others_may_not_vote_is_told_to_be_missing() -> None:
    """They voted for a sum of the same input without it, in an earlier run say."""
    exchange = a_secure_consortium(rounds={"count": 1})
    for site in OTHERS:
        exchange.sites[site].locked[1] = [tuple((name, "") for name in OTHERS)]
    exchange.loop().run()
    assert exchange.results[1].contributed == OTHERS
    assert exchange.results[1].missing == {WEST: "vote_refused"}


# --- a new process ---


@pytest.mark.parametrize("phase", EXCHANGES)
def test_a_new_process_makes_the_same_opening_of_the_same_replies(phase: Phase) -> None:
    """The process dies just before it commits the sum."""
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = lost([WEST], phase)
    unseen: list[StoredSum] = []

    def die(progress: StudyProgress, _: RoundResult | None) -> None:
        if progress.summed == 2 and not unseen:
            unseen.append(progress.sums[-1])
            raise Killed

    on_commit(exchange, die)
    with pytest.raises(Killed):
        exchange.loop().run()
    exchange.loop().run()
    assert exchange.progress.sums[1] == unseen[0]
    assert all(site.trained == [(1, 0)] for site in exchange.sites.values() if site.trained)
    assert_exact(exchange, 1, OTHERS if phase in (Phase.HELLO, Phase.UPLOAD) else NAMES)


def test_a_site_that_was_withdrawn_when_an_exchange_closed_does_not_come_in_after_a_restart() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})

    def die_in_the_vote(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        if instruction.phase is Phase.VOTE and instruction.round_number == 1:
            exchange.tamper = honest
            raise Killed
        return lost([WEST], Phase.HELLO)(site, instruction, reply)

    exchange.tamper = die_in_the_vote
    with pytest.raises(Killed):
        exchange.loop().run()
    exchange.loop().run()
    assert_exact(exchange, 1, OTHERS)
    assert exchange.results[1].missing == {WEST: "work_withdrawn"}
    assert exchange.progress.attempt == 0


def test_a_hello_that_slipped_in_as_the_exchange_closed_costs_an_attempt_and_tells_nothing() -> None:
    """Its reply was written down, but the process died before it saw it: the sum of the new process is another."""
    exchange = a_secure_consortium(rounds={"count": 1})
    slipped: list[tuple[SiteName, Instruction, Reply]] = []

    def tamper(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        here = instruction.round_number == 1 and instruction.attempt == 0
        if site == WEST and instruction.phase is Phase.REVEAL and instruction.round_number == 0:
            return ()
        if here and site == WEST and instruction.phase is Phase.HELLO:
            slipped.append((site, instruction, reply))
            return ()
        if here and instruction.phase is Phase.VOTE:
            exchange.tamper = honest
            raise Killed
        return (reply,)

    exchange.tamper = tamper
    with pytest.raises(Killed):
        exchange.loop().run()
    ((site, instruction, reply),) = slipped
    exchange.stored[reply.message_id] = site, instruction, reply
    exchange.loop().run()
    assert_exact(exchange, 1, NAMES, attempt=1)
    assert all(len({b.identity for b in s.ballots}) == len(s.ballots) for s in exchange.sites.values())


# --- sites that hold other models ---


def test_sites_with_another_study_key_are_left_out_as_if_they_held_another_model() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.sites[WEST].key = StudyKey(b"w" * 32)
    run_to_its_end(exchange)
    assert exchange.results[1].contributed == OTHERS
    assert exchange.results[1].missing == {WEST: "sum_refused"}, "it does not open the sum of the statistics either"


# --- malformed and hostile contributions ---


def fewer_counts(exchange: MemoryExchange, reply: Reply) -> Reply:
    """With shares of the length that goes with them."""
    counts = words_from_bytes(sum_answer_from_bytes(reply.body).counts)[:-1]
    size = share_boxes.message_bytes(ring.DEGREE + len(counts))
    boxes = shares_from_bytes(exchange.blobs.content[reply.blobs[1].id])
    shares = exchange.blobs.put(shares_to_bytes({site: box[:size] for site, box in boxes.items()}))
    return replace(with_answer(reply, counts=words_to_bytes(counts)), blobs=(reply.blobs[0], shares))


def a_word_out_of_range(exchange: MemoryExchange, reply: Reply) -> Reply:
    return encrypting(exchange, reply, lambda content: content[:-7] + b"\xff" * 7)


UPLOADS: dict[str, tuple[Callable[[MemoryExchange, Reply], Reply], str]] = {
    "shorter": (lambda ex, reply: encrypting(ex, reply, lambda content: content[:-1]), "bad_contribution"),
    "fewer counts": (fewer_counts, "base_model_mismatch"),
    "another dimension": (lambda _, reply: with_answer(reply, dimension=7), "base_model_mismatch"),
    "a word out of range": (a_word_out_of_range, "bad_frame"),
    "a blob that is not there": (
        lambda _, reply: replace(reply, blobs=(replace(reply.blobs[0], id=BlobId(bytes(32))), reply.blobs[1])),
        "blob_missing",
    ),
    "no answer": (lambda _, reply: replace(reply, body=b"\xff\xff"), "bad_frame"),
}


@pytest.mark.parametrize(("change", "code"), UPLOADS.values(), ids=UPLOADS)
def test_a_malformed_upload_is_left_out_and_the_sum_of_the_others_is_exact(
    change: Callable[[MemoryExchange, Reply], Reply], code: str
) -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = when([WEST], Phase.UPLOAD, lambda reply: change(exchange, reply))
    run_to_its_end(exchange)
    assert_exact(exchange, 1, OTHERS)
    assert exchange.results[1].contributed == OTHERS
    assert exchange.results[1].missing == {WEST: code}
    assert exchange.progress.attempt == 0
    if code != "base_model_mismatch":  # it is told to the journal, so that the site is not thought to have contributed
        assert list(exchange.refused.values()) == [code]


def test_too_many_malformed_uploads_cost_the_attempt_and_not_the_run() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = when(
        [EAST, WEST], Phase.UPLOAD, lambda reply: a_word_out_of_range(exchange, reply), attempts=(0,)
    )
    run_to_its_end(exchange)
    assert_exact(exchange, 1, NAMES, attempt=1)
    assert {attempt for _, attempt in asked(exchange, Phase.VOTE)} == {1}, "nobody is asked about too few"


def with_another_key(reply: Reply) -> Reply:
    hello = sum_answer_from_bytes(reply.body).hello
    assert hello is not None
    return with_answer(reply, hello=replace(hello, round_key=b"e" * 32))


@pytest.mark.parametrize("change", [lambda reply: with_answer(reply, hello=None), with_another_key])
def test_without_a_true_hello_beside_its_reveal_a_site_is_asked_for_one(change: Callable[[Reply], Reply]) -> None:
    """A false one costs the reveal as well."""
    exchange = with_tamper(when([WEST], Phase.REVEAL, change))
    opening = opening_of(exchange, 1)
    assert {hello.site for hello in opening.following} == set(OTHERS)
    assert (WEST in {reveal.site for reveal in opening.reveals}) == (change is not with_another_key)
    assert asked(exchange, Phase.HELLO, 2) == [(WEST, 0)]
    assert exchange.results[2].contributed == NAMES
    assert_exact(exchange, 2, NAMES)


def test_a_site_that_is_started_again_after_its_reveal_sits_out_one_sum_and_says_hello_for_the_next() -> None:
    exchange = a_secure_consortium(rounds={"count": 3})
    exchange.tamper = restarting(exchange, Phase.REVEAL)
    run_to_its_end(exchange)
    assert [exchange.results[number].missing for number in (1, 2, 3)] == [{}, {WEST: "vote_refused"}, {}]
    assert asked(exchange, Phase.HELLO, 2) == []
    assert asked(exchange, Phase.HELLO, 3) == [(WEST, 0)]
    assert exchange.progress.attempt == 0
    for number, survivors in ((1, NAMES), (2, OTHERS), (3, NAMES)):
        assert_exact(exchange, number, survivors)


def test_hellos_for_the_sum_after_one_that_is_taken_back_are_not_used() -> None:
    exchange = a_secure_consortium(rounds={"count": 2})
    exchange.tamper = spoiled(exchange, WEST)
    run_to_its_end(exchange)
    assert asked(exchange, Phase.HELLO, 1) == [(name, 1) for name in NAMES], "of the sum that is begun anew"
    uploads = [
        (i.attempt, {hello.round_key for hello in sum_work_from_bytes(i.body).hellos})
        for site, i in exchange.sent
        if site == EAST and (i.phase, i.round_number) == (Phase.UPLOAD, 2)
    ]
    assert [attempt for attempt, _ in uploads] == [0, 1]
    assert not uploads[0][1] & uploads[1][1]
    assert_exact(exchange, 1, NAMES, attempt=1)
    assert_exact(exchange, 2, NAMES, attempt=1)


@pytest.mark.parametrize("phase", [Phase.VOTE, Phase.REVEAL])
def test_a_vote_or_a_share_that_its_site_did_not_sign_is_refused_and_the_others_suffice(phase: Phase) -> None:
    field, signature = phase.value, Ed25519PrivateKey.generate().sign(b"vote")

    def change(reply: Reply) -> Reply:
        said = getattr(sum_answer_from_bytes(reply.body), field)
        return with_answer(reply, **{field: replace(said, signature=signature)})

    exchange = with_tamper(when([WEST], phase, change), rounds={"count": 1})
    assert_exact(exchange, 1, NAMES)
    assert WEST not in {said.site for said in getattr(opening_of(exchange, 1), field + "s")}
    assert set(exchange.refused.values()) == {"bad_contribution"}


def test_a_study_whose_sites_have_no_model_is_not_trained() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = when(NAMES, Phase.UPLOAD, lambda reply: with_answer(reply, dimension=0), round_number=0)
    with pytest.raises(ContributionError, match="no model to train"):
        exchange.loop().run()


# --- the study key ---


def test_a_site_without_a_part_for_everybody_is_left_out_of_the_key_and_is_a_site_all_the_same() -> None:
    def one_missing(reply: Reply) -> Reply:
        parts = sum_answer_from_bytes(reply.body).parts
        return with_answer(reply, parts={site: part for site, part in parts.items() if site != EAST})

    exchange = with_tamper(when([WEST], Phase.KEYS, one_missing, round_number=0), rounds={"count": 1})
    assert set(exchange.refused.values()) == {"bad_contribution"}
    assert_exact(exchange, 1, NAMES)


def test_the_key_is_made_once_and_by_a_quorum() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.tamper = silent([EAST, WEST], Phase.KEYS, round_number=0, attempts=range(9))
    with pytest.raises(QuorumMissingError):
        exchange.loop().run()
    assert exchange.progress.keys is None
    exchange.tamper = honest
    exchange.resume().run()
    keys = {site.key for site in exchange.sites.values()}
    assert len(keys) == 1
    assert len({commit.keys for commit in exchange.commits if commit.keys}) == 1


# --- what the sites tell ---


def telling(exchange: MemoryExchange, site: SiteName, what: Mapping[int, Mapping[str, float]]) -> None:
    exchange.sites[site].tells = lambda number: {r: v for r, v in what.items() if r <= number}


def test_metrics_are_what_most_sites_tell() -> None:
    exchange = a_secure_consortium()
    for site in OTHERS:
        telling(exchange, site, {1: {"loss": 0.5, "auc": 0.75}, 2: {"loss": 0.25}})
    telling(exchange, WEST, {1: {"loss": 0.001}, 2: {"loss": 0.001, "auc": 1.0}})
    run_to_its_end(exchange)
    assert exchange.results[1].metrics == {"loss": 0.5, "auc": 0.75}
    assert exchange.results[2].metrics == {"loss": 0.25}


def test_where_the_others_have_nothing_to_tell_a_liar_does_not_tell_it_for_them() -> None:
    exchange = a_secure_consortium()
    telling(exchange, WEST, {1: {"loss": 0.001}, 2: {"made up": float("nan")}})
    run_to_its_end(exchange)
    assert exchange.results[1].metrics == exchange.results[2].metrics == {}


def test_what_is_told_in_different_sums_is_put_together_and_a_round_that_is_done_stays_as_it_is() -> None:
    exchange = a_secure_consortium(rounds={"count": 3})
    for site in NAMES:
        exchange.sites[site].tells = lambda number: {
            2: {1: {"train_loss": 0.5}},
            3: {1: {"loss": 0.4}, 2: {"train_loss": 0.3}},
            4: {1: {"loss": 9.9}, 2: {"loss": 0.2}, 3: {"train_loss": 0.1}},
            5: {3: {"loss": 0.05}},
        }.get(number, {})
    run_to_its_end(exchange)
    assert exchange.results[1].metrics == {"train_loss": 0.5, "loss": 0.4}
    assert exchange.results[2].metrics == {"train_loss": 0.3, "loss": 0.2}
    assert exchange.results[3].metrics == {"train_loss": 0.1, "loss": 0.05}


# --- the release ---


def test_the_server_holds_a_model_that_it_cannot_read_and_every_sites_signature_with_it() -> None:
    exchange = run_to_its_end(a_secure_consortium(rounds={"count": 1}))
    assert exchange.model is not None
    state = exchange.sites[NORTH].state()
    assert state in opened(exchange)
    held = [exchange.model, *exchange.blobs.content.values()]
    assert not any(state[at : at + 16] in content for at in range(0, len(state), 8) for content in held)
    assert all(name.encode() in exchange.model for name in NAMES)


def of_another_model(reply: Reply) -> Reply:
    return replace(reply, blobs=(Blob.of(b"a model with a back door"),))


@pytest.mark.parametrize("change", [lambda reply: with_answer(reply, model=b""), of_another_model])
def test_a_release_without_the_name_of_its_model_or_a_signature_under_it_is_refused(
    change: Callable[[Reply], Reply],
) -> None:
    exchange = with_tamper(when([EAST], Phase.RELEASE, change, round_number=2), rounds={"count": 1})
    assert opened(exchange) == exchange.sites[NORTH].state()
    assert list(exchange.refused.values()) == ["bad_contribution"]


# --- replies that come twice, late, or from elsewhere ---


def test_an_answer_that_is_empty_in_every_exchange_is_a_refusal_and_no_more() -> None:
    empty = SumAnswer()
    assert sum_answer_from_bytes(b"") == empty
    exchange = with_tamper(
        lambda site, _, reply: (replace(reply, body=b"", blobs=()),) if site == WEST else (reply,), rounds={"count": 1}
    )
    assert exchange.results[1].contributed == OTHERS


# --- the server's memory and disk ---


class Watched(io.BytesIO):
    """Notes each piece that is read of it."""

    def __init__(self, content: bytes, pieces: list[int]) -> None:
        super().__init__(content)
        self._pieces = pieces

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self._pieces.append(len(piece))
        return piece


def test_of_all_shares_only_those_for_the_site_that_is_asked_are_read_when_it_is_asked() -> None:
    """All of them are sites² times 17 KB: they stay in the spool, and nobody's are there before his turn."""
    exchange = a_secure_consortium(rounds={"count": 1})
    opening, sending = exchange.open, exchange.send
    pieces: list[int] = []
    read: dict[SiteName, list[int]] = {}

    def watched(blob: Blob) -> BinaryIO:
        return Watched(opening(blob).read(), pieces)

    def send(site: SiteName, instruction: Instruction) -> None:
        if (instruction.phase, instruction.round_number) == (Phase.VOTE, 1):
            read[site] = pieces[:]
        pieces.clear()
        sending(site, instruction)

    exchange.open, exchange.send = watched, send  # type: ignore[method-assign]
    run_to_its_end(exchange)
    assert_exact(exchange, 1, NAMES)
    (boxes,) = {
        tuple(len(box) for box in shares_from_bytes(work.shares.inline or b"").values())
        for _, instruction in exchange.sent
        if (instruction.phase, instruction.round_number) == (Phase.VOTE, 1)
        and (work := sum_work_from_bytes(instruction.body)).shares is not None
    }
    assert len(boxes) == 3
    for site in NAMES[1:]:  # before the first one the ciphertexts were read
        assert read[site] == list(boxes)
    assert read[NAMES[0]][-3:] == list(boxes)


def test_shares_that_repeat_what_a_checkpoint_drops_cost_an_attempt_and_do_not_stop_the_run() -> None:
    """Nobody can say what is in a sealed checkpoint: a site puts shares there, and sends the same in a later upload."""
    exchange = a_secure_consortium(rounds={"count": 4, "checkpoint_every": 1})
    nonsense = bytes(share_boxes.message_bytes(ring.DEGREE + OWN_COUNTS + TALLY + TAGS))
    shares = exchange.blobs.put(shares_to_bytes(dict.fromkeys((NORTH, SOUTH, WEST), nonsense)))
    signed = exchange.sites[WEST].keys.signing.sign(checkpointed(exchange.study.digest(), RUN, 1, shares.id))

    def seal_shares(reply: Reply) -> Reply:
        return with_answer(replace(reply, blobs=(shares,)), vote=Vote(WEST, signed))

    exchange.tamper = each_of(
        when([WEST], Phase.CHECKPOINT, seal_shares, 3),  # whose turn it is
        when([EAST], Phase.UPLOAD, lambda reply: replace(reply, blobs=(reply.blobs[0], shares)), 4, (0,)),
    )
    run_to_its_end(exchange)
    assert shares.id in [progress.checkpoint.id for progress in exchange.commits if progress.checkpoint]
    assert_exact(exchange, 4, NAMES, attempt=1)
    assert shares.id not in exchange.blobs.content


def test_a_disk_without_room_is_noticed_before_anybody_trains() -> None:
    exchange = a_secure_consortium(rounds={"count": 1})
    exchange.free = 5 * words.POLYNOMIAL_BYTES + 2 * 4 * shares_bytes(NAMES, ring.DEGREE + USUAL_COUNTS) - 1
    with pytest.raises(DiskFullError):
        exchange.loop().run()
    assert asked(exchange, Phase.HELLO) == []
    assert exchange.progress.attempt == 0
    exchange.free += 1
    exchange.loop().run()
    assert_exact(exchange, 1, NAMES)


def test_the_room_that_is_asked_for_is_enough_for_what_a_sum_puts_into_the_spool() -> None:
    names = [SiteName(f"site-{number}") for number in range(7)]
    exchange = a_secure_consortium(names, [10] * 7, rounds={"count": 2, "quorum": 5})
    held: list[int] = []
    on_commit(exchange, lambda *_: held.append(sum(len(content) for content in exchange.blobs.content.values())))
    run_to_its_end(exchange)
    exact = 8 * words.POLYNOMIAL_BYTES + 2 * 7 * 6 * share_boxes.message_bytes(ring.DEGREE + OWN_COUNTS + TALLY + TAGS)
    assert exact < max(held), "the shares are there twice"
    exchange = a_secure_consortium(names, [10] * 7, rounds={"count": 2, "quorum": 5})
    exchange.free = max(held)
    with pytest.raises(DiskFullError):
        exchange.loop().run()


def test_room_is_kept_for_as_many_counts_as_a_sum_has_shown() -> None:
    """Of many classes there are more than are thought of at the beginning."""
    shares = 4 * shares_bytes(NAMES, ring.DEGREE + USUAL_COUNTS)
    for more in (0, USUAL_COUNTS):
        exchange = a_secure_consortium(rounds={"count": 3})
        for site in exchange.sites.values():
            site.more_counts = more

        def fill(progress: StudyProgress, _: RoundResult | None, disk: MemoryExchange = exchange) -> None:
            if progress.summed == 3:  # round 2, with the evaluation of round 1
                disk.free = 5 * words.POLYNOMIAL_BYTES + 2 * shares

        on_commit(exchange, fill)
        if not more:
            run_to_its_end(exchange)
            continue
        with pytest.raises(DiskFullError):
            exchange.loop().run()
        assert exchange.progress.summed == 3


# --- what is asked ---


def test_a_site_is_told_the_shares_for_itself_only_and_the_votes_of_all() -> None:
    exchange = run_to_its_end(a_secure_consortium(rounds={"count": 1}))
    for site, instruction in exchange.sent:
        work = sum_work_from_bytes(instruction.body)
        if instruction.phase is Phase.VOTE:
            assert work.shares is not None
            assert work.shares.inline is not None
            assert set(shares_from_bytes(work.shares.inline)) == set(NAMES) - {site}
        elif instruction.phase is Phase.REVEAL:
            assert {vote.site for vote in work.votes} == set(NAMES)
            assert work == SumWork(votes=work.votes)
        elif instruction.phase is Phase.UPLOAD:
            assert [hello.site for hello in work.hellos] == list(NAMES)
            assert (work.survivors, work.digest, work.shares, work.votes) == ((), b"", None, ())
