"""What ``/readyz`` of the server says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from quorate.errors import DiskFullError
from quorate_server.reporting.health import server_findings


def lines(folder: Path, **changes: Any) -> list[str]:
    wanted: dict[str, Any] = {
        "is_started": True,
        "ask_database": lambda: None,
        "certificates": {"authority": 9000.0, "server": 2000.0},
        "spool": folder,
        "now": 1000.0,
        "min_free_bytes": 1,
    }
    return [str(finding) for finding in server_findings(**wanted | changes)]


def unreachable() -> None:
    raise OperationalError("SELECT name FROM sites", {}, Exception("password=hunter2"))


def full() -> None:
    raise DiskFullError("The disk that holds the server's database is full")


def test_a_server_that_can_work_is_well_throughout(tmp_path: Path) -> None:
    assert lines(tmp_path) == [
        "ok start",
        "ok database",
        "ok certificate of the authority",
        "ok certificate of the server",
        "ok disk",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"is_started": False}, "failed start: not over: runs are being taken up"),
        ({"ask_database": unreachable}, "failed database: does not answer"),
        ({"ask_database": full}, "failed database: does not answer"),
        ({"now": 3000.0}, "failed certificate of the server: expired"),
        ({"min_free_bytes": 1024**6}, f"failed disk: less than {1024**4} MiB free"),
        ({"spool": Path("/nonexistent/spool")}, "failed disk: cannot be read"),
    ],
    ids=["start", "database", "full", "certificate", "disk", "gone"],
)
def test_what_is_wrong_is_said_and_the_rest_is_looked_at(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    said = lines(tmp_path, **changes)
    assert [each for each in said if not each.startswith("ok ")] == [line]
    assert len(said) == 5
    assert "hunter2" not in "".join(said)
