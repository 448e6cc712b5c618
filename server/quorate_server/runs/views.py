"""What an operator sees of all runs, now and after each change. Metrics follow the same changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

from quorate.attestation.appraisal import REFUSALS
from quorate.errors import NotFoundError, WrongStateError
from quorate.identity import RunId, SiteName
from quorate.rounds.run import (
    AppraisalState,
    Progress,
    RoundResult,
    RunState,
    RunView,
    SiteAppraisal,
    SiteProgress,
)
from quorate.study.study import Study
from quorate.wire.refusal import error_from_text
from quorate_server.reporting.metrics import RoundOutcome, ServerMetrics
from quorate_server.rounds.progress import StudyProgress
from quorate_server.storage.journal import RunRecord

WATCH_EVERY_S = 0.05


class RunViews:
    """The views of all runs. Lives in the daemon's event loop."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._views: dict[RunId, RunView] = {}
        self._changed: dict[RunId, asyncio.Event] = {}

    def add(self, record: RunRecord, study: Study, results: Iterable[RoundResult], *, model_available: bool) -> RunView:
        """A run as it is stored."""
        progress = StudyProgress.model_validate_json(record.progress) if record.progress else StudyProgress()
        counted = tuple(results)
        view = RunView(
            run=record.run,
            study=study.name,
            study_digest=record.study_digest,
            kind=study.kind,
            protection=study.protection.mode,
            state=record.state,
            rounds=study.rounds.count,
            round_number=progress.evaluated,
            reason=error_from_text(record.reason) if record.reason else None,
            results=counted,
            started_unix_s=record.started_unix_s,
            changed_unix_s=record.changed_unix_s,
            model_available=model_available,
            attested_by=study.attestation.policy.kinds if study.attestation is not None else (),
            appraisals=appraisals_in(counted) if study.attestation is not None else (),
        )
        self._views[record.run] = view
        self._count()
        return view

    def all(self) -> list[RunView]:
        """The first one started comes first."""
        return sorted(self._views.values(), key=lambda view: view.started_unix_s)

    def last_change_unix_s(self) -> float:
        """When the running run that has stood still the longest last moved; 0 while no run is running."""
        return min((v.changed_unix_s for v in self._views.values() if v.state is RunState.RUNNING), default=0.0)

    def find(self, run: RunId) -> RunView:
        """Raises NotFoundError."""
        if run not in self._views:
            raise NotFoundError(f"There is no run {run!r}", action="See `quorate run list`")
        return self._views[run]

    def require(self, run: RunId, *allowed: RunState) -> RunView:
        """The run, if it is in one of these states. Raises NotFoundError, WrongStateError."""
        view = self.find(run)
        if view.state not in allowed:
            raise WrongStateError(
                f"The run {view.run} is {view.state}", expected=f"a run that is {' or '.join(allowed)}"
            )
        return view

    async def changes(self, run: RunId) -> AsyncIterator[RunView]:
        """The run now and after each change, until it is over."""
        while True:
            event = self._changed.setdefault(run, asyncio.Event())
            view = self.find(run)
            yield view
            if view.state.is_over:
                return
            await event.wait()
            await asyncio.sleep(WATCH_EVERY_S)  # fast rounds are shown together

    def update(self, run: RunId, **changes: Any) -> None:
        self._show(run, changed_unix_s=time.time(), **changes)
        if "state" in changes:
            self._count()

    def _show(self, run: RunId, **changes: Any) -> None:
        self._views[run] = replace(self._views[run], **changes)
        event = self._changed.pop(run, None)
        if event is not None:
            event.set()

    def show_status(self, run: RunId, status: dict[str, Any]) -> None:
        """What the run's worker says of the phase that is open."""
        sites = tuple(SiteProgress(SiteName(n), Progress(state), code) for n, state, code in status["sites"])
        self.update(run, round_number=status["round"], phase=status["phase"], sites=sites)

    def show_asked(self, run: RunId, site: SiteName, kind: str) -> None:
        """A site was given evidence. No step of the run: sites ask again however long it stands still."""
        self._appraise(run, site, kind=kind, asked_unix_s=time.time())

    def show_appraisal(self, run: RunId, site: SiteName, code: str) -> None:
        """A site answered in a study that demands an attested machine. What has no code is sealed to one it trusts."""
        state = appraisal_state(code)
        if state is not None:
            self._appraise(run, site, state=state, code=code, heard_unix_s=time.time())

    def _appraise(self, run: RunId, site: SiteName, **changes: Any) -> None:
        known = {one.site: one for one in self._views[run].appraisals}
        known[site] = replace(known.get(site, SiteAppraisal(site, AppraisalState.ASKED)), **changes)
        self._show(run, appraisals=tuple(known[name] for name in sorted(known)))

    def show_result(self, run: RunId, study: Study, result: RoundResult) -> None:
        """A round was committed."""
        full = len(result.contributed) == len(study.sites)
        self._metrics.round_ended(RoundOutcome.FULL if full else RoundOutcome.PARTIAL, len(result.contributed))
        for phase, seconds in result.phase_seconds.items():
            self._metrics.phase_closed(phase, seconds)  # type: ignore[arg-type]  # phases of our own results
        self._metrics.round_measured(result.metrics)
        self.update(run, results=(*self._views[run].results, result), round_number=result.round_number)

    def _count(self) -> None:
        states = [view.state for view in self._views.values()]
        self._metrics.runs_are({state: states.count(state) for state in RunState})


def appraisal_state(code: str) -> AppraisalState | None:
    """What a reply of a site, or a code in a round's result, says of its appraisal; None if nothing."""
    if not code:
        return AppraisalState.TRUSTED
    return AppraisalState.REFUSED if code in REFUSALS else None


def appraisals_in(results: Iterable[RoundResult]) -> tuple[SiteAppraisal, ...]:
    """What is stored of the sites' last appraisals: who is in a round trusted the machine, who refused it said why."""
    known: dict[SiteName, SiteAppraisal] = {}
    for result in results:
        for name, code in (*((site, "") for site in result.contributed), *result.missing.items()):
            state = appraisal_state(code)
            if state is not None:
                known[SiteName(name)] = SiteAppraisal(SiteName(name), state, code)
    return tuple(known[name] for name in sorted(known))
