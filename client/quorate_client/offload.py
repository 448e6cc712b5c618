"""Keeping the event loop free while bulk data is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from quorate.blobs import INLINE_BYTES

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def offload(
    size_bytes: int, work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Do work on a thread, unless it is on so few bytes that handing it over would take longer than doing it."""
    if size_bytes <= INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
