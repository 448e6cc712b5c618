"""What a test has left running."""

from __future__ import annotations

from pathlib import Path

import psutil


def running_in(folder: Path) -> list[str]:
    """The command lines of all processes whose working folder is below ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue  # not ours, or gone
    return found


def running_for(folder: Path) -> list[str]:
    """The command lines of all processes that were told of something below ``folder``."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(folder) in line]
