"""Every bench runs to its end, with little of everything. Its figures mean nothing then, and none is looked at."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHES, main
from tests.leftovers import running_in
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
COMPARED = {
    "rounds": {"round, "},
    "secagg": {"bytes per parameter", "encrypt a", "server, per", "decrypt the", "a secure round"},
    "privacy": {"a step,", "AUC of"},
    "upgrade": {"backup of"},
    "synthetic": set(),
    "attestation": set(),
}
"""How the figures begin that are measured of a peer, too."""


@pytest.mark.parametrize("name", BENCHES)
def test_a_small_bench_ends_with_rows_that_programs_can_read_and_leaves_nothing_running(
    name: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "small"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE_S,  # several consortia and a stock deployment, one after the other
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert running_in(tmp_path) == []

    rows = json.loads((tmp_path / "build" / "bench" / f"{name}-small.json").read_text())
    for row in rows:
        assert list(row) == ["name", "unit", "ours", "peer", "ratio", "goal", "met"]
        assert row["name"]
        assert isinstance(row["unit"], str)
        assert math.isfinite(row["ours"])
        assert (row["peer"] is None) or row["peer"] > 0, row
        assert (row["ratio"] is None) == (row["peer"] is None or row["ours"] <= 0), row
        assert (row["met"] is None) == (row["goal"] is None), row
    for beginning in COMPARED[name]:
        assert [row for row in rows if row["name"].startswith(beginning) and row["peer"]], beginning


@pytest.mark.parametrize("words", [[], ["nosuch"], ["rounds", "tiny"], ["rounds", "small", "small"]])
def test_a_bench_that_there_is_not_is_refused_with_those_that_there_are(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "rounds, secagg, privacy, upgrade, synthetic" in " ".join(capsys.readouterr().out.split())
