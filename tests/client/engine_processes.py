"""The engines' processes (``daemon/engine_process.py``) of the sites below a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from tests.patience import PATIENCE_S


def engines(root: Path) -> list[psutil.Process]:
    """Those that run now."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or [""]
        if "quorate_client.daemon.engine_process" in command and Path(command[-1]).is_relative_to(root):
            found.append(process)
    return found


def end_engines(root: Path) -> None:
    """As the system does when it shuts down; each has to end by itself."""
    running = engines(root)
    for process in running:
        with suppress(psutil.NoSuchProcess):  # it ended by itself since
            process.terminate()
    assert psutil.wait_procs(running, PATIENCE_S)[1] == []
