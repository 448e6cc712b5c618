"""Forgetting what was spent: older databases are put back, or deleted, and the site joins again with a new key.

A server repeated the newest head that the site's *present* key had signed. A site with a new key had none, so its older
ledger, or its empty one, was taken for the newest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quorate.errors import LedgerRolledBackError
from quorate.identity import SiteName
from quorate.privacy.ledger_head import SignedHead, sign_head
from quorate.wire.messages import head_from_proto, head_to_proto
from quorate_client.ledger.ledger import open_ledger
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys
from tests.client.conftest import RunningSite, ScriptedEngine, instruct, live
from tests.client.consortium import RunningServer, Visit
from tests.client.ledger.test_daemon import spend
from tests.client.ledger_kit import ACCOUNTANTS, KEY, NO_LIMITS, NOW, OTHER_KEY, a_charge, opened
from tests.server.services.test_ledger_heads import head, reply_with, welcomed
from tests.server.services.test_rounds_service import open_server


@pytest.fixture(name="history")
def history_fixture(tmp_path: Path) -> tuple[Path, SignedHead]:
    """A backup of a site's folder, and the head that a server was shown afterwards."""
    site, backup = tmp_path / "site", tmp_path / "backup"
    site.mkdir()
    with opened(site) as ledger:
        ledger.reserve(a_charge(1), NO_LIMITS, NOW)
    shutil.copytree(site, backup)
    with opened(site) as ledger:
        ledger.reserve(a_charge(2), NO_LIMITS, NOW)
        newest = ledger.entries.head()
    assert newest is not None
    return backup, newest


def test_older_databases_with_a_new_key_are_found_out(history: tuple[Path, SignedHead]) -> None:
    backup, newest = history
    with opened(backup, key=OTHER_KEY) as ledger:
        ledger.entries.check_witness(newest, is_earlier=True)
        assert ledger.entries.head() is None
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(3), NO_LIMITS, NOW)
    with opened(backup, key=OTHER_KEY) as ledger, pytest.raises(LedgerRolledBackError):
        ledger.reserve(a_charge(4), NO_LIMITS, NOW)


def test_a_deleted_folder_with_a_new_key_is_found_out(tmp_path: Path, history: tuple[Path, SignedHead]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with opened(empty, key=OTHER_KEY) as ledger:
        ledger.entries.check_witness(history[1], is_earlier=True)
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(3), NO_LIMITS, NOW)


def test_the_right_databases_with_a_new_key_go_on(tmp_path: Path, history: tuple[Path, SignedHead]) -> None:
    with opened(tmp_path / "site", key=OTHER_KEY) as ledger:
        ledger.entries.check_witness(history[1], is_earlier=True)
        ledger.reserve(a_charge(3), NO_LIMITS, NOW)
        ledger.entries.verify([KEY.public_key().public_bytes_raw()])


@pytest.mark.parametrize("is_earlier", [False, True])
def test_a_server_cannot_stop_a_site_with_a_key_that_it_made_up(
    history: tuple[Path, SignedHead], is_earlier: bool
) -> None:
    with opened(history[0]) as ledger:
        ledger.entries.check_witness(sign_head(OTHER_KEY, 9, bytes(32)), is_earlier=is_earlier)
        ledger.reserve(a_charge(3), NO_LIMITS, NOW)


def test_nor_an_empty_one_with_a_head_that_is_not_said_to_be_an_earlier_key_s(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.entries.check_witness(sign_head(OTHER_KEY, 9, bytes(32)))
        ledger.reserve(a_charge(3), NO_LIMITS, NOW)


async def test_the_server_repeats_the_heads_of_all_keys_that_a_site_had(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        keys = []
        for session in (1, 2):
            east = server.client("east")
            stream, welcome = await welcomed(east, session)
            assert [head_from_proto(each) for each in welcome.earlier_ledger_heads] == [head(7, key) for key in keys]
            await reply_with(server, stream, session, head_to_proto(head(7, east.keys.signing)))
            keys.append(east.keys.signing)
            server.registry.revoke_site(SiteName("east"))
        _, welcome = await welcomed(server.client("east"), 3)
        assert {head_from_proto(each).signature for each in welcome.earlier_ledger_heads} == {
            head(7, key).signature for key in keys
        }
        assert not welcome.HasField("ledger_head")
        _, welcome = await welcomed(server.client("west"), 1)
        assert not welcome.earlier_ledger_heads


async def test_a_daemon_whose_databases_were_put_back_under_a_new_key_spends_nothing(
    server: RunningServer, site: RunningSite, visit: Visit, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    earlier = open_ledger(folder.ledger, folder.database, KEY, ACCOUNTANTS)  # the key that it had
    earlier.close()
    await site.stop()
    server.services.earlier_ledger_heads = [head_to_proto(sign_head(KEY, 5, bytes(32)))]
    async with live(folder, engine):
        visit = await server.services.visit()
        visit.instruct(instruct(server.services))
        assert not (await visit.next("reply")).code  # what needs no privacy goes on
    assert load_keys(folder.keys).signing.public_key() != KEY.public_key()
    with pytest.raises(LedgerRolledBackError):
        spend(folder, 3)
