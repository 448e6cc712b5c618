"""All runs: starting, pausing, resuming, stopping, and going on with them when the server starts.

Pausing and stopping simply end the worker: every step is committed before the next, so nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import structlog

from quorate.errors import (
    AttestationError,
    DiskFullError,
    InputError,
    QuorateError,
    QuorumMissingError,
    WrongStateError,
)
from quorate.identity import RunId, SiteName
from quorate.rounds.instruction import MessageId
from quorate.rounds.run import RunState, RunView
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.wire.attestation_messages import shown_kind
from quorate.wire.refusal import error_to_text
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.registry import Registry
from quorate_server.reporting.metrics import RoundOutcome, ServerMetrics
from quorate_server.rounds.progress import StudyProgress, result_from_json
from quorate_server.runs.blobs_in_use import BlobsInUse
from quorate_server.runs.live_run import End, LiveRun, Shared
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.sessions import Sessions
from quorate_server.runs.views import RunViews
from quorate_server.storage.journal import Journal, RunRecord

log = structlog.get_logger()

KEEP_INCOMPLETE_S = 24 * 3600.0


class Runs:
    """All runs. Each method that takes a run raises NotFoundError for one that it does not know."""

    def __init__(
        self,
        *,
        config: ServerConfig,
        registry: Registry,
        journal: Journal,
        mailbox: Mailbox,
        sessions: Sessions,
        spool: Spool,
        metrics: ServerMetrics,
    ) -> None:
        self._config = config
        self._registry = registry
        self._journal = journal
        self._mailbox = mailbox
        self._spool = spool
        self._metrics = metrics
        self._views = RunViews(metrics)
        self._blobs = BlobsInUse(spool)
        self._shared = Shared(journal, mailbox, sessions, spool, self._blobs, self._views, metrics, config.aggregator)
        self._live: dict[RunId, LiveRun] = {}
        self._state_lock = asyncio.Lock()
        sessions.on_change.append(self._tell_presence)
        mailbox.needed.append(self._blobs.all)

    async def recover(self) -> None:
        """At the server's start: know all runs, go on with those that were running, tidy the spool."""
        for record in self._journal.runs():
            study = self._study(record.study_digest)
            self._add_view(record, study)
            if record.state.is_over:
                continue
            if record.progress:
                self._blobs.hold_progress(record.run, StudyProgress.model_validate_json(record.progress).blobs())
            self._blobs.keep(record.run, *self._journal.replies(record.run).values())
            if record.state is RunState.RUNNING:
                log.info("run goes on after a restart", run=record.run)
                self._launch(record.run, study)
        self._spool.keep_only(self._blobs.all(), incomplete_since_unix_s=time.time() - KEEP_INCOMPLETE_S)

    async def close(self) -> None:
        """The server stops; running runs go on at its next start."""
        for live in list(self._live.values()):
            await live.end()

    # --- what operators ask for ---

    async def start(self, study: Study) -> RunView:
        async with self._state_lock:  # of two operators at the same moment one is first
            return await self._start(study)

    async def _start(self, study: Study) -> RunView:
        digest = study.digest()
        busy = [v.run for v in self._views.all() if v.study_digest == digest and not v.state.is_over]
        if busy:
            raise WrongStateError(
                f"The study {study.name} already has the run {busy[0]}",
                expected="no run of this study in progress: parallel runs would train twice on the same records",
                action=f"Wait for it, or `quorate run stop {busy[0]}`",
            )
        self._config.require_guest_allowed(study)  # the file may have changed since the study was published
        self._config.require_aggregator(study)
        self._require_room()
        run = RunId(f"{study.name}-{secrets.token_hex(3)}")
        await asyncio.to_thread(self._journal.create_run, run, digest)
        self._add_view(self._journal.run(run), study)
        if study.protection.mode == "none":
            log.warning("this run is not protected: the server can read every update", run=run, study=study.name)
        if study.is_of_two:
            log.warning("of two sites each learns the other's updates from the sum", run=run, study=study.name)
        log.info("run started", run=run, study=study.name, sites=len(study.sites), rounds=study.rounds.count)
        self._launch(run, study)
        return self.view(run)

    async def pause(self, run: RunId) -> RunView:
        async with self._state_lock:
            self._views.require(run, RunState.RUNNING)
            await self._end(run, RunState.PAUSED, WrongStateError("An operator paused the run"))
            return self.view(run)

    async def resume(self, run: RunId) -> RunView:
        async with self._state_lock:
            view = self._views.require(run, RunState.PAUSED)
            self._require_room()
            await asyncio.to_thread(self._journal.forgive_refusals, run)
            await asyncio.to_thread(self._journal.set_state, run, RunState.RUNNING)
            self._views.update(run, state=RunState.RUNNING, reason=None)
            log.info("run resumed", run=run)
            self._launch(run, self._study(view.study_digest))
            return self.view(run)

    async def stop(self, run: RunId) -> RunView:
        async with self._state_lock:
            self._views.require(run, RunState.RUNNING, RunState.PAUSED)
            await self._end(run, RunState.STOPPED, None)
            return self.view(run)

    def tell_standstill(self) -> None:
        """Show the metrics when the run that has stood still the longest last moved."""
        self._metrics.runs_last_changed(self._views.last_change_unix_s())

    def list(self) -> list[RunView]:
        return self._views.all()

    def view(self, run: RunId) -> RunView:
        return self._views.find(run)

    def changes(self, run: RunId) -> AsyncIterator[RunView]:
        """The run now and after each change, until it is over."""
        return self._views.changes(run)

    async def report(self, run: RunId, format: str) -> bytes:
        """As ``html`` or ``json``. Raises InputError: the format is neither."""
        from quorate_server.reporting import report  # late: only a report needs jinja2

        view = self.view(run)
        study = self._study(view.study_digest)
        match format:
            case "json":
                return json.dumps(report.report_json(view, study, time.time()), indent=2).encode()
            case "html":
                return (await asyncio.to_thread(report.report_html, view, study, time.time())).encode()
            case _:
                raise InputError("There is no such form of a report", expected="html or json", got=format[:40])

    def model(self, run: RunId) -> Path:
        """The released model. Raises WrongStateError: the study releases none, or the run has not come that far."""
        view = self.view(run)
        path = self._model_path(run)
        if not path.is_file():
            raise WrongStateError(
                f"The run {view.run} has no released model",
                expected='a completed run of a study with release.model = "operator"',
                got=f"state {view.state}",
                action="Without a release the model stays at the sites: `quorate-client model export RUN`",
            )
        return path

    async def attest(self, site: SiteName, run: RunId, nonce: bytes, door_key: bytes) -> bytes:
        """Evidence of the machine that adds a run's sums (``LiveRun.attest``).

        Raises:
            AttestationError: it cannot be had now, or this site has nothing to do with it.
        """
        live = self._live.get(run)
        if live is None or site not in live.sites:
            raise AttestationError("This site has no part in such a run, or it does not go on now")
        answer = await live.attest(site, nonce, door_key)
        self._views.show_asked(run, site, shown_kind(answer))
        return answer

    # --- a run's life ---

    def _launch(self, run: RunId, study: Study) -> None:
        self._live[run] = LiveRun(run, study, self._folder(run), self._shared, self._finish)

    async def _finish(self, live: LiveRun, end: End) -> None:
        """How the run ended becomes its state."""
        state, reason = end
        async with self._state_lock:
            self._live.pop(live.run, None)
            if isinstance(reason, QuorumMissingError):
                self._metrics.quorum_missed()
            if state is not RunState.COMPLETED:
                self._metrics.round_ended(RoundOutcome.ABANDONED)
            try:
                await self._change_state(live.run, live.asked, state, reason)
            except DiskFullError as error:
                log.error("the run's state is not stored: it goes on after a restart", run=live.run, code=error.code)

    async def _end(self, run: RunId, state: RunState, reason: QuorateError | None) -> None:
        """An operator ends or pauses the run.

        Raises:
            DiskFullError: that could not be stored, and holds until the server is started again.
        """
        live = self._live.pop(run, None)
        if live is not None:
            await live.end()
        await self._change_state(run, self._mailbox.asked_for(run), state, reason)

    async def _change_state(
        self, run: RunId, asked: Iterable[MessageId], state: RunState, reason: QuorateError | None
    ) -> None:
        """Nobody works for the run any more; its state is stored, and known even if it could not be stored."""
        try:
            await self._journal.written()
            self._blobs.keep(run, *(await asyncio.to_thread(self._journal.replies, run)).values())
            self._blobs.drop_answers(run)
            await self._mailbox.withdraw(asked)
            await self._journal.written()
            await asyncio.to_thread(self._journal.set_state, run, state, error_to_text(reason) if reason else "")
            if state.is_over:
                await asyncio.to_thread(self._journal.forget_replies, run)
                await self._blobs.release(run)
        finally:
            model = self._model_path(run).is_file()
            self._views.update(run, state=state, reason=reason, phase="", sites=(), model_available=model)
            if state in (RunState.PAUSED, RunState.FAILED):
                self._metrics.run_interrupted(reason.code if reason else QuorateError.code)
            log.info("run " + state.value, run=run, reason=reason.code if reason else "")

    def _tell_presence(self) -> None:
        for live in self._live.values():
            live.tell_presence()

    def _add_view(self, record: RunRecord, study: Study) -> None:
        results = [result_from_json(value) for value in self._journal.results(record.run)]
        self._views.add(record, study, results, model_available=self._model_path(record.run).is_file())

    def _require_room(self) -> None:
        if len(self._live) >= self._config.most_runs:
            raise WrongStateError(
                "This server does as many runs as it may",
                expected=f"fewer than {self._config.most_runs}",
                action="Wait for one of them, or pause or stop one; most_runs in server.toml is the limit",
            )

    def _study(self, digest: bytes) -> Study:
        return self._registry.study(digest.hex()).study

    def _folder(self, run: RunId) -> Path:
        return self._config.runs_dir / run

    def _model_path(self, run: RunId) -> Path:
        return self._folder(run) / "model.npz"
