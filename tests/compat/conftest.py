"""One consortium for all tests of guest apps, and its logs when one of them fails."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.hospitals import write as write_tables
from quorate_client.site.folder import RELEASED_MODEL, SiteFolder
from tests.client.data_kit import fix_split
from tests.client.engine_processes import end_engines
from tests.compat import malignancy
from tests.compat.consortium_kit import APPS, SITES, Consortium
from tests.compat.malignancy import STUDIES

LINES_SHOWN = 40
PREPARE = runpy.run_path(str(malignancy.APP / "prepare.py"))["prepare"]


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
def study_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The study's file, by its protection."""
    return {mode: malignancy.write_study(tmp_path_factory.mktemp(f"study-{mode}"), mode) for mode in STUDIES}


@pytest.fixture(scope="session")
def own_transport(
    consortium: Consortium, study_files: dict[str, Path], tables: dict[str, Path]
) -> dict[str, malignancy.Outcome]:
    """What comes out on Quorate's own transport, by the study's protection. A secret model is read at a site."""
    for name, table in tables.items():
        consortium.register(name, malignancy.DATASET, table, malignancy.SCHEMA)
    outcomes = {}
    for mode, file in study_files.items():
        consortium.approved(file, lambda _: [])
        run = consortium.start(STUDIES[mode])
        consortium.await_end(run)
        at_a_site = consortium.sites[SITES[0]].state / "work" / "runs" / run
        folder = consortium.folder(run) if mode == "none" else at_a_site
        outcomes[mode] = malignancy.outcome(folder / RELEASED_MODEL, tables)
    return outcomes


def _fix_splits(folder: Path) -> None:
    """The sites of a stock deployment hold out the records that they hold out on Quorate's own transport."""
    for name in SITES:
        site = SiteFolder(folder / f"state-{name}")
        site.create()
        fix_split(site)


@pytest.fixture
def prepared(study_files: dict[str, Path], tables: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A folder with what the example's own program writes for a stock deployment, without protection."""
    _fix_splits(tmp_path)
    PREPARE(study_files["none"], tmp_path, tables)
    yield tmp_path
    end_engines(tmp_path)


@pytest.fixture
def prepared_in_secret(study_files: dict[str, Path], tables: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """The same under secure aggregation."""
    _fix_splits(tmp_path)
    PREPARE(study_files["secagg"], tmp_path, tables)
    yield tmp_path
    end_engines(tmp_path)


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
