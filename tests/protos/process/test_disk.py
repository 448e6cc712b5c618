"""How full a spool and its disk are."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from quorate.process.disk import DiskUse, disk_use, watch_disk


def test_what_lies_in_the_folder_is_counted_and_the_disk_below_it_measured(tmp_path: Path) -> None:
    (tmp_path / "update").write_bytes(bytes(3000))
    (tmp_path / "update.part").write_bytes(bytes(500))
    (tmp_path / "elsewhere").symlink_to("/usr")
    use = disk_use(tmp_path)
    assert 3500 <= use.held_bytes < 4500
    assert use.size_bytes == shutil.disk_usage(tmp_path).total
    assert 0 < use.free_bytes < use.size_bytes


async def test_a_folder_that_is_gone_for_a_while_does_not_end_the_watch(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    seen: list[DiskUse] = []
    looks = 0

    async def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        spool.mkdir(exist_ok=True)
        if looks == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await watch_disk(spool, seen.append, sleep)
    assert [use.held_bytes for use in seen] == [0, 0]
