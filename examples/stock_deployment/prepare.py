"""Write what Quorate's apps read on a stock Flower deployment: FOLDER/study.json and FOLDER/sites/NAME.json.

python prepare.py STUDY.toml FOLDER NAME=TABLE [NAME=TABLE ...]

Each site's own keys are made in FOLDER/state-NAME/keys, and the key that opens the released model in FOLDER/operator.
Written in one place like this, it is a rehearsal: whoever runs it holds all keys. In earnest each site makes its own
folder and gives away its public keys only, and the operator's key stays with the operator.
"""

from __future__ import annotations

import sys
from pathlib import Path

from quorate.identity import SiteName
from quorate.study.study import Study
from quorate.study.study_file import StudyFile
from quorate.study.task_digest import task_digest
from quorate_client.flower.site_file import NodeSite
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import make_or_load_keys
from quorate_client.tasks.data.datasets import register
from quorate_operator.release import load_key, make_key

DATASET = "records"
TEST_FRACTION = 0.2


def prepare(file: Path, folder: Path, tables: dict[str, Path]) -> Study:
    """Check each site's records against the study's schema, make the keys, and write the files."""
    folder = folder.resolve()
    states = {SiteName(name): SiteFolder(folder / f"state-{name}") for name in tables}
    for state in states.values():
        state.create()
    members = [make_or_load_keys(state.keys).member(name) for name, state in states.items()]
    operator = folder / "operator"
    operator.mkdir(mode=0o700, exist_ok=True)
    make_key(operator)
    signing_keys = {member.name: member.signing_key for member in members}
    study = StudyFile.read(file).resolve("stock-deployment", signing_keys, task_digest, load_key(operator))
    (folder / "sites").mkdir(exist_ok=True)
    (folder / "study.json").write_bytes(study.canonical())
    for name, state in states.items():
        dataset = register(DATASET, tables[name].resolve(), study.task.parameters["schema"], TEST_FRACTION, state)
        agreement = Agreement(study, study.digest(), name, dataset, node_config={})
        present = tuple(member for member in members if member.name in study.site_names)
        NodeSite(agreement, state.root, present).write(folder / "sites" / f"{name}.json")
    return study


if __name__ == "__main__":
    file, folder, *named = sys.argv[1:]
    given = dict(pair.partition("=")[::2] for pair in named)
    prepare(Path(file), Path(folder), {name: Path(table) for name, table in given.items()})
