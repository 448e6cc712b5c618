"""What the machine does to a command of the server, beside what the program itself refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from quorate.errors import ConfigError
from quorate.process.storage_errors import storage_errors


@contextmanager
def machine_errors() -> Iterator[None]:
    """Translate what nobody translated closer to where it happened.

    Raises:
        DiskFullError, StorageError: naming what cannot be used. ConfigError: the database's URL is none.
    """
    try:
        with storage_errors():
            yield
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and not _is_driver(error):
            raise
        # The text of the first two may quote the URL, which holds a password.
        raise ConfigError(
            "The database's URL in server.toml is not one that this server can use",
            expected="postgresql+psycopg://USER:PASSWORD@HOST/DATABASE (extra `postgresql`), or none for SQLite",
        ) from error


def _is_driver(error: ModuleNotFoundError) -> bool:
    """Whether SQLAlchemy looked for it, to reach a database, and not we."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("sqlalchemy.")
