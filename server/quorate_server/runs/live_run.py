"""One running run: its worker process, what sites were asked for it and what they answered.

A worker that dies by itself is started again; one that dies again and again without a step forward fails its run. What
sites were asked stays asked when a worker dies: they go on, and its successor asks the same again.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from quorate.errors import AggregatorUnreachableError, DiskFullError, QuorateError, RunWorkerError
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import cancel, to_its_end
from quorate.rounds.blobs import MAX_BLOB_BYTES, Blob, BlobId
from quorate.rounds.instruction import MESSAGE_ID_BYTES, MessageId, Phase, Reply
from quorate.rounds.run import RunState
from quorate.rounds.spool import Spool, disk_errors
from quorate.study.study import Study
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate.wire.refusal import error_from_text
from quorate_server.reporting.metrics import ServerMetrics
from quorate_server.rounds.order import Order
from quorate_server.rounds.pipe import Note, Verb, referred_to
from quorate_server.rounds.progress import StudyProgress, result_from_json
from quorate_server.rounds.sum_figures import SumFigures
from quorate_server.runs import aggregator
from quorate_server.runs.aggregator import Aggregator, EvidenceDesk, SpoolDesk, Worker
from quorate_server.runs.blobs_in_use import BlobsInUse
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.sessions import Sessions
from quorate_server.runs.views import RunViews
from quorate_server.runs.worker_process import WorkerProcess
from quorate_server.storage.journal import Journal

log = structlog.get_logger()

MAX_DEATHS_WITHOUT_PROGRESS = 3
REPLY_BYTES = 64 * 1024 * 1024
REPLY_BYTES_PER_PARAMETER = 16
"""What a site may upload for one reply in a study: a checkpoint holds a model three times, a released one may be in
double precision, and bring names and notes."""
SEALED_BYTES = 2 * 1024 * 1024
"""What a site may upload for a reply that has no uploads, where the reply itself is sealed."""

End = tuple[RunState, QuorateError | None]
"""How a run ended or why it paused."""


def max_reply_bytes(study: Study, dimension: int, phase: Phase) -> int:
    """What a site may upload for one reply. Only a study says how large a reply can be."""
    if not phase.has_uploads:
        return SEALED_BYTES if study.attestation is not None else 0
    if study.guest is not None:
        return MAX_BLOB_BYTES
    return REPLY_BYTES + REPLY_BYTES_PER_PARAMETER * dimension


@dataclass(frozen=True, slots=True)
class Shared:
    """What all running runs use. ``aggregator`` is the address of the attested one; empty where there is none."""

    journal: Journal
    mailbox: Mailbox
    sessions: Sessions
    spool: Spool
    blobs: BlobsInUse
    views: RunViews
    metrics: ServerMetrics
    aggregator: str


class LiveRun:
    """A run while its workers live. It begins at once.

    Args:
        folder: Of the run; the workers' working directory.
        when_ended: Called once, unless ``end`` came first, when there is no worker any more and none will be started.
    """

    def __init__(
        self,
        run: RunId,
        study: Study,
        folder: Path,
        shared: Shared,
        when_ended: Callable[[LiveRun, End], Awaitable[None]],
    ) -> None:
        self.run = run
        self.asked: set[MessageId] = set()
        self._study = study
        self._digest = study.digest()
        self._folder = folder
        self._shared = shared
        self._when_ended = when_ended
        self._worker: Worker | None = None
        self._has_order = False  # the worker, to go on from where the run is
        self._answered: dict[MessageId, Reply] = {}
        self._deaths = 0
        self._dimension = 0
        self._evidence = EvidenceDesk()
        self._task = asyncio.create_task(self._run_to_end())

    async def end(self) -> None:
        """End the worker now. Everything that counts is committed."""
        await cancel([self._task])
        if self._worker is not None:
            await self._worker.kill()

    def tell_presence(self) -> None:
        """Tell the worker which sites are gone, and for how many seconds."""
        gone = {site: self._shared.sessions.gone_for_s(site) for site in self._study.site_names}
        absent = {site: seconds for site, seconds in gone.items() if seconds is not None}
        self._tell(Note(Verb.PRESENCE, json.dumps(absent).encode()))

    @property
    def sites(self) -> tuple[SiteName, ...]:
        return self._study.site_names

    async def attest(self, site: SiteName, nonce: bytes, door_key: bytes) -> bytes:
        """What the machine that adds answers to a site's nonce (an ``AttestReply``).

        Args:
            door_key: The key of the TLS certificate that this server shows (SubjectPublicKeyInfo, DER).

        Raises:
            AttestationError: it does not answer now.
        """
        return await self._evidence.ask(site, nonce, lambda: self._tell(Note(Verb.ATTEST, nonce + door_key)))

    def _tell(self, note: Note) -> None:
        """A worker that has no order yet finds the same in what is stored."""
        if self._worker is not None and self._has_order:
            self._worker.send(note)

    # --- the workers, one after the other ---

    async def _run_to_end(self) -> None:
        await self._when_ended(self, await self._drive())

    async def _drive(self) -> End:
        """Keep a worker alive until the run is over or has to pause."""
        while self._deaths < MAX_DEATHS_WITHOUT_PROGRESS:
            try:
                end = await self._one_worker()
            except AggregatorUnreachableError as error:
                return RunState.PAUSED, error
            except DiskFullError as error:
                # Nothing can be committed, which is not the worker's fault. What sites were asked stays asked: their
                # replies are taken once there is room.
                self.asked.clear()
                return RunState.PAUSED, error
            except Exception:  # what the worker says may be anything
                log.exception("the run's worker could not be served", run=self.run)
                end = None
            if end is not None:
                return end
            self._deaths += 1
            log.warning("the run's worker died and is started again", run=self.run, deaths=self._deaths)
            if self._study.attestation is not None and 1 < self._deaths < MAX_DEATHS_WITHOUT_PROGRESS:
                await asyncio.sleep(aggregator.BROKEN_S)
        if self._study.attestation is not None:
            # Whoever stands in that connection can break it off as often as they like; no more than that.
            return RunState.PAUSED, AggregatorUnreachableError(
                f"The connection to the attested aggregator broke {self._deaths} times in a row",
                action="Read the aggregator's log and this server's, then `quorate run resume`",
            )
        return RunState.FAILED, RunWorkerError(
            f"The worker process of the run died {self._deaths} times in a row",
            action=f"Read {self._folder / 'worker.log'} on the server",
        )

    async def _one_worker(self) -> End | None:
        """One worker from its start to its end. Returns how the run ended, or None when the worker died."""
        worker = await to_its_end(self._spawn())
        try:
            await self._begin(worker)
            end = await self._serve(worker)
            if end is not None:
                await worker.wait()
            return end
        finally:
            await worker.kill()

    async def _spawn(self) -> Worker:
        self._has_order = False
        if self._study.attestation is not None:
            self._worker = await Aggregator.connect(self._shared.aggregator)
        else:
            with disk_errors():
                self._worker = await WorkerProcess.spawn(self._folder)
        return self._worker

    async def _begin(self, worker: Worker) -> None:
        """Give the worker its order: where the run stands, as it is stored."""
        journal = self._shared.journal
        record = await asyncio.to_thread(journal.run, self.run)
        self._remember(await asyncio.to_thread(journal.replies, self.run))
        if record.progress:
            self._dimension = StudyProgress.model_validate_json(record.progress).dimension
        attempts = await asyncio.to_thread(journal.attempts, self.run)
        forgiven = await asyncio.to_thread(journal.forgiven, self.run)
        spool = str(self._shared.spool.folder)
        order = Order(self.run, self._study, record.progress, attempts, forgiven, spool)
        worker.send(Note(Verb.BEGIN, order.to_json()))
        self._has_order = True
        self.tell_presence()

    # --- what a worker says ---

    async def _serve(self, worker: Worker) -> End | None:
        """Carry the worker's messages until it says how the run ended, or died (None)."""
        with closing(SpoolDesk(self._shared.spool)) as desk:
            return await self._heed(worker, desk)

    async def _heed(self, worker: Worker, desk: SpoolDesk) -> End | None:
        while (note := await worker.receive()) is not None:
            match note.verb:
                case Verb.SEND:
                    self._send(note)
                case Verb.WITHDRAW:
                    await self._withdraw(note.payload)
                case Verb.REFUSE:
                    await self._refuse(note.payload)
                case Verb.AGAIN:
                    await self._forget(MessageId(note.payload))
                case Verb.KEEP:
                    await to_its_end(asyncio.to_thread(self._keep_model, referred_to(note.payload)))
                case Verb.ATTESTED:
                    self._evidence.arrived(note.payload)
                case Verb.STATUS:
                    self._shared.views.show_status(self.run, json.loads(note.payload))
                case Verb.FIGURES:
                    self._measure(SumFigures.from_json(note.payload))
                case Verb.COMMIT:
                    await to_its_end(self._commit(json.loads(note.payload)))
                case Verb.DONE:
                    return _read_end(json.loads(note.payload))
                case Verb.READ | Verb.PUT | Verb.STORE | Verb.ROOM if self._study.attestation is not None:
                    await to_its_end(desk.serve(note, worker.send))
                case _:
                    raise RunWorkerError("The run's worker sent what only the daemon may send")
        return None

    def _send(self, note: Note) -> None:
        """Ask a site, unless its reply is already here."""
        instruction = instruction_from_bytes(note.payload)
        site = SiteName(note.site)
        of_this_run = (instruction.run, instruction.study_digest) == (self.run, self._digest)
        is_guest = instruction.phase is Phase.GUEST
        if not of_this_run or is_guest != (self._study.guest is not None) or site not in self._study.site_names:
            raise RunWorkerError("The run's worker addressed what is not part of its run")
        known = self._answered.get(instruction.message_id)
        if known is not None:
            self._tell(Note(Verb.REPLY, reply_to_bytes(known), site))
            return
        self.asked.add(instruction.message_id)
        if is_guest:  # a guest app commits nothing: when it goes on it needs all that it asked and was answered
            self._shared.blobs.keep(self.run, instruction)
        refers_to = frozenset(blob.id for blob in instruction.blobs)
        max_bytes = max_reply_bytes(self._study, self._dimension, instruction.phase)
        self._shared.mailbox.send(site, instruction, refers_to, self._take, max_bytes)

    def _measure(self, figures: SumFigures) -> None:
        if self._study.guest is not None:  # its words could call somebody at night
            raise RunWorkerError("The run's worker tells of sums, and a guest app makes none")
        for outcome in figures.outcomes:
            self._shared.metrics.secure_sum_ended(outcome)
        for step, seconds in figures.seconds.items():
            self._shared.metrics.sum_took(step, seconds)

    def _take(self, site: SiteName, reply: Reply) -> None:
        """A site answered."""
        self.asked.discard(reply.message_id)
        self._remember({reply.message_id: reply})
        if self._study.guest is not None:
            self._shared.blobs.keep(self.run, reply)
        if self._study.attestation is not None:
            self._shared.views.show_appraisal(self.run, site, reply.code)
        if reply.code:
            self._shared.metrics.update_refused(reply.code)
        else:
            self._shared.metrics.update_received()
        self._tell(Note(Verb.REPLY, reply_to_bytes(reply), site))

    def _remember(self, replies: dict[MessageId, Reply]) -> None:
        self._answered |= replies
        self._shared.blobs.hold_answers(self.run, replies.values())

    async def _withdraw(self, payload: bytes) -> None:
        """Replies that the run does not want any more."""
        starts = range(0, len(payload), MESSAGE_ID_BYTES)
        names = {MessageId(payload[start : start + MESSAGE_ID_BYTES]) for start in starts} & self.asked
        self.asked -= names
        await self._shared.mailbox.withdraw(names)

    async def _forget(self, message: MessageId) -> None:
        """A reply that was sealed to a machine that is gone. Its site brings it once more."""
        reply = self._answered.pop(message, None)
        if reply is not None:
            await self._shared.journal.written()
            await asyncio.to_thread(self._shared.journal.forget_reply, message)
            await self._shared.blobs.discard(self.run, {blob.id for blob in reply.blobs if blob.inline is None})

    def _keep_model(self, blob: Blob) -> None:
        """The released model leaves the spool for the run's folder."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # an aggregator needs none
        scratch = self._folder / "model.npz.part"
        with disk_errors(), scratch.open("wb") as file:
            for frame in self._shared.spool.read(blob):
                file.write(frame.data)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self._folder / "model.npz")

    async def _refuse(self, payload: bytes) -> None:
        """The run could not use a reply that was taken."""
        message, code = MessageId(payload[:MESSAGE_ID_BYTES]), payload[MESSAGE_ID_BYTES:].decode()
        if message in self._answered:
            self._shared.metrics.update_refused(code)
            await self._shared.journal.written()
            await asyncio.to_thread(self._shared.journal.refuse_reply, message, code)

    async def _commit(self, step: dict[str, Any]) -> None:
        result = result_from_json(step["result"]) if step["result"] else None
        stored = (result.round_number, json.dumps(step["result"])) if result else None
        # What is stored is read at the next start: it has to be readable.
        progress = StudyProgress.model_validate_json(step["progress"])
        obsolete = {BlobId(bytes.fromhex(name)) for name in step["obsolete"]}
        await self._shared.journal.commit(self.run, step["progress"], stored)
        self._deaths = 0
        self._dimension = progress.dimension
        self._shared.blobs.hold_progress(self.run, progress.blobs())
        await self._shared.blobs.discard(self.run, obsolete)
        if result is not None:
            self._answered.clear()
            self._shared.blobs.drop_answers(self.run)
            self._shared.views.show_result(self.run, self._study, result)


def _read_end(done: dict[str, Any]) -> End:
    """How a worker says that its run ended, and why. Anything else raises: that worker counts as dead."""
    state = RunState(done["state"])
    if state in (RunState.RUNNING, RunState.STOPPED):
        raise RunWorkerError("The run's worker claims a state that is not its to give")
    return state, error_from_text(done["reason"]) if done["reason"] else None
