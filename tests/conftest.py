"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples at every run: a failure that comes and goes helps nobody.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
