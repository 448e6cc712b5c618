"""The aggregator's door: a process for each connection, and no more than may be."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo.consortium import BIN
from quorate_server.aggregator.cli import main
from tests.patience import PATIENCE_S


@pytest.fixture
def key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "software.pem"
    with pytest.raises(SystemExit) as ended:
        main(["make-key", str(path)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert 'environment = "development"' in said
    assert "software.keys = [" in said
    return path


@pytest.fixture
def aggregator(key: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [str(BIN / "quorate-aggregator"), "run", "--attester", "software", "--key", str(key)]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", "--most-runs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "aggregator ready" in line:
            port = int(line.split("port=")[1].split()[0])
            break
    # What it logs has to be read, or it blocks.
    reading = threading.Thread(target=process.stdout.read, daemon=True)
    reading.start()
    yield process, port
    process.kill()
    process.wait()
    reading.join()
    process.stdout.close()


def test_each_connection_has_a_process_up_to_the_most_and_all_end_with_the_door(
    aggregator: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = aggregator
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as first:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as second:
            assert second.recv(1) == b"", "there are as many as there may be"
        children = psutil.Process(process.pid).children()
        assert len(children) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert first.recv(1) == b""
    assert not any(child.is_running() for child in children)


def test_a_key_that_is_none_stops_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--attester", "software", "--key", str(tmp_path / "none"), "--listen", "127.0.0.1:0"])
    assert "make-key" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", "--attester", "hope", "--listen", "127.0.0.1:0"])
    assert "There is no such attester" in capsys.readouterr().err
