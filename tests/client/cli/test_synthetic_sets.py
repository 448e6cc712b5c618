"""What an administrator reads and answers where a study trains on made records."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import EXIT_INPUT, EXIT_REFUSED
from quorate_client.approval.datasets import Datasets
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder

from ..command_kit import Result, Run
from ..conftest import POLICY
from ..consortium import Server
from ..synthetic_sets import made_from
from .test_cli import run
from .test_privacy import offer, registered

__all__ = ["registered", "run"]

MADE = "age,ill\n" + "".join(f"{age},{'yes' if age > 60 else 'no'}\n" for age in range(30, 100))


@pytest.fixture
def site(registered: SiteFolder, tmp_path: Path) -> SiteFolder:
    """With people's records, and with some that were made of them."""
    with site_state(registered.database) as state:
        datasets = Datasets(state, lambda: 0.0)
        datasets.add(made_from(datasets.get("patients"), tmp_path / "made", MADE))
    return registered


def words(result: Result) -> str:
    assert result.code == 0
    return " ".join(result.out.split())


def test_data_sets_are_listed_with_what_they_were_made_from(run: Run, site: SiteFolder) -> None:
    real, made = sorted(run("data", "list", "--json").json(), key=lambda each: str(each["name"]))
    assert real["synthetic"] is None
    assert (made["synthetic"]["source"], made["synthetic"]["epsilon"]) == ("patients", 3.0)
    listed = words(run("data", "list"))
    assert "tabular, synthetic" in listed
    assert "patients, epsilon 3 at delta 1e-05" in listed
    shown = words(run("data", "show", "patients-made"))
    for said in ("made records: nobody's", "quorate.marginals/1", "risk: linkability 0.030", "utility loss 0.040"):
        assert said in shown


def test_a_source_is_not_forgotten_before_what_was_made_from_it(run: Run, site: SiteFolder) -> None:
    refused = run("data", "remove", "patients")
    assert (refused.code, "Got patients-made" in refused.err) == (EXIT_INPUT, True)
    assert run("data", "remove", "patients-made").code == 0
    assert run("data", "remove", "patients").code == 0


def test_a_study_says_on_what_it_trains_and_what_that_promises(run: Run, site: SiteFolder, services: Server) -> None:
    offer(services, privacy=None, training_data="synthetic", synthetic={"largest_epsilon": 4.0})
    shown = words(run("show", "hearts"))
    assert "trained on synthetic records that each site made itself" in shown
    assert "largest_epsilon = 4" in shown
    assert "What the model is trained on: - Each site trains on synthetic records only, and on no real one." in shown
    told = run("show", "hearts", "--json").json()
    assert (told["training_data"], told["synthetic"]) == ("synthetic", {"largest_epsilon": 4.0})


def test_two_studies_differ_in_what_they_train_on(run: Run, site: SiteFolder, services: Server) -> None:
    offer(services, "real", privacy=None)
    offer(services, "made", privacy=None, training_data="synthetic")
    assert {"key": "training_data", "old": "real", "new": "synthetic"} in run("diff", "real", "made", "--json").json()


def test_a_study_is_approved_on_a_set_of_its_kind(run: Run, site: SiteFolder, services: Server) -> None:
    offer(services, "real", privacy=None)
    offer(services, "made", privacy=None, training_data="synthetic")
    assert run("approve", "real", "--json").json()["dataset"] == "patients"  # the only one of its kind
    assert run("approve", "made", "--json").json()["dataset"] == "patients-made"
    refused = run("approve", "made", "--dataset", "patients")
    assert (refused.code, "got a real one" in refused.err) == (EXIT_REFUSED, True)
    run("reject", "made")
    run("data", "remove", "patients-made")
    none_left = run("approve", "made")
    assert (none_left.code, "quorate-client synthetic make" in none_left.err) == (EXIT_INPUT, True)


def test_a_set_that_is_not_good_enough_is_refused_with_both_figures(
    run: Run, site: SiteFolder, services: Server
) -> None:
    offer(services, privacy=None, training_data="synthetic", synthetic={"largest_epsilon": 2.0})
    assert run("policy", "check", "hearts").code == 0
    for refused in (run("approve", "hearts"), run("policy", "check", "hearts", "--dataset", "patients-made")):
        assert refused.code == EXIT_REFUSED
        assert "Expected synthetic.largest_epsilon = 2 in the study; got epsilon 3" in refused.err
    assert run("studies", "--json").json()[0]["answer"] is None
    site.policy.write_text(f"{POLICY}\n[synthetic]\ntraining_data = ['real']\n")
    rules = run("policy", "check", "hearts", "--json").json()["rules"]
    assert [each["study"] for each in rules if not each["allowed"]] == ['training_data = "synthetic"']
