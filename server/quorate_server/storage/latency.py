"""How long the database takes: the time of each transaction, from its begin until its connection is free again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.pool import ConnectionPoolEntry

Operation = Literal["read", "write"]

_BEGUN, _WRITES = "quorate_begun_s", "quorate_writes"


def time_transactions(
    engine: Engine, took: Callable[[Operation, float], None], clock: Callable[[], float] = time.perf_counter
) -> None:
    """Tell ``took`` of every transaction from now on: a read where no statement of it changed anything.

    Up to the return to the pool, because SQLAlchemy tells of a commit before it is made, and that is what waits for
    the disk.
    """

    def begin(connection: Connection) -> None:
        connection.info[_BEGUN] = clock()
        connection.info[_WRITES] = False

    def executed(
        connection: Connection, cursor: DBAPICursor, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        changes = context is not None and (context.isinsert or context.isupdate or context.isdelete)
        if changes or not cursor.description:  # no rows: it defines or deletes
            connection.info[_WRITES] = True

    def returned(connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        begun_s = entry.info.pop(_BEGUN, None)
        if begun_s is not None:
            took("write" if entry.info[_WRITES] else "read", clock() - begun_s)

    event.listen(engine, "begin", begin)
    event.listen(engine, "after_cursor_execute", executed)
    event.listen(engine.pool, "checkin", returned)
