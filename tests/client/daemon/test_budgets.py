"""The budgets that the site's own metrics show are those of ledger and policy, and name no data set unasked."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from quorate.errors import LedgerError
from quorate_client.approval.datasets import Datasets
from quorate_client.daemon.budgets import BudgetWatch
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.ledger.ledger import Ledger
from quorate_client.site.agreement import Dataset
from quorate_client.site.folder import SiteFolder

from ..databases import state_made
from ..ledger_kit import DELTA, NO_LIMITS, Clock, a_charge, opened
from ..synthetic_sets import SYNTHETIC


@dataclass
class Site:
    """A site with two data sets; the older one is named visits."""

    folder: SiteFolder
    datasets: Datasets
    ledger: Ledger
    watch: BudgetWatch
    registry: CollectorRegistry

    def epsilon(self, what: str, number: int = 1, part: str = "training") -> float | None:
        labels = {"dataset": str(number), "part": part}
        return self.registry.get_sample_value(f"quorate_client_privacy_epsilon_{what}", labels)

    def spend(self, number: int, count: int) -> None:
        reservation = self.ledger.reserve(a_charge(number, count), NO_LIMITS, 1.8e9)
        self.ledger.spend(reservation, a_charge(number, count).events)

    def write_policy(self, text: str) -> None:
        self.folder.policy.write_text(text)


@pytest.fixture
def site(folder: SiteFolder) -> Iterator[Site]:
    folder.create()
    clock, registry = Clock(), CollectorRegistry()
    with state_made(folder.database) as state, opened(folder.root) as ledger:
        datasets = Datasets(state, clock)
        for name, records in (("visits", 250), ("admissions", 12)):
            clock.now += 1
            datasets.add(Dataset(name, "tabular", Path("/srv/records.csv"), {}, 0.2, records))
        watch = BudgetWatch(folder, datasets, ledger, ClientMetrics(registry))
        made = Site(folder, datasets, ledger, watch, registry)
        made.write_policy(f"[privacy]\nepsilon_ever = 40.0\ndelta = {DELTA}\n")
        yield made


async def test_what_was_spent_before_the_daemon_started_is_shown_and_what_is_spent_later(site: Site) -> None:
    site.spend(1, 10)
    await site.watch.look()
    assert (site.epsilon("spent"), site.epsilon("left")) == (10.0, 30.0)
    assert (site.epsilon("spent", 2), site.epsilon("left", 2)) == (0.0, 40.0)
    assert site.epsilon("spent", part="test") == 0.0
    assert site.registry.get_sample_value("quorate_client_privacy_epsilon_limit") == 40.0
    site.spend(2, 5)
    await site.watch.look()
    assert (site.epsilon("spent"), site.epsilon("left")) == (15.0, 25.0)


async def test_another_limit_counts_at_once_and_without_one_nothing_is_ever_used_up(site: Site) -> None:
    site.spend(1, 10)
    await site.watch.look()
    site.write_policy(f"[privacy]\ndelta = {DELTA}\n")
    await site.watch.look()
    assert (site.epsilon("spent"), site.epsilon("left")) == (10.0, math.inf)
    assert site.registry.get_sample_value("quorate_client_privacy_epsilon_limit") == math.inf


async def test_nothing_is_computed_again_while_nothing_changed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.watch.look()
    asked: list[object] = []
    monkeypatch.setattr(site.ledger, "spent", asked.append)
    await site.watch.look()
    assert asked == []


async def test_a_data_set_that_was_removed_is_shown_no_more(site: Site) -> None:
    await site.watch.look()
    site.datasets.remove("visits")
    await site.watch.look()
    assert site.epsilon("spent", 2) is None
    assert site.registry.get_sample_value("quorate_client_datasets", {"records": "under_1000"}) == 0
    assert site.registry.get_sample_value("quorate_client_datasets", {"records": "under_100"}) == 1


async def test_no_data_set_is_named_unless_the_policy_says_so(site: Site) -> None:
    await site.watch.look()
    assert b"visits" not in generate_latest(site.registry)
    values = {sample.value for metric in site.registry.collect() for sample in metric.samples}
    assert 250 not in values
    site.write_policy("dataset_names_in_metrics = true\n")
    await site.watch.look()
    assert site.registry.get_sample_value("quorate_client_dataset_info", {"dataset": "1", "name": "visits"}) == 1
    site.write_policy("dataset_names_in_metrics = false\n")
    await site.watch.look()
    assert b"visits" not in generate_latest(site.registry)


async def test_a_policy_that_breaks_takes_the_names_away_and_leaves_the_figures(site: Site) -> None:
    site.write_policy("dataset_names_in_metrics = true\n")
    await site.watch.look()
    site.write_policy("dataset_names_in_metrics = perhaps\n")
    await site.watch.look()
    assert b"visits" not in generate_latest(site.registry)
    assert site.epsilon("spent") == 0.0


async def test_a_ledger_that_cannot_be_read_is_told_and_ends_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.spend(1, 10)
    await site.watch.look()
    with sqlite3.connect(site.folder.ledger) as ledger:
        ledger.execute("UPDATE entries SET content = x'7b7d'")
    with opened(site.folder.root) as read_anew:
        site.watch.ledger = read_anew
        with pytest.raises(LedgerError):
            await site.watch.look()
    assert site.epsilon("spent") == 10.0


async def test_what_a_made_set_tells_is_spent_from_its_source_s_budget(site: Site) -> None:
    site.datasets.add(SYNTHETIC)
    site.spend(1, 10)
    await site.watch.look()
    assert (site.epsilon("spent"), site.epsilon("spent", 3), site.epsilon("left", 3)) == (10.0, None, None)
    assert site.registry.get_sample_value("quorate_client_datasets", {"records": "under_1000"}) == 2
