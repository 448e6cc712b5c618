"""What this site was asked to do, from an instruction to its stored reply.

One instruction at a time for each run, several runs beside each other, each within its deadline. Whatever happens ends
in exactly one stored reply: the work, or the code of a refusal. Text never leaves; it goes to the site's own log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog

from quorate.errors import (
    FrameError,
    QuorateError,
    SiteInterruptedError,
    SitePausedError,
    TaskFailedError,
    TaskTimeoutError,
    WorkWithdrawnError,
)
from quorate.identity import RunId
from quorate.process.cancellation import cancel
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate_client.daemon.journal import Journal
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.rounds.engine import Engine
from quorate_client.site.agreement import Agreement

log = structlog.get_logger()

MAX_OPEN = 1000
MAX_OPEN_BYTES = 128 * 1024 * 1024
"""Instructions that wait or are in work, and what they hold in memory."""
REFERENCE_BYTES = 256
"""What the name of a blob takes there."""


@dataclass(frozen=True, slots=True)
class DaemonParts:
    """What work needs of the rest of the daemon.

    Args:
        admits: Whether an instruction may be worked on at all; what may not gets no answer.
        agree: The agreement behind an instruction, checked against approvals, policy and installed tasks as they are
            at this moment; raises the refusal otherwise.
        fetch: Brings a blob that a message names into the spool.
        drop: Removes blobs that nothing needs any more.
        replied: Told when a reply is stored and may be sent.
        audit: Told of each refusal.
    """

    journal: Journal
    admits: Callable[[Instruction], Awaitable[bool]]
    engine: Engine
    metrics: ClientMetrics
    agree: Callable[[Instruction], Awaitable[Agreement]]
    fetch: Callable[[RunId, Blob], Awaitable[None]]
    drop: Callable[[set[BlobId]], None]
    replied: Callable[[MessageId], None]
    audit: Callable[[Instruction, QuorateError], None]


@asynccontextmanager
async def within(limit_s: float, phase: Phase) -> AsyncIterator[None]:
    """Stop the work inside when its time is over.

    Raises:
        TaskTimeoutError: it was stopped; SiteInterruptedError where the server may not hear why.
    """
    try:
        async with asyncio.timeout(limit_s) as deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        kind = SiteInterruptedError if phase.has_one_code else TaskTimeoutError
        raise kind(
            "The work was not done by its deadline",
            expected=f"at most {limit_s:g} s",
            action="Give the task a faster machine, or have the operator raise rounds.deadline_s",
        ) from error


class Instructions:
    """The instructions that are waiting or in work. Lives in the daemon's event loop."""

    def __init__(self, parts: DaemonParts) -> None:
        self._parts = parts
        self._tasks: dict[MessageId, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[RunId, asyncio.Lock] = WeakValueDictionary()
        self._withdrawn: set[MessageId] = set()
        self._sizes: dict[MessageId, int] = {}
        self._repeated: dict[MessageId, Instruction] = {}
        self.paused = False

    def recover(self) -> None:
        """Answer what an earlier life of the daemon left unfinished: a site does not train twice in one round."""
        for message in self._parts.journal.interrupt():
            log.warning("interrupted work answered", message=message.hex()[:12], code=SiteInterruptedError.code)
            self._parts.metrics.instruction_refused(SiteInterruptedError.code)

    def take(self, instruction: Instruction) -> None:
        """Take an instruction on, unless it is known: then its stored reply is sent, or its work goes on.

        Raises:
            FrameError: the server asks for more at a time than any round needs.
        """
        message = instruction.message_id
        if message in self._tasks:
            if instruction.signature:  # of a machine that was started again, perhaps
                self._repeated.pop(message, None)
                self._require_room(instruction)
                self._repeated[message] = instruction
            return
        entry = self._parts.journal.find(message)
        if entry is not None and not instruction.signature:
            # Without a reply only if that could not be stored: the disk was full. The work is not done again.
            self._store(instruction, entry.reply or Reply(message, SiteInterruptedError.code))
            return
        if len(self._tasks) >= MAX_OPEN:
            raise FrameError("The server asks for more at a time than this site does")
        self._require_room(instruction)
        self._sizes[message] = _held_bytes(instruction)
        task = asyncio.create_task(self._answer(instruction), name=f"instruction {message.hex()[:12]}")
        self._tasks[message] = task
        task.add_done_callback(lambda _: self._ended(message))
        self._parts.metrics.instructions_open(len(self._tasks))

    async def withdraw(self, message: MessageId) -> None:
        """Stop working on an instruction; the server does not want its reply any more."""
        task = self._tasks.get(message)
        if task is None:
            self._parts.journal.settle(message)
            return
        self._withdrawn.add(message)
        await cancel({task})

    async def forget(self, run: RunId) -> None:
        """Remove what a run left on the way, when nothing of it is in work."""
        async with self._turn(run):
            await self._parts.engine.forget(run)

    async def stop(self) -> None:
        """Stop all work. What is interrupted is answered, so that the server need not wait for it."""
        await cancel(self._tasks.values())

    def _require_room(self, instruction: Instruction) -> None:
        held = sum(self._sizes.values()) + sum(map(_held_bytes, self._repeated.values()))
        if held + _held_bytes(instruction) > MAX_OPEN_BYTES:
            raise FrameError("The server asks for more at a time than this site holds in memory")

    def _turn(self, run: RunId) -> asyncio.Lock:
        return self._turns.setdefault(run, asyncio.Lock())

    def _ended(self, message: MessageId) -> None:
        del self._tasks[message], self._sizes[message]
        self._repeated.pop(message, None)
        self._withdrawn.discard(message)
        self._parts.metrics.instructions_open(len(self._tasks))

    async def _answer(self, instruction: Instruction) -> None:
        try:
            # The deadline counts from the receipt, waiting for another instruction of the same run included.
            async with within(instruction.deadline_s, instruction.phase):
                admitted = await self._admitted(instruction)
                if admitted is None:
                    return
                instruction = admitted
                entry = self._parts.journal.find(instruction.message_id)
                if entry is not None:
                    reply = entry.reply or Reply(instruction.message_id, SiteInterruptedError.code)
                else:
                    async with self._turn(instruction.run):
                        reply = await self._perform(instruction)
        except asyncio.CancelledError:
            withdrawn = instruction.message_id in self._withdrawn
            kind = WorkWithdrawnError if withdrawn else SiteInterruptedError
            reply = self._refuse(instruction, kind("The work was stopped"))
        except QuorateError as error:
            reply = self._refuse(instruction, error)
        except Exception as error:
            log.exception("task failed", run=instruction.run, round=instruction.round_number, phase=instruction.phase)
            reply = self._refuse(instruction, TaskFailedError(f"The task raised {type(error).__name__}"))
        self._store(instruction, reply)

    async def _admitted(self, instruction: Instruction) -> Instruction | None:
        """This instruction, if it may be worked on, or the same one as it came again meanwhile, perhaps signed by a
        machine that was started again. Only that: what else has its id may say anything.

        Raises:
            AttestationError: the machine that signs them may not be trusted.
        """
        while not await self._parts.admits(instruction):
            repeated = self._repeated.pop(instruction.message_id, None)
            if repeated is None:
                return None
            instruction = repeated
        return instruction

    def _store(self, instruction: Instruction, reply: Reply) -> None:
        """Nothing is sent that is not on disk."""
        wanted = instruction.message_id not in self._withdrawn
        try:
            self._parts.drop(self._parts.journal.reply(instruction, reply, wanted=wanted))
        except QuorateError as error:
            log.error("reply not stored and so not sent", run=instruction.run, code=error.code, reason=str(error))
        else:
            if wanted:
                self._parts.replied(instruction.message_id)

    async def _perform(self, instruction: Instruction) -> Reply:
        agreement = await self._parts.agree(instruction)
        if self.paused:  # perhaps only since the server was asked for other sites' approvals
            raise SitePausedError("The administrator paused this site")
        is_begun = False

        def begin() -> None:
            nonlocal is_begun
            if not is_begun:
                self._parts.drop(self._parts.journal.start(instruction))
                is_begun = True

        if not instruction.phase.may_be_repeated:
            begin()
        log.debug("work started", run=instruction.run, round=instruction.round_number, phase=instruction.phase)

        async def fetch(blob: Blob) -> None:
            if blob.inline is None:
                begin()
                self._parts.journal.needs(instruction.message_id, blob.id)
                await self._parts.fetch(instruction.run, blob)

        clock = asyncio.get_running_loop().time
        begun_s = clock()
        # The study that was approved says how long a round may take; the server may only ask for less.
        async with within(agreement.study.rounds.deadline_s, instruction.phase):
            reply = await self._parts.engine.perform(instruction, agreement, fetch)
        # Measured here: what a reply says of it is for the server, which under secure aggregation hears nothing.
        self._parts.metrics.instruction_done(instruction.phase, clock() - begun_s)
        log.info(
            "work done",
            run=instruction.run,
            round=instruction.round_number,
            phase=instruction.phase,
            protection=agreement.study.protection.mode,
            working_s=round(reply.working_s, 3),
        )
        return reply

    def _refuse(self, instruction: Instruction, error: QuorateError) -> Reply:
        """The server gets the code. The site's own log, metrics and ledger get the reason that may be behind it."""
        reason = error.__cause__ if isinstance(error, SiteInterruptedError) else None
        told = reason if isinstance(reason, QuorateError) else error
        log.warning(
            "instruction refused",
            run=instruction.run,
            round=instruction.round_number,
            phase=instruction.phase,
            code=told.code,
            told=error.code,
            reason=str(told),
        )
        self._parts.metrics.instruction_refused(told.code)
        self._parts.audit(instruction, told)
        return Reply.refusing(instruction.message_id, error)


def _held_bytes(instruction: Instruction) -> int:
    """What it takes in memory."""
    return len(instruction.body) + sum(REFERENCE_BYTES + len(blob.inline or b"") for blob in instruction.blobs)
