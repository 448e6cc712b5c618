"""Write what Quorate's apps read on a stock Flower deployment: FOLDER/study.json and FOLDER/sites/NAME.json.

python prepare.py STUDY.toml FOLDER NAME=TABLE [NAME=TABLE ...]
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from quorate.identity import SiteName
from quorate.study import Study, StudyFile
from quorate.tasks import task_digest
from quorate_client.agreement import Agreement
from quorate_client.data import register
from quorate_client.flower import Site

DATASET = "records"
TEST_FRACTION = 0.2


def prepare(file: Path, folder: Path, tables: dict[str, Path]) -> Study:
    """Check each site's records against the study's schema, and write the files."""
    # Nobody enrols here: keys that say no more than the name.
    keys = {SiteName(name): hashlib.sha256(name.encode()).digest() for name in tables}
    study = StudyFile.read(file).resolve("stock-deployment", keys, task_digest)
    folder = folder.resolve()
    (folder / "sites").mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_bytes(study.canonical())
    for name, table in tables.items():
        dataset = register(DATASET, table.resolve(), study.task.parameters["schema"], TEST_FRACTION)
        agreement = Agreement(study, study.digest(), SiteName(name), dataset, node_config={})
        Site(agreement, folder / f"state-{name}").write(folder / "sites" / f"{name}.json")
    return study


if __name__ == "__main__":
    file, folder, *named = sys.argv[1:]
    given = dict(pair.partition("=")[::2] for pair in named)
    prepare(Path(file), Path(folder), {name: Path(table) for name, table in given.items()})
