"""A bench's figures are compared with their goals in the right direction."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.table import Row, show, write


@pytest.mark.parametrize(("ours", "met"), [(0.02, True), (0.03, True), (0.04, False)])
def test_a_time_meets_its_goal_when_it_is_not_longer(ours: float, met: bool) -> None:
    assert Row("round", "s", ours, goal=0.03).met is met


@pytest.mark.parametrize(("ours", "met"), [(300.0, True), (250.0, True), (200.0, False)])
def test_a_rate_meets_its_goal_when_it_is_not_lower(ours: float, met: bool) -> None:
    assert Row("upload", "MB/s", ours, goal=250.0, more_is_better=True).met is met


def test_the_ratio_says_how_many_times_better_than_the_peer_we_are() -> None:
    assert Row("round", "s", 0.01, peer=10.0).ratio == pytest.approx(1000)
    assert Row("upload", "MB/s", 500.0, peer=100.0, more_is_better=True).ratio == pytest.approx(5)


def test_without_a_peer_or_a_goal_nothing_is_claimed() -> None:
    row = Row("memory", "MB", 40.0)
    assert row.ratio is None
    assert row.met is None


def test_the_file_holds_a_list_of_rows_with_the_agreed_keys(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench" / "rounds.json"
    write([Row("round", "s", 0.01, goal=0.03, peer=11.7), Row("memory", "MB", 40.0)], path)
    rows = json.loads(path.read_text())
    assert [list(row) for row in rows] == [["name", "unit", "ours", "peer", "ratio", "goal", "met"]] * 2
    assert list(rows[0].values()) == ["round", "s", 0.01, 11.7, pytest.approx(1170), 0.03, True]
    assert list(rows[1].values()) == ["memory", "MB", 40.0, None, None, None, None]


def test_the_table_shows_a_missed_goal_plainly() -> None:
    out = io.StringIO()
    show(
        [Row("round", "s", 0.05, goal=0.03), Row("upload", "MB/s", 300, goal=250, more_is_better=True)],
        "x",
        Console(file=out),
    )
    missed, met = (next(line for line in out.getvalue().splitlines() if name in line) for name in ("round", "upload"))
    assert "≤ 0.03" in missed
    assert "NO" in missed
    assert "≥ 250" in met
    assert "yes" in met
