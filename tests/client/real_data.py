"""Where tests find real data, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SHARED = Path(os.environ.get("QUORATE_SHARED", Path(__file__).parents[3] / "shared"))


def real_data(name: str) -> Path:
    """A file below ``data/`` of the folder QUORATE_SHARED; the test is skipped, saying so, where it is absent."""
    path = _SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"REAL DATA ABSENT: {path} is not there; set QUORATE_SHARED to the folder that holds data/")
    return path
