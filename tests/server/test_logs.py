from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from quorate_server.logs import configure_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_one_event_is_one_line_also_with_a_traceback_and_from_a_library(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging(log_format, "info", stream)  # type: ignore[arg-type]  # one of the two
    log = structlog.get_logger()
    log.info("round closed", run="demo", round=3)
    log.debug("too much")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("call failed")
    logging.getLogger("a.library").warning("a %s\nwarning", "library's")
    logging.getLogger("a.library").info("chatter")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "round closed" in lines[0]
    assert "ValueError" in lines[1]
    assert "library's" in lines[2]


def test_json_lines_carry_their_fields() -> None:
    stream = io.StringIO()
    configure_logging("json", "warning", stream)
    log = structlog.get_logger()
    log.info("left out")
    log.warning("quorum missing", run="demo", sites=2)
    entry = json.loads(stream.getvalue())
    assert {key: entry[key] for key in ("event", "level", "run", "sites")} == {
        "event": "quorum missing",
        "level": "warning",
        "run": "demo",
        "sites": 2,
    }
    assert entry["timestamp"].endswith("Z")
