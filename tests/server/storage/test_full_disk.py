"""A disk that fills up under the server's database: told by its code, waited for, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from quorate.errors import DiskFullError
from quorate.rounds.instruction import Phase
from quorate.rounds.run import RunState
from tests.server.databases import made_database
from tests.server.runs.test_runs import STUDY, Daemon, daemon_in, new_state, sites_of


class FullDisk:
    """Lets no statement that begins so get through to the database, as long as it is full."""

    def __init__(self, daemon: Daemon, *beginnings: str) -> None:
        self.is_full = True
        self.refused = 0
        self._beginnings = beginnings
        event.listen(daemon.engine, "before_cursor_execute", self._refuse)

    def _refuse(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if self.is_full and statement.startswith(self._beginnings):
            self.refused += 1
            raise DiskFullError("The disk that holds the server's database is full")


def test_a_full_disk_is_told_apart_from_what_else_befalls_a_database(tmp_path: Path) -> None:
    engine = made_database(f"sqlite:///{tmp_path / 'db.sqlite'}")
    with engine.begin() as db:
        db.execute(text("CREATE TABLE bulk (content BLOB)"))
    with engine.connect() as db:
        db.execute(text(f"PRAGMA max_page_count = {db.execute(text('PRAGMA page_count')).scalar()}"))
        with pytest.raises(DiskFullError, match="Free some space"):
            db.execute(text("INSERT INTO bulk VALUES (zeroblob(100000))"))
        db.rollback()
        assert db.execute(text("SELECT count(*) FROM bulk")).scalar() == 0
        with pytest.raises(OperationalError):
            db.execute(text("INSERT INTO nowhere VALUES (1)"))
    engine.dispose()


async def test_a_step_that_cannot_be_committed_pauses_the_run_and_asks_nobody_twice(tmp_path: Path) -> None:
    async with daemon_in(new_state(tmp_path), STUDY) as daemon:
        sites = sites_of(STUDY)
        await daemon.connect(sites)
        disk = FullDisk(daemon, "UPDATE runs")  # the run's state cannot be stored either
        run = (await daemon.runs.start(STUDY)).run
        view = await daemon.ended(run)
        assert view.state is RunState.PAUSED
        assert view.reason is not None
        assert view.reason.code == "disk_full"
        assert disk.refused == 2
        assert daemon.withdrawn == []

        disk.is_full = False
        assert (await daemon.runs.resume(run)).state is RunState.RUNNING
        view = await daemon.ended(run)
        assert view.state is RunState.COMPLETED
        assert [result.round_number for result in view.results] == [1, 2]
        assert all(result.contributed == STUDY.site_names for result in view.results)
        assert all(site.trained == [(1, 0), (2, 0)] for site in sites.values())
        assert len([site for site, i in daemon.heard if (i.phase, i.round_number) == (Phase.UPLOAD, 0)]) == len(sites)


async def test_a_run_that_is_stopped_after_the_disk_was_full_leaves_nothing_owed(tmp_path: Path) -> None:
    async with daemon_in(new_state(tmp_path), STUDY) as daemon:
        daemon.handle = lambda site, i, reply: None if site == "west" else reply
        await daemon.connect(sites_of(STUDY))
        run = (await daemon.runs.start(STUDY)).run
        await daemon.until(lambda: len(daemon.journal.replies(run)) == len(STUDY.sites) - 1)
        disk = FullDisk(daemon, "UPDATE runs", "INSERT INTO replies")
        with pytest.raises(DiskFullError):
            await daemon.runs.stop(run)
        assert daemon.runs.view(run).state is RunState.STOPPED
        assert disk.refused > 0
        assert daemon.mailbox.asked_for(run) == []
        await daemon.until(lambda: daemon.withdrawn)
