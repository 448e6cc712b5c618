"""Lists that have to fit into one message, however long the consortium goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

PAGE_BYTES = 3 * 1024 * 1024


class Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802  # the name is protobuf's


Record = TypeVar("Record")
Shown = TypeVar("Shown", bound=Sized)


def newest_that_fit(records: Sequence[Record], show: Callable[[Record], Shown]) -> list[Shown]:
    """What a message holds of ``records``, which come oldest first: the newest, in the same order.

    One that is too large or one too many must not make all the others unreadable. What is left out is still found by
    its name.
    """
    shown: list[Shown] = []
    size = 0
    for record in reversed(records):
        message = show(record)
        size += message.ByteSize()
        if size > PAGE_BYTES:
            break
        shown.append(message)
    return shown[::-1]
