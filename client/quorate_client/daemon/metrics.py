"""What the site's daemon tells a monitoring system, declared once.

``CLIENT_METRICS`` is the whole list; ``docs/reference/metrics.md`` is generated from it. The rest of the daemon calls
the methods of ``ClientMetrics`` and knows neither names nor labels. The endpoint listens on loopback by default: it is
the only thing at a site that listens at all.
"""

from __future__ import annotations

import math
from enum import StrEnum

from prometheus_client import CollectorRegistry

from quorate.process.metrics import Metric, MetricKind, counter, error_codes, gauge, histogram, process_metrics
from quorate.rounds.instruction import Phase


class ConnectionState(StrEnum):
    """How the daemon's connection to the server stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    STOPPED = "stopped"


CONTROL = "control"
_BYTES_KINDS = (*Phase, CONTROL)
_TRAINING_BUCKETS = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

BUILD = Metric(
    "quorate_client_build_info", MetricKind.INFO, "Version of the daemon.", {"version": (), "python_version": ()}
)
CONNECTION = Metric(
    "quorate_client_connection_state",
    MetricKind.GAUGE,
    "1 for the state that the connection to the server is in, 0 for the others.",
    {"state": tuple(ConnectionState)},
)
CONNECTIONS = Metric(
    "quorate_client_connections_total", MetricKind.COUNTER, "Times that the server welcomed this site."
)
DONE = Metric(
    "quorate_client_instructions_done_total",
    MetricKind.COUNTER,
    "Instructions that were carried out; those of the phases train and upload are the rounds that this site was in.",
    {"phase": tuple(Phase)},
)
REFUSED = Metric(
    "quorate_client_instructions_refused_total",
    MetricKind.COUNTER,
    "Instructions that were declined or failed here, by the code that the server was told.",
    {"code": error_codes()},
)
TRAINING_SECONDS = Metric(
    "quorate_client_training_seconds",
    MetricKind.HISTOGRAM,
    "Time of one local training and what is evaluated with it.",
    buckets=_TRAINING_BUCKETS,
)
QUEUE = Metric("quorate_client_instructions_open", MetricKind.GAUGE, "Instructions that are waiting or in work.")
SENT_BYTES = Metric(
    "quorate_client_sent_bytes_total",
    MetricKind.COUNTER,
    "Bytes that left this site: content of blobs by the phase that they belong to, and replies (control).",
    {"kind": _BYTES_KINDS},
)
RECEIVED_BYTES = Metric(
    "quorate_client_received_bytes_total", MetricKind.COUNTER, "Bytes of blobs that this site downloaded."
)
CERTIFICATE_EXPIRY = Metric(
    "quorate_client_certificate_expiry_timestamp_seconds",
    MetricKind.GAUGE,
    "When this site's certificate ends, in Unix seconds; minus time() it is what is left.",
)
CLOCK_OFFSET = Metric(
    "quorate_client_clock_offset_seconds",
    MetricKind.GAUGE,
    "The server's clock minus this machine's, when they last connected.",
)
PAUSED = Metric("quorate_client_paused", MetricKind.GAUGE, "1 while the administrator has paused this site.")
LAST_SUCCESS = Metric(
    "quorate_client_last_success_timestamp_seconds",
    MetricKind.GAUGE,
    "When the server last acknowledged work that was done, in Unix seconds; 0 before the first time.",
)
EPSILON_SPENT = Metric(
    "quorate_client_privacy_epsilon_spent",
    MetricKind.GAUGE,
    "Epsilon per record, over all studies and at the policy's delta, of the data set that was trained on last with "
    "differential privacy; +Inf where its records were ever released without a bound.",
)
EPSILON_LEFT = Metric(
    "quorate_client_privacy_epsilon_left",
    MetricKind.GAUGE,
    "What this site's policy leaves that data set for studies not yet begun; +Inf where it has no limit for ever.",
)

CLIENT_METRICS = (
    BUILD,
    CONNECTION,
    CONNECTIONS,
    DONE,
    REFUSED,
    TRAINING_SECONDS,
    QUEUE,
    SENT_BYTES,
    RECEIVED_BYTES,
    CERTIFICATE_EXPIRY,
    CLOCK_OFFSET,
    PAUSED,
    LAST_SUCCESS,
    EPSILON_SPENT,
    EPSILON_LEFT,
)


class ClientMetrics:
    """The live metrics of one daemon. Make one per registry; its methods may be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        process_metrics(BUILD, registry)
        self._connection = gauge(CONNECTION, registry)
        self._connections = counter(CONNECTIONS, registry)
        self._done = counter(DONE, registry)
        self._refused = counter(REFUSED, registry)
        self._training_seconds = histogram(TRAINING_SECONDS, registry)
        self._queue = gauge(QUEUE, registry)
        self._sent_bytes = counter(SENT_BYTES, registry)
        self._received_bytes = counter(RECEIVED_BYTES, registry)
        self._certificate_expiry = gauge(CERTIFICATE_EXPIRY, registry)
        self._clock_offset = gauge(CLOCK_OFFSET, registry)
        self._paused = gauge(PAUSED, registry)
        self._last_success = gauge(LAST_SUCCESS, registry)
        self._epsilon_spent = gauge(EPSILON_SPENT, registry)
        self._epsilon_left = gauge(EPSILON_LEFT, registry)
        self._epsilon_left.set(math.inf)
        self.connection_is(ConnectionState.STOPPED)

    def connection_is(self, state: ConnectionState) -> None:
        for each in ConnectionState:
            self._connection.labels(each).set(each is state)

    def welcomed(self, clock_offset_s: float) -> None:
        self._connections.inc()
        self._clock_offset.set(clock_offset_s)

    def instruction_done(self, phase: Phase, working_s: float) -> None:
        self._done.labels(phase).inc()
        if phase is Phase.UPLOAD:
            self._training_seconds.observe(working_s)

    def instruction_refused(self, code: str) -> None:
        self._refused.labels(REFUSED.value_of("code", code)).inc()

    def instructions_open(self, count: int) -> None:
        self._queue.set(count)

    def blob_bytes_sent(self, phase: str, size: int) -> None:
        self._sent_bytes.labels(phase).inc(size)

    def reply_bytes_sent(self, size: int) -> None:
        self._sent_bytes.labels(CONTROL).inc(size)

    def bytes_received(self, size: int) -> None:
        self._received_bytes.inc(size)

    def certificate_expires(self, at_unix_s: float) -> None:
        self._certificate_expiry.set(at_unix_s)

    def paused_is(self, paused: bool) -> None:
        self._paused.set(paused)

    def privacy_spent(self, epsilon: float, left: float) -> None:
        self._epsilon_spent.set(epsilon)
        self._epsilon_left.set(left)

    def succeeded(self, at_unix_s: float) -> None:
        self._last_success.set(at_unix_s)
