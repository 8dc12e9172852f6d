"""The metrics: their names, what they mean, and their values in a snapshot. docs/metrics.md describes them for users.

Counters start at 0 with the daemon. Labels are bounded: by what is configured, and by the reasons of errors. What a
client sends never becomes a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import itemgetter
from typing import Final

from multitower.errors import Reason

from ..gateway.run import Counts
from ..loop.encodable import encodable
from ..machine.gpu_sampler import GpuUsage
from ..routing.recent import slots_below
from ..routing.statistics import BATCH_ROWS_EXPONENTS
from ..workers.condition import Condition
from ..workers.slot_state_machine import State
from .exposition import Family, Kind, Labels, Metric, Series
from .snapshot import SlotSnapshot, Snapshot, Times, VersionSnapshot

OK: Final = "ok"
"""The outcome of a request that was answered with outputs."""

USUAL_OUTCOMES: Final = (
    OK,
    Reason.DEADLINE,
    Reason.CANCELLED,
    Reason.MODEL_ERROR,
    Reason.WORKER_DIED,
    Reason.POISONED,
)
"""Outcomes that are exported with 0 as well, for each version: where a series begins with its first count, `rate` does
not see that one."""

USUAL_REFUSALS: Final = (Reason.QUEUE_FULL, Reason.NO_WORKER, Reason.SHAPE_INVALID)
"""The same for each model, of requests that were refused before they were queued."""

TIME_EXPONENTS: Final = range(16, 38)
"""The buckets of times end at 2 to the power of these nanoseconds, from 66 us to 137 s, where slots of the daemon's own
histograms end: the counts of the buckets are exact."""

EDGES_S: Final = tuple(2**exponent / 1e9 for exponent in TIME_EXPONENTS)

_EDGES_ROWS: Final = tuple(float(2**exponent) for exponent in range(BATCH_ROWS_EXPONENTS))
_counts_at_edges: Final = itemgetter(*(slots_below(exponent) - 1 for exponent in TIME_EXPONENTS))
_MODEL: Final = ("model", "version")
_SLOT: Final = ("slot", "device")
_DEVICE: Final = ("device",)

BUILD_INFO: Final = Metric(
    "multitower_build_info",
    Kind.GAUGE,
    "Always 1. compiled tells whether the data path is compiled.",
    ("version", "compiled"),
)
REQUESTS: Final = Metric(
    "multitower_requests_total",
    Kind.COUNTER,
    "Requests that got their reply, by outcome: ok, or the reason of the error. version is empty for requests refused "
    "before they were queued; model and version are empty for requests that named no known model.",
    ("model", "version", "outcome"),
)
REQUEST_SECONDS: Final = Metric(
    "multitower_request_seconds",
    Kind.HISTOGRAM,
    "Time from receipt to reply, of requests answered with outputs.",
    _MODEL,
    EDGES_S,
)
QUEUE_SECONDS: Final = Metric(
    "multitower_queue_seconds",
    Kind.HISTOGRAM,
    "Time from receipt until a worker got the request, of requests answered with outputs.",
    _MODEL,
    EDGES_S,
)
COMPUTE_SECONDS: Final = Metric(
    "multitower_compute_seconds", Kind.HISTOGRAM, "Time in the model, by batch.", _MODEL, EDGES_S
)
BATCH_ROWS: Final = Metric("multitower_batch_rows", Kind.HISTOGRAM, "Rows of batches.", _MODEL, _EDGES_ROWS)
ROWS: Final = Metric("multitower_rows_total", Kind.COUNTER, "Rows of requests answered with outputs.", _MODEL)
POISONED: Final = Metric(
    "multitower_poisoned_requests_total",
    Kind.COUNTER,
    "Requests answered poisoned: workers died while executing the request, or an equal one earlier.",
    _MODEL,
)
RETRIED: Final = Metric(
    "multitower_retried_requests_total",
    Kind.COUNTER,
    "Requests, or parts of split ones, that run again because the worker that executed them died.",
    ("model",),
)
SERVING_SLOTS: Final = Metric(
    "multitower_model_serving_slots", Kind.GAUGE, "Slots whose worker serves the version of the model.", _MODEL
)
QUEUE_REQUESTS: Final = Metric("multitower_queue_requests", Kind.GAUGE, "Requests that no worker has yet.", ("model",))
QUEUE_BYTES: Final = Metric("multitower_queue_bytes", Kind.GAUGE, "Bytes of the requests in the queue.", ("model",))
QUEUE_OLDEST: Final = Metric(
    "multitower_queue_oldest_seconds",
    Kind.GAUGE,
    "How long the oldest request in the queue has waited; 0 for an empty queue.",
    ("model",),
)
OUTSTANDING: Final = Metric("multitower_outstanding_requests", Kind.GAUGE, "Accepted requests that have no reply yet.")
LATE: Final = Metric(
    "multitower_late_results_total",
    Kind.COUNTER,
    "Results that came after their requests had been answered: at the deadline, or cancelled.",
)
REPLIES_DROPPED: Final = Metric(
    "multitower_replies_dropped_total", Kind.COUNTER, "Replies whose client had disconnected or did not read."
)
UNREAD_BYTES: Final = Metric(
    "multitower_unread_reply_bytes", Kind.GAUGE, "Bytes of replies that clients have not read yet."
)
SPANS_EXPORTED: Final = Metric(
    "multitower_spans_exported_total", Kind.COUNTER, "Spans of requests that the collector of traces has taken."
)
SPANS_DROPPED: Final = Metric(
    "multitower_spans_dropped_total",
    Kind.COUNTER,
    "Spans of requests that the collector of traces did not get.",
)
LOG_LINES_DROPPED: Final = Metric(
    "multitower_request_log_dropped_lines_total",
    Kind.COUNTER,
    "Lines of the request log that were not written: too many waited, or the file could not be written.",
)
LOG_ROTATIONS_FAILED: Final = Metric(
    "multitower_request_log_failed_rotations_total",
    Kind.COUNTER,
    "How often the full file of the request log could not be replaced by another one.",
)
LOOP_LAG: Final = Metric(
    "multitower_event_loop_lag_seconds",
    Kind.HISTOGRAM,
    "How late the event loop's timers ran; several each second.",
    (),
    EDGES_S,
)
WORKER_STATE: Final = Metric(
    "multitower_worker_state", Kind.GAUGE, "1 for the state of the slot, 0 for all others.", (*_SLOT, "state")
)
WORKER_DEPTH: Final = Metric(
    "multitower_worker_depth_rows", Kind.GAUGE, "Rows that the worker has got and not answered.", _SLOT
)
WORKER_BUSY: Final = Metric(
    "multitower_worker_busy_ratio",
    Kind.GAUGE,
    "Share of the last 2 s in which the worker was executing batches, from 0 to 1.",
    _SLOT,
)
WORKER_CONDITION: Final = Metric(
    "multitower_worker_condition",
    Kind.GAUGE,
    "1 for the condition that the worker seems to be in (ok, slow, unresponsive, died), 0 for all others.",
    (*_SLOT, "condition"),
)
WORKER_BATCH_AGE: Final = Metric(
    "multitower_worker_batch_age_seconds",
    Kind.GAUGE,
    "How long the worker has been executing its present batch; 0 without one.",
    _SLOT,
)
WORKER_RESTARTS: Final = Metric(
    "multitower_worker_restarts_total",
    Kind.COUNTER,
    "Workers that were started after a death, by how the one before had ended.",
    ("slot", "cause"),
)
WORKER_BATCHES: Final = Metric("multitower_worker_batches_total", Kind.COUNTER, "Batches that were answered.", _SLOT)
WORKER_ROWS: Final = Metric("multitower_worker_rows_total", Kind.COUNTER, "Rows of answered batches.", _SLOT)
WORKER_BUSY_SECONDS: Final = Metric(
    "multitower_worker_busy_seconds_total",
    Kind.COUNTER,
    "Time from when the worker could start a batch to its answer; of all towers together.",
    _SLOT,
)
WORKER_RSS: Final = Metric(
    "multitower_worker_resident_memory_bytes",
    Kind.GAUGE,
    "Resident memory of the worker, without memory that is shared with clients.",
    _SLOT,
)
WORKER_DEVICE_MEMORY: Final = Metric(
    "multitower_worker_device_memory_bytes",
    Kind.GAUGE,
    "Memory of devices that the worker uses, where the driver tells it.",
    _SLOT,
)
DEVICE_MEMORY: Final = Metric(
    "multitower_device_memory_bytes", Kind.GAUGE, "Memory of the device in use, by all processes.", _DEVICE
)
DEVICE_MEMORY_TOTAL: Final = Metric(
    "multitower_device_memory_size_bytes", Kind.GAUGE, "Memory that the device has.", _DEVICE
)
DEVICE_UTILIZATION: Final = Metric(
    "multitower_device_utilization_ratio",
    Kind.GAUGE,
    "Share of the time in which the device computed, for any process, from 0 to 1.",
    _DEVICE,
)
DEVICE_POWER: Final = Metric("multitower_device_power_watts", Kind.GAUGE, "Power that the device draws.", _DEVICE)
DEVICE_TEMPERATURE: Final = Metric(
    "multitower_device_temperature_celsius", Kind.GAUGE, "Temperature of the device.", _DEVICE
)
DEVICE_ENERGY: Final = Metric(
    "multitower_device_energy_joules_total",
    Kind.COUNTER,
    "Energy that the device has used since its driver was loaded.",
    _DEVICE,
)
DEVICE_PRESENT: Final = Metric(
    "multitower_device_present", Kind.GAUGE, "1 while NVML lists the device, 0 when it is lost.", _DEVICE
)
GATEWAY_CONNECTIONS: Final = Metric(
    "multitower_gateway_connections", Kind.GAUGE, "Connections of clients of the gateway that are open."
)
GATEWAY_OUTSTANDING: Final = Metric(
    "multitower_gateway_outstanding_requests",
    Kind.GAUGE,
    "Requests that the gateway has sent to the daemon and that have no answer yet.",
)
GATEWAY_REQUESTS: Final = Metric(
    "multitower_gateway_requests_total",
    Kind.COUNTER,
    "Requests that the gateway answered, by interface and by HTTP status or gRPC code.",
    ("interface", "status"),
)
GATEWAY_RECEIVED: Final = Metric(
    "multitower_gateway_received_bytes_total", Kind.COUNTER, "Bytes that the gateway read from clients."
)
GATEWAY_SENT: Final = Metric(
    "multitower_gateway_sent_bytes_total", Kind.COUNTER, "Bytes that the gateway sent to clients."
)
GATEWAY_RESTARTS: Final = Metric(
    "multitower_gateway_restarts_total", Kind.COUNTER, "How often the gateway was started again."
)
GATEWAY_CERTIFICATE: Final = Metric(
    "multitower_gateway_certificate_not_after_seconds",
    Kind.GAUGE,
    "When the certificate of the gateway expires, in seconds since 1970. With gateway.tls only.",
)
AUTHENTICATION_FAILURES: Final = Metric(
    "multitower_authentication_failures_total",
    Kind.COUNTER,
    "Clients that could not show who they are, by the interface and by why. With security configured only.",
    ("interface", "reason"),
)


def families(snapshot: Snapshot) -> list[Family]:
    """Returns all metrics of the daemon with their values.

    Args:
        snapshot: what they are made of.
    """
    return [
        *_of_models(snapshot),
        *_of_workers(snapshot.slots),
        *_of_devices(snapshot.gpus),
        *_of_daemon(snapshot),
        *(_of_gateway(snapshot.gateway, snapshot.gateway_restarts) if snapshot.gateway is not None else ()),
        *(_of_locks(snapshot.authentication_failures) if snapshot.authentication_failures is not None else ()),
    ]


def _of_models(snapshot: Snapshot) -> list[Family]:
    versions, queues = snapshot.versions, snapshot.queues
    return [
        Family(REQUESTS, _count_requests(snapshot)),
        Family(REQUEST_SECONDS, [(_labels(each), times(each.latency)) for each in versions]),
        Family(QUEUE_SECONDS, [(_labels(each), times(each.queue)) for each in versions]),
        Family(COMPUTE_SECONDS, [(_labels(each), times(each.compute)) for each in versions]),
        Family(BATCH_ROWS, [(_labels(each), _batch_rows(each)) for each in versions]),
        Family(ROWS, [(_labels(each), (each.rows,)) for each in versions]),
        Family(POISONED, _count_poisoned(snapshot)),
        Family(RETRIED, [((each.model,), (each.retried,)) for each in queues]),
        Family(SERVING_SLOTS, [(_labels(each), (snapshot.serving_slots.get(_labels(each), 0),)) for each in versions]),
        Family(QUEUE_REQUESTS, [((each.model,), (each.requests,)) for each in queues]),
        Family(QUEUE_BYTES, [((each.model,), (each.bytes,)) for each in queues]),
        Family(QUEUE_OLDEST, [((each.model,), (each.oldest_s,)) for each in queues]),
    ]


def _of_workers(slots: list[SlotSnapshot]) -> list[Family]:
    return [
        Family(
            WORKER_STATE,
            [((*_slot(each), state.value), (int(state == each.state),)) for each in slots for state in State],
        ),
        Family(WORKER_DEPTH, [(_slot(each), (each.depth,)) for each in slots]),
        Family(WORKER_BUSY, [(_slot(each), (each.busy_ratio,)) for each in slots]),
        Family(
            WORKER_CONDITION,
            [
                ((*_slot(each), condition.value), (int(condition == each.condition),))
                for each in slots
                for condition in Condition
            ],
        ),
        Family(WORKER_BATCH_AGE, [(_slot(each), (each.batch_age_s,)) for each in slots]),
        Family(
            WORKER_RESTARTS,
            [((str(each.number), kind), (count,)) for each in slots for kind, count in each.restarts.items()],
        ),
        Family(WORKER_BATCHES, [(_slot(each), (each.batches,)) for each in slots]),
        Family(WORKER_ROWS, [(_slot(each), (each.rows,)) for each in slots]),
        Family(WORKER_BUSY_SECONDS, [(_slot(each), (each.busy_s,)) for each in slots]),
        _known(WORKER_RSS, ((_slot(each), each.rss_bytes) for each in slots)),
        _known(WORKER_DEVICE_MEMORY, ((_slot(each), each.device_memory_bytes) for each in slots)),
    ]


def _of_devices(gpus: Mapping[str, GpuUsage]) -> list[Family]:
    def family(metric: Metric, read: Callable[[GpuUsage], float | None]) -> Family:
        return _known(metric, (((name,), read(gpu)) for name, gpu in gpus.items()))

    return [
        family(DEVICE_MEMORY, lambda gpu: gpu.used_bytes),
        family(DEVICE_MEMORY_TOTAL, lambda gpu: gpu.total_bytes),
        family(DEVICE_UTILIZATION, busy_share),
        family(DEVICE_POWER, lambda gpu: gpu.power_watts),
        family(DEVICE_TEMPERATURE, lambda gpu: gpu.temperature_celsius),
        family(DEVICE_ENERGY, lambda gpu: gpu.energy_joules),
        family(DEVICE_PRESENT, lambda gpu: None if gpu.present is None else int(gpu.present)),
    ]


def busy_share(gpu: GpuUsage) -> float | None:
    """Returns the share of the time in which a GPU computed, from 0 to 1; None if unknown."""
    return gpu.utilization_percent / 100 if gpu.utilization_percent is not None else None


def _of_gateway(counts: Counts, restarts: int) -> list[Family]:
    return [
        _single(GATEWAY_CONNECTIONS, counts.connections),
        _single(GATEWAY_OUTSTANDING, counts.outstanding),
        Family(GATEWAY_REQUESTS, [(key, (count,)) for key, count in counts.by_status.items()]),
        _single(GATEWAY_RECEIVED, counts.received_bytes),
        _single(GATEWAY_SENT, counts.sent_bytes),
        _single(GATEWAY_RESTARTS, restarts),
        _known(GATEWAY_CERTIFICATE, [((), counts.certificate_not_after)]),
    ]


def _of_locks(failures: Mapping[tuple[str, str], int]) -> list[Family]:
    return [Family(AUTHENTICATION_FAILURES, [(key, (count,)) for key, count in failures.items()])]


def _of_daemon(snapshot: Snapshot) -> list[Family]:
    built = (snapshot.version, "true" if snapshot.compiled else "false")
    return [
        _single(OUTSTANDING, snapshot.outstanding),
        _single(LATE, snapshot.late),
        _single(REPLIES_DROPPED, snapshot.replies_dropped),
        _single(UNREAD_BYTES, snapshot.unread_bytes),
        _single(SPANS_EXPORTED, snapshot.spans_exported),
        _single(SPANS_DROPPED, snapshot.spans_dropped),
        _single(LOG_LINES_DROPPED, snapshot.log_lines_dropped),
        _single(LOG_ROTATIONS_FAILED, snapshot.log_rotations_failed),
        Family(LOOP_LAG, [((), times(snapshot.loop_lag))]),
        Family(BUILD_INFO, [(built, (1,))]),
    ]


def _known(metric: Metric, values: Iterable[tuple[Labels, float | None]]) -> Family:
    """Returns a metric with the series whose values are known."""
    return Family(metric, [(labels, (value,)) for labels, value in values if value is not None])


def _single(metric: Metric, value: float) -> Family:
    return Family(metric, [((), (value,))])


def _labels(version: VersionSnapshot) -> tuple[str, str]:
    return version.model, version.version


def _slot(slot: SlotSnapshot) -> Labels:
    return str(slot.number), slot.device


def times(measured: Times) -> tuple[float, ...]:
    """Returns the values of a histogram of times, with its sum in seconds."""
    total = sum(measured.counts)
    return (*_counts_at_edges(list(accumulate(measured.counts))), total, total, measured.ns / 1e9)


def _batch_rows(version: VersionSnapshot) -> tuple[float, ...]:
    counts = list(accumulate(version.batch_sizes))
    return (*counts, counts[-1], version.batch_rows)


def _count_requests(snapshot: Snapshot) -> list[Series]:
    counted: dict[Labels, int] = {}

    def count(labels: Labels, requests: int) -> None:
        counted[labels] = counted.get(labels, 0) + requests

    for each in snapshot.versions:
        for outcome in USUAL_OUTCOMES if each.version else ():
            count((each.model, each.version, outcome), 0)
        count((each.model, each.version, OK), each.ok)
        for reason, requests in each.errors.items():
            count((each.model, each.version, encodable(reason)), requests)
    for queue in snapshot.queues:
        for reason in USUAL_REFUSALS:
            count((queue.model, "", reason), 0)
        for reason, requests in queue.refused.items():
            count((queue.model, "", reason), requests)
    for reason, requests in snapshot.refused.items():
        count(("", "", reason), requests)
    return [(labels, (requests,)) for labels, requests in counted.items()]


def _count_poisoned(snapshot: Snapshot) -> list[Series]:
    counted = {(queue.model, ""): queue.refused.get(Reason.POISONED, 0) for queue in snapshot.queues}
    for each in snapshot.versions:
        key = each.model, each.version
        counted[key] = counted.get(key, 0) + each.errors.get(Reason.POISONED, 0)
    return [(labels, (requests,)) for labels, requests in counted.items()]
