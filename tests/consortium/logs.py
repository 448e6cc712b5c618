"""What the processes of a consortium said, when a test fails: a hook for the ``conftest`` of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.consortium.running import Consortium

LINES_SHOWN = 60
RAN_WELL = pytest.StashKey[bool]()
"""Whether a test came to its end."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows the ends of all logs of the test's consortium, and below its own folder."""
    report: Any = yield
    if call.when == "call":
        item.stash[RAN_WELL] = report.passed
    for folder in _folders(item) if report.failed else ():
        for log in sorted(folder.glob("**/*.log")):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            report.sections.append((str(log.relative_to(folder)), "\n".join(lines[-LINES_SHOWN:])))
    return report


def _folders(item: pytest.Item) -> set[Path]:
    given = getattr(item, "funcargs", {}).values()
    own = {each for each in given if isinstance(each, Path)}
    return own | {each.root for each in given if isinstance(each, Consortium) and own.isdisjoint(each.root.parents)}
