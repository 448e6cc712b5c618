"""What the daemon tells a monitoring system."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from quorate.errors import StudyNotApprovedError
from quorate.identity import RunId
from quorate.process.metrics import OTHER
from quorate.rounds.instruction import Phase
from quorate_client.daemon.metrics import CLIENT_METRICS, Budget, ClientMetrics, ConnectionState

from ..conftest import SITE, RunningSite, instruct
from ..consortium import RunningServer, Visit


def test_what_is_exposed_is_what_is_declared() -> None:
    registry = CollectorRegistry()
    ClientMetrics(registry)

    families = [family for family in registry.collect() if family.name.startswith("quorate_")]
    ends = {"counter": "_total", "info": "_info"}
    found = {family.name + ends.get(family.type, ""): family.documentation for family in families}

    assert found == {metric.name: metric.help for metric in CLIENT_METRICS}


def test_the_connection_is_in_one_state_at_a_time() -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    metrics.connection_is(ConnectionState.CONNECTED)

    values = {s: registry.get_sample_value("quorate_client_connection_state", {"state": s}) for s in ConnectionState}

    assert values == {s: float(s is ConnectionState.CONNECTED) for s in ConnectionState}


def test_only_training_counts_as_training_time() -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    metrics.instruction_done(Phase.VOTE, 5.0)
    metrics.instruction_done(Phase.UPLOAD, 2.0)

    assert registry.get_sample_value("quorate_client_training_seconds_sum") == 2.0


def epsilon(registry: CollectorRegistry, what: str, number: str, part: str = "training") -> float | None:
    return registry.get_sample_value(f"quorate_client_privacy_epsilon_{what}", {"dataset": number, "part": part})


def test_what_a_data_set_has_spent_and_has_left_is_shown_until_it_is_gone() -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    assert epsilon(registry, "spent", "1") is None  # not a zero that nobody looked up
    metrics.budgets_are(5.5, [Budget(1, "training", 1.5, 4.0), Budget(2, "training", 2.5, math.inf)])
    assert (epsilon(registry, "spent", "1"), epsilon(registry, "left", "1")) == (1.5, 4.0)
    assert (epsilon(registry, "spent", "2"), epsilon(registry, "left", "2")) == (2.5, math.inf)
    assert registry.get_sample_value("quorate_client_privacy_epsilon_limit") == 5.5
    metrics.budgets_are(math.inf, [Budget(1, "training", 3.0, 1.0)])
    assert (epsilon(registry, "spent", "1"), epsilon(registry, "spent", "2")) == (3.0, None)


def test_of_data_sets_beyond_the_last_number_the_worst_figures_are_shown() -> None:
    registry = CollectorRegistry()
    many = [Budget(n, "test", float(n), 1000.0 - n) for n in range(1, 101)]
    ClientMetrics(registry).budgets_are(1000.0, many)
    assert (epsilon(registry, "spent", "32", "test"), epsilon(registry, "left", "32", "test")) == (32.0, 968.0)
    assert (epsilon(registry, "spent", OTHER, "test"), epsilon(registry, "left", OTHER, "test")) == (100.0, 900.0)


def test_a_data_set_s_name_is_shown_when_it_is_given_and_not_for_more_of_them_than_have_numbers() -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    names = {number: f"cohort-{number}" for number in range(1, 101)}
    metrics.datasets_are_named(names)
    assert registry.get_sample_value("quorate_client_dataset_info", {"dataset": "1", "name": "cohort-1"}) == 1
    assert generate_latest(registry).count(b"cohort-") == 32
    metrics.datasets_are_named({})
    assert b"cohort-" not in generate_latest(registry)


@pytest.mark.parametrize(
    ("records", "magnitude"), [(0, "under_100"), (99, "under_100"), (100, "under_1000"), (10**9, "more")]
)
def test_of_the_number_of_records_the_magnitude_is_shown(records: int, magnitude: str) -> None:
    registry = CollectorRegistry()
    ClientMetrics(registry).datasets_are([records])
    assert registry.get_sample_value("quorate_client_datasets", {"records": magnitude}) == 1
    assert b"1000000000" not in generate_latest(registry)


def test_a_code_that_this_version_does_not_know_counts_as_other() -> None:
    registry = CollectorRegistry()
    ClientMetrics(registry).instruction_refused("mars_in_retrograde")

    assert registry.get_sample_value("quorate_client_instructions_refused_total", {"code": OTHER}) == 1


async def test_nothing_that_the_server_says_becomes_a_series_or_a_label(
    server: RunningServer, site: RunningSite, visit: Visit
) -> None:
    """It names runs, and phases and codes that it may make up, and asks for studies that nobody approved."""
    before = series(site.registry)
    visit.instruct(instruct(server.services, run=RunId("patient-xyzzy")))
    await visit.next("reply")
    visit.instruct(instruct(server.services, round_number=2, study_digest=bytes(32), run=RunId("patient-plugh")))
    assert (await visit.next("reply")).code == StudyNotApprovedError.code

    assert series(site.registry) == before
    page = generate_latest(site.registry).decode()
    assert [told for told in ("xyzzy", "plugh", SITE, server.address, str(site.spool.folder)) if told in page] == []


def series(registry: CollectorRegistry) -> set[tuple[str, tuple[str, ...]]]:
    return {(each.name, tuple(each.labels.values())) for family in registry.collect() for each in family.samples}
