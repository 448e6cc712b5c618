"""The site of the tests of the client, which is attacked here."""

from __future__ import annotations

from tests.client.conftest import (
    address,
    authority,
    engine,
    folder,
    joined,
    server,
    services,
    site,
    talk,
    visit,
)
from tests.client.engine_kit import installed_fixture

__all__ = [
    "address",
    "authority",
    "engine",
    "folder",
    "installed_fixture",
    "joined",
    "server",
    "services",
    "site",
    "talk",
    "visit",
]
