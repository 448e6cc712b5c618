"""A metric as it is declared and built. ``monitoring.py`` serves it.

Both daemons declare theirs as a tuple of ``Metric``, with everything that a reader and the reference need, and build
the live objects from it, so that what is documented is what is exposed. Label sets are closed: every value that a label
can take is listed here, which bounds the number of series and keeps names of patients, paths and free text out of a
monitoring system by construction.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)

from quorate import __version__
from quorate.errors import error_classes

OTHER = "other"
LATENCY_BUCKETS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LOOK_EVERY_S = 5.0
"""How often a figure is looked up that nobody tells of by himself: a disk's room, say."""

_NAME = re.compile(r"quorate_(server|client)_[a-z0-9]+(_[a-z0-9]+)*")


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. Valid once built.

    Args:
        name: As a monitoring system sees it: with its side, its unit, ``_total`` for counters and ``_info`` for infos.
        kind: How it moves.
        help: One sentence for the person who meets it on a dashboard.
        labels: Each label with all values that it can take. The labels of an info are free, being set once at start.
        buckets: Upper bounds of a histogram, in the unit of its name, without infinity.
    """

    name: str
    kind: MetricKind
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        suffix = {MetricKind.COUNTER: "_total", MetricKind.INFO: "_info", MetricKind.HISTOGRAM: "_seconds"}
        if not _NAME.fullmatch(self.name) or not self.name.endswith(suffix.get(self.kind, "")) or not self.help:
            raise ValueError(f"{self.name!r} is not the name of a documented {self.kind}")
        if (self.kind is MetricKind.HISTOGRAM) != bool(self.buckets) or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"{self.name}: a histogram, and only a histogram, has ascending buckets")
        if self.kind is not MetricKind.INFO and not all(self.labels.values()):
            raise ValueError(f"{self.name}: every value of a label is listed")

    def value_of(self, label: str, value: str) -> str:
        """``value`` if the label can take it, else ``other`` if it can take that.

        Raises:
            ValueError: the label cannot take the value; a mistake of ours, never of a peer's.
        """
        allowed = self.labels[label]
        if value in allowed:
            return value
        if OTHER in allowed:
            return OTHER
        raise ValueError(f"{self.name}: the label {label} cannot be {value!r}")


def error_codes() -> tuple[str, ...]:
    """The values of a label that holds a refusal's code; a code of a newer peer counts as ``other``."""
    return (*sorted(error_classes()), OTHER)


def process_metrics(build: Metric, registry: CollectorRegistry) -> None:
    """Show the version under ``build``, and the process's memory, processor time and open files."""
    ProcessCollector(registry=registry)
    info = Info(build.name.removesuffix("_info"), build.help, registry=registry)
    info.info({"version": __version__, "python_version": platform.python_version()})


def counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    """Every series exists from the start with the value 0, so that a rate over its first event is right."""
    made = Counter(metric.name.removesuffix("_total"), metric.help, tuple(metric.labels), registry=registry)
    for values in _all_series(metric):
        made.labels(*values)
    return made


def gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    """A series that has labels exists once it is set: nobody knows its value before."""
    return Gauge(metric.name, metric.help, tuple(metric.labels), registry=registry)


class Shown:
    """A gauge of which exactly the series are exposed that were given last."""

    def __init__(self, live: Gauge) -> None:
        self._live = live
        self._series: set[tuple[str, ...]] = set()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """What is gone goes last: whoever reads meanwhile finds a figure that was right a moment ago."""
        for labels, value in values.items():
            self._live.labels(*labels).set(value)
        for labels in self._series - values.keys():
            self._live.remove(*labels)
        self._series = set(values)


def histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    """Every series exists from the start, as of a counter."""
    made = Histogram(metric.name, metric.help, tuple(metric.labels), buckets=metric.buckets, registry=registry)
    for values in _all_series(metric):
        made.labels(*values)
    return made


def _all_series(metric: Metric) -> list[tuple[str, ...]]:
    return list(itertools.product(*metric.labels.values())) if metric.labels else []


async def watch_event_loop(
    lagged: Callable[[float], None],
    interval_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Measure for ever how late the loop wakes us. Run it as a task and cancel it."""
    while True:
        due = clock() + interval_s
        await sleep(interval_s)
        lagged(max(0.0, clock() - due))
