"""Copies, in the loop's thread, what the metrics are made of; the copies are written as text in another thread.

Copying is cheap: lists and dictionaries of counters, one or a few for each version of a model and each slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, NamedTuple

from multitower.compiled import compiled

from ..gateway.run import Counts
from ..gateway.supervision import Gateway
from ..machine.gpu_sampler import GpuUsage
from ..machine.resources import Sampler
from ..routing.endpoints import Endpoints
from ..routing.router import Router
from ..routing.statistics import ModelStatistics
from ..routing.worker_totals import WorkerTotals
from ..security.access_control import AccessControl
from ..settings import ActiveSettings
from ..workers.exit_cause import DeathKind
from ..workers.manager import WorkerManager
from ..workers.slot import Slot
from ..workers.slot_conditions import SlotCondition, examine_slots
from .loop_lag import LoopLag
from .request_log import RequestLog
from .tracing import Tracing

_NOTHING: Final = ModelStatistics()
_NO_BATCHES: Final = WorkerTotals()


class Times(NamedTuple):
    """A histogram of times.

    Attributes:
        counts: of its slots; see `LatencyHistogram`.
        ns: the sum of all times in nanoseconds.
    """

    counts: list[int]
    ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSnapshot:
    """The counters of one version of a model; see `ModelStatistics`."""

    model: str
    version: str
    ok: int
    errors: Mapping[str, int]
    rows: int
    executions: int
    batch_rows: int
    batch_sizes: list[int]
    latency: Times
    queue: Times
    compute: Times
    input_ns: int
    output_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """The queue of a model, and its requests that have no version.

    Attributes:
        model: the model's name.
        requests: how many wait.
        bytes: of these.
        oldest_s: how long the oldest of them has waited, in seconds; 0 if there are none.
        retried: how many requests were put back because the worker that was executing them died.
        refused: requests for the model that were refused before they were queued, by reason.
    """

    model: str
    requests: int
    bytes: int
    oldest_s: float
    retried: int
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSnapshot:
    """A slot and its worker.

    Attributes:
        number: of the slot.
        device: the name of its device, or of several with commas between them.
        state: its state.
        depth: rows that its worker has.
        batches: answered by its workers since the daemon started.
        rows: in these.
        busy_s: seconds that these took, of all towers together.
        busy_ratio: the share of the last seconds in which its worker was executing batches.
        batch_age_s: for how long its worker has been executing a batch, the oldest one, in seconds; 0 for none.
        condition: what its worker seems to be, a value of `Condition`; None if there is nothing to say.
        restarts: how many workers were started after a death, by how the one before had ended.
        rss_bytes: resident memory of its worker; None if unknown.
        device_memory_bytes: memory of devices that its worker uses; None if unknown.
    """

    number: int
    device: str
    state: str
    depth: int
    batches: int
    rows: int
    busy_s: float
    busy_ratio: float
    batch_age_s: float
    condition: str | None
    restarts: Mapping[str, int]
    rss_bytes: int | None
    device_memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the metrics are made of, at one moment.

    Attributes:
        version, compiled: of this installation.
        versions: the versions of all models.
        removed: for each model what versions have counted that are not served any more; their version is empty.
        queues: the queues of all models.
        slots: the slots.
        refused: requests that were refused before they were queued and named no known model, by reason.
        outstanding: accepted requests that have no reply yet.
        late: results that came after their requests had been answered.
        replies_dropped: replies whose client had left or did not read.
        unread_bytes: bytes of replies that clients have not read yet.
        loop_lag: how late timers of the event loop were.
        gpus: what NVML reports, by UUID.
        gateway: what the gateway has counted; None where none is configured.
        gateway_restarts: how often it was started again because it had died, or could not be started.
        serving_slots: how many slots serve a version of a model, by these.
        spans_exported: spans of requests that a collector has taken.
        spans_dropped: spans that no collector has got.
        log_lines_dropped: lines of the request log that were not written.
        log_rotations_failed: how often a full file of the request log could not be replaced by another one.
        compatibility: the systems whose names are added.
        authentication_failures: by interface and reason; None without `security`.
    """

    version: str
    compiled: bool
    versions: list[VersionSnapshot]
    removed: list[VersionSnapshot]
    queues: list[QueueSnapshot]
    slots: list[SlotSnapshot]
    refused: Mapping[str, int]
    outstanding: int
    late: int
    replies_dropped: int
    unread_bytes: int
    loop_lag: Times
    gpus: Mapping[str, GpuUsage]
    gateway: Counts | None
    gateway_restarts: int
    serving_slots: Mapping[tuple[str, str], int]
    spans_exported: int
    spans_dropped: int
    log_lines_dropped: int
    log_rotations_failed: int
    compatibility: tuple[str, ...]
    authentication_failures: Mapping[tuple[str, str], int] | None


def count_dropped_replies(router: Router, endpoints: Endpoints) -> int:
    """Returns the replies that were dropped for clients of the front sockets, and for the gateway."""
    # The gateway's socket is not one of the router's front sockets: these are the endpoints of `listen`.
    fronts = router.fronts if endpoints.gateway is None else [*router.fronts, endpoints.gateway]
    return sum(front.dropped for front in fronts)


class SnapshotReader:
    """Takes snapshots. For the loop's thread.

    Construct it at the daemon's start: it reads the installed version from the file system, which the event loop must
    not do.

    Args:
        router: the router.
        manager: the worker processes.
        settings: the settings in force.
        loop_lag: measures the event loop.
        sampler: measures devices and processes.
        endpoints: the daemon's.
        gateway: the daemon's; None where none is configured.
        tracing: the daemon's.
        access: the daemon's; None without `security`.
        request_log: the daemon's.
    """

    def __init__(
        self,
        *,
        router: Router,
        manager: WorkerManager,
        settings: ActiveSettings,
        loop_lag: LoopLag,
        sampler: Sampler,
        endpoints: Endpoints,
        gateway: Gateway | None,
        tracing: Tracing,
        access: AccessControl | None,
        request_log: RequestLog,
    ) -> None:
        self._router = router
        self._manager = manager
        self._settings = settings
        self._loop_lag = loop_lag
        self._sampler = sampler
        self._endpoints = endpoints
        self._gateway = gateway
        self._tracing = tracing
        self._access = access
        self._request_log = request_log
        self._version = version("multitower")
        self._compiled = compiled()

    def take(self, now: float) -> Snapshot:
        """Returns a copy of what the metrics are made of.

        Args:
            now: monotonic seconds.
        """
        router, scheduler = self._router, self._router.scheduler
        return Snapshot(
            version=self._version,
            compiled=self._compiled,
            versions=[each for model in scheduler.models for each in self._copy_versions(model)],
            removed=[_copy_statistics(model, "", each) for model, each in router.models.removed_statistics.items()],
            queues=[self._copy_queue(model, now) for model in scheduler.models],
            slots=self._copy_slots(now),
            refused=router.refused.without_model(),
            outstanding=scheduler.outstanding,
            late=scheduler.late_answers,
            replies_dropped=count_dropped_replies(router, self._endpoints),
            unread_bytes=router.unread.total,
            loop_lag=Times(self._loop_lag.histogram.copy_counts(), self._loop_lag.total_ns),
            gpus=self._sampler.gpus(),
            gateway=self._gateway.total_counts() if self._gateway is not None else None,
            gateway_restarts=self._gateway.restarts if self._gateway is not None else 0,
            serving_slots=self._count_serving_slots(),
            spans_exported=self._tracing.exported,
            spans_dropped=self._tracing.dropped,
            log_lines_dropped=self._request_log.dropped,
            log_rotations_failed=self._request_log.failed_rotations,
            compatibility=self._settings.current.config.metrics.compatibility,
            authentication_failures=dict(self._access.failures.counts) if self._access is not None else None,
        )

    def _copy_versions(self, model: str) -> list[VersionSnapshot]:
        """Copies the counters of each version that is served or has been counted; those without a request are 0."""
        counted = {
            number: each for number, each in self._router.models.statistics[model].items() if number or each.fail.count
        }
        counted |= {number: _NOTHING for number in self._router.models.versions(model) if number not in counted}
        return [_copy_statistics(model, number, statistics) for number, statistics in counted.items()]

    def _copy_queue(self, model: str, now: float) -> QueueSnapshot:
        waiting = self._router.scheduler.waiting(model)
        refused = self._router.refused.of_models.get(model)
        return QueueSnapshot(
            model=model,
            requests=waiting.requests,
            bytes=waiting.bytes,
            oldest_s=max(0.0, now - waiting.oldest) if waiting.oldest is not None else 0.0,
            retried=self._router.scheduler.retried(model),
            refused=dict(refused.total) if refused is not None else {},
        )

    def _count_serving_slots(self) -> dict[tuple[str, str], int]:
        """Counts for each version of a model the slots whose worker serves it."""
        slots: dict[tuple[str, str], set[int]] = {}
        for worker in self._router.routes:
            for key in worker.versions:
                slots.setdefault(key, set()).add(worker.slot)
        return {key: len(numbers) for key, numbers in slots.items()}

    def _copy_slots(self, now: float) -> list[SlotSnapshot]:
        slots = self._manager.slots
        conditions = examine_slots(slots, self._router.routes, now)
        return [self._copy_slot(slot, conditions[slot.number], now) for slot in slots]

    def _copy_slot(self, slot: Slot, condition: SlotCondition, now: float) -> SlotSnapshot:
        route = slot.route
        totals = self._router.worker_totals.get(slot.number, _NO_BATCHES)
        sample = self._sampler.sample(slot.number)
        own_memory = sample is not None and sample.device_memory_of == "process"
        return SlotSnapshot(
            number=slot.number,
            device=slot.placement.device,
            state=slot.state.value,
            depth=route.depth if route is not None else 0,
            batches=totals.batches,
            rows=totals.rows,
            busy_s=totals.busy_s,
            busy_ratio=route.busy_ratio(now) if route is not None else 0.0,
            batch_age_s=condition.batch_running_s or 0.0,
            condition=condition.finding.condition.value if condition.finding is not None else None,
            restarts={kind.value: slot.restarts_by_kind.get(kind, 0) for kind in DeathKind},
            rss_bytes=sample.rss_bytes if sample is not None else None,
            device_memory_bytes=sample.device_memory_bytes if sample is not None and own_memory else None,
        )


def _copy_statistics(model: str, number: str, statistics: ModelStatistics) -> VersionSnapshot:
    return VersionSnapshot(
        model=model,
        version=number,
        ok=statistics.success.count,
        errors=dict(statistics.errors.total),
        rows=statistics.rows,
        executions=statistics.executions,
        batch_rows=statistics.batch_rows,
        batch_sizes=statistics.batch_sizes.copy(),
        latency=Times(statistics.latency.copy_counts(), statistics.success.ns),
        queue=Times(statistics.queue_times.copy_counts(), statistics.queue.ns),
        compute=Times(statistics.compute_times.copy_counts(), statistics.compute_infer.ns),
        input_ns=statistics.compute_input.ns,
        output_ns=statistics.compute_output.ns,
    )
