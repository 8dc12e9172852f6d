"""Metrics by the names of Triton and of TensorFlow Serving, for dashboards and alerts that were made for them.

They are exported where `metrics.compatibility` names the system. Names, labels and units are those of these systems, so
that they break rules that multitower's own metrics keep.

- Triton: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
- TensorFlow Serving: https://github.com/tensorflow/serving/blob/master/tensorflow_serving/servables/tensorflow/util.cc
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from multitower.errors import CODE_OF, Reason

from ..machine.gpu_sampler import GpuUsage
from .exposition import Family, Kind, Labels, Metric, Series
from .metric_families import EDGES_S, busy_share, times
from .snapshot import Snapshot, Times, VersionSnapshot

TRITON: Final = "triton"
TENSORFLOW_SERVING: Final = "tensorflow_serving"

_EDGES_US: Final = tuple(edge * 1e6 for edge in EDGES_S)
_MODEL: Final = ("model", "version")
_API: Final = ("model_name", "API", "entrypoint")
_PREDICT: Final = ("Predict", "")
"""The daemon runs all requests as Predict does, and does not know by which interface they came."""


def _counter(name: str, help_text: str, labels: tuple[str, ...] = _MODEL) -> Metric:
    return Metric(name, Kind.FOREIGN_COUNTER, help_text, labels)


def _gauge(name: str, help_text: str, labels: tuple[str, ...] = ("gpu_uuid",)) -> Metric:
    return Metric(name, Kind.GAUGE, help_text, labels)


def _histogram(name: str, help_text: str, labels: tuple[str, ...]) -> Metric:
    return Metric(name, Kind.HISTOGRAM, help_text, labels, _EDGES_US)


_SUCCESS: Final = _counter("nv_inference_request_success", "Requests answered with outputs.")
_FAILURE: Final = _counter("nv_inference_request_failure", "Requests answered with errors.", (*_MODEL, "reason"))
_COUNT: Final = _counter("nv_inference_count", "Rows of requests answered with outputs.")
_EXECUTIONS: Final = _counter("nv_inference_exec_count", "Batches that the model ran without an error.")
_PENDING: Final = _gauge("nv_inference_pending_request_count", "Requests that no worker has yet.", _MODEL)
_DURATIONS: Final[tuple[tuple[Metric, Callable[[VersionSnapshot], int]], ...]] = (
    (
        _counter("nv_inference_request_duration_us", "Time of requests from receipt to reply, in microseconds."),
        lambda version: version.latency.ns // 1000,
    ),
    (
        _counter("nv_inference_queue_duration_us", "Time of requests in the queue, in microseconds."),
        lambda version: version.queue.ns // 1000,
    ),
    (
        _counter("nv_inference_compute_input_duration_us", "Time in which batches were assembled, in microseconds."),
        lambda version: version.input_ns // 1000,
    ),
    (
        _counter("nv_inference_compute_infer_duration_us", "Time in the model, in microseconds."),
        lambda version: version.compute.ns // 1000,
    ),
    (
        _counter("nv_inference_compute_output_duration_us", "Time in which outputs were sliced, in microseconds."),
        lambda version: version.output_ns // 1000,
    ),
)
_GPU: Final[tuple[tuple[Metric, Callable[[GpuUsage], float | None]], ...]] = (
    (_gauge("nv_gpu_utilization", "Share of the time in which the GPU computed, from 0 to 1."), busy_share),
    (_gauge("nv_gpu_memory_total_bytes", "Memory of the GPU in bytes."), lambda gpu: gpu.total_bytes),
    (_gauge("nv_gpu_memory_used_bytes", "Memory of the GPU in use in bytes."), lambda gpu: gpu.used_bytes),
    (_gauge("nv_gpu_power_usage", "Power that the GPU draws in watts."), lambda gpu: gpu.power_watts),
    (
        _counter("nv_energy_consumption", "Energy that the GPU has used in joules.", ("gpu_uuid",)),
        lambda gpu: gpu.energy_joules,
    ),
)

_REQUEST_COUNT: Final = _counter(
    ":tensorflow:serving:request_count", "Requests by the status of their answer.", ("model_name", "status")
)
_REQUEST_LATENCY: Final = _histogram(
    ":tensorflow:serving:request_latency", "Time of requests from receipt to reply, in microseconds.", _API
)
_RUNTIME_LATENCY: Final = _histogram(
    ":tensorflow:serving:runtime_latency", "Time in the model, in microseconds.", ("model_name", "API", "runtime")
)
_QUEUING_LATENCY: Final = _histogram(
    ":tensorflow:serving:batching_session:queuing_latency",
    "Time of requests in the queue, in microseconds.",
    ("model_name",),
)

_REASONS_OF_TRITON: Final[Mapping[str, str]] = {
    Reason.CANCELLED: "CANCELED",
    Reason.QUEUE_FULL: "REJECTED",
    Reason.DEADLINE: "REJECTED",
    Reason.MODEL_ERROR: "BACKEND",
    Reason.OUTPUT_INVALID: "BACKEND",
    Reason.WORKER_DIED: "BACKEND",
    Reason.POISONED: "BACKEND",
}
"""All other reasons are OTHER."""

_FAILURES: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


def compatible_families(snapshot: Snapshot) -> list[Family]:
    """Returns the metrics by the names of the systems that the configuration names.

    Args:
        snapshot: what they are made of.
    """
    return [
        *(_of_triton(snapshot) if TRITON in snapshot.compatibility else ()),
        *(_of_tensorflow_serving(snapshot) if TENSORFLOW_SERVING in snapshot.compatibility else ()),
    ]


def _of_triton(snapshot: Snapshot) -> list[Family]:
    versions = [each for each in snapshot.versions if each.version]

    def family(metric: Metric, read: Callable[[VersionSnapshot], float]) -> Family:
        return Family(metric, [((each.model, each.version), (read(each),)) for each in versions])

    def of_gpus(metric: Metric, read: Callable[[GpuUsage], float | None]) -> Family:
        found = ((name, read(gpu)) for name, gpu in snapshot.gpus.items())
        return Family(metric, [((name,), (value,)) for name, value in found if value is not None])

    failures: dict[Labels, int] = {
        (each.model, each.version, reason): 0 for each in snapshot.versions for reason in _FAILURES
    }
    for model, version, reason, count in _failed(snapshot, snapshot.versions):
        labels = (model, version, _REASONS_OF_TRITON.get(reason, "OTHER"))
        failures[labels] = failures.get(labels, 0) + count
    return [
        family(_SUCCESS, lambda version: version.ok),
        Family(_FAILURE, [(labels, (count,)) for labels, count in failures.items()]),
        family(_COUNT, lambda version: version.rows),
        family(_EXECUTIONS, lambda version: version.executions),
        Family(_PENDING, [((queue.model, ""), (queue.requests,)) for queue in snapshot.queues]),
        *(family(metric, read) for metric, read in _DURATIONS),
        *(of_gpus(metric, read) for metric, read in _GPU),
    ]


def _failed(snapshot: Snapshot, versions: Sequence[VersionSnapshot]) -> list[tuple[str, str, str, int]]:
    """Returns how many requests of known models got an error: model, version, reason and count."""
    return [
        *((each.model, each.version, *error) for each in versions for error in each.errors.items()),
        *((queue.model, "", *error) for queue in snapshot.queues for error in queue.refused.items()),
    ]


def _of_tensorflow_serving(snapshot: Snapshot) -> list[Family]:
    counts: dict[Labels, int] = {}
    versions = [*snapshot.versions, *snapshot.removed]
    for each in versions:
        labels = (each.model, "OK")
        counts[labels] = counts.get(labels, 0) + each.ok
    for model, _, reason, count in _failed(snapshot, versions):
        code = CODE_OF.get(Reason(reason)) if reason in CODE_OF else None
        labels = (model, code.value if code is not None else "UNKNOWN")
        counts[labels] = counts.get(labels, 0) + count

    def family(metric: Metric, read: Callable[[VersionSnapshot], Times], more: Labels) -> Family:
        return Family(metric, _summed(versions, read, more))

    return [
        Family(_REQUEST_COUNT, [(labels, (count,)) for labels, count in counts.items()]),
        family(_REQUEST_LATENCY, lambda version: version.latency, _PREDICT),
        family(_RUNTIME_LATENCY, lambda version: version.compute, ("Predict", "TF")),
        family(_QUEUING_LATENCY, lambda version: version.queue, ()),
    ]


def _summed(
    versions: Sequence[VersionSnapshot], read: Callable[[VersionSnapshot], Times], more: Labels
) -> list[Series]:
    """Returns a histogram of each model over its versions, in microseconds.

    Args:
        versions: of all models.
        read: returns the histogram of a version.
        more: the values of the labels behind the model's name.
    """
    found: dict[str, tuple[float, ...]] = {}
    for each in versions:
        values = times(read(each))
        before = found.get(each.model)
        found[each.model] = values if before is None else tuple(map(sum, zip(before, values, strict=True)))
    return [((model, *more), (*values[:-1], values[-1] * 1e6)) for model, values in found.items()]
