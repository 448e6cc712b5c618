"""Differential privacy with real processes: a consortium of hospitals whose ledgers are read after everything.

One consortium goes through it all, in the order of this file: what was spent stays spent.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import demo
from demo import hospitals
from demo.consortium import DATASET, CommandFailedError, Consortium
from quorate.privacy.accounting import adaptive_epsilon
from quorate.privacy.events import Event
from quorate_client.cli import app as site_command
from quorate_client.ledger.entries import EVALUATE, TRAIN, Account, Refused, Reserved, Spent
from quorate_client.ledger.export import read_export
from tests.consortium.processes import eventually
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.integration

DEMO = Path(demo.__file__).parent
SITES = ("east", "north", "south", "west")
ROUNDS, STEPS, DELTA = 3, 5, 1e-3

STUDY = """
name = "{name}"
purpose = "To be tested"
sites = ["north", "south", "east", "west"]
seed = {seed}
[task]
name = "tabular-classifier"
[task.parameters]
schema_file = "schema.toml"
standardise = "range"
model = "mlp"
hidden = [4]
learning_rate = 0.1
[rounds]
count = {rounds}
quorum = 3
deadline_s = 600
absent_grace_s = 1.0
weights = "equal"
[privacy]
delta = 0.001
[privacy.training]
clip = 1.0
batch_size = 32
steps = {steps}
noise_multiplier = 2.0
[privacy.update]
clip = 5.0
noise_multiplier = 0.01
[privacy.average]
clip = 5.0
noise_multiplier = 0.01
[privacy.evaluation]
noise_multiplier = 1.0
[release]
model = "sites"
"""


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    root = tmp_path_factory.mktemp("private")
    tables = hospitals.write(root / "data")
    shutil.copy(DEMO / "schema.toml", root)
    with Consortium(root) as made:
        made.found()
        made.start_server()
        made.set_up_sites(tables, DEMO / "schema.toml")
        for name in SITES:
            made.start_site(name)
        yield made


def at_site(consortium: Consortium, name: str, *line: str | Path) -> None:
    """A site's command, in this process: to start one takes longer than to run it."""
    site_command([*map(str, line), "--state", str(consortium.site_state(name))], standalone_mode=False)


def agree(consortium: Consortium, name: str, rounds: int = ROUNDS, steps: int = STEPS) -> None:
    file = consortium.root / f"{name}.toml"
    # Each begins with another model: a site may be missing in its first round that was in the others'.
    seed = len(list(consortium.root.glob("*.toml")))
    file.write_text(STUDY.format(name=name, rounds=rounds, steps=steps, seed=seed))
    consortium.operator("study", "publish", file)
    for site in SITES:
        at_site(consortium, site, "approve", name, "--dataset", DATASET)


def view(consortium: Consortium, study: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(consortium.operator("run", "show", study, "--json"))
    return shown


def ended(consortium: Consortium, study: str) -> dict[str, Any]:
    """The run of a study, once it is over."""
    consortium.operator("run", "watch", study)
    shown = view(consortium, study)
    assert shown["state"] == "completed", shown
    return shown


def entries(consortium: Consortium, site: str) -> list[Any]:
    """What a site's ledger holds, as an auditor gets it; the chain and its signatures are checked on the way."""
    file = consortium.root / f"{site}-{time.monotonic_ns()}.jsonl"
    at_site(consortium, site, "ledger", "verify")
    at_site(consortium, site, "ledger", "export", file)
    return [entry.content for entry in read_export(file)[1]]


def has_reserved(consortium: Consortium, site: str, study: str) -> bool:
    """Whether a site has put something aside for a study: the daemon's own file, looked at within milliseconds."""
    ledger = consortium.site_state(site) / "ledger.sqlite"
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        contents = [json.loads(content) for (content,) in database.execute("SELECT content FROM entries")]
    return any(content["kind"] == "reserve" and content["study"] == study for content in contents)


def spent(found: list[Any], unit: str, run: str | None = None, purpose: str = TRAIN) -> list[Event]:
    """What counts: what was settled, and in full what was reserved and not settled."""
    settled = {each.reservation: each.events for each in found if isinstance(each, Spent)}
    return [
        event
        for each in found
        if isinstance(each, Reserved) and (each.account.unit, each.purpose) == (unit, purpose)
        if run in (None, each.run)
        for event in settled.get(each.number, each.events)
    ]


def test_each_round_is_on_every_ledger_and_the_model_is_one(consortium: Consortium) -> None:
    agree(consortium, "first")
    consortium.operator("run", "start", "first")
    run = ended(consortium, "first")

    assert [sorted(result["contributed"]) for result in run["results"]] == [list(SITES)] * ROUNDS
    models = {path.read_bytes() for path in consortium.root.glob(f"site-*/work/runs/{run['run']}/model.npz")}
    assert len(models) == 1  # the noise after averaging is the same at each site
    for site in SITES:
        found = entries(consortium, site)
        rates = {event.sampling_rate for event in spent(found, "record")}
        assert spent(found, "record") == [Event(2.0, rate, STEPS) for rate in rates] * ROUNDS
        assert spent(found, "site") == [Event(0.01)] * ROUNDS
    assert not any("train_loss" in result["metrics"] for result in run["results"])


def test_held_out_records_are_counted_once_with_noise_that_is_paid_for(consortium: Consortium) -> None:
    run = view(consortium, "first")
    rates = [set(result["metrics"]) for result in run["results"]]
    assert rates == [set(), set(), {"accuracy", "auc", "recall", "specificity"}]
    # How good so noisy a model is after fifteen steps is left to chance: an AUC of 0.75 has been seen.
    assert all(0 <= rate <= 1 for rate in run["results"][-1]["metrics"].values())
    for site in SITES:
        found = entries(consortium, site)
        assert spent(found, "record", purpose=EVALUATE) == [Event(1.0)]
        accounts = {each.account for each in found if getattr(each, "purpose", None) == EVALUATE}
        assert accounts == {Account(DATASET, "record", "test")}


def test_no_value_of_a_record_is_in_what_anybody_keeps_or_logs(consortium: Consortium) -> None:
    """Measurements as long as these are met by chance nowhere; the hospitals' own tables are full of them."""

    def numbers(path: Path) -> set[bytes]:
        return set(re.findall(rb"(?<![\d.])\d+\.\d{5,}(?!\d)", path.read_bytes()))

    tables = list((consortium.root / "data").glob("*.csv"))
    values = {value for table in tables for value in numbers(table) if len(value) >= 8}
    assert len(values) > 1000
    kept = [path for path in consortium.root.rglob("*") if path.is_file() and path not in tables]
    assert any(path.name == "ledger.sqlite" for path in kept)
    assert {str(path) for path in kept if values & numbers(path)} == set()


def test_a_site_whose_budget_is_spent_is_missed_and_no_sum_is_opened_over_the_others_alone(
    consortium: Consortium,
) -> None:
    agree(consortium, "second")
    policy = consortium.site_state("east") / "policy.toml"
    before = policy.read_text()
    limit = adaptive_epsilon(spent(entries(consortium, "east"), "record"), DELTA)
    policy.write_text(before.replace("# epsilon_ever = 16.0", f"epsilon_ever = {limit:.6f}"))
    assert policy.read_text() != before
    consortium.operator("run", "start", "second")
    with pytest.raises(CommandFailedError):  # over one site fewer than before, the statistics would be that site's
        consortium.operator("run", "watch", "second")
    run = view(consortium, "second")
    consortium.operator("run", "stop", "second")
    policy.write_text(before)

    assert run["state"] == "paused"
    found = entries(consortium, "east")
    assert spent(found, "record", run["run"]) == []
    assert {each.code for each in found if isinstance(each, Refused)} == {"budget_exhausted"}


LONG_STEPS = 500  # beside which the first training of a study loads what it needs: time enough to be killed in


@pytest.fixture(scope="module")
def interrupted(consortium: Consortium) -> tuple[dict[str, Any], bytes]:
    """A run in which west was killed while it trained, and north's ledger from before."""
    with closing(sqlite3.connect(consortium.site_state("north") / "ledger.sqlite")) as database:
        older = database.serialize()
    agree(consortium, "third", rounds=2, steps=LONG_STEPS)
    consortium.operator("run", "start", "third")
    eventually(lambda: has_reserved(consortium, "west", "third"), "west to begin to train")
    consortium.sites["west"].kill()
    consortium.sites["west"].wait()
    consortium.start_site("west")
    return ended(consortium, "third"), older


def test_a_site_that_is_killed_while_it_trains_has_paid_in_full(
    consortium: Consortium, interrupted: tuple[dict[str, Any], bytes]
) -> None:
    run, _ = interrupted
    assert "west" not in run["results"][0]["contributed"]
    found = entries(consortium, "west")
    (rate,) = {event.sampling_rate for event in spent(found, "record")}
    rounds_paid = 1 + sum("west" in result["contributed"] for result in run["results"])
    assert spent(found, "record", run["run"]) == [Event(2.0, rate, LONG_STEPS)] * rounds_paid


def test_an_older_ledger_put_back_is_found_out_by_what_the_server_has_seen(
    consortium: Consortium, interrupted: tuple[dict[str, Any], bytes]
) -> None:
    """What the site's other database knows is wiped, so that only the server can tell. With the true one back, the run
    goes on."""
    _, older = interrupted
    agree(consortium, "fourth")
    newer = exchange_ledger(consortium, "north", older)
    assert newer != older
    consortium.operator("run", "start", "fourth")
    with pytest.raises(CommandFailedError):  # it is not even counted, so no sum is opened over the others alone
        consortium.operator("run", "watch", "fourth")
    log = (consortium.root / "server" / "runs" / view(consortium, "fourth")["run"] / "worker.log").read_text()
    assert set(re.findall(r"site='(\w+)'.*code='(\w+)'", log)) == {("north", "ledger_rolled_back")}
    with pytest.raises(CommandFailedError, match="not what it was seen to be"):
        consortium.site("north", "ledger", "verify")

    exchange_ledger(consortium, "north", newer)
    consortium.operator("run", "resume", "fourth")
    assert [result["missing"] for result in ended(consortium, "fourth")["results"]] == [{}] * ROUNDS


def exchange_ledger(consortium: Consortium, name: str, ledger: bytes) -> bytes:
    """Put another ledger in the place of a site's, which is told apart by nothing else there. Returns the one that was
    there."""
    consortium.sites[name].terminate()
    consortium.sites[name].wait(PATIENCE_S)
    folder = consortium.site_state(name)
    before = (folder / "ledger.sqlite").read_bytes()
    (folder / "ledger.sqlite").write_bytes(ledger)
    with closing(sqlite3.connect(folder / "state.sqlite")) as database, database:
        database.execute("DELETE FROM settings WHERE name LIKE 'ledger%'")
    consortium.start_site(name)
    eventually(lambda: '"offline"' not in consortium.operator("site", "list", "--json"), f"{name} to be back")
    return before
