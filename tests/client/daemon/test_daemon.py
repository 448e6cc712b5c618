"""The daemon as a process: light, stoppable, one per folder."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from quorate.errors import SupersededError
from quorate.rounds.spool import Spool
from quorate_client.daemon.daemon import _warn_of_proxies, make_engine
from quorate_client.site.config import Config
from quorate_client.site.database import make_state, site_state
from quorate_client.site.folder import SiteFolder

from ..conftest import enrol
from ..consortium import RunningServer
from ..ledger_kit import opened

MAX_IDLE_BYTES = 100 * 1024**2
HEAVY = {"flwr", "torch", "numpy", "pandas", "pyarrow", "sklearn"}


@asynccontextmanager
async def daemon(folder: SiteFolder, *options: str) -> AsyncIterator[Process]:
    """A real daemon; killed at the end if it still runs."""
    command = (sys.executable, "-X", "importtime", "-m", "quorate_client.cli", "run", "--state", str(folder.root))
    process = await asyncio.create_subprocess_exec(*command, *options, stderr=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def prepared(folder: SiteFolder, server: RunningServer) -> SiteFolder:
    enrol(folder, server.services, server.address)
    folder.config.write_text('metrics_listen = ""\n')
    return folder


async def test_an_idle_daemon_is_light_and_leaves_on_sigterm(server: RunningServer, folder: SiteFolder) -> None:
    async with daemon(prepared(folder, server)) as process:
        visit = await server.services.visit()
        await visit.next("heartbeat")
        resident = resident_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
        await visit.next("goodbye")
        _, stderr = await process.communicate()

    imported = {line.rpartition("|")[2].strip() for line in stderr.decode().splitlines() if "|" in line}
    assert process.returncode == 0
    assert resident < MAX_IDLE_BYTES
    assert "quorate_client.daemon.control_stream" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()


async def test_a_daemon_that_is_taken_over_ends_with_its_own_exit_code(
    server: RunningServer, folder: SiteFolder
) -> None:
    async with daemon(prepared(folder, server)) as process:
        (await server.services.visit()).refuse(SupersededError("A newer connection took over"))
        _, stderr = await process.communicate()

    assert process.returncode == 10
    assert b"session_superseded" in stderr
    assert b"Traceback" not in stderr


async def test_a_second_daemon_on_the_folder_is_refused(server: RunningServer, folder: SiteFolder) -> None:
    async with daemon(prepared(folder, server)):
        await server.services.visit()
        async with daemon(folder) as second:
            _, stderr = await second.communicate()

    assert second.returncode == 2
    assert b"already runs" in stderr


@pytest.mark.parametrize(("configured", "warns"), [(None, True), ("http://proxy:3128", False)])
def test_a_proxy_of_the_environment_is_told_not_to_be_used(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, warns: bool
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy:3128")
    with capture_logs() as logs:
        _warn_of_proxies(Config(proxy=configured))
    assert [entry["variables"] for entry in logs] == [["https_proxy"]] * warns
    assert "secret" not in str(logs)


async def test_a_daemon_that_was_killed_is_back_under_a_higher_number(
    server: RunningServer, folder: SiteFolder
) -> None:
    async with daemon(prepared(folder, server)) as process:
        first = await server.services.visit()
        process.kill()
        await first.end()
    async with daemon(folder, "--log-json", "--log-level", "debug"):
        second = await server.services.visit()

    assert second.hello.session > first.hello.session


async def test_a_pause_by_command_reaches_the_running_daemon(server: RunningServer, folder: SiteFolder) -> None:
    async with daemon(prepared(folder, server)):
        visit = await server.services.visit()
        with site_state(folder.database) as state:
            state.pause(True)
        while not (await visit.next("heartbeat")).paused:
            pass


async def test_the_engine_can_be_made_and_closed(folder: SiteFolder) -> None:
    folder.create()
    make_state(folder.database)
    with site_state(folder.database) as state, opened(folder.root) as ledger:
        engine = make_engine(folder, Config(task_memory_mb=1024), Spool(folder.spool), state, ledger)
        await engine.close()
