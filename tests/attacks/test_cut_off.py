"""A server that cuts a site off in the middle, to hear whether its records let it answer by then.

It chose a deadline of 0.05 s twenty times and got twenty times `task_timeout`, which counted as nothing. A loss that
was not finite was a refusal, and so a bit about the records too.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import SiteInterruptedError
from quorate.process.cancellation import cancel
from quorate.rounds.instruction import Phase
from quorate.tally import LOSS_CAP, LOSS_ONE
from quorate_client.rounds.sums import one_code
from quorate_client.rounds.task_calls import TaskCalls, Trained
from quorate_client.rounds.training import Trainer
from tests.attacks.hand_server import VICTIM, HandServer
from tests.client.engine_kit import (
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_agreement,
    make_study,
)

pytestmark = pytest.mark.usefixtures("installed")

STUDY_S = 600.0


@pytest.fixture(name="server")
async def server_fixture(installed: Path, tmp_path: Path) -> HandServer:
    made = HandServer(tmp_path)
    await made.exchange_keys()
    await made.run_to(1)
    return made


async def cut_off(server: HandServer, attempt: int, deadline_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a site while it computes on its records; to the engine a deadline and a withdrawal are the same."""
    begun = asyncio.Event()

    async def endless(*_: Any) -> Trained:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    hellos = await server.greet(2, attempt)
    work = replace(server.way(VICTIM), hellos=hellos)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train", endless)
        job = asyncio.create_task(server.reply(VICTIM, Phase.UPLOAD, 2, work, attempt, deadline_s=deadline_s))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait({job, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await cancel({waiting})
        if job.done():
            job.result()
        await cancel({job})
        assert job.cancelled()


async def test_a_server_that_gives_less_time_than_the_study_may_cut_a_site_off_twice(
    server: HandServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in range(2):
        await cut_off(server, attempt, STUDY_S / 2, monkeypatch)
    assert server.sites[VICTIM].uploads()[-2:] == [(2, 0, 1), (2, 1, 1)]
    with pytest.raises(SiteInterruptedError):
        await cut_off(server, 2, STUDY_S / 2, monkeypatch)
    assert server.sites[VICTIM].uploads()[-1] == (2, 1, 1), "no record was read a third time"


async def test_a_site_that_is_slow_by_the_studys_own_deadline_stays_in_the_run(
    server: HandServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in range(3):
        await cut_off(server, attempt, STUDY_S, monkeypatch)
    assert server.sites[VICTIM].uploads()[-3:] == [(2, attempt, 0) for attempt in range(3)]
    await server.require_sound()


async def test_a_site_that_is_cut_off_while_it_waits_to_answer_is_as_one_that_computes(
    server: HandServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done, and its answer waits for one of the few moments at which something leaves."""
    waiting = asyncio.Event()

    async def endless(*_: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(one_code, "until_slot", endless)
    hellos = await server.greet(2)
    work = replace(server.way(VICTIM), hellos=hellos)
    job = asyncio.create_task(server.reply(VICTIM, Phase.UPLOAD, 2, work, deadline_s=STUDY_S / 2))
    await waiting.wait()
    await cancel({job})
    assert job.cancelled()
    assert server.sites[VICTIM].uploads()[-1] == (2, 0, 1)


# --- the loss ---------------------------------------------------------------------------------------------------------


class Says:
    """A worker that answers what a test says."""

    def __init__(self, **answer: Any) -> None:
        self.answer, self.ready_for = answer, b""

    def lease(self, key: object) -> Any:
        return self

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def call(self, verb: str, arguments: object) -> dict[str, Any]:
        return self.answer

    async def close(self) -> None: ...


MOST = 10 * int(LOSS_CAP) * LOSS_ONE


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (2.5, int(2.5 * LOSS_ONE)),
        (-2.5, int(-2.5 * LOSS_ONE)),
        (float("nan"), MOST),
        (float("inf"), MOST),
        (float("-inf"), -MOST),
        (1e300, MOST),
        pytest.param(10**400, MOST, id="too large for a float"),
        (10 * LOSS_CAP, MOST),
    ],
)
async def test_a_loss_that_is_not_finite_or_too_large_is_the_most_that_the_records_may_add(
    tmp_path: Path, loss: float, told: int
) -> None:
    agreement = make_agreement(make_study(), tmp_path)
    state: Any = type("State", (), {"path": tmp_path, "dimension": 1})
    for records, expected in ((10, told), (0, 0)):
        task = TaskCalls(Says(records=records, loss_sum=loss), agreement, (), lambda: 0.0)
        assert await task.train(state, tmp_path / "update", 1, 7, 0.0) == Trained(records, expected)
    task = TaskCalls(Says(records=1 << 62, loss_sum=float("nan")), agreement, (), lambda: 0.0)
    assert (await task.train(state, tmp_path / "update", 1, 7, 0.0)).loss == (1 << 63) - 1
