"""One consortium for all tests of guest apps, and its logs when one of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.compat.consortium_kit import APPS, Consortium

LINES_SHOWN = 40


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """The apps are installed in this process too: it publishes, approves, and computes what should come out."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in APPS:
            patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="session")
def consortium(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with Consortium(tmp_path_factory.mktemp("consortium")) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows the ends of the daemons' logs."""
    report: Any = yield
    made = getattr(item, "funcargs", {}).get("consortium")
    if report.failed and made is not None:
        for log in sorted([*made.root.glob("*.log"), *made.root.glob("server/runs/*/worker.log")]):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            report.sections.append((str(log.relative_to(made.root)), "\n".join(lines[-LINES_SHOWN:])))
    return report
