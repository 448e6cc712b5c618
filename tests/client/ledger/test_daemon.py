"""The daemon shows its privacy ledger's head to the server and compares what the server repeats."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quorate.errors import LedgerRolledBackError
from quorate.privacy.ledger_head import SignedHead, sign_head
from quorate.wire.messages import head_from_proto, head_to_proto
from quorate_client.ledger.ledger import open_ledger
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys

from ..conftest import RunningSite, ScriptedEngine, Talk, instruct, live
from ..consortium import RunningServer, Visit
from ..ledger_kit import ACCOUNTANTS, NO_LIMITS, NOW, OTHER_KEY, a_charge


def spend(folder: SiteFolder, round_number: int) -> SignedHead:
    ledger = open_ledger(folder.ledger, folder.database, load_keys(folder.keys).signing, ACCOUNTANTS)
    try:
        ledger.reserve(a_charge(round_number), NO_LIMITS, NOW)
        head = ledger.entries.head()
    finally:
        ledger.close()
    assert head is not None
    return head


async def test_each_reply_carries_the_ledger_s_head(talk: Talk) -> None:
    talk.instruct()
    assert not (await talk.visit.next("reply")).HasField("ledger_head")
    head = spend(talk.folder, 1)
    talk.instruct(2)
    assert head_from_proto((await talk.visit.next("reply")).ledger_head) == head


async def test_a_site_that_was_put_back_learns_it_from_the_server_and_spends_nothing(
    server: RunningServer, site: RunningSite, visit: Visit, folder: SiteFolder, engine: ScriptedEngine, tmp_path: Path
) -> None:
    spend(folder, 1)
    await site.stop()
    backup = tmp_path / "backup"
    shutil.copytree(folder.root, backup)
    server.services.ledger_head = head_to_proto(spend(folder, 2))
    put_back = SiteFolder(backup)
    async with live(put_back, engine):
        visit = await server.services.visit()
        visit.instruct(instruct(server.services))
        assert not (await visit.next("reply")).code  # what needs no privacy goes on
    with pytest.raises(LedgerRolledBackError):
        spend(put_back, 3)


async def test_a_head_that_the_server_made_up_stops_nothing(
    server: RunningServer, site: RunningSite, visit: Visit, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    await site.stop()
    forged, malformed = (head_to_proto(sign_head(OTHER_KEY, 5, bytes(32))) for _ in range(2))
    malformed.hash = b"short"
    for server.services.ledger_head in (forged, malformed):
        async with live(folder, engine):
            await server.services.visit()
    spend(folder, 1)
