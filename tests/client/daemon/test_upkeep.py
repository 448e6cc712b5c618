"""The certificate, the pause and the memory of a daemon, over time."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from quorate.rounds.instruction import Reply
from quorate_client.daemon.upkeep import DAY_S, forget_the_old, heed_pause
from quorate_client.site.folder import RELEASED_MODEL, SiteFolder
from quorate_client.site.keys import certificate_life, load_credentials

from ..conftest import RunningSite, ScriptedEngine, Talk, enrol, instruct, live
from ..consortium import RunningServer

HOUR_S = 3600.0


class EndedError(Exception):
    """Ends a loop that would run for ever."""


class Naps:
    """A sleep that ends the loop after so many naps."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.lengths: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.lengths.append(seconds)
        self.left -= 1
        if not self.left:
            raise EndedError
        await asyncio.sleep(0)


async def test_a_certificate_with_less_than_a_third_left_is_renewed_and_used(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address, life=(-3 * HOUR_S, HOUR_S))
    before = load_credentials(folder.keys).certificate_pem
    async with live(folder, engine) as site:
        keeper = asyncio.create_task(site.daemon.upkeep.run())
        first = await server.services.visit()
        second = await server.services.visit()
        keeper.cancel()
        await asyncio.wait({keeper})

    after = load_credentials(folder.keys).certificate_pem
    assert before != after
    assert (first.certificate_pem, second.certificate_pem) == (before, after)


async def test_after_a_renewal_nothing_is_renewed_for_an_hour_however_short_the_new_certificate_lives(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    """At the end of its authority every certificate is due at once, and with each renewal the site connects anew."""
    enrol(folder, server.services, server.address, life=(-3 * HOUR_S, HOUR_S))
    async with live(folder, engine) as site:
        await server.services.visit()
        naps = Naps(1)
        object.__setattr__(site.daemon.upkeep, "sleep", naps.sleep)
        with pytest.raises(EndedError):
            await site.daemon.upkeep.run()
        shown = site.metric("quorate_client_certificate_expiry_timestamp_seconds")

    assert naps.lengths == [HOUR_S]
    assert shown == certificate_life(load_credentials(folder.keys).certificate_pem)[1].timestamp()


async def test_a_young_certificate_is_left_alone(talk: Talk) -> None:
    before = load_credentials(talk.folder.keys).certificate_pem
    naps = Naps(1)
    object.__setattr__(talk.site.daemon.upkeep, "sleep", naps.sleep)
    with pytest.raises(EndedError):
        await talk.site.daemon.upkeep.run()

    assert load_credentials(talk.folder.keys).certificate_pem == before
    assert naps.lengths == [HOUR_S]
    assert talk.site.metric("quorate_client_certificate_expiry_timestamp_seconds") == pytest.approx(
        time.time() + 24 * HOUR_S, abs=60
    )


async def test_the_servers_clock_decides_about_renewal_when_this_one_is_off(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address, life=(-1, 24 * HOUR_S))
    async with live(folder, engine, wall=lambda: time.time() + 48 * HOUR_S) as site:
        await server.services.visit()
        naps = Naps(1)
        object.__setattr__(site.daemon.upkeep, "sleep", naps.sleep)
        with pytest.raises(EndedError):
            await site.daemon.upkeep.run()

    assert naps.lengths == [HOUR_S]


async def test_a_renewal_that_fails_leaves_the_certificate_and_is_tried_again_later(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address, life=(-3 * HOUR_S, HOUR_S))
    before = load_credentials(folder.keys).certificate_pem
    # The server certifies for another consortium, which this site must not take.
    server.services.authority.consortium = "strangers"
    try:
        async with live(folder, engine) as site:
            await server.services.visit()
            naps = Naps(2)
            object.__setattr__(site.daemon.upkeep, "sleep", naps.sleep)
            with pytest.raises(EndedError):
                await site.daemon.upkeep.run()
    finally:
        server.services.authority.consortium = "testers"

    assert load_credentials(folder.keys).certificate_pem == before
    assert all(1 < length < 60 for length in naps.lengths)


async def test_a_pause_is_taken_up_and_ended(talk: Talk) -> None:
    site, metrics = talk.site, talk.site.daemon.upkeep.metrics
    for paused in (True, False):
        site.state.pause(paused)
        with pytest.raises(EndedError):
            await heed_pause(site.state, site.daemon.instructions, site.daemon.stream, metrics, Naps(1).sleep)
        while (await talk.visit.next("heartbeat")).paused != paused:
            pass
        assert site.daemon.instructions.paused == paused
        assert site.metric("quorate_client_paused") == paused


async def test_replies_and_runs_that_are_too_old_are_forgotten(
    server: RunningServer, site: RunningSite, folder: SiteFolder
) -> None:
    old = instruct(server.services)
    site.daemon.journal.reply(old, Reply(old.message_id))
    for run, names in {"over": [RELEASED_MODEL], "old": ["model-1.state", RELEASED_MODEL], "new": ["a.state"]}.items():
        for name in names:
            path = folder.work / "runs" / run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if run != "new":
                os.utime(path, (0, time.time() - 2 * DAY_S))
    kept = site.daemon.appraisals
    record = kept.folder / "old" / "20261201T000000.000000Z-trusted.json"
    record.parent.mkdir(parents=True)
    record.touch()
    os.utime(record, (0, time.time() - 2 * DAY_S))
    with pytest.raises(EndedError):
        await forget_the_old(
            site.daemon.journal, site.daemon.drop, folder, site.daemon.instructions, kept, 1.0, Naps(1).sleep
        )
    assert site.engine.forgotten == ["old"]
    assert not record.parent.exists()
    assert site.daemon.journal.find(old.message_id) is not None

    with pytest.raises(EndedError):
        await forget_the_old(
            site.daemon.journal, site.daemon.drop, folder, site.daemon.instructions, kept, -1.0, Naps(1).sleep
        )
    assert site.daemon.journal.find(old.message_id) is None
