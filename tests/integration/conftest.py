"""Consortia of real processes, and what they said when a test fails."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.consortium.logs import RAN_WELL, pytest_runtest_makereport
from tests.integration.crash_kit import SECRET, CrashTest, Template
from tests.patience import PATIENCE_S

__all__ = ["pytest_runtest_makereport"]

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def secret_template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Four sites, and studies under secure aggregation."""
    return Template(tmp_path_factory.mktemp("secret-template"), SECRET)


@pytest.fixture(scope="module")
def founded(request: pytest.FixtureRequest) -> Template:
    """What is copied; a test file may choose another one."""
    template: Template = request.getfixturevalue("template")
    return template


@contextmanager
def nothing_left() -> Iterator[None]:
    """No process that began inside is left, whatever happened."""
    # Whose parent dies becomes a child of this process and does not get lost.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    finally:
        left = [child for child in psutil.Process().children(recursive=True) if child not in before]
        _, alive = psutil.wait_procs(left, PATIENCE_S)
        described = []
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                described.append(" ".join(child.cmdline()))
                child.kill()
        assert not described, "processes were left behind"


@contextmanager
def copies(template: Template, root: Path) -> Iterator[Callable[..., CrashTest]]:
    """Makes consortia, with settings of the server. They end with the block, and nothing of them is left running."""
    made: list[CrashTest] = []

    def make(**settings: str) -> CrashTest:
        made.append(template.copy(root / f"consortium-{len(made)}", settings))
        return made[-1]

    with nothing_left():
        try:
            yield make
        finally:
            for each in made:
                each.close()


@pytest.fixture
def found(founded: Template, tmp_path: Path) -> Iterator[Callable[..., CrashTest]]:
    """Makes a consortium of the test's own, of which nothing runs yet."""
    with copies(founded, tmp_path) as make:
        yield make


@pytest.fixture
def fresh(found: Callable[..., CrashTest]) -> CrashTest:
    """One server and its sites, all running and connected, in which nothing was ever done."""
    made = found()
    made.start()
    return made


class Resting:
    """A consortium that goes from one test to the next, as long as each leaves it as it was found.

    To start all its processes takes longer than most of what is done in it.
    """

    def __init__(self, template: Template, root: Path) -> None:
        self._template = template
        self._root = root
        self._used = 0
        self._open = ExitStack()
        self._made: CrashTest | None = None

    def take(self) -> CrashTest:
        if self._made is None:
            self._used += 1
            made = self._open.enter_context(copies(self._template, self._root / str(self._used)))()
            made.start()
            self._made = made
        return self._made

    def give_back(self, *, is_well: bool) -> None:
        assert self._made is not None
        if is_well and self._made.rests():
            self._made.forget()
        else:
            self.end()

    def end(self) -> None:
        self._made = None
        self._open.close()


@pytest.fixture(scope="module")
def resting(founded: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resting]:
    kept = Resting(founded, tmp_path_factory.mktemp("resting"))
    yield kept
    kept.end()


@pytest.fixture
def consortium(resting: Resting, request: pytest.FixtureRequest) -> Iterator[CrashTest]:
    """One server and its sites, all running and connected; what an earlier test did there has come to its end."""
    yield resting.take()
    resting.give_back(is_well=request.node.stash.get(RAN_WELL, False))
