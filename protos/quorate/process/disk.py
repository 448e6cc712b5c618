"""How much a spool holds, and how much room its disk has."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from quorate.process.metrics import LOOK_EVERY_S

log = structlog.get_logger()

MIN_FREE_BYTES = 256 * 1024**2
"""With less a daemon says that it cannot work: its database and log need room too."""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Of one folder and the disk below it."""

    held_bytes: int
    free_bytes: int
    size_bytes: int


def disk_use(folder: Path) -> DiskUse:
    """What lies directly in ``folder``, and its disk. Raises OSError."""
    held = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                held += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    disk = shutil.disk_usage(folder)
    return DiskUse(held, disk.free, disk.total)


async def watch_disk(
    folder: Path,
    seen: Callable[[DiskUse], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Tell ``seen`` for ever how full the disk is. Run it as a task and cancel it."""
    while True:
        try:
            seen(await asyncio.to_thread(disk_use, folder))
        except OSError as error:
            log.warning("the disk's room could not be looked up", reason=error.strerror)
        await sleep(LOOK_EVERY_S)
