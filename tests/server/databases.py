"""A server's database that is made where there is none yet, as founding makes it."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import Engine

from quorate.errors import AlreadyExistsError
from quorate_server.storage.database import open_database
from quorate_server.storage.upgrade import make_database


def made_database(url: str) -> Engine:
    with suppress(AlreadyExistsError):
        make_database(url)
    return open_database(url)
