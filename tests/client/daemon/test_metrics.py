"""What the daemon tells a monitoring system."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from quorate.process.metrics import OTHER, MetricKind
from quorate.rounds.instruction import Phase
from quorate_client.daemon.metrics import CLIENT_METRICS, ClientMetrics, ConnectionState


def exposed_name(name: str, kind: MetricKind) -> str:
    return name.removesuffix("_total") if kind is MetricKind.COUNTER else name.removesuffix("_info")


def test_what_is_exposed_is_what_is_declared() -> None:
    registry = CollectorRegistry()
    ClientMetrics(registry)

    found = {family.name: family for family in registry.collect() if family.name.startswith("quorate_")}

    assert set(found) == {exposed_name(metric.name, metric.kind) for metric in CLIENT_METRICS}
    for metric in CLIENT_METRICS:
        assert found[exposed_name(metric.name, metric.kind)].documentation == metric.help


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


def test_what_a_data_set_has_spent_and_has_left_is_shown() -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    spent, left = "quorate_client_privacy_epsilon_spent", "quorate_client_privacy_epsilon_left"
    assert (registry.get_sample_value(spent), registry.get_sample_value(left)) == (0, math.inf)
    metrics.privacy_spent(1.5, 4.0)
    assert (registry.get_sample_value(spent), registry.get_sample_value(left)) == (1.5, 4.0)
    metrics.privacy_spent(2.5, math.inf)
    assert (registry.get_sample_value(spent), registry.get_sample_value(left)) == (2.5, math.inf)


def test_a_code_that_this_version_does_not_know_counts_as_other() -> None:
    registry = CollectorRegistry()
    ClientMetrics(registry).instruction_refused("mars_in_retrograde")

    assert registry.get_sample_value("quorate_client_instructions_refused_total", {"code": OTHER}) == 1
