"""All runs: starting, serving and ending their worker processes.

Pausing and stopping simply end the worker: every step is committed before the next, so nothing is lost. A worker that
dies by itself is started again; one that dies again and again without a step forward fails its run.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from quorate.errors import (
    DiskFullError,
    InputError,
    QuorateError,
    QuorumMissingError,
    RunWorkerError,
    WrongStateError,
)
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import to_its_end
from quorate.rounds.blobs import MAX_BLOB_BYTES, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import RunState, RunView
from quorate.rounds.spool import Spool, disk_errors
from quorate.study.study import Study
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate.wire.refusal import error_from_text, error_to_text
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.registry import Registry
from quorate_server.reporting.metrics import RoundOutcome, ServerMetrics
from quorate_server.rounds.pipe import Note, Verb
from quorate_server.rounds.progress import StudyProgress, result_from_json
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.sessions import Sessions
from quorate_server.runs.views import RunViews
from quorate_server.runs.worker_process import WorkerProcess
from quorate_server.storage.journal import Journal, RunRecord

log = structlog.get_logger()

MAX_DEATHS_WITHOUT_PROGRESS = 3
KEEP_INCOMPLETE_S = 24 * 3600.0
REPLY_BYTES = 64 * 1024 * 1024
REPLY_BYTES_PER_PARAMETER = 16
"""What a site may upload for one reply in a study: a checkpoint holds a model three times, a released one may be in
double precision, and bring names and notes."""


@dataclass(slots=True)
class _LiveRun:
    """What the daemon holds of a run while its worker lives. ``hears``: the worker has got its order."""

    study: Study
    digest: bytes
    task: asyncio.Task[None] | None = None
    worker: WorkerProcess | None = None
    hears: bool = False
    asked: set[MessageId] = field(default_factory=set)
    answered: dict[MessageId, Reply] = field(default_factory=dict)
    deaths: int = 0
    dimension: int = 0

    def most_reply_bytes(self, phase: Phase) -> int:
        """Only a study says how large a reply can be."""
        if not phase.has_uploads:
            return 0
        if self.study.guest is not None:
            return MAX_BLOB_BYTES
        return REPLY_BYTES + REPLY_BYTES_PER_PARAMETER * self.dimension

    def tell(self, note: Note) -> None:
        """A worker that does not hear yet finds the same in what is stored."""
        if self.worker is not None and self.hears:
            self.worker.send(note)


class Runs:
    """All runs."""

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
        self._sessions = sessions
        self._spool = spool
        self._metrics = metrics
        self._views = RunViews(metrics)
        self._live: dict[RunId, _LiveRun] = {}
        self._needed: dict[RunId, set[BlobId]] = {}
        self._moving = asyncio.Lock()
        sessions.on_change.append(self._tell_presence)
        mailbox.needed.append(self._in_use)

    async def recover(self) -> None:
        """At the server's start: know all runs, go on with those that were running, tidy the spool."""
        for record in self._journal.runs():
            study = self._registry.study(record.study_digest.hex()).study
            self._see(record, study)
            if not record.state.is_over and record.progress:
                self._needed[record.run] = StudyProgress.model_validate_json(record.progress).blobs()
            if not record.state.is_over:
                self._keep(record.run, *self._journal.replies(record.run).values())
            if record.state is RunState.RUNNING:
                log.info("run goes on after a restart", run=record.run)
                self._launch(record.run, study)
        self._tidy_spool()

    async def close(self) -> None:
        """The server stops; running runs go on at its next start."""
        for live in list(self._live.values()):
            await self._end_worker(live)

    # --- what operators ask for ---

    async def start(self, study: Study) -> RunView:
        async with self._moving:  # of two operators at the same moment one is first
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
        self._require_room()
        run = RunId(f"{study.name}-{secrets.token_hex(3)}")
        await asyncio.to_thread(self._journal.create_run, run, digest)
        record = next(record for record in self._journal.runs() if record.run == run)
        self._see(record, study)
        if study.protection.mode == "none":
            log.warning("this run is not protected: the server can read every update", run=run, study=study.name)
        if study.is_of_two:
            log.warning("of two sites each learns the other's updates from the sum", run=run, study=study.name)
        log.info("run started", run=run, study=study.name, sites=len(study.sites), rounds=study.rounds.count)
        self._launch(run, study)
        return self.view(run)

    async def pause(self, run: RunId) -> RunView:
        async with self._moving:
            run = self._views.require(run, RunState.RUNNING).run
            await self._settle(run, RunState.PAUSED, WrongStateError("An operator paused the run"))
            return self.view(run)

    async def resume(self, run: RunId) -> RunView:
        async with self._moving:
            view = self._views.require(run, RunState.PAUSED)
            self._require_room()
            run = view.run
            await asyncio.to_thread(self._journal.forgive_refusals, run)
            await asyncio.to_thread(self._journal.set_state, run, RunState.RUNNING)
            self._views.update(run, state=RunState.RUNNING, reason=None)
            log.info("run resumed", run=run)
            self._launch(run, self._registry.study(view.study_digest.hex()).study)
            return self.view(run)

    async def stop(self, run: RunId) -> RunView:
        async with self._moving:
            run = self._views.require(run, RunState.RUNNING, RunState.PAUSED).run
            await self._settle(run, RunState.STOPPED, None)
            return self.view(run)

    def list(self) -> list[RunView]:
        return self._views.all()

    def view(self, run: RunId) -> RunView:
        """Raises NotFoundError; a unique beginning of a run's name is enough."""
        return self._views.find(run)

    def changes(self, run: RunId) -> AsyncIterator[RunView]:
        return self._views.changes(run)

    async def report(self, run: RunId, format: str) -> bytes:
        from quorate_server.reporting import report  # matplotlib takes half a second to import

        view = self.view(run)
        study = self._registry.study(view.study_digest.hex()).study
        match format:
            case "json":
                return json.dumps(report.report_json(view, study, time.time()), indent=2).encode()
            case "html":
                return (await asyncio.to_thread(report.report_html, view, study, time.time())).encode()
            case _:
                raise InputError("There is no such form of the report", expected="html or json", got=format[:40])

    def model(self, run: RunId) -> Path:
        view = self.view(run)
        path = self._model(view.run)
        if not path.is_file():
            raise WrongStateError(
                f"The run {view.run} has no released model",
                expected='a completed run of a study with release.model = "operator"',
                got=f"state {view.state}",
                action="Without a release the model stays at the sites: `quorate-client model export RUN`",
            )
        return path

    # --- a run's life ---

    def _launch(self, run: RunId, study: Study) -> None:
        live = _LiveRun(study, study.digest())
        self._live[run] = live
        live.task = asyncio.create_task(self._supervise(run, live))

    async def _supervise(self, run: RunId, live: _LiveRun) -> None:
        """Keep a worker alive until the run is over or paused.

        What sites were asked stays asked when a worker dies: they go on, and its successor asks the same again.
        """
        while live.deaths < MAX_DEATHS_WITHOUT_PROGRESS:
            try:
                done = await self._drive(run, live)
            except DiskFullError as error:
                # Nothing can be committed, which is not the worker's fault. What sites were asked stays asked: their
                # replies are taken once there is room.
                live.asked.clear()
                done = {"state": RunState.PAUSED, "reason": error_to_text(error)}
            except Exception:  # the door: what the worker says may be anything
                log.exception("the run's worker could not be served", run=run)
                done = None
            if done is not None:
                await self._finish(run, live, done)
                return
            live.deaths += 1
            log.warning("the run's worker died and is started again", run=run, deaths=live.deaths)
        failure = RunWorkerError(
            f"The worker process of the run died {live.deaths} times in a row",
            action=f"Read {self._folder(run) / 'worker.log'} on the server",
        )
        await self._finish(run, live, {"state": RunState.FAILED, "reason": error_to_text(failure)})

    async def _drive(self, run: RunId, live: _LiveRun) -> dict[str, Any] | None:
        """One worker's life. Returns its last word, or None when it went without one."""
        worker = await to_its_end(self._spawn(run, live))
        try:
            await self._begin(run, live, worker)
            done = await self._serve(run, live, worker)
            if done is not None:
                await worker.wait()
            return done
        finally:
            await worker.kill()

    async def _spawn(self, run: RunId, live: _LiveRun) -> WorkerProcess:
        live.hears = False
        with disk_errors():
            live.worker = await WorkerProcess.spawn(self._folder(run))
        return live.worker

    async def _begin(self, run: RunId, live: _LiveRun, worker: WorkerProcess) -> None:
        record = next(r for r in await asyncio.to_thread(self._journal.runs) if r.run == run)
        live.answered |= await asyncio.to_thread(self._journal.replies, run)
        if record.progress:
            live.dimension = StudyProgress.model_validate_json(record.progress).dimension
        attempts = await asyncio.to_thread(self._journal.attempts, run)
        forgiven = await asyncio.to_thread(self._journal.forgiven, run)
        order = {
            "run": run,
            "study": base64.b64encode(live.study.canonical()).decode(),
            "spool": str(self._spool.folder),
            "progress": record.progress,
            "attempts": [[list(key), attempt] for key, attempt in attempts.items()],
            "forgiven": [message.hex() for message in forgiven],
        }
        worker.send(Note(Verb.BEGIN, json.dumps(order).encode()))
        live.hears = True
        live.tell(self._presence_note(live.study))

    async def _serve(self, run: RunId, live: _LiveRun, worker: WorkerProcess) -> dict[str, Any] | None:
        """Carry the worker's messages until it is done (its last word) or gone (None)."""
        while (note := await worker.receive()) is not None:
            match note.verb:
                case Verb.SEND:
                    self._send(run, live, worker, note)
                case Verb.WITHDRAW:
                    names = {
                        MessageId(note.payload[at : at + 32]) for at in range(0, len(note.payload), 32)
                    } & live.asked
                    live.asked -= names
                    await self._mailbox.withdraw(names)
                case Verb.REFUSE:
                    await self._refuse(live, MessageId(note.payload[:32]), note.payload[32:].decode())
                case Verb.STATUS:
                    self._views.note_status(run, json.loads(note.payload))
                case Verb.COMMIT:
                    await to_its_end(self._commit(run, live, json.loads(note.payload)))
                case Verb.DONE:
                    done: dict[str, Any] = json.loads(note.payload)
                    _last_word(done)  # raises here, where it counts as a death, and not when nobody serves the run
                    return done
                case _:
                    raise RunWorkerError("The run's worker sent what only the daemon may send")
        return None

    def _send(self, run: RunId, live: _LiveRun, worker: WorkerProcess, note: Note) -> None:
        """Ask a site, unless its reply is already here."""
        instruction = instruction_from_bytes(note.payload)
        site = SiteName(note.site)
        of_this_run = (instruction.run, instruction.study_digest) == (run, live.digest)
        is_guest = instruction.phase is Phase.GUEST
        if not of_this_run or is_guest != (live.study.guest is not None) or site not in live.study.site_names:
            raise RunWorkerError("The run's worker addressed what is not part of its run")
        known = live.answered.get(instruction.message_id)
        if known is not None:
            worker.send(Note(Verb.REPLY, reply_to_bytes(known), site))
            return
        live.asked.add(instruction.message_id)
        if live.study.guest is not None:
            self._keep(run, instruction)

        def take(site: SiteName, reply: Reply) -> None:
            live.asked.discard(reply.message_id)
            live.answered[reply.message_id] = reply
            if live.study.guest is not None:
                self._keep(run, reply)
            if reply.code:
                self._metrics.update_refused(reply.code)
            else:
                self._metrics.update_received()
            live.tell(Note(Verb.REPLY, reply_to_bytes(reply), site))

        refers_to = frozenset(blob.id for blob in instruction.blobs)
        self._mailbox.send(site, instruction, refers_to, take, live.most_reply_bytes(instruction.phase))

    async def _commit(self, run: RunId, live: _LiveRun, step: dict[str, Any]) -> None:
        result = result_from_json(step["result"]) if step["result"] else None
        stored = (result.round_number, json.dumps(step["result"])) if result else None
        # What is stored is read at the next start: it has to be readable.
        progress = StudyProgress.model_validate_json(step["progress"])
        obsolete = {BlobId(bytes.fromhex(name)) for name in step["obsolete"]}
        await self._journal.commit(run, step["progress"], stored)
        live.deaths = 0
        live.dimension = progress.dimension
        self._needed[run] = progress.blobs()
        await self._remove(obsolete - self._in_use(besides=run))
        if result is not None:
            live.answered.clear()
            self._views.note_result(run, live.study, result)

    async def _refuse(self, live: _LiveRun, message: MessageId, code: str) -> None:
        """The run could not use a reply that was taken."""
        if message in live.answered:
            self._metrics.update_refused(code)
            await self._journal.written()
            await asyncio.to_thread(self._journal.refuse_reply, message, code)

    def _keep(self, run: RunId, *messages: Instruction | Reply) -> None:
        """What a run has to find when it goes on. A guest app commits nothing: it needs all that it was answered."""
        self._needed.setdefault(run, set()).update(_bulk(messages))

    def _in_use(self, besides: RunId | None = None) -> set[BlobId]:
        """What was committed, or answered and is not committed yet; of one run only the former. Blobs are named by
        content, so what one run or site is done with another one may need."""
        answered = (_bulk(live.answered.values()) for run, live in self._live.items() if run != besides)
        return set().union(*self._needed.values(), *answered)

    async def _remove(self, blobs: set[BlobId]) -> None:
        if not blobs:
            return

        def remove() -> None:
            for blob in blobs:
                self._spool.remove(blob)

        await asyncio.to_thread(remove)  # deleting a file can take a millisecond

    async def _finish(self, run: RunId, live: _LiveRun, done: dict[str, Any]) -> None:
        """The worker's last word, or its failure, becomes the run's state."""
        state, reason = _last_word(done)
        async with self._moving:
            self._live.pop(run, None)
            if isinstance(reason, QuorumMissingError):
                self._metrics.quorum_missed()
            if state is not RunState.COMPLETED:
                self._metrics.round_ended(RoundOutcome.ABANDONED)
            try:
                await self._become(run, live.asked, state, reason)
            except DiskFullError as error:
                log.error("the run's state is not stored: it goes on after a restart", run=run, code=error.code)

    async def _settle(self, run: RunId, state: RunState, reason: QuorateError | None) -> None:
        """An operator ends or pauses the run.

        Raises:
            DiskFullError: that could not be stored, and holds until the server is started again.
        """
        live = self._live.pop(run, None)
        if live is not None:
            await self._end_worker(live)
        await self._become(run, self._mailbox.asked_for(run), state, reason)

    async def _become(
        self, run: RunId, asked: Iterable[MessageId], state: RunState, reason: QuorateError | None
    ) -> None:
        """Nobody works for the run any more; its state is stored, and known even if it could not be stored."""
        try:
            await self._journal.written()
            self._keep(run, *(await asyncio.to_thread(self._journal.replies, run)).values())
            await self._mailbox.withdraw(asked)
            await self._journal.written()
            await asyncio.to_thread(self._journal.set_state, run, state, error_to_text(reason) if reason else "")
            if state.is_over:
                await asyncio.to_thread(self._journal.forget_replies, run)
                await self._remove(self._needed.pop(run, set()) - self._in_use())
        finally:
            model = self._model(run).is_file()
            self._views.update(run, state=state, reason=reason, phase="", sites=(), model_available=model)
            log.info("run " + state.value, run=run, reason=reason.code if reason else "")

    async def _end_worker(self, live: _LiveRun) -> None:
        if live.task is not None:
            live.task.cancel()
            await asyncio.gather(live.task, return_exceptions=True)
        if live.worker is not None:
            await live.worker.kill()

    # --- presence ---

    def _tell_presence(self) -> None:
        for live in self._live.values():
            live.tell(self._presence_note(live.study))

    def _presence_note(self, study: Study) -> Note:
        gone = {site: self._sessions.gone_for_s(site) for site in study.site_names}
        absent = {site: seconds for site, seconds in gone.items() if seconds is not None}
        return Note(Verb.PRESENCE, json.dumps(absent).encode())

    # --- small things ---

    def _see(self, record: RunRecord, study: Study) -> None:
        results = [result_from_json(value) for value in self._journal.results(record.run)]
        self._views.add(record, study, results, model_available=self._model(record.run).is_file())

    def _require_room(self) -> None:
        if len(self._live) >= self._config.most_runs:
            raise WrongStateError(
                "This server does as many runs as it may",
                expected=f"fewer than {self._config.most_runs}",
                action="Wait for one of them, or pause or stop one; most_runs in server.toml is the limit",
            )

    def _folder(self, run: RunId) -> Path:
        return self._config.runs_dir / run

    def _model(self, run: RunId) -> Path:
        return self._folder(run) / "model.npz"

    def _tidy_spool(self) -> None:
        """Keep what live runs refer to, and uploads that may still go on."""
        kept: set[BlobId] = set()
        for record in self._journal.runs():
            if record.state in (RunState.RUNNING, RunState.PAUSED):
                if record.progress:
                    kept |= StudyProgress.model_validate_json(record.progress).blobs()
                for reply in self._journal.replies(record.run).values():
                    kept |= {blob.id for blob in reply.blobs}
        self._spool.keep_only(kept, incomplete_since_unix_s=time.time() - KEEP_INCOMPLETE_S)


def _bulk(messages: Iterable[Instruction | Reply]) -> set[BlobId]:
    return {blob.id for message in messages for blob in message.blobs if blob.inline is None}


def _last_word(done: dict[str, Any]) -> tuple[RunState, QuorateError | None]:
    """How a worker says that its run ended, and why."""
    state = RunState(done["state"])
    if state in (RunState.RUNNING, RunState.STOPPED):
        raise RunWorkerError("The run's worker claims a state that is not its to give")
    return state, error_from_text(done["reason"]) if done["reason"] else None
