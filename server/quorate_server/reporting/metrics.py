"""What the server tells a monitoring system, declared once.

``SERVER_METRICS`` is the whole list; ``docs/reference/metrics.md`` is generated from it. The rest of the server calls
the methods of ``ServerMetrics`` and knows neither names nor labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Gauge

from quorate.process.disk import DiskUse
from quorate.process.metrics import (
    LATENCY_BUCKETS,
    Metric,
    MetricKind,
    counter,
    error_codes,
    gauge,
    histogram,
    process_metrics,
)
from quorate.rounds.instruction import Phase
from quorate.rounds.run import RunState, SumOutcome, SumStep
from quorate.versions import Age


class RoundOutcome(StrEnum):
    FULL = "full"
    PARTIAL = "partial"
    ABANDONED = "abandoned"


class UploadOutcome(StrEnum):
    COMPLETE = "complete"
    STALLED = "stalled"
    BROKEN_OFF = "broken_off"


BytesKind = Literal["blob", "control"]
CertificateKind = Literal["ca", "server"]
StoreOperation = Literal["read", "write"]

SITE_STATES = ("invited", "offline", "online", "silent", "paused", "revoked")
BYTES_KINDS: tuple[BytesKind, ...] = ("blob", "control")
POOLED_METRICS = ("loss", "train_loss", "accuracy", "auc", "recall", "specificity", "records")

_PHASE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

BUILD = Metric(
    "quorate_server_build_info", MetricKind.INFO, "Version of the server.", {"version": (), "python_version": ()}
)
ROUNDS = Metric(
    "quorate_server_rounds_total",
    MetricKind.COUNTER,
    "Rounds that ended: every site contributed (full), a quorum did (partial), or the round does not count "
    "(abandoned).",
    {"outcome": tuple(RoundOutcome)},
)
PHASE_SECONDS = Metric(
    "quorate_server_round_phase_seconds",
    MetricKind.HISTOGRAM,
    "Time from the opening of a phase to its close.",
    {"phase": tuple(Phase)},
    _PHASE_BUCKETS,
)
QUORUM_SHORTFALLS = Metric(
    "quorate_server_quorum_shortfalls_total",
    MetricKind.COUNTER,
    "Phases that closed with fewer sites than the study's quorum.",
)
AGGREGATION_SECONDS = Metric(
    "quorate_server_aggregation_seconds",
    MetricKind.HISTOGRAM,
    "Time that the server itself needs for one attempt at a sum: to read the replies, to hold them against the rules, "
    "to add them. Waiting for sites is not in it.",
    {"step": tuple(SumStep)},
    (*LATENCY_BUCKETS, 10.0, 30.0, 100.0),
)
SECURE_SUMS = Metric(
    "quorate_server_secure_sums_total",
    MetricKind.COUNTER,
    "Attempts at sums under secure aggregation: opened by the sites, given up before they could (to be begun anew), or "
    "closed and not to be opened.",
    {"outcome": tuple(SumOutcome)},
)
CONTRIBUTIONS = Metric(
    "quorate_server_contributions_total",
    MetricKind.COUNTER,
    "Contributions of sites that are in rounds that counted.",
)
SITES = Metric(
    "quorate_server_sites", MetricKind.GAUGE, "Sites of the consortium by their state.", {"state": SITE_STATES}
)
SITE_VERSIONS = Metric(
    "quorate_server_site_versions",
    MetricKind.GAUGE,
    "Sites that have joined by the version that they ran last: of this server's series, of the one before, or one that "
    "is refused or not known yet.",
    {"age": tuple(Age)},
)
RUNS = Metric("quorate_server_runs", MetricKind.GAUGE, "Runs by their state.", {"state": tuple(RunState)})
RUNS_INTERRUPTED = Metric(
    "quorate_server_runs_interrupted_total",
    MetricKind.COUNTER,
    "Runs that paused or failed, by the code of the reason; an operator's own pause is wrong_state.",
    {"code": error_codes()},
)
LAST_CHANGE = Metric(
    "quorate_server_run_last_change_timestamp_seconds",
    MetricKind.GAUGE,
    "When the running run that has stood still the longest last moved (a reply, a phase, a round), in Unix seconds; 0 "
    "while no run is running.",
)
UPDATES_RECEIVED = Metric(
    "quorate_server_updates_received_total", MetricKind.COUNTER, "Replies of sites that were accepted into a phase."
)
UPDATES_REFUSED = Metric(
    "quorate_server_updates_refused_total",
    MetricKind.COUNTER,
    "Replies that hold no contribution, by the code of the refusal, whether the site or the server refused.",
    {"code": error_codes()},
)
CALLS_REFUSED = Metric(
    "quorate_server_calls_refused_total",
    MetricKind.COUNTER,
    "Calls of sites, operators and strangers that were refused, by code.",
    {"code": error_codes()},
)
UPLOADS = Metric(
    "quorate_server_uploads_total",
    MetricKind.COUNTER,
    "Attempts of sites to upload, by how they ended. One that stood still or broke off is gone on with.",
    {"outcome": tuple(UploadOutcome)},
)
RECEIVED_BYTES = Metric(
    "quorate_server_received_bytes_total",
    MetricKind.COUNTER,
    "Bytes from sites: content of blobs, and messages of the control streams.",
    {"kind": BYTES_KINDS},
)
SENT_BYTES = Metric(
    "quorate_server_sent_bytes_total",
    MetricKind.COUNTER,
    "Bytes to sites: content of blobs, and messages of the control streams.",
    {"kind": BYTES_KINDS},
)
FRAMES_RESUMED = Metric(
    "quorate_server_frames_resumed_total",
    MetricKind.COUNTER,
    "Frames that did not have to be sent again because a transfer went on where it was cut.",
)
LAST_ROUND_METRIC = Metric(
    "quorate_server_last_round_metric",
    MetricKind.GAUGE,
    "Metrics of the last round that counted, pooled over the sites that contributed to it.",
    {"metric": POOLED_METRICS},
)
CERTIFICATE_EXPIRY = Metric(
    "quorate_server_certificate_expiry_timestamp_seconds",
    MetricKind.GAUGE,
    "When a certificate of the server ends, in Unix seconds; minus time() it is what is left.",
    {"certificate": ("ca", "server")},
)
STORE_SECONDS = Metric(
    "quorate_server_store_seconds",
    MetricKind.HISTOGRAM,
    "Time of one transaction of the database.",
    {"operation": ("read", "write")},
    LATENCY_BUCKETS,
)
SPOOL_BYTES = Metric(
    "quorate_server_spool_bytes", MetricKind.GAUGE, "What lies in the spool: updates, sums, checkpoints."
)
DISK_FREE_BYTES = Metric("quorate_server_disk_free_bytes", MetricKind.GAUGE, "Room on the disk that holds the spool.")
DISK_SIZE_BYTES = Metric("quorate_server_disk_size_bytes", MetricKind.GAUGE, "Size of the disk that holds the spool.")
EVENT_LOOP_LAG_SECONDS = Metric(
    "quorate_server_event_loop_lag_seconds",
    MetricKind.HISTOGRAM,
    "How late the event loop wakes a sleeper; above 0.1 something blocks it.",
    buckets=LATENCY_BUCKETS,
)

SERVER_METRICS = (
    BUILD,
    ROUNDS,
    PHASE_SECONDS,
    AGGREGATION_SECONDS,
    SECURE_SUMS,
    QUORUM_SHORTFALLS,
    CONTRIBUTIONS,
    SITES,
    SITE_VERSIONS,
    RUNS,
    RUNS_INTERRUPTED,
    LAST_CHANGE,
    UPDATES_RECEIVED,
    UPDATES_REFUSED,
    CALLS_REFUSED,
    UPLOADS,
    RECEIVED_BYTES,
    SENT_BYTES,
    FRAMES_RESUMED,
    LAST_ROUND_METRIC,
    CERTIFICATE_EXPIRY,
    STORE_SECONDS,
    SPOOL_BYTES,
    DISK_FREE_BYTES,
    DISK_SIZE_BYTES,
    EVENT_LOOP_LAG_SECONDS,
)


class ServerMetrics:
    """The live metrics of one server. Make one per registry; its methods may be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        process_metrics(BUILD, registry)
        self._rounds = counter(ROUNDS, registry)
        self._phase_seconds = histogram(PHASE_SECONDS, registry)
        self._aggregation_seconds = histogram(AGGREGATION_SECONDS, registry)
        self._secure_sums = counter(SECURE_SUMS, registry)
        self._quorum_shortfalls = counter(QUORUM_SHORTFALLS, registry)
        self._contributions = counter(CONTRIBUTIONS, registry)
        self._sites = gauge(SITES, registry)
        self._site_versions = gauge(SITE_VERSIONS, registry)
        self._runs = gauge(RUNS, registry)
        self._runs_interrupted = counter(RUNS_INTERRUPTED, registry)
        self._last_change = gauge(LAST_CHANGE, registry)
        self._updates_received = counter(UPDATES_RECEIVED, registry)
        self._updates_refused = counter(UPDATES_REFUSED, registry)
        self._calls_refused = counter(CALLS_REFUSED, registry)
        self._uploads = counter(UPLOADS, registry)
        self._received_bytes = counter(RECEIVED_BYTES, registry)
        self._sent_bytes = counter(SENT_BYTES, registry)
        self._frames_resumed = counter(FRAMES_RESUMED, registry)
        self._last_round_metric = gauge(LAST_ROUND_METRIC, registry)
        self._certificate_expiry = gauge(CERTIFICATE_EXPIRY, registry)
        self._store_seconds = histogram(STORE_SECONDS, registry)
        self._spool_bytes = gauge(SPOOL_BYTES, registry)
        self._disk_free_bytes = gauge(DISK_FREE_BYTES, registry)
        self._disk_size_bytes = gauge(DISK_SIZE_BYTES, registry)
        self._event_loop_lag_seconds = histogram(EVENT_LOOP_LAG_SECONDS, registry)
        self.sites_are({})
        self.site_versions_are({})
        self.runs_are({})

    def round_ended(self, outcome: RoundOutcome, contributions: int = 0) -> None:
        self._rounds.labels(outcome).inc()
        self._contributions.inc(contributions)

    def phase_closed(self, phase: Phase, seconds: float) -> None:
        self._phase_seconds.labels(phase).observe(seconds)

    def sum_took(self, step: SumStep, seconds: float) -> None:
        self._aggregation_seconds.labels(step).observe(seconds)

    def secure_sum_ended(self, outcome: SumOutcome) -> None:
        self._secure_sums.labels(outcome).inc()

    def quorum_missed(self) -> None:
        self._quorum_shortfalls.inc()

    def sites_are(self, counts: Mapping[str, int]) -> None:
        """Sets how many sites are in each state; a state that is not mentioned has none."""
        _set_all(SITES, self._sites, "state", counts)

    def site_versions_are(self, counts: Mapping[Age, int]) -> None:
        """Sets how many sites ran a version of each age last; an age that is not mentioned has none."""
        _set_all(SITE_VERSIONS, self._site_versions, "age", counts)

    def runs_are(self, counts: Mapping[RunState, int]) -> None:
        """Sets how many runs are in each state; a state that is not mentioned has none."""
        _set_all(RUNS, self._runs, "state", counts)

    def run_interrupted(self, code: str) -> None:
        """A run paused or failed. The code may be a worker's: one that this version does not know is ``other``."""
        self._runs_interrupted.labels(RUNS_INTERRUPTED.value_of("code", code)).inc()

    def runs_last_changed(self, at_unix_s: float) -> None:
        self._last_change.set(at_unix_s)

    def update_received(self) -> None:
        self._updates_received.inc()

    def update_refused(self, code: str) -> None:
        """Counts a refusal. The code may come from a site: one that this version does not know counts as ``other``."""
        self._updates_refused.labels(UPDATES_REFUSED.value_of("code", code)).inc()

    def call_refused(self, code: str) -> None:
        self._calls_refused.labels(CALLS_REFUSED.value_of("code", code)).inc()

    def upload_ended(self, outcome: UploadOutcome) -> None:
        self._uploads.labels(outcome).inc()

    def bytes_received(self, kind: BytesKind, size: int) -> None:
        self._received_bytes.labels(kind).inc(size)

    def bytes_sent(self, kind: BytesKind, size: int) -> None:
        self._sent_bytes.labels(kind).inc(size)

    def frames_resumed(self, count: int) -> None:
        self._frames_resumed.inc(count)

    def round_measured(self, metrics: Mapping[str, float]) -> None:
        """Shows the pooled metrics of the last round. A guest app's own names are not shown: they are free text."""
        for name in POOLED_METRICS:
            self._last_round_metric.labels(name).set(metrics.get(name, math.nan))

    def certificate_expires(self, certificate: CertificateKind, at_unix_s: float) -> None:
        self._certificate_expiry.labels(certificate).set(at_unix_s)

    def store_took(self, operation: StoreOperation, seconds: float) -> None:
        self._store_seconds.labels(operation).observe(seconds)

    def disk_is(self, use: DiskUse) -> None:
        self._spool_bytes.set(use.held_bytes)
        self._disk_free_bytes.set(use.free_bytes)
        self._disk_size_bytes.set(use.size_bytes)

    def event_loop_lagged(self, seconds: float) -> None:
        self._event_loop_lag_seconds.observe(seconds)


def _set_all(metric: Metric, live: Gauge, label: str, counts: Mapping[Any, int]) -> None:
    by_value = {metric.value_of(label, str(value)): count for value, count in counts.items()}
    for value in metric.labels[label]:
        live.labels(value).set(by_value.get(value, 0))
