"""The databases that the server's tables are tested on: SQLite always, PostgreSQL where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

PATIENCE = 100


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server of our own, on a Unix socket in a folder of its own, that ends with the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: PostgreSQL IS NOT TESTED")
    if shutil.which("postgres") is None or shutil.which("initdb") is None:
        pytest.skip("there is no postgres on this machine: PostgreSQL IS NOT TESTED")
    # PostgreSQL does not run as root, and a socket's path may not be long.
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a fresh folder with a random name
    try:
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        made = ["initdb", "--pgdata", str(data), "--auth", "trust", "--username", "quorate", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, user=user, cwd=folder)
        options = ["-D", str(data), "-k", str(folder), "-c", "listen_addresses="]
        server = subprocess.Popen(["postgres", *options], user=user, cwd=folder, stderr=subprocess.DEVNULL)
        try:
            url = f"postgresql+psycopg://quorate@/postgres?host={folder}"
            _wait_for(url)
            yield url
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str) -> None:
    engine = create_engine(url, connect_args={"connect_timeout": 5})
    for attempt in range(PATIENCE):
        try:
            with engine.connect():
                break
        except OperationalError:
            if attempt == PATIENCE - 1:
                raise
            subprocess.run(["sleep", "0.1"], check=True)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'server.sqlite'}"
    url: str = request.getfixturevalue("postgresql")
    engine = create_engine(url)
    with engine.begin() as database:
        database.execute(text("DROP SCHEMA public CASCADE"))
        database.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url
