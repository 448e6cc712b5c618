"""How the daemon logs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from quorate_client.site import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, mask = root.handlers[:], root.level, os.umask(0o077)
    yield
    os.umask(mask)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_each_event_is_one_line_of_json_in_the_sites_own_file(tmp_path: Path) -> None:
    logs.configure_logging("info", as_json=False, folder=tmp_path)
    structlog.get_logger().info("work done", round=3)
    structlog.get_logger().debug("not of interest")
    logging.getLogger("some.library").warning("beware of %s", "this")

    lines = [json.loads(line) for line in (tmp_path / "quorate-client.log").read_text().splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [("info", "work done"), ("warning", "beware of this")]
    assert lines[0]["round"] == 3
    assert (tmp_path / "quorate-client.log").stat().st_mode & 0o777 == 0o600


def test_a_full_file_gives_way_to_a_new_one_and_only_a_few_are_kept(tmp_path: Path) -> None:
    logs.configure_logging("info", as_json=False, folder=tmp_path)
    for _ in range(7):
        structlog.get_logger().info("x" * 3 * 1024 * 1024)

    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["quorate-client.log", *(f"quorate-client.log.{number}" for number in (1, 2, 3))]
