"""What the site's daemon tells a monitoring system, declared once.

``CLIENT_METRICS`` is the whole list; ``docs/reference/metrics.md`` is generated from it. The rest of the daemon calls
the methods of ``ClientMetrics`` and knows neither names nor labels. The endpoint listens on loopback by default: it is
the only thing at a site that listens at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from prometheus_client import CollectorRegistry

from quorate.attestation.appraisal import REFUSALS
from quorate.process.disk import DiskUse
from quorate.process.metrics import (
    LATENCY_BUCKETS,
    OTHER,
    Metric,
    MetricKind,
    Shown,
    counter,
    error_codes,
    gauge,
    histogram,
    process_metrics,
)
from quorate.rounds.instruction import Phase


class ConnectionState(StrEnum):
    """How the daemon's connection to the server stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    STOPPED = "stopped"


Direction = Literal["up", "down"]
Part = Literal["training", "test"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a part of a data set has spent of its privacy, per record or unit, and what the policy leaves it.

    Args:
        number: Of the data set, in the order in which they were registered, from 1 on.
    """

    number: int
    part: Part
    spent: float
    left: float


CONTROL = "control"
TRUSTED = "trusted"
DIRECTIONS: tuple[Direction, ...] = ("up", "down")
PARTS: tuple[Part, ...] = ("training", "test")
MAX_NUMBER = 32
"""Data sets that have series of their own. Of those beyond the worst figures are shown, as ``other``."""
_NUMBERS = (*(str(number) for number in range(1, MAX_NUMBER + 1)), OTHER)
_MAGNITUDES = ("under_100", "under_1000", "under_10000", "under_100000", "more")
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
    "Time of the work on one update, from the model that it starts from to the update that may leave: training, what "
    "is evaluated and encrypted with it, and waiting for a task worker.",
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
FRAMES_RESUMED = Metric(
    "quorate_client_frames_resumed_total",
    MetricKind.COUNTER,
    "Frames that did not have to be moved again because a transfer went on where it was cut.",
    {"direction": DIRECTIONS},
)
TRANSFERS_BROKEN = Metric(
    "quorate_client_transfers_broken_total",
    MetricKind.COUNTER,
    "Transfers that were broken off; they are gone on with.",
    {"direction": DIRECTIONS},
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
DATASETS = Metric(
    "quorate_client_datasets",
    MetricKind.GAUGE,
    "Registered data sets by their number of records, rounded to powers of ten.",
    {"records": _MAGNITUDES},
)
DATASET_NAME = Metric(
    "quorate_client_dataset_info",
    MetricKind.INFO,
    "The name behind a data set's number. Shown where the policy says dataset_names_in_metrics.",
    {"dataset": (), "name": ()},
)
EPSILON_SPENT = Metric(
    "quorate_client_privacy_epsilon_spent",
    MetricKind.GAUGE,
    "Epsilon per record or unit, over all studies and at the policy's delta, of the training or the test part of a "
    "data set, by the data set's number in the order of registration; +Inf where its records were ever released "
    "without a bound.",
    {"dataset": _NUMBERS, "part": PARTS},
)
EPSILON_LEFT = Metric(
    "quorate_client_privacy_epsilon_left",
    MetricKind.GAUGE,
    "What privacy.epsilon_ever of this site's policy leaves for studies not yet begun; +Inf where there is no limit "
    "for ever.",
    {"dataset": _NUMBERS, "part": PARTS},
)
EPSILON_LIMIT = Metric(
    "quorate_client_privacy_epsilon_limit",
    MetricKind.GAUGE,
    "privacy.epsilon_ever of this site's policy; +Inf where there is no limit for ever.",
)
APPRAISALS = Metric(
    "quorate_client_appraisals_total",
    MetricKind.COUNTER,
    "Appraisals of the attested machine that adds: trusted, or the code of why not.",
    {"code": (TRUSTED, *sorted(REFUSALS))},
)
LAST_TRUSTED = Metric(
    "quorate_client_appraisal_last_trusted_timestamp_seconds",
    MetricKind.GAUGE,
    "When an attested machine was last trusted here, in Unix seconds; 0 before the first time.",
)
SPOOL_BYTES = Metric(
    "quorate_client_spool_bytes", MetricKind.GAUGE, "What lies in the spool: updates on their way, sums."
)
DISK_FREE_BYTES = Metric("quorate_client_disk_free_bytes", MetricKind.GAUGE, "Room on the disk that holds the spool.")
DISK_SIZE_BYTES = Metric("quorate_client_disk_size_bytes", MetricKind.GAUGE, "Size of the disk that holds the spool.")
EVENT_LOOP_LAG_SECONDS = Metric(
    "quorate_client_event_loop_lag_seconds",
    MetricKind.HISTOGRAM,
    "How late the event loop wakes a sleeper; above 0.1 something blocks it.",
    buckets=LATENCY_BUCKETS,
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
    FRAMES_RESUMED,
    TRANSFERS_BROKEN,
    CERTIFICATE_EXPIRY,
    CLOCK_OFFSET,
    PAUSED,
    LAST_SUCCESS,
    DATASETS,
    DATASET_NAME,
    EPSILON_SPENT,
    EPSILON_LEFT,
    EPSILON_LIMIT,
    APPRAISALS,
    LAST_TRUSTED,
    SPOOL_BYTES,
    DISK_FREE_BYTES,
    DISK_SIZE_BYTES,
    EVENT_LOOP_LAG_SECONDS,
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
        self._frames_resumed = counter(FRAMES_RESUMED, registry)
        self._transfers_broken = counter(TRANSFERS_BROKEN, registry)
        self._datasets = gauge(DATASETS, registry)
        self._dataset_names = Shown(gauge(DATASET_NAME, registry))
        self._epsilon_spent = Shown(gauge(EPSILON_SPENT, registry))
        self._epsilon_left = Shown(gauge(EPSILON_LEFT, registry))
        self._epsilon_limit = gauge(EPSILON_LIMIT, registry)
        self._appraisals = counter(APPRAISALS, registry)
        self._last_trusted = gauge(LAST_TRUSTED, registry)
        self._spool_bytes = gauge(SPOOL_BYTES, registry)
        self._disk_free_bytes = gauge(DISK_FREE_BYTES, registry)
        self._disk_size_bytes = gauge(DISK_SIZE_BYTES, registry)
        self._event_loop_lag_seconds = histogram(EVENT_LOOP_LAG_SECONDS, registry)
        self.datasets_are(())
        self.connection_is(ConnectionState.STOPPED)

    def connection_is(self, state: ConnectionState) -> None:
        for each in ConnectionState:
            self._connection.labels(each).set(each is state)

    def welcomed(self, clock_offset_s: float) -> None:
        self._connections.inc()
        self._clock_offset.set(clock_offset_s)

    def instruction_done(self, phase: Phase, seconds: float) -> None:
        self._done.labels(phase).inc()
        if phase is Phase.UPLOAD:
            self._training_seconds.observe(seconds)

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

    def frames_resumed(self, direction: Direction, count: int) -> None:
        self._frames_resumed.labels(direction).inc(count)

    def transfer_broken(self, direction: Direction) -> None:
        self._transfers_broken.labels(direction).inc()

    def certificate_expires(self, at_unix_s: float) -> None:
        self._certificate_expiry.set(at_unix_s)

    def paused_is(self, paused: bool) -> None:
        self._paused.set(paused)

    def datasets_are(self, records: Iterable[int]) -> None:
        """Takes the number of records of each registered data set, and shows its magnitude."""
        magnitudes = [magnitude_of(count) for count in records]
        for magnitude in _MAGNITUDES:
            self._datasets.labels(magnitude).set(magnitudes.count(magnitude))

    def datasets_are_named(self, names: Mapping[int, str]) -> None:
        """Shows these names, by the data sets' numbers, and no others."""
        self._dataset_names.show({(str(number), name): 1 for number, name in names.items() if number <= MAX_NUMBER})

    def budgets_are(self, limit: float, budgets: Iterable[Budget]) -> None:
        """Shows these and no others."""
        self._epsilon_limit.set(limit)
        worst: dict[tuple[str, ...], tuple[float, float]] = {}
        for each in budgets:
            series = EPSILON_SPENT.value_of("dataset", str(each.number)), each.part
            spent, left = worst.get(series, (each.spent, each.left))
            worst[series] = max(spent, each.spent), min(left, each.left)
        self._epsilon_spent.show({series: spent for series, (spent, _) in worst.items()})
        self._epsilon_left.show({series: left for series, (_, left) in worst.items()})

    def appraised(self, code: str, at_unix_s: float) -> None:
        """``code`` is empty where the machine is trusted."""
        self._appraisals.labels(code or TRUSTED).inc()
        if not code:
            self._last_trusted.set(at_unix_s)

    def disk_is(self, use: DiskUse) -> None:
        self._spool_bytes.set(use.held_bytes)
        self._disk_free_bytes.set(use.free_bytes)
        self._disk_size_bytes.set(use.size_bytes)

    def event_loop_lagged(self, seconds: float) -> None:
        self._event_loop_lag_seconds.observe(seconds)

    def succeeded(self, at_unix_s: float) -> None:
        self._last_success.set(at_unix_s)


def magnitude_of(records: int) -> str:
    """How many records, rounded: the number itself may tell of one more person."""
    bounds = (100, 1000, 10_000, 100_000)
    return next((name for name, bound in zip(_MAGNITUDES, bounds, strict=False) if records < bound), "more")
