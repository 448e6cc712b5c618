"""``quorate-client data mock``: made-up records from a schema, which register like real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quorate_client.site.folder import SiteFolder
from tests.client.command_kit import Run, runner

SCHEMA = """
kind = "tabular"
[[columns]]
name = "age"
type = "integer"
range = [0, 120]
[label]
name = "ill"
classes = ["no", "yes"]
[file]
delimiter = ";"
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heart.toml").write_text(SCHEMA)
    return runner(capsys, monkeypatch, folder)


def _umask() -> int:
    os.umask(now := os.umask(0o077))
    return now


def test_a_mock_is_made_without_a_site_and_says_what_it_is(run: Run, tmp_path: Path) -> None:
    result = run("data", "mock", "heart.toml", "--rows", 50)
    assert result.code == 0
    assert "made up, of nobody" in result.out
    assert (tmp_path / "heart.mock.csv").read_text().splitlines()[0] == "age;ill"
    assert (tmp_path / "heart.mock.csv").stat().st_mode & 0o777 == 0o666 & ~_umask(), "it is no secret"
    assert run("data", "mock", "heart.toml").code == 2, "it is not overwritten"


def test_a_mock_is_registered_as_the_command_says_and_its_path_tells(
    run: Run, joined: SiteFolder, tmp_path: Path
) -> None:
    made = run("data", "mock", "heart.toml", "--rows", 50, "--seed", 3, "-o", tmp_path / "mock-3.csv", "--json").json()
    assert made == {"path": str(tmp_path / "mock-3.csv"), "rows": 50, "seed": 3}
    assert run("data", "add", "mock", tmp_path / "mock-3.csv", "--schema", "heart.toml").code == 0
    (listed,) = run("data", "list", "--json").json()
    assert listed["records"] == 50
    assert "mock-3.csv" in listed["path"]


def test_a_name_that_does_not_say_mock_and_a_wrong_schema_are_refused(run: Run, tmp_path: Path) -> None:
    refused = run("data", "mock", "heart.toml", "-o", "records.csv")
    assert refused.code == 2
    assert "records.mock.csv" in refused.err
    assert "Name it m.mock.csv." in run("data", "mock", "heart.toml", "-o", "m.mock.parquet").err
    assert "There is no folder none" in run("data", "mock", "heart.toml", "-o", "none/m.mock.csv").err
    (tmp_path / "heart.toml").write_text(SCHEMA.replace("range", "rang"))
    assert run("data", "mock", "heart.toml").code == 2
    assert [path.name for path in tmp_path.glob("*.csv")] == []
