"""Values as the server would send them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quorate.errors import QuorumMissingError
from quorate.identity import RunId, SiteName
from quorate.rounds.run import AppraisalState, Progress, RoundResult, RunState, RunView, SiteAppraisal, SiteProgress
from quorate_operator.views import AnswerView, SiteView, StudyView
from tests.server.door import SiteKeys, a_study

NOW = 1_800_000_000.0
NORTH = SiteName("north")
SOUTH = SiteName("south")

RUNNING = RunView(
    run=RunId("malignancy-0a1b2c"),
    study="malignancy",
    study_digest=bytes(range(32)),
    kind="study",
    protection="none",
    state=RunState.RUNNING,
    rounds=2,
    round_number=1,
    phase="train",
    sites=(SiteProgress(NORTH, Progress.WORKING), SiteProgress(SOUTH, Progress.WORKING)),
    started_unix_s=NOW - 60,
    changed_unix_s=NOW,
)
FIRST = RoundResult(
    1,
    (NORTH,),
    {"loss": 0.5, "auc": 0.75, "recall": 0.25},
    {"train": 1.0, "evaluate": 0.5},
    bytes_up=10,
    bytes_down=20,
    missing={"south": "site_paused"},
)
SECOND = RoundResult(2, (NORTH, SOUTH), {"loss": 0.25, "auc": 0.875}, {"train": 1.0})


ATTESTED = replace(
    RUNNING,
    protection="secagg",
    attested_by=("tdx", "software"),
    appraisals=(
        SiteAppraisal(NORTH, AppraisalState.REFUSED, "attestation_debug", "software", NOW - 5, NOW - 4),
        SiteAppraisal(SOUTH, AppraisalState.TRUSTED, kind="tdx"),
    ),
)


def changed(**changes: Any) -> RunView:
    return replace(RUNNING, **changes)


def a_run() -> list[RunView]:
    """A run with a site that refuses, a pause, and a good end."""
    refusing = (SiteProgress(NORTH, Progress.REPLIED), SiteProgress(SOUTH, Progress.REFUSED, "site_paused"))
    return [
        RUNNING,
        changed(sites=refusing),
        changed(sites=refusing, phase="evaluate"),
        changed(results=(FIRST,), round_number=2),
        changed(results=(FIRST,), round_number=2, state=RunState.PAUSED, reason=QuorumMissingError("1 of 2 sites")),
        changed(results=(FIRST,), round_number=2),
        changed(results=(FIRST, SECOND), round_number=2, state=RunState.COMPLETED, model_available=True),
    ]


def a_site(name: str = "north", **changes: Any) -> SiteView:
    site = SiteView(SiteName(name), "online", SiteKeys.make(name).member, int(NOW) + 86_400, 0, NOW - 5, "0.1.0")
    return replace(site, **changes)


def a_study_view() -> StudyView:
    study = a_study(SiteKeys.make("north"), SiteKeys.make("south"), purpose="Tell [bold]malignant[/bold] from benign")
    return StudyView(study.digest(), study, NOW - 3600, (AnswerView(NORTH, "approved", NOW - 60),))
