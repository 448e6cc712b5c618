"""The report says what happened, warns where it must, and cannot be made to do anything but be read."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from quorate.errors import QuorumMissingError, RunWorkerError
from quorate.identity import RunId, SiteName
from quorate.privacy.statement import privacy_statement
from quorate.privacy.training_data import training_data_statement
from quorate.rounds.run import AppraisalState, Progress, RoundResult, RunState, RunView, SiteAppraisal, SiteProgress
from quorate.study.study import Protection, Study
from quorate_server.reporting.disclosure import protection_warning, server_could_see
from quorate_server.reporting.report import MAX_TABLE_ROUNDS, report_html, report_json
from tests.patience import PATIENCE_S

NOW = 1_795_471_300.0
SITES = ("east-hospital", "north-hospital", "south-hospital", "west-hospital")


def study(purpose: str = "Tell malignant from benign.", sites: tuple[str, ...] = SITES, **changes: Any) -> Study:
    content: dict[str, Any] = {
        "consortium": "nordverbund",
        "name": "malignancy",
        "purpose": purpose,
        "task": {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"hidden": [32, 16]}},
        "rounds": {"count": 10, "quorum": 3},
        "optimizer": {"name": "fedadam", "learning_rate": 0.05},
        "protection": {"mode": "none"},
        "release": {"model": "operator"},
        "sites": [{"name": name, "signing_key": f"{number:064x}"} for number, name in enumerate(sites, start=1)],
    }
    return Study.model_validate(content | changes)


def result(number: int, missing: dict[str, str] | None = None, **metrics: float) -> RoundResult:
    gone = missing or {}
    return RoundResult(
        round_number=number,
        contributed=tuple(SiteName(name) for name in SITES if name not in gone),
        metrics=metrics or {"loss": 0.7 / number, "train_loss": 0.6 / number, "accuracy": 0.9, "auc": 1 - 0.1 / number},
        phase_seconds={"train": 0.4, "evaluate": 0.1},
        bytes_up=400_000,
        bytes_down=410_000,
        missing=gone,
    )


def run(of: Study, *results: RoundResult, state: RunState = RunState.COMPLETED, **changes: Any) -> RunView:
    return RunView(
        run=RunId("r-7f3a"),
        study=of.name,
        study_digest=of.digest(),
        kind=of.kind,
        protection=of.protection.mode,
        state=state,
        rounds=of.rounds.count,
        round_number=len(results),
        results=results,
        started_unix_s=NOW - 100,
        changed_unix_s=NOW - 40,
        **changes,
    )


@pytest.fixture
def completed() -> tuple[RunView, Study]:
    of = study()
    absent = {"south-hospital": "site_interrupted"}
    return run(of, *(result(n, absent if n in (4, 5) else None) for n in range(1, 11)), model_available=True), of


# --- for programs -----------------------------------------------------------------------------------------------------


def test_a_run_that_was_evaluated_at_its_end_has_a_report_with_the_last_rounds_metrics() -> None:
    of = study(rounds={"count": 50, "quorum": 3, "evaluate": "last"})
    results = [replace(result(number), metrics={"auc": 0.875} if number == 50 else {}) for number in range(1, 51)]
    page = report_html(run(of, *results), of, NOW)
    assert "0.8750" in page
    assert "After the last round every site tries the model" in page
    assert "can make up the sums of updates" in page
    assert re.search(r"<use[^>]*fill: var\(--series-1\)", page), "a lonely value of many rounds is a marker"


def test_the_keys_of_the_json_report_are_those_of_its_version(completed: tuple[RunView, Study]) -> None:
    report = report_json(*completed, NOW)
    assert report["format"] == "quorate.report/1"
    assert sorted(report) == [
        *("attestation", "evaluation", "format", "generated_unix_s", "limits", "metrics", "privacy", "protection"),
        *("rounds", "run", "server_could_see", "sites", "study", "training_data", "versions"),
    ]
    assert sorted(report["run"]) == [
        *("bytes_down", "bytes_up", "changed_unix_s", "id", "is_over", "kind", "model_available", "name", "phase"),
        *("reason", "round", "rounds_counted", "rounds_planned", "seconds", "started_unix_s", "state"),
    ]
    assert sorted(report["rounds"][0]) == [
        *("bytes_down", "bytes_up", "contributed", "metrics", "missing", "phase_seconds", "round"),
    ]
    assert sorted(report["sites"][0]) == [
        *("appraisal", "fingerprint", "name", "now", "rounds_contributed", "rounds_missed"),
    ]


@pytest.mark.parametrize("is_software", [True, False])
def test_the_report_states_which_machine_added_and_what_that_protects_from(is_software: bool) -> None:
    software = {"environment": "development", "software": {"keys": ["11" * 32]}}
    policy = software if is_software else {"nitro": {"allow": []}}
    secret = {"mode": "secagg"}
    of = study(protection=secret, attestation={"required": True, "policy": policy}, release={"model": "sites"})
    seen = SiteAppraisal(SiteName(SITES[0]), AppraisalState.REFUSED, "attestation_tcb", of.attestation.policy.kinds[0])
    view = run(of, appraisals=(seen,), attested_by=of.attestation.policy.kinds)
    told, page = report_json(view, of, NOW), html.unescape(report_html(view, of, NOW))
    digest = of.attestation.policy.digest().hex()
    assert told["attestation"]["policy_digest"] == digest
    assert told["sites"][0]["appraisal"]["code"] == "attestation_tcb"
    assert told["sites"][1]["appraisal"] is None
    for text in (
        digest,
        "attestation_tcb",
        "producing evidence has not been run on hardware",
        "sealed to the attested",
    ):
        assert text in page
    assert ("not against somebody with a probe on the memory bus" in page) != is_software
    assert ('<section class="box danger" role="note"><strong>SOFTWARE EVIDENCE' in page) == is_software


def test_the_json_report_counts_who_took_part(completed: tuple[RunView, Study]) -> None:
    view, of = completed
    south = report_json(view, of, NOW)["sites"][2]
    assert south["name"] == "south-hospital"
    assert south["fingerprint"] == of.sites[2].fingerprint
    assert south["rounds_contributed"] == 8
    assert south["rounds_missed"] == {"site_interrupted": 2}


def test_a_metric_is_summarised_with_the_rounds_of_its_extremes(completed: tuple[RunView, Study]) -> None:
    auc = report_json(*completed, NOW)["metrics"]["auc"]
    assert auc["first"] == {"round": 1, "value": 0.9}
    assert auc["lowest"] == auc["first"]
    assert auc["highest"] == auc["last"] == {"round": 10, "value": 0.99}


def test_a_number_that_is_not_finite_becomes_null() -> None:
    of = study()
    report = report_json(run(of, result(1, auc=math.nan, loss=math.inf), result(2, auc=0.9, loss=math.nan)), of, NOW)
    assert report["rounds"][0]["metrics"] == {"auc": None, "loss": None}
    assert report["metrics"]["auc"]["first"] == {"round": 2, "value": 0.9}
    assert report["metrics"]["loss"] is None
    json.dumps(report, allow_nan=False)


def test_a_run_that_goes_on_is_timed_until_now_and_one_that_is_over_until_its_end() -> None:
    of = study()
    assert report_json(run(of, state=RunState.RUNNING), of, NOW)["run"]["seconds"] == 100
    assert report_json(run(of, state=RunState.STOPPED), of, NOW)["run"]["seconds"] == 60


MODES = get_args(Protection.model_fields["mode"].annotation)


@pytest.mark.parametrize(("kind", "mode"), [*(("study", mode) for mode in MODES), ("guest", "none")])
def test_every_mode_of_protection_has_its_sentences(kind: str, mode: str) -> None:
    """A guest app has one mode only; that it has no other is ``test_study``'s."""
    assert protection_warning(mode)
    assert len(server_could_see(kind, mode)) > 2


def test_a_report_for_programs_does_not_load_the_plotting_library() -> None:
    probe = "import quorate_server.reporting.report, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False, timeout=PATIENCE_S).returncode == 0


# --- for people -------------------------------------------------------------------------------------------------------


def test_the_page_has_everything_that_was_asked_of_it(completed: tuple[RunView, Study]) -> None:
    view, of = completed
    page = report_html(view, of, NOW)
    for expected in (
        "updates were readable by the server",
        "not yet been externally reviewed",
        "What the server could see",
        of.digest().hex(),
        of.sites[0].fingerprint,
        "site_interrupted",
        "fedadam",
        "2026-11-23 22:00:00 UTC",
        "10 <small>of 10</small>",
    ):
        assert expected in page


def test_the_page_refers_to_nothing_outside_itself(completed: tuple[RunView, Study]) -> None:
    page = report_html(*completed, NOW)
    assert not re.search(r"<(script|link|img|iframe|object|embed|base|form)\b|@import|\son\w+=|javascript:", page)
    assert not re.search(r"\b(src|href)=\"(?!#)|url\((?!#)", page)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_a_script_in_the_purpose_is_shown_and_not_run() -> None:
    of = study(purpose="<script>alert('patients')</script>")
    page = report_html(run(of, result(1)), of, NOW)
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_hostile_names_in_every_free_text_stay_text() -> None:
    seen = "<script>x</script>$\\frac{$_"
    hostile = f"{seen}\x00"  # a study cannot hold it
    of = study(
        task={"name": "flower:app.client:app", "digest": "ab" * 32, "parameters": {seen: seen}},
        guest={"server_app": "app.server:app", "run_config": {seen: seen}},
    )
    reason = RunWorkerError(hostile, expected=hostile, got=hostile, action=hostile)
    rounds = [replace(result(n, **{hostile: 3.0 * n}), phase_seconds={hostile: 1.0}) for n in (1, 2)]
    page = report_html(run(of, *rounds, state=RunState.FAILED, reason=reason), of, NOW)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(picture)  # noqa: S314  # ours


def test_the_same_run_gives_the_same_page(completed: tuple[RunView, Study]) -> None:
    assert report_html(*completed, NOW) == report_html(*completed, NOW)


def test_every_picture_is_well_formed_and_has_ids_of_its_own(completed: tuple[RunView, Study]) -> None:
    pictures = re.findall(r"<svg.*?</svg>", report_html(*completed, NOW), re.DOTALL)
    elements = [element for picture in pictures for element in ElementTree.fromstring(picture).iter()]  # noqa: S314  # ours
    assert len(pictures) == 5
    ids = Counter(element.get("id") for element in elements if element.get("id"))
    assert max(ids.values()) == 1


def test_pictures_name_their_axes_series_and_sites(completed: tuple[RunView, Study]) -> None:
    page = report_html(*completed, NOW)
    shown = set(re.findall(r"<text[^>]*>([^<]*)</text>", page))
    assert {"round", "loss per record (nats)", "time (s)", "data (kB)", "train loss", "AUC", "train", *SITES} <= shown


def test_pictures_take_all_their_colours_from_the_page(completed: tuple[RunView, Study]) -> None:
    pictures = re.findall(r"<svg.*?</svg>", report_html(*completed, NOW), re.DOTALL)
    assert not re.search(r"(fill|stroke): #", "".join(pictures))


def test_a_run_without_a_round_says_so() -> None:
    of = study()
    page = report_html(run(of, state=RunState.FAILED, reason=RunWorkerError("The run's process died")), of, NOW)
    assert "No round has counted." in page
    assert "run_worker_failed" in page
    assert "<svg" not in page
    assert "so far, not those that were planned" in page


def test_a_paused_run_says_why_and_where_each_site_is() -> None:
    of = study()
    reason = QuorumMissingError("Too few sites in round 2", expected="3 sites", got="2", action="Bring <them> back")
    sites = (
        SiteProgress(SiteName("east-hospital"), Progress.REPLIED),
        SiteProgress(SiteName("west-hospital"), Progress.REFUSED, "task_crashed"),
    )
    view = run(of, result(1), state=RunState.PAUSED, reason=reason, sites=sites, phase="train")
    page = report_html(view, of, NOW)
    assert "Too few sites in round 2." in page
    assert "Expected: 3 sites." in page
    assert "What to do: Bring &lt;them&gt; back." in page
    assert "refused <code>task_crashed</code>" in page
    assert "phase train" in page


def test_one_round_with_nothing_measured_renders() -> None:
    of = study()
    bare = RoundResult(1, tuple(SiteName(name) for name in SITES))
    page = report_html(run(of, bare, state=RunState.RUNNING), of, NOW)
    assert page.count("<svg") == 2


def test_a_long_run_shows_its_last_rounds_and_points_to_the_rest() -> None:
    of = study(rounds={"count": 1000, "quorum": 3})
    page = report_html(run(of, *(result(n) for n in range(1, 501))), of, NOW)
    assert "The last 200 of 500 rounds" in page
    assert page.count('<td class="n">4<small> of 4</small></td>') == MAX_TABLE_ROUNDS
    assert "mean of 5 rounds each" in page
    assert len(page) < 500_000


def test_a_consortium_of_many_sites_is_drawn_as_counts() -> None:
    of = study(sites=tuple(f"site-{number:03}" for number in range(60)))
    page = report_html(run(of, replace(result(1), contributed=of.site_names[:55])), of, NOW)
    assert re.search(r"<text[^>]*>missing</text>", page)
    assert not re.search(r"<text[^>]*>site-000</text>", page)


def test_a_guest_app_is_reported_as_one() -> None:
    of = study(
        task={"name": "flower:app.client:app", "digest": "ab" * 32},
        guest={"server_app": "app.server:app", "run_config": {"lr": 0.1}},
        optimizer={"name": "fedavg"},
    )
    page = report_html(run(of, result(1, perplexity=17.5)), of, NOW)
    assert "Every message of the Flower app, both ways, in the clear" in page
    assert "app.server:app" in page
    assert "17.5" in page
    assert "Optimiser" not in page


# --- privacy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_private", [False, True])
def test_the_report_has_the_privacy_statement_of_the_study(is_private: bool) -> None:
    training = {"clip": 1.0, "batch_size": 32, "steps": 4, "epsilon": 3.0}
    of = study(privacy={"delta": 1e-4, "training": training} if is_private else None)
    report = report_json(run(of, result(1)), of, NOW)
    page = html.unescape(report_html(run(of, result(1)), of, NOW))

    statement = privacy_statement(of)
    assert (report["privacy"]["plain"], report["privacy"]["exact"]) == (list(statement.plain), list(statement.exact))
    assert all(sentence in page for sentence in (*statement.plain, *statement.exact))
    assert any("No noise was added" in sentence for sentence in report["limits"]) is not is_private


# --- what was trained on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["synthetic", "mixed"])
def test_the_report_of_a_model_of_made_records_shows_the_gap_to_people_s(kind: str) -> None:
    of = study(training_data=kind, synthetic={"largest_epsilon": 3.0})
    view = run(of, result(1), result(2, loss=0.35, train_loss=0.25), result(3, train_loss=0.125))
    told = report_json(view, of, NOW)["training_data"]
    assert (told["kind"], told["statement"]) == (kind, list(training_data_statement(of)))
    gap = {"round": 2, "training_loss": 0.25, "held_out_loss": 0.35, "difference": pytest.approx(0.1)}
    assert told["gap"] == gap  # of the last round that tells both
    page = html.unescape(report_html(view, of, NOW))
    assert all(sentence in page for sentence in told["statement"])
    for said in (f"on the {kind} records that were trained on", "on real, held-out records", "0.1000"):
        assert said in page


def test_a_gap_that_is_not_told_is_not_made_up() -> None:
    noise = {"delta": 1e-4, "update": {"clip": 1.0, "noise_multiplier": 1.0}}
    of = study(training_data="synthetic", privacy=noise, rounds={"count": 10, "quorum": 3, "weights": "equal"})
    view = run(of, result(1, auc=0.8, train_loss=math.nan, loss=0.5))
    assert report_json(view, of, NOW)["training_data"]["gap"] is None
    assert "not both told, for the study's privacy" in html.unescape(report_html(view, of, NOW))


def test_a_model_of_real_records_has_no_such_section(completed: tuple[RunView, Study]) -> None:
    assert report_json(*completed, NOW)["training_data"]["gap"] is None
    assert "What the model was trained on" not in report_html(*completed, NOW)


@pytest.mark.parametrize("kind", ["real", "synthetic", "mixed"])
def test_only_where_real_records_were_trained_on_without_noise_the_limits_say_so(kind: str) -> None:
    of = study(training_data=kind)
    limits = report_json(run(of, result(1)), of, NOW)["limits"]
    assert any("No noise was added" in sentence for sentence in limits) == (kind != "synthetic")
    assert any("Synthetic records repeat" in sentence for sentence in limits) == (kind != "real")
