"""Both case studies with real processes and little of everything: four insurers, four hospitals. No figure is looked at
that means something only with more records; what is looked at is that every step was taken, and by whom."""

from __future__ import annotations

import json
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from demo import hospitals
from demo.collaborative import __main__ as collaborative
from demo.collaborative.page import BOTH, found
from demo.collaborative.repeated import read_study, train_again
from demo.collaborative.variants import EPSILON, VARIANTS
from demo.consortium import Consortium
from demo.fraud import __main__ as fraud
from demo.fraud.comparison import REAL, SYNTHETIC
from demo.kit import models, synthetic
from quorate_client.cli import app as site_command
from quorate_client.tasks.data.table import read_table
from tests.leftovers import running_for

pytestmark = pytest.mark.integration

LITTLE = {"count": 1, "batch_size": 16, "epochs": 1}


def account(site: Path, unit: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the records that a site trains on have spent, by record or as a site."""
    capsys.readouterr()
    site_command(["ledger", "show", "--state", str(site), "--json"], standalone_mode=False)
    accounts = json.loads(capsys.readouterr().out)["accounts"]
    (found,) = (each for each in accounts if each["part"] != "test" and each["unit"] == unit)
    return {kind: [each["study"] for each in found[kind]] for kind in ("runs", "unbounded")}


def test_four_insurers_train_on_claims_that_they_made_and_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fraud.run(tmp_path, fraud.Size(share=0.05, studies=(SYNTHETIC, REAL), instead=LITTLE))
    told = json.loads((tmp_path / "fraud.json").read_text())
    assert set(told["sets"]) == {"atlas", "beacon", "cedar", "dune"}
    for name, made in told["sets"].items():
        # Paid once: what trains on the set is not on the account of the claims.
        paid = account(tmp_path / f"site-{name}", "record", capsys)
        assert paid == {"runs": ["synthetic:claims-synthetic"], "unbounded": ["claims-real"]}
        assert made["records"] == 3 * made["training"]
        assert "Membership" in (tmp_path / f"{name}.report.html").read_text()
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["run"]["state"], run["training_data"]["kind"]) == ("completed", "synthetic")
    assert told["lead"] in unescape((tmp_path / "fraud.html").read_text())
    assert running_for(tmp_path) == []


def test_four_hospitals_train_with_every_protection_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = hospitals.write(tmp_path / "data")
    schema, study = tmp_path / "schema.toml", tmp_path / "study.toml"
    shutil.copy(collaborative.SCHEMA, schema)
    study.write_text(next(each for each in VARIANTS if each.name == BOTH).study(rounds=1))
    with Consortium(tmp_path) as consortium:
        synthetic.begin(consortium, tables, schema)
        among = synthetic.usable(synthetic.make(consortium, collaborative.MADE, EPSILON))
        consortium.run_study(study, tmp_path / "model.npz", collaborative.MADE, among)
        consortium.operator("run", "report", BOTH, "--format", "json", "-o", tmp_path / "run.json")
    told = json.loads((tmp_path / "run.json").read_text())
    tested = models.joined([read_table(tables[name], models.table_schema(schema)) for name in among])
    luck = train_again(
        read_study(study), [consortium.site_state(name) for name in among], collaborative.MADE, tested, 3
    )
    promised = found(read_study(study), tmp_path / "model.npz", tested, luck)
    assert promised.site_epsilon is not None
    assert json.dumps(told["privacy"]).count(f"epsilon {promised.site_epsilon:.3g} at delta") == 2
    assert 0 <= luck.lowest <= luck.median <= luck.highest <= 1
    assert account(consortium.site_state(among[0]), "record", capsys)["runs"] == ["synthetic:cells-synthetic"]
    assert account(consortium.site_state(among[0]), "site", capsys)["runs"] == [BOTH]
    assert running_for(tmp_path) == []
