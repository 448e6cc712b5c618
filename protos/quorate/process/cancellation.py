"""Work of an event loop: finish it, end it, wait for it, keep the loop free of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

SMALL_BYTES = 96 * 1024
"""Work on so few bytes is done sooner than handed to a thread."""


async def to_its_end(work: Awaitable[Result]) -> Result:
    """Wait for ``work``; a cancellation takes effect when it is done.

    What runs on a thread cannot be stopped anyway, and nobody else may touch its files before it has ended.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    ending = set(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending)


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event came within that time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


async def offload(
    size_bytes: int, work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Do work on a thread, unless it is on so few bytes that handing it over would take longer than doing it."""
    if size_bytes <= SMALL_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
