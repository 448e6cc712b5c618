"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Before torch is imported. Threads that wait for each other on cores which others keep busy take many times the
# processor time that they are meant to save, and the workers of pytest-xdist use all cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What these assert is said in full, as in a test.
pytest.register_assert_rewrite("tests.consortium", "tests.integration.crash_kit")

# The same examples at every run: a failure that comes and goes helps nobody.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start daemons come first: one that takes minutes and begins last keeps the other workers waiting."""
    heavy = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in heavy)
