"""kill -9 at each step of the ledger, and two processes that spend at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quorate.errors import SiteInterruptedError
from quorate_client.ledger.entries import Reserved, Spent
from tests.patience import PATIENCE_S

from ..ledger_dying import LIMIT, RELEASED, RESERVED, ROUNDS
from ..ledger_kit import DELTA, NO_LIMITS, NOW, VISITS, a_charge, opened

PROJECT = Path(__file__).parents[3]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.client.ledger_dying", *map(str, arguments)]


@pytest.fixture(scope="module")
def dead() -> Iterator[list[Path]]:
    """One site for each step at which it was killed; the last one lived."""
    # In memory: a kill leaves all that was written, on whatever disk, and hundreds of sites flush thousands of times.
    memory = Path("/dev/shm")  # noqa: S108
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        done = subprocess.run(command("die", folder), cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        yield sorted(Path(folder).iterdir())


def diary(site: Path) -> list[tuple[str, int]]:
    path = site / "diary"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def test_sites_were_killed_at_every_step(dead: list[Path]) -> None:
    """Else the tests below prove nothing: before, between and after all that is written."""
    assert len(dead) > 100
    found = set()
    for site in dead:
        with opened(site) as ledger:
            found.add((len(ledger.entries.all()), len(diary(site))))
    assert found >= {(entries, lines) for entries in range(5) for lines in (entries - 1, entries) if lines >= 0}
    assert diary(dead[-1])[-1] == ("released", ROUNDS[-1])


def test_whenever_a_site_is_killed_its_ledger_holds_what_it_released_and_may_have_released(dead: list[Path]) -> None:
    for site in dead:
        told = diary(site)
        released = [number for what, number in told if what == "released"]
        begun = [number for what, number in told if what == "begun"]
        with opened(site) as ledger:
            settled = [e.content.round_number for e in ledger.entries.all() if isinstance(e.content, Spent)]
            paid = [e.content.round_number for e in ledger.entries.all() if isinstance(e.content, Reserved)]
            assert set(released) <= set(settled), site
            assert set(begun) <= set(paid), site
            true = sum(RELEASED if number in settled else RESERVED for number in paid)
            assert ledger.spent(VISITS, DELTA) == true, site
            ledger.entries.verify()


def test_whenever_a_site_is_killed_it_goes_on_and_is_not_taken_for_one_put_back(dead: list[Path]) -> None:
    for site in dead:
        with opened(site) as ledger:
            paid = {e.content.round_number for e in ledger.entries.all() if isinstance(e.content, Reserved)}
            before = ledger.spent(VISITS, DELTA)
            for number in ROUNDS:
                if number in paid:  # whether it was begun nobody knows
                    with pytest.raises(SiteInterruptedError):
                        ledger.reserve(a_charge(number, RESERVED), NO_LIMITS, NOW)
                ledger.reserve(a_charge(number, RESERVED, attempt=1), NO_LIMITS, NOW)
            assert ledger.spent(VISITS, DELTA) == before + RESERVED * len(ROUNDS)


def test_processes_that_spend_at_once_stay_within_the_limit_together(tmp_path: Path) -> None:
    racing = [
        subprocess.Popen(command("race", tmp_path, first), cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        for first in (1000, 2000, 3000)
    ]
    won = [int(process.communicate(timeout=PATIENCE_S)[0]) for process in racing]
    assert all(process.returncode == 0 for process in racing)
    with opened(tmp_path) as ledger:
        assert ledger.spent(VISITS, DELTA) == sum(won)
        assert LIMIT - 2 < sum(won) <= LIMIT
        ledger.entries.verify()
