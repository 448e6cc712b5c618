"""A site's disk is put back from a backup in the middle of a run, and the server goes on as if nothing had happened.

What the site voted for since the backup is forgotten, and with it what it must not help to open. Its vote and that of
one site that works with the server are two of the three that a sum of four needs: the third may be one that was not
asked the first time.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quorate.errors import VoteRefusedError, VotesForgottenError
from quorate.rounds.instruction import Phase
from quorate.wire.sum_messages import SumRef, SumWork
from quorate_client.ledger.backup import backup_site, restore_site
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Identity, load_keys, save_identity
from tests.attacks.hand_server import EAST, NAMES, SOUTH, VICTIM, WEST, HandServer, Site

NOW = 1_000.0
WITHOUT_VICTIM = (EAST, SOUTH, WEST)


@pytest.fixture(name="server")
async def server_fixture(installed: Path, tmp_path: Path) -> AsyncIterator[HandServer]:
    """Nobody has said anything yet."""
    made = HandServer(tmp_path)
    save_identity(SiteFolder(made.sites[EAST].folder).keys, Identity("heart", EAST, "localhost:1"), b"", b"")
    yield made
    for site in made.sites.values():
        await site.engine.close()
        site.state.close()


def back_up(server: HandServer, backup: Path) -> None:
    backup_site(SiteFolder(server.sites[EAST].folder), backup, None, NOW)


async def restored(server: HandServer, backup: Path) -> None:
    """East's disk is lost; its administrator restores the backup on another one."""
    lost = server.sites[EAST]
    await lost.engine.close()
    lost.state.close()
    shutil.rmtree(lost.folder)
    restore_site(backup, SiteFolder(lost.folder), None, replace=False, now=NOW)
    again = Site(EAST, lost.folder, load_keys(SiteFolder(lost.folder).keys), server.study, server.sealing)
    server.sites[EAST] = again


async def copied_by_hand(server: HandServer, backup: Path) -> None:
    """The same without the command for it."""
    keys = SiteFolder(server.sites[EAST].folder).keys
    kept = shutil.copytree(keys, backup.with_name("keys"))
    await restored(server, backup)
    site = server.sites[EAST]
    shutil.copytree(kept, keys, dirs_exist_ok=True)
    site.state.database.execute("DELETE FROM settings WHERE name = 'memory'")


async def open_round_2(server: HandServer) -> None:
    """The sum of all, by the votes of east, the victim and west. South is not asked."""
    summed = server.add(await server.collect(2, await server.greet(2)))
    voters = (EAST, VICTIM, WEST)
    votes = tuple([await server.vote(site, summed) for site in voters])
    assert all([await server.reveal(site, summed, votes) for site in voters])


async def open_round_2_without_the_victim(server: HandServer, attempt: int = 1) -> SumRef:
    """The difference of the two would be the victim's update."""
    forget_votes(server.sites[WEST])
    uploads = await server.collect(2, await server.greet(2, attempt, WITHOUT_VICTIM), attempt)
    return await server.open(server.add(uploads, WITHOUT_VICTIM))


def forget_votes(colluder: Site) -> None:
    """It works with the server and keeps none."""
    colluder.state.database.execute("DELETE FROM ballots")
    colluder.state.database.execute("DELETE FROM beliefs")


async def begin(server: HandServer) -> None:
    await server.exchange_keys()
    await server.run_to(1)


async def test_a_forgotten_vote_would_open_a_second_sum_without_the_victim(server: HandServer, tmp_path: Path) -> None:
    """What makes the tests below: with all votes it is not opened, and with those that a copy forgot it is."""
    await begin(server)
    back_up(server, tmp_path / "backup")
    await open_round_2(server)
    with pytest.raises(VoteRefusedError):
        await open_round_2_without_the_victim(server)
    await copied_by_hand(server, tmp_path / "backup")
    assert (await open_round_2_without_the_victim(server, attempt=2)).updates is not None


@pytest.mark.parametrize("has_begun", [True, False], ids=["the run had begun", "the run began after the backup"])
async def test_a_restored_site_has_no_part_in_a_run_that_began_before(
    server: HandServer, tmp_path: Path, has_begun: bool
) -> None:
    """Whichever parts of the study key it is shown, those of enough others too: it keeps none, and says nothing."""
    if not has_begun:
        back_up(server, tmp_path / "backup")
    await begin(server)
    if has_begun:
        back_up(server, tmp_path / "backup")
    await open_round_2(server)
    await restored(server, tmp_path / "backup")

    true = server.parts[EAST]
    for parts in (true, tuple(part for part in true if part.sender != EAST)):
        server.parts[EAST] = parts
        for number, attempt in ((0, 1), (1, 1), (2, 1), (3, 0)):
            with server.refused("votes_forgotten", EAST):
                await server.greet(number, attempt, (EAST,))
        with server.refused("votes_forgotten", EAST):
            await server.ask(EAST, Phase.RELEASE, 4, server.way(EAST))
    with pytest.raises(VotesForgottenError):
        await open_round_2_without_the_victim(server)
    for phase in (Phase.UPLOAD, Phase.CHECKPOINT, Phase.VOTE, Phase.REVEAL):
        with server.refused("vote_refused", EAST):
            await server.ask(EAST, phase, 2, server.way(EAST))


async def test_a_new_part_of_the_study_key_does_not_bring_it_back(server: HandServer, tmp_path: Path) -> None:
    """Mixed with the others' old ones it makes a key that nobody else has: neither what they opened opens with it, nor
    is it in a sum with them."""
    await begin(server)
    back_up(server, tmp_path / "backup")
    await open_round_2(server)
    await restored(server, tmp_path / "backup")
    made, _ = await server.ask(EAST, Phase.KEYS, 0, SumWork())
    own = made.parts[EAST]
    server.parts[EAST] = tuple(own if part.sender == EAST else part for part in server.parts[EAST])

    hellos = await server.greet(2, 1, WITHOUT_VICTIM)
    with server.refused("sum_refused", EAST):
        await server.upload(EAST, 2, hellos, 1)

    server.sums = ()
    forget_votes(server.sites[WEST])
    uploads = await server.collect(0, await server.greet(0, 1, WITHOUT_VICTIM), 1)
    summed = server.add(uploads, WITHOUT_VICTIM)
    for site in WITHOUT_VICTIM:
        with server.refused("bad_frame", site):
            await server.vote(site, summed)


async def test_it_is_in_the_runs_that_begin_with_it_afterwards(server: HandServer, tmp_path: Path) -> None:
    """Also when it is restored a second time, and restarted in the middle."""
    back_up(server, tmp_path / "backup")
    await restored(server, tmp_path / "backup")
    (tmp_path / "backup").unlink()
    back_up(server, tmp_path / "backup")
    await restored(server, tmp_path / "backup")
    await server.exchange_keys()
    own = server.parts[EAST]
    server.parts[EAST] = tuple(part for part in own if part.sender != EAST)
    with server.refused("votes_forgotten", EAST):  # whether it began with this site is all that it can tell
        await server.greet(0, 0, (EAST,))
    server.parts[EAST] = own
    await server.run_to(2)
    server.sites[EAST].restart()
    await server.run_to(4)
    assert len({path.name for site in NAMES for path in [server.state(site, 3)]}) == 1
