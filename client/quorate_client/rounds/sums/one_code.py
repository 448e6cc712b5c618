"""What may depend on a site's records: one code for whatever goes wrong, and few moments at which anything leaves.

A reason that differs, or the time until an answer, would tell the server something of the records.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from quorate.errors import SiteInterruptedError
from quorate.identity import RunId
from quorate.rounds.instruction import Instruction
from quorate.study.study import Study
from quorate_client.rounds.sums.votes import VoteLog

SLOT_RATIO = 1.5
"""What was computed on records leaves after a power of this many seconds: the time itself tells their number."""


@asynccontextmanager
async def one_code() -> AsyncIterator[None]:
    """Why a task that has opened its data fails is for this site's log alone.

    Raises:
        SiteInterruptedError: for whatever went wrong.
    """
    try:
        yield
    except Exception as error:
        raise _interrupted() from error


@asynccontextmanager
async def on_records(
    instruction: Instruction, study: Study, run: RunId, votes: VoteLog, clock: Callable[[], float]
) -> AsyncIterator[None]:
    """The same in an upload, which leaves at one of few moments, and of which a site fails two at most.

    Being stopped counts as a failure too where the server gave less time than the study does. Within the study's time a
    slow site may be stopped as often as it comes.

    Raises:
        SiteInterruptedError: for whatever went wrong. VoteRefusedError: it was asked before in this attempt; nothing
            was read then.
    """
    sum_name = run, instruction.round_number, instruction.attempt
    votes.begin_upload(*sum_name)
    started = clock()
    try:
        yield
        await until_slot(started, clock)
    except asyncio.CancelledError:
        if instruction.deadline_s < study.rounds.deadline_s:
            votes.upload_failed(*sum_name)
        raise
    except Exception as error:
        votes.upload_failed(*sum_name)
        await until_slot(started, clock)
        raise _interrupted() from error


async def until_slot(started: float, clock: Callable[[], float]) -> None:
    """Wait for the next moment at which something leaves."""
    await asyncio.sleep(slot_s(clock() - started) - (clock() - started))


def slot_s(elapsed_s: float) -> float:
    """When that is, in seconds from the beginning: a power of ``SLOT_RATIO``."""
    return SLOT_RATIO ** math.ceil(math.log(max(elapsed_s, 1e-6), SLOT_RATIO))


def _interrupted() -> SiteInterruptedError:
    return SiteInterruptedError(
        "This site could not compute on its records", action="See the site's log for the reason"
    )
