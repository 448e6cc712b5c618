"""One consortium for all tests of guest apps, and its logs when one of them fails."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from demo.hospitals import write as write_tables
from quorate_client.site.folder import RELEASED_MODEL, SiteFolder
from tests.client.data_kit import fix_split
from tests.client.engine_processes import end_engines
from tests.compat import malignancy
from tests.compat.consortium_kit import APPS, SITES, AppConsortium
from tests.compat.malignancy import STUDIES
from tests.consortium.logs import pytest_runtest_makereport
from tests.consortium.processes import installed as put_on_path

__all__ = ["pytest_runtest_makereport"]

PREPARE = runpy.run_path(str(malignancy.APP / "prepare.py"))["prepare"]


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """The apps are installed in this process too: it publishes, approves, and computes what should come out."""
    with put_on_path(APPS):
        yield


@pytest.fixture(scope="session")
def consortium(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppConsortium]:
    with closing(AppConsortium.found_below(tmp_path_factory.mktemp("consortium"))) as made:
        made.restart(*SITES)
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
    consortium: AppConsortium, study_files: dict[str, Path], tables: dict[str, Path]
) -> dict[str, malignancy.Outcome]:
    """What comes out on Quorate's own transport, by the study's protection. A secret model is read at a site."""
    for name, table in tables.items():
        consortium.sites[name].command("data", "add", malignancy.DATASET, table, "--schema", malignancy.SCHEMA)
    outcomes = {}
    for mode, file in study_files.items():
        consortium.approved(file, lambda _: [])
        run = consortium.run(STUDIES[mode])
        consortium.await_end(run)
        at_a_site = consortium.sites[SITES[0]].folder / "work" / "runs" / run
        folder = consortium.folder(run) if mode == "none" else at_a_site
        outcomes[mode] = malignancy.outcome(folder / RELEASED_MODEL, tables)
    return outcomes


@pytest.fixture
def prepared_as(
    study_files: dict[str, Path], tables: dict[str, Path], tmp_path: Path
) -> Iterator[Callable[[str], Path]]:
    """A folder with what the example's own program writes for a stock deployment, by the study's protection."""

    def prepare(mode: str) -> Path:
        for name in SITES:  # they hold out the records that they hold out on Quorate's own transport
            site = SiteFolder(tmp_path / f"state-{name}")
            site.create()
            fix_split(site)
        PREPARE(study_files[mode], tmp_path, tables)
        return tmp_path

    yield prepare
    end_engines(tmp_path)


@pytest.fixture
def prepared(prepared_as: Callable[[str], Path]) -> Path:
    """Without protection."""
    return prepared_as("none")


@pytest.fixture
def prepared_in_secret(prepared_as: Callable[[str], Path]) -> Path:
    """Under secure aggregation."""
    return prepared_as("secagg")
