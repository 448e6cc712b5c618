"""A server that works with one site, against what the others believe about earlier sums.

Sum 0 may be opened more than once, and one set of votes may be opened to more than one total. The victim is shown one,
all others another. Were they still in one sum, the others' weights could be made to vanish, and what is opened would be
the victim's update. A checkpoint is sealed with a key that the colluder has. And whether a site answers is an answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate.aggregation import one_time_pad, ring
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.weights import record_weight
from quorate.aggregation.words import pack_words, unpack_words
from quorate.errors import QuorateError
from quorate.rounds.instruction import Phase
from quorate.secagg import secret_sharing
from quorate.secagg.linear_mac import TAGS, Tagger, TagKey
from quorate.secagg.opening import Opening
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import Layout, Terms, Vote, revealed, round_id
from quorate.wire.sum_messages import SumRef, SumWork, opening_from_bytes, opening_to_bytes
from quorate_client.rounds.model.state import THETA_OFFSET, read_state
from tests.attacks.hand_server import (  # noqa: F401
    EAST,
    NAMES,
    NORTH,
    RUN,
    SOUTH,
    VICTIM,
    WEST,
    Colluder,
    HandServer,
    Uploads,
    fresh_fixture,
    server_fixture,
)

OTHERS = (EAST, SOUTH, WEST)
MANY = 1 << 49
"""Records that the colluder says it has: beside them the others' weights vanish."""


def opening_of(server: HandServer, ref: SumRef) -> Opening:
    return opening_from_bytes(server.spool.content(ref.opening))


async def upload_after(server: HandServer, shown: dict[Any, tuple[SumRef, ...]], number: int) -> Uploads:
    """All upload in one sum, each by the way that it is shown."""
    hellos = await server.greet(number)
    uploads = Uploads(Terms(server.study.digest(), RUN, number, 0), hellos, 1)
    for site in NAMES:
        server.sums = shown[site]
        answer, blobs = await server.upload(site, number, hellos)
        uploads.counts[site], uploads.models[site], uploads.ciphertexts[site] = answer.counts, answer.model, blobs[0]
        uploads.boxes[site] = server.boxes_in(blobs[-1])
    return uploads


async def require_apart(server: HandServer, uploads: Uploads) -> None:
    """The victim is in no sum with any of the others."""
    assert uploads.models[VICTIM] not in {uploads.models[site] for site in OTHERS}
    for survivors in (NAMES, (EAST, VICTIM, WEST), (VICTIM, SOUTH, WEST)):
        summed = server.add(uploads, survivors)
        for site in survivors:
            with server.refused("bad_frame", site):
                await server.vote(site, summed)


# --- one sum, two totals ---


async def test_two_attempts_at_the_statistics_lead_to_sums_that_have_nothing_in_common(fresh: HandServer) -> None:
    """Over the same sites both may be opened; in one of them the colluder adds 2^49 records."""
    attempts = []
    for attempt in (0, 1):
        if attempt:
            fresh.colluders[WEST] = Colluder(fresh.sites[WEST], {0: (MANY, 0, 0, 0, 0)})
        uploads = await fresh.collect(0, await fresh.greet(0, attempt), attempt)
        attempts.append(await fresh.open(fresh.add(uploads)))
    del fresh.colluders[WEST]
    honest, inflated = attempts
    uploads = await upload_after(fresh, {site: (honest if site == VICTIM else inflated,) for site in NAMES}, 1)
    await require_apart(fresh, uploads)


def second_reveal(opening: Opening, terms: Terms, colluder: Any, key: StudyKey, added: int) -> Opening:
    """The same votes, opened to other totals: the colluder signs another share, off by what shifts the first count."""
    roster = [hello.site for hello in opening.hellos]
    places = {roster.index(site) + 1: site for site in (EAST, WEST)}
    counts = len(unpack_words(opening.counts)) - TAGS
    identity = round_id(opening.hellos, terms, colluder.rules, Layout(0, counts), opening.model)
    by_site = {reveal.site: reveal for reveal in opening.reveals}
    share = unpack_words(key.open_once(by_site[WEST].sealed, b"reveal", identity, WEST.encode()))
    tagger = Tagger(TagKey.derive(key.secret, identity))
    tagger.extras([added, *(0,) * (counts - 1)])
    first, second = tagger.result()
    off = one_time_pad.mask([-added, *(0,) * (counts - 1), -first, -second], np.zeros(counts + TAGS, np.uint64))
    (place,) = [place for place, site in places.items() if site == WEST]
    inverse = np.array([pow(secret_sharing._lagrange_at_zero(place, sorted(places)), -1, ring.MODULUS)], np.uint64)
    ring.add(share, ring.multiply(off, inverse))
    sealed = key.seal_once(pack_words(share), b"reveal", identity, WEST.encode())
    forged = replace(
        by_site[WEST], sealed=sealed, signature=colluder.signing_key.sign(revealed(identity, WEST, sealed))
    )
    return replace(opening, reveals=(by_site[EAST], forged))


async def test_one_set_of_votes_that_is_opened_to_two_totals_parts_those_who_are_shown_them(fresh: HandServer) -> None:
    """One round id, one set of survivors, one digest, the same votes: only the opened values differ."""
    await fresh.run_sum(0)
    (ref,) = fresh.sums
    opening, terms = opening_of(fresh, ref), Terms(fresh.study.digest(), RUN, 0, 0)
    colluder = fresh.sites[WEST].member
    true = replace(opening, reveals=tuple(reveal for reveal in opening.reveals if reveal.site in (EAST, WEST)))
    false = second_reveal(true, terms, colluder, colluder.study_key, MANY)
    shown = [replace(ref, opening=fresh.spool.put([opening_to_bytes(told)])) for told in (true, false)]
    uploads = await upload_after(fresh, {site: (shown[site != VICTIM],) for site in NAMES}, 1)
    totals = [fresh.pooled(fresh.sites[site]) for site in (VICTIM, EAST)]
    assert totals[1].statistics[0] - totals[0].statistics[0] == MANY, "the attack itself works"
    await require_apart(fresh, uploads)


async def test_who_voted_from_one_state_is_not_led_to_another(server: HandServer) -> None:
    """Its vote commits a site for ever, also after it lost everything but its database."""
    attempts = []
    for attempt in (0, 1):
        uploads = await server.collect(2, await server.greet(2, attempt), attempt)
        attempts.append(await server.open(server.add(uploads)))
    before = server.sums
    server.sums = (*before, attempts[0])
    uploads = await server.collect(3, await server.greet(3))
    await server.vote(VICTIM, server.add(uploads))
    await server.sites[VICTIM].engine.forget(RUN)
    server.sums = (*before, attempts[1])
    with pytest.raises(QuorateError) as caught:
        await server.arrive(VICTIM, 3, server.way(VICTIM), 1)
    assert caught.value.code == "base_model_mismatch"
    assert server.sites[VICTIM].uploads()[-1] == (3, 0, 0), "no record was read for another state"
    server.sums = (*before, attempts[0])
    await server.require_sound()


async def test_nothing_that_an_instruction_says_beside_the_sums_changes_what_a_site_does(server: HandServer) -> None:
    hellos = await server.greet(2)
    noise = SumWork(digest=bytes(32), survivors=(VICTIM,), votes=(Vote(WEST, bytes(64)),), checkpoint_round=7)
    told = replace(noise, parts=server.parts[VICTIM], sums=server.sums, hellos=hellos)
    answer, _ = await server.ask(VICTIM, Phase.UPLOAD, 2, told)
    other, _ = await server.upload(EAST, 2, hellos)
    assert answer.model == other.model


# --- totals that honest sites do not add up to ---


@pytest.mark.parametrize(
    ("weight", "update"),
    [("one unit in all", 0), ("less than nothing", 0), ("above one", 0), ("its share", (1 << 20) - 2)],
)
async def test_weights_and_updates_that_no_honest_sites_have_are_refused_by_all(
    server: HandServer, weight: str, update: int
) -> None:
    """Otherwise one site makes the average whatever it likes: 10^7 where updates are bounded by 4."""
    uploads = await server.collect(2, await server.greet(2))
    before = read_state(server.state(EAST, 1))
    assert before is not None
    server.states[2] = before.digest
    counts = len(unpack_words(uploads.counts[EAST])) - TAGS
    others = sum(honest_weights(server))
    told = {
        "one unit in all": 1 - others,
        "less than nothing": -WEIGHT_ONE,
        "above one": WEIGHT_ONE,
        "its share": WEIGHT_ONE // 5,
    }[weight]
    server.colluders[WEST] = Colluder(server.sites[WEST], {2: (told, *(0,) * (counts - 1))}, update)
    uploads = await server.collect(2, await server.greet(2, 1), 1)
    ref = await server.open(server.add(uploads))
    del server.colluders[WEST]
    for site in (EAST, NORTH, SOUTH):
        with server.refused("sum_refused", site):
            await server.arrive(site, 3, replace(server.way(site), sums=(*server.sums, ref)), 2)
    await server.require_sound()


def honest_weights(server: HandServer) -> list[int]:
    """Of the sites but the colluder, as their records give them."""
    total = server.pooled(server.sites[EAST]).statistics[0]
    return [
        record_weight(40 + NAMES.index(site), total, len(NAMES), 0, is_counted=True) for site in (EAST, NORTH, SOUTH)
    ]


async def test_statistics_of_fewer_records_than_honest_sites_have_are_refused_by_all(fresh: HandServer) -> None:
    await fresh.greet(0)  # the study key is joined
    fresh.colluders[WEST] = Colluder(fresh.sites[WEST], {0: (-(40 + 41 + 42) + 1, 0, 0, 0, 0)})
    ref = await fresh.open(fresh.add(await fresh.collect(0, await fresh.greet(0, 1), 1)))
    del fresh.colluders[WEST]
    for site in (EAST, NORTH, SOUTH):
        with fresh.refused("sum_refused", site):
            await fresh.arrive(site, 1, replace(fresh.way(site), sums=(ref,)))


# --- checkpoints ---


def changed_state(server: HandServer, number: int, value: float) -> bytes:
    """A state of the run with other parameters, as a colluder can write one."""
    content = bytearray(server.state(WEST, number).read_bytes())
    size = 4 * server.dimension
    content[THETA_OFFSET : THETA_OFFSET + size] = np.full(server.dimension, value, "<f4").tobytes()
    return bytes(content)


@pytest.mark.parametrize("with_sum_after", [True, False])
async def test_a_state_that_a_colluder_made_up_reaches_no_record(server: HandServer, with_sum_after: bool) -> None:
    """It would be the model that server and colluder chose; evaluated for the victim alone, it reads its records."""
    await server.run_to(2)
    site = server.sites[VICTIM]
    await site.engine.forget(RUN)
    read = site.uploads()
    forged = server.forged(WEST, changed_state(server, 1, 3.0), 1)
    sums = (server.sums[2],) if with_sum_after else ()
    with pytest.raises(QuorateError) as caught:
        await server.arrive(VICTIM, 3 if with_sum_after else 2, replace(forged, parts=server.parts[VICTIM], sums=sums))
    assert caught.value.code == "base_model_mismatch"
    assert site.uploads() == read
    assert not [name for name in site.kept()[0] if name.startswith("model")]
    await server.require_sound()


async def test_a_true_state_is_no_checkpoint_before_a_sum_that_starts_from_it_was_voted_on(server: HandServer) -> None:
    """The server could hand a state back that is true and old, with another round in its header, and leave out whom it
    likes. A true checkpoint of the newest state is refused too: nobody has voted on it."""
    await server.run_to(2)
    uploads = await server.collect(3, await server.greet(3))
    del uploads
    site = server.sites[VICTIM]
    await site.engine.forget(RUN)
    for number in (2,):
        true = server.forged(WEST, server.state(WEST, number).read_bytes(), number)
        with pytest.raises(QuorateError) as caught:
            await server.arrive(VICTIM, number + 1, replace(true, parts=server.parts[VICTIM]), 1)
        assert caught.value.code == "base_model_mismatch"
    await server.require_sound()


@pytest.mark.parametrize("records", ["as they are", "others"])
async def test_how_often_ever_the_victim_is_asked_its_answers_do_not_depend_on_its_records(
    server: HandServer, records: str
) -> None:
    """With a model of its choice for the victim alone, whether a site answered was one bit about its records."""
    await server.run_to(2)
    site = server.sites[VICTIM]
    if records == "others":
        x = np.full((41, 3), 1e30)
        np.savez(site.folder / "records.npz", x=x, y=np.zeros(41, np.int64))
    codes = set()
    for attempt, value in enumerate((0.0, 1e-30, 1.0, -1e30, np.inf, np.nan)):
        await site.engine.forget(RUN)
        forged = server.forged(WEST, changed_state(server, 1, value), 1)
        with pytest.raises(QuorateError) as caught:
            work = replace(forged, parts=server.parts[VICTIM], sums=(server.sums[2],))
            await server.arrive(VICTIM, 3, work, attempt)
        codes.add(caught.value.code)
    assert codes == {"base_model_mismatch"}


# --- answers ---


@pytest.mark.parametrize("trouble", ["no file", "no records", "values out of range"])
async def test_what_goes_wrong_on_records_has_one_code_and_ends_the_sites_part_after_two_times(
    server: HandServer, trouble: str
) -> None:
    site = server.sites[VICTIM]
    path = site.folder / "records.npz"
    original = path.read_bytes()
    if trouble == "no file":
        path.unlink()
    elif trouble == "no records":
        np.savez(path, x=np.zeros((0, 3)), y=np.zeros(0, np.int64))
    else:
        np.savez(path, x=np.full((41, 3), np.nan), y=np.zeros(41, np.int64))
    site.restart()
    for attempt in (0, 1):
        with pytest.raises(QuorateError) as caught:
            await server.arrive(VICTIM, 2, server.way(VICTIM), attempt)
        assert caught.value.code == "site_interrupted"
    assert site.uploads()[-2:] == [(2, 0, 1), (2, 1, 1)]
    path.write_bytes(original)
    site.restart()
    with server.refused("site_interrupted"):
        await server.arrive(VICTIM, 2, server.way(VICTIM), 2)
    assert site.uploads()[-1] == (2, 1, 1), "no record was read a third time"


async def test_one_attempt_is_one_upload_also_for_a_site_that_was_started_again(server: HandServer) -> None:
    hellos = await server.greet(2)
    await server.upload(VICTIM, 2, hellos)
    server.sites[VICTIM].restart()
    again = (await server.greet(2, 0, (VICTIM,)))[0]
    told = tuple(again if hello.site == VICTIM else hello for hello in hellos)
    with server.refused("vote_refused"):
        await server.upload(VICTIM, 2, told)
    await server.require_sound()


async def test_an_answer_says_nothing_of_how_long_a_site_worked(server: HandServer) -> None:
    hellos = await server.greet(2)
    reply = await server.reply(VICTIM, Phase.UPLOAD, 2, replace(server.way(VICTIM), hellos=hellos))
    assert reply.working_s == 0.0
