"""The time of a transaction is counted once, with its commit, as what it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, delete, insert, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import PoolProxiedConnection

from quorate_server.storage.latency import time_transactions
from tests.server.databases import made_database

NUMBERS = Table("numbers", MetaData(), Column("number", Integer))
Seen = list[tuple[str, float]]


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def ticks() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def engine(tmp_path: Path, seen: Seen, ticks: Iterator[int]) -> Iterator[Engine]:
    engine = made_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    NUMBERS.create(engine)
    time_transactions(engine, lambda operation, seconds: seen.append((operation, seconds)), lambda: float(next(ticks)))
    yield engine
    engine.dispose()


def test_what_changes_something_is_a_write_and_the_rest_is_a_read(engine: Engine, seen: Seen) -> None:
    with engine.connect() as db:
        db.execute(select(NUMBERS)).all()
    for statement in (insert(NUMBERS).values(number=1), insert(NUMBERS).values(number=2).returning(NUMBERS.c.number)):
        with engine.begin() as db:
            db.execute(statement)
    with engine.begin() as db:
        db.execute(select(NUMBERS)).all()
        db.execute(update(NUMBERS).values(number=3))
    with engine.begin() as db:
        db.execute(delete(NUMBERS))
        db.execute(select(NUMBERS)).all()
    assert seen == [("read", 1.0), *[("write", 1.0)] * 4]


def test_one_that_fails_is_counted_too(engine: Engine, seen: Seen) -> None:
    with pytest.raises(OperationalError), engine.begin() as db:
        db.execute(text("SELECT * FROM nowhere"))
    assert seen == [("read", 1.0)]


def test_the_commit_which_waits_for_the_disk_is_part_of_it(
    engine: Engine, seen: Seen, ticks: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy tells of a commit before it is made."""
    commit = engine.dialect.do_commit

    def slow(connection: PoolProxiedConnection) -> None:
        for _ in range(7):
            next(ticks)
        commit(connection)

    monkeypatch.setattr(engine.dialect, "do_commit", slow)
    with engine.begin() as db:
        db.execute(insert(NUMBERS).values(number=1))
    assert seen == [("write", 8.0)]
