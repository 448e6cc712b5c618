"""Sites that spend on a ledger, as processes of their own that die or race. Run by ``test_ledger_crashes``.

``python -m tests.client.ledger_dying die FOLDER``: for each step of the ledger's code a site of its own in FOLDER that
is killed there. ``... race FOLDER FIRST``: spend until nothing is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from quorate.errors import BudgetExhaustedError
from quorate_client.ledger.entries import Limits

from .ledger_kit import DELTA, NO_LIMITS, NOW, a_charge, opened, steps

STEPS_OF = ("ledger/ledger.py", "ledger/file.py", "ledger/witness.py", "site/database.py")
"""Where the disk is written. A step is a line of them."""
RESERVED, RELEASED, ROUNDS = 10, 7, (1, 2)
LIMIT = 100.0


def train(folder: Path) -> None:
    """A site's rounds, with a diary: what it begins to compute, and what leaves."""
    diary = os.open(folder / "diary", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with opened(folder) as ledger:
        for number in ROUNDS:
            reservation = ledger.reserve(a_charge(number, RESERVED), NO_LIMITS, NOW)
            os.write(diary, json.dumps(["begun", number]).encode() + b"\n")
            ledger.spend(reservation, steps(RELEASED))
            os.write(diary, json.dumps(["released", number]).encode() + b"\n")


def killed_at(step: int) -> Any:
    """A trace function that kills this process before the line with this number."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if "/".join(Path(frame.f_code.co_filename).parts[-2:]) not in STEPS_OF:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def die(folder: Path) -> None:
    """Forks, which is quick; nothing here has threads."""
    for step in range(1, 10_000):
        site = folder / f"{step:04}"
        site.mkdir()
        child = os.fork()
        if child == 0:
            sys.settrace(killed_at(step))
            train(site)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


def race(folder: Path, first: int) -> None:
    won = 0
    with opened(folder) as ledger:
        for number in range(first, first + 1000):
            try:
                reservation = ledger.reserve(a_charge(number, 2), Limits(DELTA, epsilon_ever=LIMIT), NOW)
            except BudgetExhaustedError:
                break
            ledger.spend(reservation, steps(1))
            won += 1
    sys.stdout.write(f"{won}\n")


if __name__ == "__main__":
    if sys.argv[1] == "die":
        die(Path(sys.argv[2]))
    else:
        race(Path(sys.argv[2]), int(sys.argv[3]))
