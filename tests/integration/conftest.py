"""Consortia of real processes, and what they said when a test fails."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.consortium_kit import SECRET, Consortium, Template
from tests.patience import PATIENCE_S

PR_SET_CHILD_SUBREAPER = 36
LINES_SHOWN = 60
FOLDER = pytest.StashKey[Path]()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def secret_template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Four sites, and studies under secure aggregation."""
    return Template(tmp_path_factory.mktemp("secret-template"), SECRET)


@pytest.fixture
def founded(request: pytest.FixtureRequest) -> Template:
    """What ``found`` copies; a test file may choose another one."""
    template: Template = request.getfixturevalue("template")
    return template


@pytest.fixture
def found(founded: Template, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Consortium]]:
    """Makes a consortium, with settings of its server. Nothing of it is left running, whatever the test did."""
    request.node.stash[FOLDER] = tmp_path
    # Whose parent dies becomes a child of this process and does not get lost.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before = set(psutil.Process().children(recursive=True))
    made: list[Consortium] = []

    def make(**settings: str) -> Consortium:
        made.append(Consortium(founded, tmp_path / f"consortium-{len(made)}", settings))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
        left = [child for child in psutil.Process().children(recursive=True) if child not in before]
        _, alive = psutil.wait_procs(left, PATIENCE_S)
        described = []
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                described.append(" ".join(child.cmdline()))
                child.kill()
        assert not described, "processes were left behind"


@pytest.fixture
def consortium(found: Callable[..., Consortium]) -> Consortium:
    """One server and its sites, all running and connected."""
    made = found()
    made.start()
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows the ends of all logs below the test's folder."""
    report: Any = yield
    folder = item.stash.get(FOLDER, None)
    if report.failed and folder is not None:
        for log in sorted(folder.glob("**/*.log")):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            report.sections.append((str(log.relative_to(folder)), "\n".join(lines[-LINES_SHOWN:])))
    return report
