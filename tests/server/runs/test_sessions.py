"""Sessions: one per site, the newest wins, a copy is recognised, silence counts as absence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from quorate.errors import CertificateRevokedError, FrameError, IdentityClonedError, SupersededError
from quorate.identity import SiteName
from quorate.rounds.instruction import MessageId
from quorate.v1 import rounds_pb2
from quorate_server.runs.sessions import Session, Sessions
from quorate_server.storage.journal import Journal
from tests.patience import PATIENCE_S
from tests.server.databases import made_database
from tests.server.study_kit import Time

EAST, WEST = SiteName("east"), SiteName("west")
FIRST, SECOND = MessageId(b"1" * 32), MessageId(b"2" * 32)
SILENT_AFTER_S = 6.0


class Kit:
    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.time = Time()
        self.changes = 0
        self.sessions = self.started()

    def started(self) -> Sessions:
        """As after a start of the server."""
        sessions = Sessions(self.journal, SILENT_AFTER_S, self.time, lambda: self.time.now_s + 1e9)
        sessions.on_change.append(self._changed)
        return sessions

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    engine = made_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    journal = Journal(engine)
    yield Kit(journal)
    journal.close()
    engine.dispose()


def said(session: Session) -> list[Any]:
    """What the site has been sent; None ends the stream."""
    events = []
    while not session.outgoing.empty():
        events.append(session.outgoing.get_nowait())
    return events


async def test_acknowledgements_of_a_moment_travel_together(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    session.acknowledge(FIRST)
    session.acknowledge(SECOND)
    event = await session.outgoing.get()
    assert event is not None
    assert event.ack.message_ids == [FIRST, SECOND]
    assert session.outgoing.empty()


async def test_what_was_not_yet_acknowledged_is_when_the_session_ends(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    session.acknowledge(FIRST)
    session.end()
    ack, end = said(session)
    assert ack.ack.message_ids == [FIRST]
    assert end is None


async def test_a_newer_connection_takes_over_and_the_older_one_is_told(kit: Kit) -> None:
    older = await kit.sessions.attach(EAST, 1, "0.1")
    newer = await kit.sessions.attach(EAST, 2, "0.1.2")
    event, end = said(older)
    assert (event.refused.code, end) == (SupersededError.code, None)
    assert kit.sessions.session(EAST) is newer
    kit.sessions.detach(older)
    assert kit.sessions.session(EAST) is newer
    assert kit.sessions.state(EAST) == "online"
    assert kit.sessions.version(EAST) == "0.1.2"


@pytest.mark.parametrize("number", [1, 4, 5])
@pytest.mark.parametrize("restarted", [False, True], ids=["same server", "after a restart"])
async def test_a_number_that_is_not_higher_is_a_copy_and_the_one_that_is_there_stays(
    kit: Kit, number: int, restarted: bool
) -> None:
    there = await kit.sessions.attach(EAST, 5, "0.1")
    if restarted:
        kit.sessions = kit.started()
    with pytest.raises(IdentityClonedError) as caught:
        await kit.sessions.attach(EAST, number, "0.1")
    assert "revoke" in caught.value.action
    assert said(there) == []
    if not restarted:
        assert kit.sessions.session(EAST) is there


@pytest.mark.parametrize("number", [0, 2**63, 2**64 - 1])
async def test_what_is_no_session_number_is_refused(kit: Kit, number: int) -> None:
    with pytest.raises(FrameError):
        await kit.sessions.attach(EAST, number, "0.1")
    assert kit.sessions.state(EAST) == "offline"


async def test_of_many_that_connect_at_once_the_highest_number_stays(kit: Kit) -> None:
    results = await asyncio.gather(
        *(kit.sessions.attach(EAST, number, "0.1") for number in range(1, 21)), return_exceptions=True
    )
    there = kit.sessions.session(EAST)
    assert there is not None
    assert there.number == 20
    for result in results:
        assert isinstance(result, Session | IdentityClonedError | SupersededError)
        if isinstance(result, Session) and result is not there:
            assert said(result)[-1] is None


class SlowJournal(Journal):
    """The one number is written down slowly: its news comes after a newer connection's."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.go_on = threading.Event()

    def raise_session(self, site: SiteName, number: int, version: str) -> bool:
        raised = super().raise_session(site, number, version)
        if number == 1:
            self.go_on.wait(PATIENCE_S)
        return raised


async def test_a_connection_whose_number_was_written_down_slowly_does_not_take_over_from_a_newer_one(
    tmp_path: Path,
) -> None:
    engine = made_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    journal = SlowJournal(engine)
    sessions = Sessions(journal, SILENT_AFTER_S)
    older = asyncio.create_task(sessions.attach(EAST, 1, "0.1"))
    await asyncio.to_thread(written, engine)
    newer = await sessions.attach(EAST, 2, "0.1")
    journal.go_on.set()
    with pytest.raises(SupersededError):
        await older
    assert sessions.session(EAST) is newer
    assert said(newer) == []
    journal.close()
    engine.dispose()


def written(engine: Engine) -> None:
    """Until the first number is in the database."""
    while True:
        with engine.connect() as db:
            if db.execute(text("SELECT number FROM sessions")).scalar() == 1:
                return


async def test_a_site_that_says_nothing_counts_as_gone_until_it_speaks(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    assert kit.sessions.gone_for_s(EAST) is None
    kit.time.now_s += SILENT_AFTER_S
    kit.sessions.sweep()
    assert kit.sessions.state(EAST) == "online"
    kit.time.now_s += 0.5
    kit.sessions.sweep()
    kit.time.now_s += 3
    kit.sessions.sweep()
    assert kit.sessions.state(EAST) == "silent"
    assert kit.sessions.gone_for_s(EAST) == 3
    before = kit.changes
    kit.sessions.heard(session, paused=False)
    assert kit.sessions.state(EAST) == "online"
    assert kit.sessions.gone_for_s(EAST) is None
    assert kit.changes == before + 1


async def test_heartbeats_keep_a_site_online_without_news(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    before = kit.changes
    for _ in range(10):
        kit.time.now_s += SILENT_AFTER_S - 1
        kit.sessions.heard(session, paused=False)
        kit.sessions.sweep()
    assert kit.sessions.state(EAST) == "online"
    assert kit.changes == before
    assert kit.sessions.last_seen(EAST) == kit.time.now_s + 1e9


async def test_a_paused_site_is_shown_and_is_not_gone(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    kit.sessions.heard(session, paused=True)
    assert kit.sessions.state(EAST) == "paused"
    assert kit.sessions.gone_for_s(EAST) is None
    kit.sessions.heard(session, paused=False)
    assert kit.sessions.state(EAST) == "online"


async def test_gone_counts_from_the_end_of_the_connection_or_from_the_server_s_start(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    kit.time.now_s += 10
    kit.sessions.detach(session)
    kit.time.now_s += 3
    assert kit.sessions.gone_for_s(EAST) == 3
    assert kit.sessions.gone_for_s(WEST) == 13
    assert (kit.sessions.state(WEST), kit.sessions.last_seen(WEST), kit.sessions.version(WEST)) == ("offline", 0.0, "")


async def test_a_site_that_is_shown_the_door_is_told_why_and_gets_nothing_more(kit: Kit) -> None:
    session = await kit.sessions.attach(EAST, 1, "0.1")
    await kit.sessions.drop(EAST, CertificateRevokedError("The certificate was revoked"))
    session.send(rounds_pb2.ServerEvent(studies_changed=rounds_pb2.StudiesChanged()))
    event, end = said(session)
    assert (event.refused.code, end) == (CertificateRevokedError.code, None)
    assert kit.sessions.state(EAST) == "offline"
    await kit.sessions.drop(WEST, CertificateRevokedError("The certificate was revoked"))


async def test_news_goes_to_all_who_are_there(kit: Kit) -> None:
    sessions = [await kit.sessions.attach(site, 1, "0.1") for site in (EAST, WEST)]
    kit.sessions.broadcast(rounds_pb2.ServerEvent(studies_changed=rounds_pb2.StudiesChanged()))
    assert all(said(session)[0].HasField("studies_changed") for session in sessions)
    kit.sessions.drop_all()
    assert all(said(session) == [None] for session in sessions)
