"""A task that an administrator installed and approved, against the site that it runs at.

The worker is confined as the daemon confines it. What a task may still do is said in docs/concepts/threat-model.md.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.errors import PolicyError, TaskFailedError
from quorate.rounds.instruction import Phase
from quorate.rounds.spool import Spool
from quorate_client.daemon.daemon import make_engine
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.sums import verify
from quorate_client.site.config import Config
from quorate_client.site.database import make_state, open_state, site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys, make_or_load_keys
from quorate_client.workers.isolation import Confinement
from quorate_client.workers.pool import ProcessWorkers, WorkerKey
from tests.client.engine_kit import ServerPart, make_agreement, make_study, process_settings
from tests.client.ledger_kit import ACCOUNTANTS, KEY, NO_LIMITS, NOW, a_charge, opened, steps

ALLOWED = {"use its own folder", "use a temporary file"}


@pytest.fixture
def thief_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site-packages"
    info = folder / "thief_task-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "thief_task.py", folder)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thief-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quorate.tasks]\nlinear = thief_task:TASK\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    sys.modules.pop("thief_task", None)


async def test_a_task_changes_nothing_at_the_site_but_its_own_files(thief_installed: Path, tmp_path: Path) -> None:
    """It could approve studies in the site's database, rewrite the policy, the configuration and the program, or move
    the site's folder so that the next worker hides another one than the one with the keys."""
    folder = SiteFolder(tmp_path / "site")
    folder.create()
    make_or_load_keys(folder.keys)
    make_state(folder.database)
    folder.policy.write_text("require_isolation = true\n")
    with opened(folder.root) as ledger:
        ledger.spend(ledger.reserve(a_charge(), NO_LIMITS, NOW), steps(1))
    before = {path: path.read_bytes() for path in (folder.policy, thief_installed / "thief_task.py")}
    spool = Spool(folder.spool)
    state = open_state(folder.database)
    ledger = open_ledger(folder.ledger, folder.database, load_keys(folder.keys).signing, ACCOUNTANTS)
    engine = make_engine(folder, Config(), spool, state, ledger)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parameters = {
            "root": str(folder.root),
            "program": str(thief_installed / "thief_task.py"),
            "port": listener.getsockname()[1],
        }
        server = ServerPart(make_study(parameters=parameters), tmp_path / "server")
        agreement = make_agreement(server.study, tmp_path)
        try:
            with pytest.raises(TaskFailedError):
                await engine.perform(server.instruction(Phase.UPLOAD), agreement, nothing_to_fetch)
        except PolicyError:
            pytest.skip("NOT TESTED: this machine does not permit user namespaces")
        finally:
            await engine.close()
            ledger.close()
            state.close()
    said = (folder.log / "tasks.log").read_text()
    outcomes = dict(json.loads(line) for line in said.splitlines() if line.startswith('["'))
    assert {name for name, outcome in outcomes.items() if outcome == "done"} == ALLOWED
    assert len(outcomes) == 17
    assert {path: path.read_bytes() for path in before} == before
    with site_state(folder.database) as state:
        assert state.database.execute("SELECT * FROM answers").fetchall() == []
    with opened(folder.root) as ledger:  # its own entry of the run is there, and each is signed
        keys = (KEY, load_keys(folder.keys).signing)
        verify(ledger.entries.all(), [key.public_key().public_bytes_raw() for key in keys])


async def nothing_to_fetch(_: object) -> None: ...


async def test_a_policy_that_comes_to_demand_isolation_holds_for_warm_workers(tmp_path: Path) -> None:
    """It was read once, when the first task began; the other rules of the policy hold from the next instruction on."""
    demands = False
    limits_only = Confinement(hidden=(tmp_path / "missing",))
    settings = process_settings(tmp_path, confinement=limits_only, require_isolation=lambda: demands)
    workers = ProcessWorkers(settings)
    key = WorkerKey(bytes(32), "records")
    try:
        for _ in range(2):
            async with workers.lease(key):
                pass
        demands = True
        with pytest.raises(PolicyError):
            async with workers.lease(key):
                pass
    finally:
        await workers.close()
