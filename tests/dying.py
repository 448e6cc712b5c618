"""Processes that die in the middle of what they do, and some that may not write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

NOBODY = 65534


def killed_at(step: int, watched: Collection[str]) -> Any:
    """A trace function that kills this process before the line with this number.

    Args:
        watched: ``folder/module.py`` of each file whose lines are counted.
    """
    left = step
    ends = tuple(f"/{name}" for name in watched)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(ends):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def is_refused_to_nobody(work: Callable[[], object], refusal: type[Exception]) -> bool:
    """Whether work is refused so in a process without root's right to write anywhere."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(NOBODY)
            work()
        except refusal:
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
