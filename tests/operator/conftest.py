from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.server.door import Door, door_in_thread

ALLOWED = 'guest_apps = ["hospital_app:server"]\n'
Inside = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Door, Inside]]:
    """A door in its own thread, and a way to do something inside it."""
    with capture_logs(), door_in_thread(tmp_path / "server", ALLOWED) as (door, loop):
        profile = tmp_path / "server" / "operator" / "profile.json"
        content = json.loads(profile.read_text())
        profile.write_text(json.dumps(content | {"address": f"localhost:{door.port}"}))
        yield door, lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(20)


@pytest.fixture
def door(opened: tuple[Door, Inside]) -> Door:
    return opened[0]


@pytest.fixture
def inside(opened: tuple[Door, Inside]) -> Inside:
    return opened[1]
