"""Whether the server can work: what ``/readyz`` says, one line for each thing that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from quorate.errors import QuorateError
from quorate.process.disk import MIN_FREE_BYTES, disk_use
from quorate.process.monitoring import Finding


def server_findings(
    *,
    is_started: bool,
    ask_database: Callable[[], object],
    certificates: dict[str, float],
    spool: Path,
    now: float,
    min_free_bytes: int = MIN_FREE_BYTES,
) -> Iterator[Finding]:
    """Look at everything, also behind something that is broken.

    Args:
        ask_database: Any short question; raises SQLAlchemy's errors or ours.
        certificates: By what each is of: when it ends, in Unix seconds.
        now: Unix seconds.
    """
    yield Finding("start", "" if is_started else "not over: runs are being taken up")
    yield _database(ask_database)
    for name, expires_unix_s in certificates.items():
        yield Finding(f"certificate of the {name}", "" if now < expires_unix_s else "expired")
    yield _disk(spool, min_free_bytes)


def _database(ask: Callable[[], object]) -> Finding:
    try:
        ask()
    except (SQLAlchemyError, QuorateError):
        return Finding("database", "does not answer")
    return Finding("database")


def _disk(spool: Path, min_free_bytes: int) -> Finding:
    try:
        is_full = disk_use(spool).free_bytes < min_free_bytes
    except OSError:
        return Finding("disk", "cannot be read")
    return Finding("disk", f"less than {min_free_bytes // 1024**2} MiB free" if is_full else "")
