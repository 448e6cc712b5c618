"""A metric as it is declared, built and served.

Both daemons declare theirs as a tuple of ``Metric``, with everything that a reader and the reference need, and build
the live objects from it, so that what is documented is what is exposed. Label sets are closed: every value that a label
can take is listed here, which bounds the number of series and keeps names of patients, paths and free text out of a
monitoring system by construction.
"""

from __future__ import annotations

import itertools
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from quorate import __version__
from quorate.errors import ConfigError, error_classes

OTHER = "other"

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


def histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    """Every series exists from the start, as of a counter."""
    made = Histogram(metric.name, metric.help, tuple(metric.labels), buckets=metric.buckets, registry=registry)
    for values in _all_series(metric):
        made.labels(*values)
    return made


def _all_series(metric: Metric) -> list[tuple[str, ...]]:
    return list(itertools.product(*metric.labels.values())) if metric.labels else []


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A metrics endpoint that answers until it is stopped. ``port`` is the one it got."""

    port: int
    stop: Callable[[], None]


def serve_metrics(listen: str, registry: CollectorRegistry) -> MetricsServer:
    """Answer ``GET /metrics`` at ``HOST:PORT`` from a thread of its own. Port 0 takes a free one.

    The endpoint asks nobody who they are; the default configurations listen on loopback only.

    Raises:
        ConfigError: the address is malformed, taken, or not one of this machine.
    """
    # They double the series of every counter, and nobody looks at them.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # left untyped there
    host, _, port = listen.rpartition(":")
    try:
        if not (host and port.isascii() and port.isdigit()):  # without a host it would listen everywhere
            raise ValueError("not an address")
        server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=registry)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"The metrics endpoint cannot listen on {listen}",
            expected="HOST:PORT, for example 127.0.0.1:9464",
            got=str(error),
            action='Choose a free address of this machine for metrics_listen; "" switches metrics off',
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return MetricsServer(server.server_port, stop)
