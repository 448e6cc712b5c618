"""kill -9 at each step of making a synthetic data set: nothing half-made is there, and nothing is paid twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quorate_client.ledger.entries import Reserved, Spent
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic import kept
from tests.patience import PATIENCE_S

from .site_kit import opened_site, register_visits

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def dead() -> Iterator[list[Path]]:
    """One site for each step at which it was killed; the last one lived."""
    memory = Path("/dev/shm")  # noqa: S108
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        template = register_visits(Path(folder)).root
        (template / "keys" / "synthetic.key").write_bytes(b"s" * 32)
        killed = Path(folder) / "killed"
        killed.mkdir()
        command = [sys.executable, "-m", "tests.client.synthetic.dying_make", str(template), str(killed)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        yield sorted(killed.iterdir())


def test_whenever_it_is_killed_nothing_half_made_is_there_and_a_repetition_pays_nothing_more(dead: list[Path]) -> None:
    assert len(dead) > 60
    found = set()
    with opened_site(SiteFolder(dead[-1])) as lived:
        expected = lived.datasets.get("made").path.read_bytes()
    for folder in dead:
        with opened_site(SiteFolder(folder)) as site:
            before = [each.kind for each in site.entries()]
            listed = kept.all_kept(site.datasets)
            for each in listed:
                each.require_whole()
            found.add(
                (
                    before.count("reserve"),
                    before.count("spend"),
                    len(kept.leftovers(site.folder, site.datasets)),
                    len(listed),
                )
            )
            if not listed:
                site.make()
            paid = [each for each in site.entries() if isinstance(each, Reserved)]
            settled = [each for each in site.entries() if isinstance(each, Spent)]
            assert (len(paid), len(settled)) == (1, 1), folder
            assert site.datasets.get("made").path.read_bytes() == expected, folder
            assert kept.leftovers(site.folder, site.datasets) == []
            assert not (folder / "synthetic-in-progress").exists() or listed
            site.ledger.entries.verify()
    # Before the payment, before it was settled, after, with the files in place and no row, and at the end.
    assert found == {(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 0, 1)}
