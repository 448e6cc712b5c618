"""A site's database that is made where there is none yet, as joining makes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quorate_client.site.database import SiteDatabase, make_state, open_state, site_state


def made_state(path: Path) -> SiteDatabase:
    make_state(path)
    return open_state(path)


@contextmanager
def state_made(path: Path) -> Iterator[SiteDatabase]:
    make_state(path)
    with site_state(path) as state:
        yield state
