"""Both case studies with real processes and little of everything: four insurers, four hospitals. No figure is looked at
that means something only with more records; what is looked at is that every step was taken, and by whom."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from demo.collaborative import __main__ as collaborative
from demo.fraud import __main__ as fraud
from quorate_client.cli import app as site_command
from tests.leftovers import running_in

pytestmark = pytest.mark.integration

LITTLE = {"count": 1, "batch_size": 16, "steps": 2, "epochs": 1}


def ledger(site: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The account of the records that a site trains on."""
    capsys.readouterr()
    site_command(["ledger", "show", "--state", str(site), "--json"], standalone_mode=False)
    accounts = json.loads(capsys.readouterr().out)["accounts"]
    return next(each for each in accounts if each["part"] != "test")


def test_four_insurers_train_on_claims_that_they_made_and_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fraud.run(tmp_path, fraud.Size(share=0.05, instead=LITTLE))
    told = json.loads((tmp_path / "fraud.json").read_text())
    assert set(told["sets"]) == {"atlas", "beacon", "cedar", "dune"}
    for name, made in told["sets"].items():
        account = ledger(tmp_path / f"site-{name}", capsys)
        # Paid once: what trains on the set is not on the account of the claims.
        assert [each["study"] for each in account["runs"]] == ["synthetic:claims-synthetic", "claims-private"]
        assert [each["study"] for each in account["unbounded"]] == ["claims-real"]
        assert made["records"] == 3 * made["training"]
        assert (tmp_path / f"{name}.report.html").stat().st_size > 10_000
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["run"]["state"] == "completed"
    page = (tmp_path / "fraud.html").read_text()
    assert told["lead"] in unescape(page)
    assert not re.search(r"(src|href)=|<script|url\(", page)
    assert running_in(tmp_path) == []


def test_four_hospitals_run_each_study_with_one_protection_more_or_less(tmp_path: Path) -> None:
    collaborative.run(tmp_path, collaborative.Size(rounds=1, times=3))
    told = json.loads((tmp_path / "collaborative.json").read_text())
    assert [name for name, each in told["studies"].items() if each["site_epsilon"] is None] == [
        "cancer-real",
        "cancer-synthetic",
    ]
    weak, strong = (told["studies"][name]["site_epsilon"] for name in ("cancer-both", "cancer-both-strong"))
    assert strong < weak
    run = json.loads((tmp_path / "run.json").read_text())
    assert f"epsilon {weak:.3g} at delta" in json.dumps(run)
    page = (tmp_path / "collaborative.html").read_text()
    assert told["lead"] in unescape(page)
    assert not re.search(r"(src|href)=|<script|url\(", page)
    assert running_in(tmp_path) == []
