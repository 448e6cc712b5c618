"""A metric as it is declared: once, with everything that its reader and the reference need.

Both daemons declare theirs as a tuple of ``Metric`` and build the live objects from it, so that what is documented is
what is exposed. Label sets are closed: every value that a label can take is listed here, which bounds the number of
series and keeps names of patients, paths and free text out of a monitoring system by construction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from quorate.errors import error_classes

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
