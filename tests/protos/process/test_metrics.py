"""A metric is declared so that it can only expose what it lists."""

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from quorate.errors import ConfigError
from quorate.process.metrics import (
    OTHER,
    Metric,
    MetricKind,
    counter,
    error_codes,
    histogram,
    process_metrics,
    serve_metrics,
)
from tests.patience import PATIENCE_S


def test_a_counter_without_its_suffix_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="quorate_server_rounds"):
        Metric("quorate_server_rounds", MetricKind.COUNTER, "Rounds.")


def test_a_name_of_neither_side_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="rounds_total"):
        Metric("rounds_total", MetricKind.COUNTER, "Rounds.")


def test_a_metric_without_an_explanation_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="quorate_server_runs"):
        Metric("quorate_server_runs", MetricKind.GAUGE, "")


@pytest.mark.parametrize("buckets", [(), (1.0, 0.5), (1.0, 1.0)])
def test_a_histogram_needs_ascending_buckets(buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Metric("quorate_server_phase_seconds", MetricKind.HISTOGRAM, "Time.", buckets=buckets)


def test_a_label_without_its_values_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="listed"):
        Metric("quorate_server_runs", MetricKind.GAUGE, "Runs.", {"state": ()})


def test_a_value_outside_the_closed_set_counts_as_other_where_that_is_allowed() -> None:
    open_to_peers = Metric("quorate_server_refused_total", MetricKind.COUNTER, "Refusals.", {"code": error_codes()})
    assert open_to_peers.value_of("code", "disk_full") == "disk_full"
    assert open_to_peers.value_of("code", "patient 4711") == OTHER


def test_a_value_outside_the_closed_set_is_a_mistake_where_other_is_not_allowed() -> None:
    ours = Metric("quorate_server_runs", MetricKind.GAUGE, "Runs.", {"state": ("running",)})
    with pytest.raises(ValueError, match="cannot be 'dreaming'"):
        ours.value_of("state", "dreaming")


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:  # loopback
        return str(answer.read().decode())


def test_the_endpoint_shows_what_was_built_and_stops_when_told() -> None:
    registry = CollectorRegistry()
    process_metrics(Metric("quorate_server_build_info", MetricKind.INFO, "Version.", {"version": ()}), registry)
    counter(Metric("quorate_server_rounds_total", MetricKind.COUNTER, "Rounds.", {"outcome": ("full",)}), registry)
    histogram(Metric("quorate_server_lag_seconds", MetricKind.HISTOGRAM, "Lag.", buckets=(0.5, 2.0)), registry)
    endpoint = serve_metrics("127.0.0.1:0", registry)
    page = fetch(endpoint.port)
    endpoint.stop()
    assert 'quorate_server_rounds_total{outcome="full"} 0.0' in page
    assert 'quorate_server_lag_seconds_bucket{le="2.0"} 0.0' in page
    assert "quorate_server_build_info{" in page
    assert "process_open_fds" in page
    assert "_created" not in page
    with pytest.raises(urllib.error.URLError):
        fetch(endpoint.port)


@pytest.mark.parametrize(
    "listen", ["9464", "127.0.0.1", "127.0.0.1:", ":9464", "127.0.0.1:70000", "127.0.0.1:-1", "203.0.113.1:9465"]
)
def test_an_address_that_cannot_be_listened_on_is_named_with_what_is_expected(listen: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT") as caught:
        serve_metrics(listen, CollectorRegistry())
    assert listen in caught.value.what


def test_a_taken_address_is_refused_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="Choose a free address"):
            serve_metrics(f"127.0.0.1:{port}", CollectorRegistry())
