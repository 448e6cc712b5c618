"""What an instruction has to get past before it is worked on, and what is kept of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from quorate.errors import AttestationError, FrameError
from quorate.rounds.instruction import MAX_BODY_BYTES, Instruction, MessageId, Phase, message_id
from quorate_client.daemon.instructions import MAX_OPEN_BYTES, DaemonParts, Instructions
from quorate_client.daemon.journal import Journal
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.site.agreement import Agreement
from quorate_client.site.database import make_state, open_state
from tests.attested_machine import attested_study
from tests.patience import PATIENCE_S

from ..conftest import RUN, SITE, ScriptedEngine

STUDY = attested_study()
FORGED, SIGNED = bytes(64), b"\x01" * 64


class Door:
    """Lets in what is signed, once it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.refusal: AttestationError | None = None

    async def admits(self, instruction: Instruction) -> bool:
        await self.opened.wait()
        if self.refusal is not None:
            raise self.refusal
        return instruction.signature == SIGNED


class Kit:
    def __init__(self, journal: Journal) -> None:
        self.journal, self.door, self.engine = journal, Door(), ScriptedEngine()
        self.replied: asyncio.Queue[MessageId] = asyncio.Queue()
        self.instructions = Instructions(
            DaemonParts(
                journal=journal,
                admits=self.door.admits,
                engine=self.engine,  # type: ignore[arg-type]  # what a test needs of one
                metrics=ClientMetrics(CollectorRegistry()),
                agree=self._agree,
                fetch=self._fetch,
                drop=lambda _: None,
                replied=self.replied.put_nowait,
                audit=lambda _, __: None,
            )
        )

    async def _agree(self, instruction: Instruction) -> Agreement:
        return Agreement(STUDY, STUDY.digest(), SITE, None, {})

    async def _fetch(self, *_: object) -> None: ...

    async def answered(self) -> MessageId:
        async with asyncio.timeout(PATIENCE_S):
            return await self.replied.get()

    async def idle(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.instructions._tasks:
                await asyncio.sleep(0)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    make_state(tmp_path / "state")
    with closing(open_state(tmp_path / "state")) as state:
        kit = Kit(Journal(state, lambda: 0.0))
        yield kit
        await kit.instructions.stop()


def instruction(signature: bytes, number: int = 1, body: bytes = b"asked") -> Instruction:
    name = message_id(RUN, number, Phase.UPLOAD, 0, SITE)
    return Instruction(name, RUN, number, Phase.UPLOAD, 0, STUDY.digest(), 60.0, body, signature=signature)


async def test_what_is_let_in_is_what_is_worked_on_and_not_what_came_before_it(kit: Kit) -> None:
    kit.instructions.take(instruction(FORGED, body=b"forged"))
    await asyncio.sleep(0)
    kit.instructions.take(instruction(SIGNED, body=b"signed"))
    kit.door.opened.set()
    entry = kit.journal.find(await kit.answered())
    assert entry is not None
    assert entry.reply is not None
    assert entry.reply.body == b"dengis"


async def test_what_nobody_signed_gets_no_answer_and_is_taken_on_when_it_comes_signed(kit: Kit) -> None:
    kit.door.opened.set()
    kit.instructions.take(instruction(FORGED))
    await kit.idle()
    assert kit.journal.find(instruction(FORGED).message_id) is None
    kit.instructions.take(instruction(SIGNED))
    await kit.answered()
    assert len(kit.engine.performed) == 1


async def test_a_machine_that_may_not_be_trusted_is_told_so_and_gets_no_work(kit: Kit) -> None:
    kit.door.refusal = AttestationError("It shows nothing")
    kit.door.opened.set()
    kit.instructions.take(instruction(SIGNED))
    entry = kit.journal.find(await kit.answered())
    assert entry is not None
    assert entry.reply is not None
    assert entry.reply.code == "not_attested"
    assert kit.engine.performed == []


async def test_a_refused_machine_does_not_cost_a_reply_that_is_there(kit: Kit) -> None:
    kit.door.opened.set()
    kit.instructions.take(instruction(SIGNED))
    before = kit.journal.find(await kit.answered())
    await kit.idle()
    kit.door.refusal = AttestationError("It shows nothing")
    kit.instructions.take(instruction(SIGNED))
    assert kit.journal.find(await kit.answered()) == before
    assert len(kit.engine.performed) == 1


async def test_an_instruction_that_comes_again_while_it_waits_counts_towards_what_is_held(kit: Kit) -> None:
    large = MAX_OPEN_BYTES // MAX_BODY_BYTES
    for number in range(large // 2):
        kit.instructions.take(instruction(FORGED, number))
    with pytest.raises(FrameError):
        for number in range(large // 2):
            for _ in range(3):
                kit.instructions.take(replace(instruction(FORGED, number), body=bytes(MAX_BODY_BYTES)))
            kit.instructions.take(instruction(FORGED, 1000 + number, bytes(MAX_BODY_BYTES)))
