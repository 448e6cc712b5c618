"""The studies that are interrupted, whose task is ``slow_task/crash_test_task.py``, and what has to come out of them.

``Template`` founds a consortium once, with studies that all sites approved; ``CrashTest`` is a copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quorate.rounds.run import RunState, RunView
from quorate.study.study import Study
from quorate_client.site.folder import RELEASED_MODEL
from quorate_operator.files import write_download
from quorate_operator.release import load_key, opened
from tests.consortium.processes import eventually, installed
from tests.consortium.running import Consortium, contributed
from tests.integration.relay import Relay, relay

NAME = "crash-test"
PACKAGES = (Path(__file__).parent / "slow_task",)
RECORDS = {"east": 20, "north": 30, "west": 50}
"""The sites and how many records each has."""
SITES = tuple(RECORDS)
ALL = set(SITES)
OTHERS = ALL - {"east"}
"""East is the one that things happen to."""
DIMENSION = 400_000
UPDATE_BYTES = 4 * DIMENSION
UPDATE_FRAMES = 7
RAISE = "raise"
ALLOCATE = "allocate"

STUDIES = {
    # Waits for its sites: who is killed and started again takes part.
    "patient": {"count": 3, "quorum": 2, "deadline_s": 600.0, "absent_grace_s": 300.0, "checkpoint_every": 2},
    # Goes on without those who are gone.
    "brisk": {"count": 3, "quorum": 2, "deadline_s": 600.0, "absent_grace_s": 0.3, "checkpoint_every": 10},
    # Waits for nobody very long: a few times what the work of a round takes where ten other things are done.
    "hasty": {"count": 2, "quorum": 2, "deadline_s": 15.0, "absent_grace_s": 0.3, "checkpoint_every": 10},
}


@dataclass(frozen=True)
class Plan:
    """What a template founds: the sites with their records, and the studies that they approve.

    Args:
        studies: Each study's rounds, by its name.
        secret: The studies under secure aggregation.
        kept: The studies whose model stays at the sites.
        tolerance: How far a coordinate of a final model may be from the one computed by hand.
    """

    records: Mapping[str, int]
    studies: Mapping[str, Mapping[str, float]]
    secret: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    tolerance: float = 1e-3

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.records)


PLAIN = Plan(RECORDS, STUDIES)

SECRET_ROUNDS = {"count": 3, "quorum": 3, "deadline_s": 600.0, "absent_grace_s": 0.3}
SECRET = Plan(
    # Numbers that are not met by chance in what a server stores.
    records={"east": 20_011, "north": 30_011, "south": 40_009, "west": 10_007},
    studies={
        "brisk": SECRET_ROUNDS,
        "patient": SECRET_ROUNDS | {"absent_grace_s": 300.0},
        "hasty": SECRET_ROUNDS | {"count": 2, "deadline_s": 15.0},
        "thrifty": SECRET_ROUNDS | {"checkpoint_every": 1},
        "kept": SECRET_ROUNDS,
        "open": SECRET_ROUNDS,
    },
    secret=("brisk", "patient", "hasty", "thrifty", "kept"),
    kept=("kept",),
    # Of each of three rounds the rounding of four sites' updates, and that of weights and of float32.
    tolerance=3e-5,
)
"""Four sites of which one may collude: three of them have to upload and to vote, two to reveal."""

SCHEMA = """
kind = "tabular"
[label]
name = "outcome"
classes = ["no", "yes"]
[[columns]]
name = "measured"
type = "number"
range = [0.0, 1.0]
"""


def write_table(path: Path, records: int) -> Path:
    rows = [f"{number % 100 / 100},{'yes' if number % 2 else 'no'}" for number in range(records)]
    path.write_text("\n".join(["measured,outcome", *rows, ""]))
    return path


def write_study(
    folder: Path,
    name: str,
    sites: Iterable[str],
    rounds: Mapping[str, float],
    mode: str,
    release: str,
    dimension: int = DIMENSION,
    seed: int = 0,
    also: str = "",
) -> Path:
    """The file of a study of the crash test's task, which begins with a model that only this seed has.

    Args:
        also: The digest of a second version of the task that sites may run.
    """
    (folder / "schema.toml").write_text(SCHEMA)
    names = json.dumps(list(sites))
    settings = "\n".join(f"{key} = {value}" for key, value in rounds.items())
    accepted = f'also = {{ digest = "{also}", until = 2999-12-31 }}\n' if also else ""
    file = folder / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\npurpose = "To be interrupted"\nsites = {names}\nseed = {seed}\n'
        f'[task]\nname = "crash-test"\n{accepted}[task.parameters]\nschema_file = "schema.toml"\n'
        f"sites = {names}\ndimension = {dimension}\n"
        f'[rounds]\n{settings}\n[protection]\nmode = "{mode}"\n[release]\nmodel = "{release}"\n'
    )
    return file


class Template:
    """A consortium that was founded, joined and asked for approval; its processes have ended."""

    def __init__(self, root: Path, plan: Plan = PLAIN) -> None:
        self.plan = plan
        policy = {
            "protection": json.dumps(["none", "secagg"] if plan.secret else ["none"]),
            "evaluation_without_protection": "true",
            "release": json.dumps(["operator", "sites"] if plan.kept else ["operator"]),
            "minimum_sites": "2",
            "tasks": '["crash-test"]',
        }
        schema = root / "schema.toml"
        schema.write_text(SCHEMA)
        with installed(PACKAGES), closing(CrashTest.found(root, NAME, plan.sites, PACKAGES, policy)) as made:
            self.founded = made
            for site in made.sites.values():
                table = write_table(root / f"{site.name}.csv", plan.records[site.name])
                site.command("data", "add", site.name, table, "--schema", schema, "--test-fraction", "0.5")
            made.template = self
            for study in plan.studies:
                if study not in plan.secret:
                    made.agree(study, study)
            assert made.running.stop() == 0

    def copy(self, root: Path, settings: Mapping[str, str] | None = None) -> CrashTest:
        made = CrashTest.copy_of(self.founded, root, settings)
        made.template = self
        return made


class CrashTest(Consortium):
    """A consortium whose runs are followed to an end that can be checked by hand."""

    template: Template
    _agreed = 0

    @property
    def plan(self) -> Plan:
        return self.template.plan

    def agree(self, study: str, name: str) -> None:
        """Publish a study of the plan under this name and have all sites approve it."""
        plan, self._agreed = self.plan, self._agreed + 1
        mode = "secagg" if study in plan.secret else "none"
        release = "sites" if study in plan.kept else "operator"
        with installed(PACKAGES):
            self.publish(
                write_study(self.root, name, plan.sites, plan.studies[study], mode, release, seed=self._agreed)
            )
            for site in self.sites.values():
                site.command("approve", name, "--dataset", site.name)

    def run(self, study: str, **held: str | Sequence[str]) -> str:
        """A secret study is another one each time: sites do not begin two sums from one model over sets of which the
        difference is less than enough sites."""
        name = study
        if study in self.plan.secret:
            name = f"{study}-{self._agreed}"
            self.agree(study, name)
        return super().run(name, **held)

    @contextmanager
    def cut_upload(self, study: str, **held: str) -> Iterator[tuple[str, Relay]]:
        """A run in which a third of east's second update has arrived, over a line that is slow from then on."""
        east = self.sites["east"]
        with relay(self.port) as line:
            self.reroute("east", line.port)
            run = self.run(study, east="train-2", **held)
            east.await_step("train-2")
            line.slow_down(bytes_per_s=1_000_000)
            east.release("train-2")
            eventually(lambda: self.arriving("east") > UPDATE_BYTES // 3, "a third of the update")
            yield run, line
            self.reroute("east", self.port)

    def require_whole(self, run: str, *rounds: set[str], **missing: str) -> RunView:
        """A completed run holds each round once, each site trained exactly once in each that it is in and at most
        once in the others, and the model is made of exactly the contributions that the results name.

        Args:
            rounds: Who is in each of them.
            missing: Who is missing where it is not, and why: with nobody else.
        """
        view = self.require_shares(run, *rounds)
        for site in self.sites.values():
            counts = site.counts()
            for result in view.results:
                count = counts[f"train-{result.round_number}"]
                once = count == 1 if site.name in result.contributed else count <= 1
                assert once, f"{site.name} trained {count} times in round {result.round_number}"
        for result in view.results if missing else ():
            absent = {name: code for name, code in missing.items() if name not in result.contributed}
            assert dict(result.missing) == absent, f"round {result.round_number}"
        return view

    def require_shares(self, run: str, *rounds: set[str]) -> RunView:
        """The rounds of a completed run are all there, once, and its model holds each contributor's share of them."""
        view = self.await_end(run)
        assert [result.round_number for result in view.results] == list(range(1, view.rounds + 1))
        if rounds:
            assert contributed(view) == list(rounds)
        np.testing.assert_allclose(self.released(run), self.expected(view), atol=self.plan.tolerance, rtol=0)
        return view

    def expected(self, view: RunView) -> npt.NDArray[np.float64]:
        """The model's coordinates that the sites own, by hand."""
        records = self.plan.records
        expected = np.zeros(len(self.plan.sites))
        for result in view.results:
            total = sum(records[site] for site in result.contributed)
            for site in result.contributed:
                expected[self.plan.sites.index(site)] += records[site] / total
        return expected

    def released(self, run: str) -> npt.NDArray[np.float32]:
        """The same of the model that the operator fetches."""
        model = self.root / "model.npz"
        study, pieces = self.study(run), self.operator.model(run)
        sealed = opened(pieces, study, run, load_key(self.profile)) if study.is_release_sealed else pieces
        write_download(model, sealed)
        return shares_in(model)

    def models(self, run: str) -> list[Path]:
        """The released model at each site."""
        return [site.folder / "work" / "runs" / run / RELEASED_MODEL for site in self.sites.values()]

    def study(self, run: str) -> Study:
        return self.operator.study(self.view(run).study_digest.hex()).study

    def resume(self, run: str) -> None:
        """Go on with a run, which is still paused."""
        assert self.view(run).state is RunState.PAUSED
        self.operator.resume(run)


def shares_in(model: Path) -> npt.NDArray[np.float32]:
    """The coordinates that the sites own, of a model in the form in which it is used."""
    with np.load(model) as released:
        shares: npt.NDArray[np.float32] = released["shares"]
        return shares
