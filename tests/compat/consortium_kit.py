"""Three sites at which Flower apps are installed, and studies of them."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Self

from quorate.study.study import Study
from tests.consortium.running import Consortium

REPOSITORY = Path(__file__).parents[2]
APPS = (REPOSITORY / "examples" / "flower_quickstart", Path(__file__).parent / "apps")
"""Folders of packages that are installed everywhere."""
SITES = ("east", "north", "south")
SERVER_APPS = (
    "flower_quickstart.server_app:app",
    "compat_app.rounds:app",
    "compat_app.messages:app",
    "compat_app.legacy:server",
)
TASKS = (
    "flower:flower_quickstart.client_app:app",
    "flower:compat_app.client_app:app",
    "flower:compat_app.legacy:client",
    "tabular-classifier",
)
CANARY = "canary-4711"

RunConfig = Mapping[str, str | int | float | bool]


class AppConsortium(Consortium):
    """What the tests of guest apps share; they follow each other in it."""

    @classmethod
    def found_below(cls, root: Path) -> Self:
        policy = {
            "protection": _toml(["none", "secagg"]),
            "release": _toml(["sites", "operator"]),
            "tasks": _toml(TASKS),
            "evaluation_without_protection": "true",
        }
        return cls.found(root, "compat", SITES, APPS, policy, {"guest_apps": _toml(SERVER_APPS)})

    def approved(self, file: Path, answer: Callable[[str], Iterable[str]]) -> Study:
        """Publish a study file and have all sites approve it, each with the options that ``answer`` gives it."""
        self.publish(file)
        name = tomllib.loads(file.read_text())["name"]
        for site in self.sites.values():
            site.command("approve", name, *answer(site.name))
        return self.operator.study(name).study

    def guest(self, name: str, server_app: str, run_config: RunConfig, task: str = TASKS[1]) -> Study:
        """An approved study of one of the tests' apps. A site gives its app the test's strings, and a secret."""
        file = self.root / f"{name}.toml"
        file.write_text(
            _lines({"name": name, "purpose": "To be compatible", "sites": SITES})
            + f'[task]\n{_lines({"name": task})}[protection]\nmode = "none"\n'
            + f"[rounds]\n{_lines({'count': 1, 'quorum': 3, 'deadline_s': 600})}"
            + f"[guest]\n{_lines({'server_app': server_app})}[guest.run_config]\n{_lines(run_config)}"
        )

        def settings(site: str) -> list[str]:
            folder = self.sites[site].control
            return node_config(folder=folder, number=SITES.index(site), secret=f"{CANARY}-{site}")

        return self.approved(file, settings)

    def start_anew(self, study: str) -> str:
        """A run of a study, of whose steps nothing was done before."""
        for site in self.sites.values():
            (site.control / "steps").unlink(missing_ok=True)
        return self.run(study)

    def replies(self, run: str) -> int:
        """How many replies to this run the server has written down."""
        with closing(sqlite3.connect(self.server_dir / "server.sqlite")) as db:
            return int(db.execute("SELECT count(*) FROM replies WHERE run = ?", (run,)).fetchone()[0])

    def kept(self, site: str, run: str) -> int:
        """How many blobs lie at a site for a run."""
        folder = self.sites[site].folder
        query = "SELECT DISTINCT hex(blob) FROM journal_blobs JOIN journal USING (message_id) WHERE run = ?"
        with closing(sqlite3.connect(folder / "state.sqlite")) as db:
            names = {name.lower() for (name,) in db.execute(query, (run,))}
        return sum(path.name in names for path in (folder / "spool").iterdir())


def node_config(**settings: object) -> list[str]:
    """The options of an approval with which a site configures its app."""
    return [part for key, value in settings.items() for part in ("--node-config", f"{key}={value}")]


def _toml(value: object) -> str:
    return json.dumps(value)  # the same for strings, numbers, booleans and lists of them


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())
