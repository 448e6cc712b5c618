"""The server's metrics: what is exposed is what is declared, and nothing else gets in."""

import math
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from quorate.process.disk import DiskUse
from quorate.process.metrics import MetricKind
from quorate.rounds.instruction import Phase
from quorate.rounds.run import RunState, SumOutcome, SumStep
from quorate.versions import Age
from quorate_server.reporting.metrics import (
    SERVER_METRICS,
    RoundOutcome,
    ServerMetrics,
    UploadOutcome,
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ServerMetrics:
    return ServerMetrics(registry)


def exposed_names(registry: CollectorRegistry) -> Iterator[str]:
    for family in registry.collect():
        if family.name.startswith("quorate_"):
            yield family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def test_exactly_the_declared_metrics_are_exposed(registry: CollectorRegistry, metrics: ServerMetrics) -> None:
    assert sorted(exposed_names(registry)) == sorted(metric.name for metric in SERVER_METRICS)


def test_every_declared_name_belongs_to_the_server() -> None:
    assert all(metric.name.startswith("quorate_server_") for metric in SERVER_METRICS)


def test_every_exposed_label_value_is_one_of_the_declared(registry: CollectorRegistry, metrics: ServerMetrics) -> None:
    exercise(metrics)
    declared = {metric.name: metric for metric in SERVER_METRICS if metric.kind is not MetricKind.INFO}
    for family in registry.collect():
        for sample in family.samples:
            metric = declared.get(sample.name) or declared.get(family.name)
            for label, value in sample.labels.items() if metric else ():
                assert label == "le" or value in metric.labels[label]


def test_counters_and_histograms_show_every_series_from_the_start(
    registry: CollectorRegistry, metrics: ServerMetrics
) -> None:
    assert registry.get_sample_value("quorate_server_updates_refused_total", {"code": "task_failed"}) == 0
    assert registry.get_sample_value("quorate_server_round_phase_seconds_count", {"phase": "upload"}) == 0
    assert registry.get_sample_value("quorate_server_sites", {"state": "online"}) == 0


def exercise(metrics: ServerMetrics) -> None:
    metrics.round_ended(RoundOutcome.PARTIAL, 3)
    metrics.phase_closed(Phase.UPLOAD, 2.5)
    metrics.sum_took(SumStep.ADD, 0.25)
    metrics.secure_sum_ended(SumOutcome.NOT_OPENED)
    metrics.quorum_missed()
    metrics.sites_are({"online": 3, "silent": 1})
    metrics.runs_are({RunState.PAUSED: 1})
    metrics.update_received()
    metrics.update_refused("task_failed")
    metrics.update_refused("patient Müller is in bed 12")
    metrics.bytes_received("blob", 1000)
    metrics.bytes_sent("control", 10)
    metrics.frames_resumed(4)
    metrics.round_measured({"auc": 0.91, "a guest's own name": 1.0})
    metrics.certificate_expires("ca", 1_900_000_000.0)
    metrics.store_took("write", 0.002)
    metrics.event_loop_lagged(0.001)
    metrics.site_versions_are({Age.PREVIOUS: 2})
    metrics.run_interrupted("quorum_missing")
    metrics.run_interrupted("a worker's own words")
    metrics.runs_last_changed(1_800_000_000.0)
    metrics.call_refused("wrong_role")
    metrics.upload_ended(UploadOutcome.STALLED)
    metrics.disk_is(DiskUse(held_bytes=5, free_bytes=70, size_bytes=100))


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("rounds_total", {"outcome": "partial"}, 1),
        ("round_phase_seconds_sum", {"phase": "upload"}, 2.5),
        ("aggregation_seconds_sum", {"step": "add"}, 0.25),
        ("secure_sums_total", {"outcome": "not_opened"}, 1),
        ("secure_sums_total", {"outcome": "opened"}, 0),
        ("quorum_shortfalls_total", {}, 1),
        ("sites", {"state": "silent"}, 1),
        ("sites", {"state": "offline"}, 0),
        ("runs", {"state": "paused"}, 1),
        ("updates_received_total", {}, 1),
        ("updates_refused_total", {"code": "task_failed"}, 1),
        ("updates_refused_total", {"code": "other"}, 1),
        ("received_bytes_total", {"kind": "blob"}, 1000),
        ("sent_bytes_total", {"kind": "control"}, 10),
        ("frames_resumed_total", {}, 4),
        ("last_round_metric", {"metric": "auc"}, 0.91),
        ("certificate_expiry_timestamp_seconds", {"certificate": "ca"}, 1_900_000_000.0),
        ("store_seconds_count", {"operation": "write"}, 1),
        ("event_loop_lag_seconds_count", {}, 1),
        ("contributions_total", {}, 3),
        ("site_versions", {"age": "previous"}, 2),
        ("site_versions", {"age": "current"}, 0),
        ("runs_interrupted_total", {"code": "quorum_missing"}, 1),
        ("runs_interrupted_total", {"code": "other"}, 1),
        ("run_last_change_timestamp_seconds", {}, 1_800_000_000.0),
        ("calls_refused_total", {"code": "wrong_role"}, 1),
        ("uploads_total", {"outcome": "stalled"}, 1),
        ("uploads_total", {"outcome": "complete"}, 0),
        ("spool_bytes", {}, 5),
        ("disk_free_bytes", {}, 70),
        ("disk_size_bytes", {}, 100),
    ],
)
def test_an_event_moves_its_metric(
    registry: CollectorRegistry, metrics: ServerMetrics, name: str, labels: dict[str, str], value: float
) -> None:
    exercise(metrics)
    assert registry.get_sample_value(f"quorate_server_{name}", labels) == value


def test_a_metric_that_the_last_round_did_not_have_is_shown_as_unknown(
    registry: CollectorRegistry, metrics: ServerMetrics
) -> None:
    metrics.round_measured({"auc": 0.9, "loss": 0.3})
    metrics.round_measured({"loss": 0.2})
    auc = registry.get_sample_value("quorate_server_last_round_metric", {"metric": "auc"})
    assert auc is not None
    assert math.isnan(auc)


def test_a_state_that_no_site_is_in_any_more_goes_back_to_zero(
    registry: CollectorRegistry, metrics: ServerMetrics
) -> None:
    metrics.sites_are({"online": 4})
    metrics.sites_are({"offline": 4})
    assert registry.get_sample_value("quorate_server_sites", {"state": "online"}) == 0


def test_an_unknown_state_of_a_site_is_a_mistake_of_ours(metrics: ServerMetrics) -> None:
    with pytest.raises(ValueError, match="cannot be 'asleep'"):
        metrics.sites_are({"asleep": 1})
