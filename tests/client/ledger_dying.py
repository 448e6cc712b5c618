"""Sites that spend on a ledger, as processes of their own that die or race. Run by ``test_ledger_crashes``.

``python -m tests.client.ledger_dying die FOLDER``: for each step of the ledger's code a site of its own in FOLDER that
is killed there. ``... race FOLDER FIRST``: spend until nothing is left.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from quorate.errors import BudgetExhaustedError
from quorate_client.ledger.entries import Limits
from tests.dying import killed_at

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


def die(folder: Path) -> None:
    """Forks, which is quick; nothing here has threads."""
    for step in range(1, 10_000):
        site = folder / f"{step:04}"
        site.mkdir()
        child = os.fork()
        if child == 0:
            sys.settrace(killed_at(step, STEPS_OF))
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
