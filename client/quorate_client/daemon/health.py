"""Whether the site can work: what ``/readyz`` says, one line for each thing that it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from quorate.errors import QuorateError
from quorate.process.disk import MIN_FREE_BYTES, disk_use
from quorate.process.monitoring import Finding
from quorate_client.daemon.metrics import ConnectionState
from quorate_client.site.database import ConnectionReport


def site_findings(
    *,
    connection: ConnectionReport,
    certificate_ends_unix_s: Callable[[], float],
    read_policy: Callable[[], object],
    ask_ledger: Callable[[], object],
    work: Path,
    spool: Path,
    now: float,
    min_free_bytes: int = MIN_FREE_BYTES,
) -> Iterator[Finding]:
    """Look at everything, also behind something that is broken. Of an error its code is told and nothing else.

    Args:
        ask_ledger: Raises when nothing can be spent on it.
        work: Where the engine keeps models and its workers' files.
        now: Unix seconds.
    """
    is_connected = connection.state == ConnectionState.CONNECTED
    yield Finding("connection", "" if is_connected else " ".join(filter(None, (connection.state, connection.code))))
    yield _asked("certificate", lambda: None if now < certificate_ends_unix_s() else "expired")
    yield _asked("policy", read_policy)
    yield _asked("ledger", ask_ledger)
    yield _asked("engine", lambda: None if os.access(work, os.W_OK | os.X_OK) else "cannot write its folder")
    yield _asked("disk", lambda: None if disk_use(spool).free_bytes >= min_free_bytes else _full(min_free_bytes))


def _asked(subject: str, look: Callable[[], object]) -> Finding:
    """``look`` gives its problem in words, or raises; whatever else it gives is well."""
    try:
        found = look()
        return Finding(subject, found if isinstance(found, str) else "")
    except QuorateError as error:
        return Finding(subject, error.code)
    except OSError as error:
        return Finding(subject, os.strerror(error.errno) if error.errno else "cannot be read")


def _full(min_free_bytes: int) -> str:
    return f"less than {min_free_bytes // 1024**2} MiB free"
