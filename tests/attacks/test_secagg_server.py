"""A consortium's own server against sites under secure aggregation: it may lie in each exchange, and learns nothing.

The sites are real engines with keys, votes and models on disk. The server is written by hand, so that a test can have
it say what no server of ours would. After each refusal the site's models and votes are what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.aggregation import ntt, ring, words
from quorate.errors import QuorateError
from quorate.identity import RunId, SiteName
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase
from quorate.secagg.study_key import SealedPart, make_parts
from quorate.secagg.terms import Hello, Terms, Vote, say_hello
from quorate.wire.sum_messages import (
    SumRef,
    SumWork,
    opening_from_bytes,
    opening_to_bytes,
    shares_from_bytes,
    shares_to_bytes,
    words_from_bytes,
    words_to_bytes,
)
from tests.attacks.hand_server import (  # noqa: F401
    EAST,
    NAMES,
    NORTH,
    RUN,
    SOUTH,
    VICTIM,
    WEST,
    HandServer,
    Sum,
    Uploads,
    fresh_fixture,
    server_fixture,
)


async def test_the_hand_server_runs_a_study_to_its_end(server: HandServer) -> None:
    """Where it tells the truth nothing is refused: the lies below are what makes the difference."""
    for number in (2, 3, 4):
        await server.run_sum(number)
    for site in NAMES:
        _, sent = await server.ask(site, Phase.RELEASE, 4, server.way(site))
        assert sent == []  # the study leaves the model at the sites
    states = [{name for name in site.kept()[0] if name.startswith("model-3")} for site in server.sites.values()]
    assert len(states[0]) == 1
    assert all(state == states[0] for state in states)


# --- who takes part ---


def stranger_says_hello(terms: Terms, name: str = "zeta") -> Hello:
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    return say_hello(terms, SiteName(name), key, Ed25519PrivateKey.generate().sign)


LIES: dict[str, Callable[[tuple[Hello, ...], Terms], tuple[Hello, ...]]] = {
    "a stranger": lambda hellos, terms: (*hellos, stranger_says_hello(terms)),
    "a stranger in a site's place": lambda hellos, terms: (
        *hellos[:3],
        stranger_says_hello(terms, WEST),
    ),
    "a site twice": lambda hellos, _: (*hellos, hellos[-1]),
    "another order": lambda hellos, _: hellos[::-1],
    "too few": lambda hellos, _: hellos[:2],
    "without the site itself": lambda hellos, _: (hellos[0], *hellos[2:]),
    "a key of the server": lambda hellos, _: (
        *hellos[:3],
        replace(hellos[3], round_key=X25519PrivateKey.generate().public_key().public_bytes_raw()),
    ),
    "one key twice": lambda hellos, _: (*hellos[:3], replace(hellos[3], round_key=hellos[0].round_key)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_site_uploads_nothing_for_a_roster_that_was_not_agreed_on(server: HandServer, lie: str) -> None:
    hellos = await server.greet(2)
    told = LIES[lie](hellos, Terms(server.study.digest(), RUN, 2, 0))
    with server.refused("roster_refused"):
        await server.upload(VICTIM, 2, told)
    assert list(server.sites[VICTIM].folder.glob("runs/*/new-*")) == []
    await server.require_sound()


async def test_hellos_of_another_attempt_or_round_do_not_count(server: HandServer) -> None:
    """Where the others' keys are old ones, the server may know what belongs to them."""
    old = await server.greet(2, attempt=0)
    new = await server.greet(2, attempt=1)
    mixed = tuple(hello if hello.site == VICTIM else old[place] for place, hello in enumerate(new))
    with server.refused("roster_refused"):
        await server.upload(VICTIM, 2, mixed, 1)
    with server.refused("vote_refused"):  # a sum that it has left
        await server.upload(VICTIM, 2, old, 0)
    await server.require_sound()


async def hellos_for_round_3(server: HandServer) -> tuple[Hello, ...]:
    """Said with the reveals of round 2."""
    await server.run_sum(2)
    return tuple(server.following[site] for site in NAMES)


async def test_hellos_that_came_with_the_reveals_begin_the_next_sum_and_no_other(server: HandServer) -> None:
    """Neither another attempt at it nor the sum after it, even where the site asked has just said hello for that."""
    early = await hellos_for_round_3(server)
    again = await server.greet(3, 1, (VICTIM,))
    told = tuple(again[0] if hello.site == VICTIM else hello for hello in early)
    for hellos in (early, told):
        with server.refused("roster_refused"):
            await server.upload(VICTIM, 3, hellos, 1)
    later = await server.greet(4, 0, (WEST,))
    with server.refused("roster_refused", WEST):
        await server.upload(WEST, 4, (*early[:3], *later))
    for number, attempt in ((3, 0), (3, 2), (4, 1)):  # sums that it has left, or never was in
        with server.refused("vote_refused"):
            await server.upload(VICTIM, number, early, attempt)
    await server.require_sound()


async def test_a_site_that_said_hello_for_the_next_sum_is_in_it_once_and_does_nothing_more_for_the_last(
    server: HandServer,
) -> None:
    uploads = await server.collect(2, await server.greet(2))
    summed = server.add(uploads)
    votes = tuple([await server.vote(site, summed) for site in NAMES])
    reveals = tuple([await server.reveal(site, summed, votes) for site in NAMES])
    with server.refused("vote_refused"):
        await server.reveal(VICTIM, summed, votes)
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(uploads, (EAST, NORTH, SOUTH)))
    server.sums = (*server.sums, server.reference(summed, votes, reveals))
    hellos = tuple(server.following[site] for site in NAMES)
    uploads = await server.collect(3, hellos)
    with server.refused("vote_refused"):  # one hello, one upload: a second round id would be a second set of shares
        await server.upload(VICTIM, 3, hellos[:3])
    server.sums = (*server.sums, await server.open(server.add(uploads)))
    await server.require_sound()


async def test_a_share_of_a_sum_is_not_given_once_its_site_said_hello_for_a_retry(server: HandServer) -> None:
    summed = server.add(await server.collect(2, await server.greet(2)))
    votes = tuple([await server.vote(site, summed) for site in NAMES])
    await server.greet(2, 1)
    for site in NAMES:
        with server.refused("vote_refused", site):
            await server.reveal(site, summed, votes)
    await server.require_sound()


async def test_sites_that_were_told_different_hellos_are_in_different_sums(server: HandServer) -> None:
    """Two of them are told the hellos of all, the others those of three: each set is acceptable, and neither sum has
    as many sites as must be in one."""
    early = await hellos_for_round_3(server)
    uploads = Uploads(Terms(server.study.digest(), RUN, 3, 0), early)
    for site in NAMES:
        answer, blobs = await server.upload(site, 3, early if site in (SOUTH, WEST) else early[:3])
        uploads.counts[site], uploads.models[site], uploads.ciphertexts[site] = answer.counts, answer.model, blobs[0]
        uploads.boxes[site] = shares_from_bytes(server.spool.content(blobs[1]))
    assert len(set(uploads.models.values())) == 1
    uploads.boxes = {s: {r: boxes.get(r, b"") for r in NAMES} for s, boxes in uploads.boxes.items()}
    for survivors in (NAMES, (EAST, NORTH, SOUTH)):
        summed = server.add(uploads, survivors)
        for site in (EAST, NORTH, SOUTH):
            with server.refused("vote_refused" if summed.survivors == NAMES and site != SOUTH else "bad_frame", site):
                await server.vote(site, summed)
    for survivors in ((EAST, NORTH), (SOUTH, WEST)):
        for site in survivors:
            with server.refused("vote_refused", site):
                await server.vote(site, server.add(uploads, survivors))
    await server.require_sound()


async def test_a_hello_whose_key_died_with_its_process_serves_nobody(server: HandServer) -> None:
    """The old hello is true and its site cannot come after it; a hello for the same sum is another one."""
    early = await hellos_for_round_3(server)
    server.sites[VICTIM].restart()
    with server.refused("vote_refused"):
        await server.upload(VICTIM, 3, early)
    new = await server.greet(3, 0, (VICTIM,))
    with server.refused("roster_refused"):
        await server.upload(VICTIM, 3, early)
    uploads = await server.collect(3, (early[0], new[0], *early[2:]))
    server.sums = (*server.sums, await server.open(server.add(uploads)))
    await server.require_sound()


async def test_sites_that_were_shown_different_sums_do_not_meet_in_a_round(server: HandServer) -> None:
    """Model inconsistency: two attempts at one round were opened, and the victim alone is shown the first of them.

    What it uploads is for a sum of its own: nobody can vote on it, with or without the victim among the survivors, and
    what is opened does not hold the victim's part.
    """
    opened = []
    for attempt in (0, 1):
        uploads = await server.collect(2, await server.greet(2, attempt), attempt)
        opened.append(await server.open(server.add(uploads)))
    before, hellos = server.sums, await server.greet(3)
    uploads = Uploads(Terms(server.study.digest(), RUN, 3, 0), hellos)
    for site in NAMES:
        server.sums = (*before, opened[0 if site == VICTIM else 1])
        answer, blobs = await server.upload(site, 3, hellos)
        uploads.counts[site], uploads.models[site], uploads.ciphertexts[site] = answer.counts, answer.model, blobs[0]
        uploads.boxes[site] = shares_from_bytes(server.spool.content(blobs[1]))
    assert len({uploads.models[site] for site in (EAST, SOUTH, WEST)}) == 1
    assert uploads.models[VICTIM] != uploads.models[EAST]
    everybody = server.add(uploads)
    for site in NAMES:
        with server.refused("bad_frame", site):
            await server.vote(site, everybody)
    others = server.add(uploads, (EAST, SOUTH, WEST))
    with server.refused("bad_frame"):
        await server.vote(VICTIM, others)
    server.sums = (*before, opened[1], await server.open(others))
    await server.require_sound()


# --- another study, another key ---


async def test_work_of_another_study_is_not_done(server: HandServer) -> None:
    with server.refused("study_not_approved"):
        await server.ask(VICTIM, Phase.HELLO, 2, server.way(VICTIM), study_digest=bytes(32))
    with server.refused("bad_frame"):
        await server.ask(VICTIM, Phase.HELLO, 9, server.way(VICTIM))
    with server.refused("bad_frame"):
        await server.ask(VICTIM, Phase.GUEST, 2, server.way(VICTIM))
    await server.require_sound()


def parts_of_the_server(server: HandServer, study: bytes, run: RunId, sign: Callable[[bytes], bytes]) -> SealedPart:
    return make_parts(study, run, WEST, server.sealing, sign, SystemRandomness())[VICTIM]


@pytest.mark.parametrize("lie", ["another study", "another run", "the server's", "too few", "twice", "another site's"])
async def test_parts_of_a_study_key_that_sites_did_not_make_for_this_one_are_refused(
    installed: Path, tmp_path: Path, lie: str
) -> None:
    """Whatever the server mixes in: a part of another study or run, one that it made, or too few of the true ones."""
    server = HandServer(tmp_path)
    await server.exchange_keys()
    true, west = server.parts[VICTIM], server.sites[WEST].keys.signing.sign
    digest = server.study.digest()
    told = {
        "another study": lambda: (*true[:3], parts_of_the_server(server, bytes(32), RUN, west)),
        "another run": lambda: (*true[:3], parts_of_the_server(server, digest, RunId("run-2"), west)),
        "the server's": lambda: (
            *true[:3],
            parts_of_the_server(server, digest, RUN, Ed25519PrivateKey.generate().sign),
        ),
        "too few": lambda: true[:2],
        "twice": lambda: (*true[:3], true[2]),
        "another site's": lambda: (*true[:3], server.parts[EAST][3]),
    }[lie]()
    with server.refused("study_key_refused"):
        await server.ask(VICTIM, Phase.HELLO, 0, SumWork(parts=told))
    assert not list(server.sites[VICTIM].folder.glob("keys/studies/*"))
    await server.run_sum(0)
    for site in server.sites.values():
        site.state.close()


async def test_a_study_key_once_joined_stays(server: HandServer) -> None:
    """Other parts, good ones even, do not replace it; a site that restarts has the same key."""
    hellos = await server.greet(2)
    before = server.sites[VICTIM].kept()
    west = server.sites[WEST].keys.signing.sign
    mixed = (*server.parts[VICTIM][:3], parts_of_the_server(server, server.study.digest(), RUN, west))
    server.sites[VICTIM].restart()
    answer, _ = await server.ask(VICTIM, Phase.HELLO, 2, replace(server.way(VICTIM), parts=mixed))
    assert answer.hello is not None
    assert server.sites[VICTIM].kept() == before
    uploads = await server.collect(2, (hellos[0], answer.hello, *hellos[2:]))
    assert len(set(uploads.models.values())) == 1


# --- the vote ---


async def test_a_site_votes_once_in_a_sum(server: HandServer) -> None:
    """Two exact sums, over U and over U without the victim, would give the victim's update."""
    uploads = await server.collect(2, await server.greet(2))
    await server.vote(VICTIM, server.add(uploads))
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(uploads, (EAST, NORTH, SOUTH)))
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(uploads))
    server.sites[VICTIM].restart()  # it has lost its shares and keeps the vote
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(uploads, (EAST, NORTH, SOUTH)))
    await server.require_sound()


@pytest.mark.parametrize(
    "survivors", [(NORTH,), (EAST, NORTH), (EAST, NORTH, NORTH), (NORTH, EAST, WEST), (EAST, NORTH, SiteName("zeta"))]
)
async def test_a_site_does_not_vote_below_the_floor_nor_for_strangers(
    server: HandServer, survivors: tuple[SiteName, ...]
) -> None:
    uploads = await server.collect(2, await server.greet(2))
    true = server.add(uploads)
    boxes = shares_to_bytes({site: uploads.boxes[site][VICTIM] for site in NAMES if site != VICTIM})
    work = SumWork(survivors=survivors, digest=true.digest, shares=Blob.of(boxes))
    with server.refused("vote_refused"):
        await server.ask(VICTIM, Phase.VOTE, 2, work)
    # A site that was only asked wrongly still has its part in the sum.
    server.sums = (*server.sums, await server.open(true))
    await server.require_sound()


async def test_a_retry_does_not_open_what_differs_by_one_site(server: HandServer) -> None:
    """The same model, trained anew with the same records: the difference of both sums would be nearly one update."""
    uploads = await server.collect(2, await server.greet(2))
    await server.vote(VICTIM, server.add(uploads))
    again = await server.collect(2, await server.greet(2, 1), 1)
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(again, (EAST, NORTH, SOUTH)))
    without = await server.collect(2, await server.greet(2, 2, (EAST, NORTH, SOUTH)), 2)
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(without, (EAST, NORTH, SOUTH)))
    same = await server.collect(2, await server.greet(2, 3), 3)
    await server.vote(VICTIM, server.add(same))


async def test_a_site_votes_over_the_same_sites_each_time_it_is_begun_anew(server: HandServer) -> None:
    """And its memory of that outlives its process: over others it votes in no attempt."""
    for attempt in (0, 1, 2):
        uploads = await server.collect(2, await server.greet(2, attempt), attempt)
        await server.vote(VICTIM, server.add(uploads))
        server.sites[VICTIM].restart()
    uploads = await server.collect(2, await server.greet(2, 3), 3)
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(uploads, (EAST, NORTH, SOUTH)))


async def test_votes_of_a_round_that_is_over_are_not_given(server: HandServer) -> None:
    """Back to the model before: a third sum on it would be one too many."""
    await server.run_sum(2)
    server.sums = server.sums[:1]
    hellos = []
    for site in NAMES:
        server.sites[site].restart()
        hellos.append((await server.ask(site, Phase.HELLO, 1, server.way(site), 1))[0].hello)
    uploads = await server.collect(1, tuple(hello for hello in hellos if hello is not None), 1)
    with server.refused("vote_refused"):
        await server.vote(VICTIM, server.add(uploads))


async def test_a_site_does_not_vote_for_shares_that_it_did_not_get(server: HandServer) -> None:
    """Missing, damaged, somebody else's."""
    uploads = await server.collect(2, await server.greet(2))
    summed = server.add(uploads)
    true = {site: uploads.boxes[site][VICTIM] for site in NAMES if site != VICTIM}
    damaged = true[EAST][:-1] + bytes([true[EAST][-1] ^ 1])
    lies: list[dict[SiteName, bytes]] = [
        {site: true[site] for site in (SOUTH, WEST)},
        {**true, EAST: damaged},
        {**true, EAST: true[WEST]},
        {**true, EAST: uploads.boxes[EAST][WEST]},
    ]
    for boxes in lies:
        work = SumWork(survivors=NAMES, digest=summed.digest, shares=Blob.of(shares_to_bytes(boxes)))
        with server.refused("bad_frame"):
            await server.ask(VICTIM, Phase.VOTE, 2, work)
    server.sums = (*server.sums, await server.open(summed))
    await server.require_sound()


# --- the reveal ---


async def test_a_site_reveals_only_what_enough_voted_for_and_once(server: HandServer) -> None:
    uploads = await server.collect(2, await server.greet(2))
    summed = server.add(uploads)
    with server.refused("vote_refused"):  # it has not voted
        await server.reveal(VICTIM, summed, ())
    votes = {site: await server.vote(site, summed) for site in (EAST, NORTH)}
    forged = Vote(SOUTH, Ed25519PrivateKey.generate().sign(b"anything"))
    for few in ([EAST, NORTH], [NORTH, NORTH, NORTH]):
        with server.refused("vote_refused"):
            await server.reveal(VICTIM, summed, tuple(votes[site] for site in few))
    with server.refused("vote_refused"):
        await server.reveal(VICTIM, summed, (*votes.values(), forged))
    votes[SOUTH] = await server.vote(SOUTH, server.add(uploads, (EAST, NORTH, SOUTH)))  # for other survivors
    with server.refused("vote_refused"):
        await server.reveal(VICTIM, summed, tuple(votes.values()))
    votes[WEST] = await server.vote(WEST, summed)
    await server.reveal(VICTIM, summed, tuple(votes.values()))
    with server.refused("vote_refused"):
        await server.reveal(VICTIM, summed, tuple(votes.values()))


# --- the sum ---


async def end_of_round_2(server: HandServer) -> tuple[Sum, SumRef]:
    summed = server.add(await server.collect(2, await server.greet(2)))
    return summed, await server.open(summed)


async def require_refused(server: HandServer, lie: SumRef, true: SumRef, code: str = "sum_refused") -> None:
    """The victim does not take the lie for the sum of round 2, and takes the truth afterwards."""
    work = replace(server.way(VICTIM), sums=(*server.sums, lie))
    with server.refused(code):
        await server.arrive(VICTIM, 3, work, 1)
    server.sums = (*server.sums, true)
    await server.require_sound()


async def test_a_sum_in_which_one_word_was_changed_is_not_applied(server: HandServer) -> None:
    summed, true = await end_of_round_2(server)
    assert summed.ciphertext is not None
    total = words.unpack(server.spool.content(summed.ciphertext))
    total[0, 7] = (int(total[0, 7]) + 1) % ring.MODULUS
    changed = server.spool.put([words.pack(total)])
    await require_refused(server, replace(true, updates=changed), true)


async def test_a_changed_sum_with_a_changed_opening_is_not_what_was_voted_for(server: HandServer) -> None:
    summed, true = await end_of_round_2(server)
    assert summed.ciphertext is not None
    changed = server.spool.put([words.pack(np.zeros_like(words.unpack(server.spool.content(summed.ciphertext))))])
    lie = replace(summed, ciphertext=changed)
    votes = tuple(Vote(site, bytes(64)) for site in NAMES)
    await require_refused(server, server.reference(lie, votes, ()), true)


@pytest.mark.parametrize("where", ["ciphertext", "counts"])
async def test_a_change_that_all_sites_voted_for_does_not_fit_the_tags(server: HandServer, where: str) -> None:
    """A multiple of Delta leaves no residue, and a weight is just a word: tags that only sites can make find both.

    The lie comes before the vote, so every signature is true.
    """
    summed = server.add(await server.collect(2, await server.greet(2)))
    assert summed.ciphertext is not None
    if where == "ciphertext":
        total = words.unpack(server.spool.content(summed.ciphertext))
        message = np.zeros_like(total)
        message[0, 0] = 1 << server.packing.delta_bits
        ring.add(total, ntt.to_ntt(message))
        lie = replace(summed, ciphertext=server.spool.put([words.pack(total)]))
    else:
        counts = words_from_bytes(summed.counts)
        counts[0] = (int(counts[0]) - 1000) % ring.MODULUS
        lie = replace(summed, counts=words_to_bytes(counts))
    reference = await server.open(lie)
    with server.refused("sum_refused"):
        await server.arrive(VICTIM, 3, replace(server.way(VICTIM), sums=(*server.sums, reference)))
    await server.require_sound()


async def test_a_site_that_was_added_twice_is_found(server: HandServer) -> None:
    """Twice the victim in the sum, once among the survivors: the keys do not fit."""
    uploads = await server.collect(2, await server.greet(2))
    summed = server.add(uploads)
    total = words.unpack(server.spool.content(server.add(uploads).ciphertext or uploads.ciphertexts[VICTIM]))
    ring.add(total, words.unpack(server.spool.content(uploads.ciphertexts[VICTIM])))
    lie = replace(summed, ciphertext=server.spool.put([words.pack(total)]))
    reference = await server.open(lie)
    with server.refused("sum_refused"):
        await server.arrive(VICTIM, 3, replace(server.way(VICTIM), sums=(*server.sums, reference)))
    await server.require_sound()


def with_votes(server: HandServer, true: SumRef, summed: Sum, count: int) -> SumRef:
    """The true opening with so many of its votes."""
    opening = opening_from_bytes(server.spool.content(true.opening))
    return server.reference(summed, opening.votes[:count], opening.reveals)


@pytest.mark.parametrize(
    "lie",
    [
        "of round 1",
        "with a sum of round 1",
        "of another attempt",
        "without reveals",
        "of fewer survivors",
        "of another model",
        "with too few votes",
        "no opening",
    ],
)
async def test_an_opening_of_something_else_opens_nothing(server: HandServer, lie: str) -> None:
    summed, true = await end_of_round_2(server)
    first = server.sums[1]
    few = server.reference(replace(summed, survivors=(EAST, NORTH, SOUTH)), (), ())
    opening = opening_from_bytes(server.spool.content(true.opening))
    other = server.spool.put([opening_to_bytes(replace(opening, model=bytes(32)))])
    shown = {
        "of round 1": replace(true, opening=first.opening),
        "with a sum of round 1": replace(first, round_number=2),
        "of another attempt": replace(true, attempt=1),
        "without reveals": server.reference(summed, (), ()),
        "of fewer survivors": few,
        "of another model": replace(true, opening=other),
        "with too few votes": with_votes(server, true, summed, 2),
        "no opening": replace(true, opening=server.spool.put([b"\xff" * 100])),
    }[lie]
    await require_refused(server, shown, true)


async def test_what_was_opened_is_told_as_rates_and_never_as_counts(server: HandServer) -> None:
    """In no answer of a site is the number of anybody's records, nor of all together."""
    records = [40 + place for place in range(len(NAMES))]
    await server.run_sum(2)
    answer = await server.arrive(VICTIM, 3, server.way(VICTIM))
    told = {value for rates in answer.metrics.values() for value in rates.values()}
    assert told
    assert told.isdisjoint({*map(float, records), float(sum(records))})
    assert all(value == round(value, 3) for value in told)


# --- checkpoints ---


@pytest.mark.parametrize("lie", ["of the round before", "of the server", "damaged", "of nobody", "of a stranger"])
async def test_a_checkpoint_that_the_sites_did_not_seal_for_this_round_is_not_adopted(
    server: HandServer, lie: str
) -> None:
    """A site without the sums has only a checkpoint to go by. What it cannot verify leaves it without a model."""
    await server.run_to(2)
    uploads = await server.collect(3, await server.greet(3))
    old = await server.checkpoint(WEST, 3)
    server.sums = (*server.sums, await server.open(server.add(uploads)))
    await server.collect(4, await server.greet(4))
    true = await server.checkpoint(WEST, 4)
    sealed = true.checkpoint
    assert sealed is not None
    content = server.spool.content(sealed)
    stranger = Ed25519PrivateKey.generate().sign(b"anything")
    shown = {
        "of the round before": lambda: replace(old, checkpoint_round=2),
        "of the server": lambda: replace(true, checkpoint=server.spool.put([bytes(len(content))])),
        "damaged": lambda: replace(true, checkpoint=server.spool.put([content[:-1] + bytes([content[-1] ^ 1])])),
        "of nobody": lambda: replace(true, checkpoint=Blob(sealed.id, sealed.size - 1)),
        "of a stranger": lambda: replace(true, checkpoint_sealer=Vote(WEST, stranger)),
    }[lie]()
    await server.sites[VICTIM].engine.forget(RUN)
    parts, sums = server.parts[VICTIM], (server.sums[3],)
    with pytest.raises(QuorateError):
        await server.arrive(VICTIM, 4, replace(shown, parts=parts, sums=sums), 1)
    assert not any(name.startswith("model") for name in server.sites[VICTIM].kept()[0])
    answer = await server.arrive(VICTIM, 4, replace(true, parts=parts, sums=sums), 2)
    other = await server.arrive(EAST, 4, server.way(EAST), 3)
    assert answer.model == other.model
