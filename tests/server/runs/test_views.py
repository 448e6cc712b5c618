"""What is heard outside of a site of its appraisals."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from quorate.errors import error_classes
from quorate.identity import RunId, SiteName
from quorate.rounds.run import AppraisalState, RoundResult, RunState, SiteAppraisal
from quorate_server.reporting.metrics import ServerMetrics
from quorate_server.runs.views import RunViews, appraisal_state, appraisals_in
from quorate_server.storage.journal import RunRecord
from tests.server.study_kit import a_study

RUN = RunId("malignancy-0a1b2c")
NORTH, SOUTH = SiteName("north"), SiteName("south")


@pytest.fixture
def views() -> RunViews:
    policy = {"environment": "development", "software": {"keys": ["11" * 32]}}
    attestation = {"required": True, "policy": policy}
    study = a_study(protection={"mode": "secagg"}, release={"model": "sites"}, attestation=attestation)
    views = RunViews(ServerMetrics(CollectorRegistry()))
    views.add(RunRecord(RUN, study.digest(), RunState.RUNNING, "", "", 10.0, 20.0), study, [], model_available=False)
    return views


def test_a_site_that_asked_is_not_taken_for_one_that_trusts(views: RunViews) -> None:
    views.show_asked(RUN, NORTH, "software")
    (north,) = views.find(RUN).appraisals
    assert (north.state, north.kind, north.code, north.heard_unix_s) == (AppraisalState.ASKED, "software", "", 0.0)
    assert north.asked_unix_s > 0


def test_a_reply_without_a_code_shows_trust_and_a_code_of_attestation_why_not(views: RunViews) -> None:
    views.show_asked(RUN, NORTH, "software")
    for code, state in (
        ("", AppraisalState.TRUSTED),
        ("work_withdrawn", AppraisalState.TRUSTED),
        ("attestation_debug", AppraisalState.REFUSED),
        ("", AppraisalState.TRUSTED),
    ):
        views.show_appraisal(RUN, NORTH, code)
        (north,) = views.find(RUN).appraisals
        assert north.state is state
        assert north.code == (code if state is AppraisalState.REFUSED else "")
        assert north.kind == "software"


def test_asking_again_and_again_is_no_step_of_a_run_that_stands_still(views: RunViews) -> None:
    views.show_asked(RUN, NORTH, "software")
    assert views.last_change_unix_s() == 20.0


def test_what_the_machine_says_of_a_site_is_no_appraisal_by_it() -> None:
    for code in ("attestation_unseal", "attestation_site_signature", "task_failed", "of a newer version"):
        assert appraisal_state(code) is None
    assert {code for code in error_classes() if appraisal_state(code)} >= {"not_attested", "attestation_tcb"}


def test_after_a_restart_the_rounds_that_counted_say_who_trusted_the_machine() -> None:
    results = [
        RoundResult(1, (NORTH,), missing={"south": "attestation_stale"}),
        RoundResult(2, (SOUTH,), missing={"north": "attestation_tcb"}),
        RoundResult(3, (), missing={"north": "task_failed"}),
    ]
    assert appraisals_in(results) == (
        SiteAppraisal(NORTH, AppraisalState.REFUSED, "attestation_tcb"),
        SiteAppraisal(SOUTH, AppraisalState.TRUSTED),
    )
