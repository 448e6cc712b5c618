"""What ``/readyz`` of a site says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError, LedgerRolledBackError
from quorate_client.daemon.health import site_findings
from quorate_client.daemon.metrics import ConnectionState
from quorate_client.site.database import ConnectionReport

CONNECTED = ConnectionReport(ConnectionState.CONNECTED, "server:8443", 0.0)
AWAY = ConnectionReport(ConnectionState.WAITING, "server:8443", 0.0, "server_unreachable", "no route to 10.1.2.3")


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def lines(folder: Path, **changes: Any) -> list[str]:
    wanted: dict[str, Any] = {
        "connection": CONNECTED,
        "certificate_ends_unix_s": lambda: 2000.0,
        "read_policy": object,
        "ask_ledger": lambda: None,
        "work": folder,
        "spool": folder,
        "now": 1000.0,
        "min_free_bytes": 1,
    }
    return [str(finding) for finding in site_findings(**wanted | changes)]


def test_a_site_that_can_work_is_well_throughout(tmp_path: Path) -> None:
    subjects = ("connection", "certificate", "policy", "ledger", "engine", "disk")
    assert lines(tmp_path) == [f"ok {subject}" for subject in subjects]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {
                "connection": ConnectionReport(
                    "waiting", "server:8443", 0.0, "server_unreachable", "no route to 10.1.2.3"
                )
            },
            "failed connection: waiting server_unreachable",
        ),
        ({"connection": ConnectionReport("connecting", "server:8443", 0.0)}, "failed connection: connecting"),
        ({"now": 3000.0}, "failed certificate: expired"),
        (
            {"certificate_ends_unix_s": failing(FileNotFoundError(2, "gone", "/srv/site/keys/site.pem"))},
            "failed certificate: No such file or directory",
        ),
        ({"read_policy": failing(ConfigError("/srv/site/policy.toml is gone"))}, "failed policy: bad_config"),
        ({"ask_ledger": failing(LedgerRolledBackError("entry 4711"))}, "failed ledger: ledger_rolled_back"),
        ({"work": Path("/nonexistent/work")}, "failed engine: cannot write its folder"),
        ({"spool": Path("/nonexistent/spool")}, "failed disk: No such file or directory"),
        ({"min_free_bytes": 1024**6}, f"failed disk: less than {1024**4} MiB free"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_by_a_code_and_the_rest_is_looked_at(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    said = lines(tmp_path, **changes)
    assert [each for each in said if not each.startswith("ok ")] == [line]
    assert len(said) == 6
    for secret in ("10.1.2.3", "/srv/", "4711"):
        assert secret not in "".join(said)
