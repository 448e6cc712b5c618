"""The server as a whole: what it says at its start."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from quorate_server.cli.doctor import examine
from quorate_server.cli.founding import found
from quorate_server.consortium.ca import AUTHORITY_DAYS, DAY_S
from quorate_server.consortium.config import ServerConfig
from quorate_server.daemon import Server, serve


async def test_a_server_whose_start_fails_closes_what_it_had_opened(tmp_path: Path) -> None:
    """Left to the interpreter, the transport writes a traceback after the line that says what is wrong."""
    found(tmp_path, consortium="heart", address="localhost:8443", listen="127.0.0.1:0", now=time.time())
    (tmp_path / "spool" / "folder").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    with (tmp_path / "server.toml").open("a") as file:
        file.write(f'metrics_listen = "{metrics}"\n')
    config = ServerConfig.read(tmp_path)
    with capture_logs() as logs, pytest.raises(IsADirectoryError):
        await serve(config)
    assert logs == []
    with pytest.raises(IsADirectoryError):  # and not ConfigError: the ports are free again
        await serve(config)


@pytest.mark.parametrize(
    ("days_left", "says", "level"),
    [
        (400, "", ""),
        (20, "ends soon", "warning"),
        (-1, "has ended: nobody can connect", "error"),
        (-10, "has ended: nobody can connect", "error"),
        (AUTHORITY_DAYS + 10, "is not valid yet", "error"),
    ],
)
async def test_a_server_starts_and_says_that_its_authority_ends_or_is_not_valid(
    tmp_path: Path, days_left: int, says: str, level: str
) -> None:
    """Also when it has ended: the clock may be wrong."""
    founded = time.time() - (AUTHORITY_DAYS - days_left) * DAY_S
    found(tmp_path, consortium="heart", address="localhost:8443", listen="127.0.0.1:0", now=founded)
    with (tmp_path / "server.toml").open("a") as file:
        file.write('metrics_listen = ""\n')
    server = Server(ServerConfig.read(tmp_path))
    with capture_logs() as logs:
        await server.start()
        await server.stop()
    said = [entry for entry in logs if "authority" in entry["event"]]
    assert [(says in entry["event"], entry["log_level"]) for entry in said] == ([(True, level)] if says else [])
    assert any(entry["event"] == "server ready" for entry in logs)
    (finding,) = [finding for finding in examine(tmp_path, time.time()) if finding.subject == "certificate authority"]
    assert (finding.ok, bool(finding.action)) == (not says, bool(says))
