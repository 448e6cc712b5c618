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
