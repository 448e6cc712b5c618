"""One consortium for all tests of guest apps, and its logs when one of them fails."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.hospitals import write as write_tables
from tests.compat import malignancy
from tests.compat.consortium_kit import APPS, SITES, Consortium

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


# --- the study that runs on several transports ---


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sites' records."""
    written = write_tables(tmp_path_factory.mktemp("tables"))
    return {name: written[name] for name in SITES}


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return malignancy.write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def own_transport(consortium: Consortium, study_file: Path, tables: dict[str, Path]) -> malignancy.Outcome:
    """What comes out on Quorate's own transport."""
    for name, table in tables.items():
        consortium.register(name, malignancy.DATASET, table, malignancy.SCHEMA)
    consortium.approved(study_file, lambda _: [])
    run = consortium.start(malignancy.STUDY)
    consortium.await_end(run)
    return malignancy.outcome(consortium.folder(run) / "model.npz", tables)


@pytest.fixture
def prepared(study_file: Path, tables: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with what the example's own program writes for a stock deployment."""
    prepare = runpy.run_path(str(malignancy.APP / "prepare.py"))["prepare"]
    prepare(study_file, tmp_path, tables)
    return tmp_path


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
