"""A metric is declared so that it can only expose what it lists."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from quorate.process.metrics import (
    OTHER,
    Metric,
    MetricKind,
    Shown,
    error_codes,
    gauge,
    watch_event_loop,
)


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


async def test_the_watcher_of_the_event_loop_measures_how_late_it_was_woken() -> None:
    now = 100.0
    wakes_late_s = iter([0.0, 0.5])
    lags: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        late = next(wakes_late_s, None)
        if late is None:
            raise asyncio.CancelledError
        now += seconds + late

    with pytest.raises(asyncio.CancelledError):
        await watch_event_loop(lags.append, 1.0, lambda: now, sleep)
    assert lags == [0.0, pytest.approx(0.5)]


def test_a_gauge_shows_exactly_the_series_that_were_given_last() -> None:
    registry = CollectorRegistry()
    left = Metric("quorate_client_left", MetricKind.GAUGE, "Left.", {"dataset": ("1", "2", "3")})
    shown = Shown(gauge(left, registry))
    shown.show({("1",): 5.0, ("2",): 6.0})
    shown.show({("2",): 4.0, ("3",): 1.0})
    values = [registry.get_sample_value("quorate_client_left", {"dataset": number}) for number in "123"]
    assert values == [None, 4.0, 1.0]
