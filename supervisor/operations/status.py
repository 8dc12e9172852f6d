"""The reply to `MT1:status`: the daemon, its slots and its models, for operators and programs.

Reads the live state and keeps nothing. docs/protocol.md describes every key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from multitower.compiled import compiled
from multitower.spec import ModelReport

from ..lifecycle import Lifecycle
from ..machine.resources import Sampler
from ..routing.endpoints import Endpoints, problem_kind
from ..routing.recent import RecentCounts
from ..routing.router import Router
from ..routing.routes import Route
from ..routing.statistics import ModelStatistics
from ..settings import ActiveSettings
from ..workers.manager import WorkerManager
from ..workers.slot import Slot, WorkerProcess
from .orders import LastReload
from .readiness import Readiness

MEMORY = ("host_memory_bytes", "device_memory_bytes", "device_memory_peak_bytes")
"""Attributes of `ModelReport`: by how much memory grew while a worker loaded a model."""


class StatusReporter:
    """Writes the status.

    Construct it at the daemon's start: it reads the installed version from the file system, which the event loop must
    not do.

    Args:
        lifecycle: the daemon's.
        readiness: knows which models are ready.
        router: the router.
        manager: the worker processes.
        settings: the settings in force.
        refused_versions: returns why versions in a model's folder are not served, by model and version.
        last_reload: returns the reload that was begun last; None before the first.
        started: when the daemon started, in monotonic seconds.
        sampler: measures the processes; None leaves the figures `null`.
        endpoints: the daemon's; None leaves `control` and `connections` `null`.
    """

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        readiness: Readiness,
        router: Router,
        manager: WorkerManager,
        settings: ActiveSettings,
        refused_versions: Callable[[], Mapping[tuple[str, str], str]],
        last_reload: Callable[[], LastReload | None],
        started: float,
        sampler: Sampler | None = None,
        endpoints: Endpoints | None = None,
    ) -> None:
        self._lifecycle = lifecycle
        self._readiness = readiness
        self._router = router
        self._manager = manager
        self._settings = settings
        self._refused_versions = refused_versions
        self._last_reload = last_reload
        self._started = started
        self._sampler = sampler
        self._endpoints = endpoints
        self._version = version("multitower")
        self._compiled = compiled()

    def report(self, now: float) -> dict[str, Any]:
        """Returns the whole status.

        Args:
            now: monotonic seconds.
        """
        return {
            "daemon": self._daemon(now),
            "slots": [self._slot(slot, now) for slot in self._manager.slots],
            "models": [row for name in self._settings.model_names for row in self._versions(name, now)],
        }

    def _daemon(self, now: float) -> dict[str, Any]:
        router, scheduler = self._router, self._router.scheduler
        return {
            "pid": os.getpid(),
            "version": self._version,
            "compiled": self._compiled,
            "state": self._lifecycle.state.value,
            "uptime_s": round(now - self._started, 3),
            "rss_bytes": self._sampler.own_rss_bytes if self._sampler is not None else None,
            "listen": [front.endpoint for front in router.fronts],
            "spares": [{"pid": spare.child.pid, "state": spare.state} for spare in self._manager.spares],
            **self._readiness.report(),
            "config": self._report_config(now),
            "rejected": router.refused.count,
            "refused": _report_counts(router.refused.by_reason, now),
            "late": scheduler.late_answers,
            "replies_dropped": sum(front.dropped for front in router.fronts),
            "unread_bytes": router.unread.total,
            "control": self._endpoints.control.endpoint if self._endpoints is not None else None,
            "connections": self._report_connections(),
            "waiting": self._waiting(),
            "quarantine": [
                {"model": entry.model, "seconds_left": round(entry.until - now, 1), "refused": entry.refused}
                for entry in scheduler.quarantined_requests(now)
            ],
            "events": [past.to_json(now) for past in self._manager.history.events()],
        }

    def _report_config(self, now: float) -> dict[str, Any]:
        reload = self._last_reload()
        return {
            "path": str(self._settings.current.config.path),
            "last_reload": None
            if reload is None
            else {
                "outcome": reload.outcome,
                "age_s": _age(reload.ended_at if reload.ended_at is not None else reload.began_at, now),
                "cause": reload.cause,
            },
        }

    def _waiting(self) -> list[dict[str, str]]:
        """Returns what the daemon waits for and tries again by itself."""
        endpoints = self._endpoints.problems if self._endpoints is not None else {}
        return [
            *({"kind": problem_kind(name), "name": name, "cause": cause} for name, cause in endpoints.items()),
            *(
                {"kind": entry.kind, "name": entry.name, "cause": entry.cause}
                for entry in self._settings.current.waiting
            ),
        ]

    def _report_connections(self) -> dict[str, Any] | None:
        if self._endpoints is None:
            return None
        connections = self._endpoints.connections
        return {"open": connections.open, "max": connections.maximum, "paused": connections.paused}

    def _slot(self, slot: Slot, now: float) -> dict[str, Any]:
        route = slot.route
        sample = self._sampler.sample(slot.number) if self._sampler is not None else None
        batch_times = route.batch_times if route is not None else None
        return {
            "slot": slot.number,
            "state": str(slot.state),
            "state_for_s": _age(slot.state_since, now),
            "pid": slot.process.child.pid if slot.process is not None else None,
            "worker_age_s": _age(slot.process.started_at, now) if slot.process is not None else None,
            "device": slot.placement.device,
            "visible_devices": slot.visible_devices,
            "cores": list(slot.placement.cores),
            "incarnation": slot.incarnation,
            "restarts": slot.restarts,
            "last_restart_age_s": _age(slot.last_restart_at, now),
            "last_death_age_s": _age(slot.last_death_at, now),
            "depth": route.depth if route is not None else 0,
            "completed": slot.completed + (route.completed if route is not None else 0),
            "last_error": slot.last_error,
            "last_error_age_s": _age(slot.last_error_at, now),
            "safe_rows": dict(slot.safe_rows),
            **_step(slot.process, now),
            "replacement": _replacement(slot, now),
            "batch_ms": {
                "p50": _rounded_ms(batch_times.p50_ms(now)) if batch_times is not None else None,
                "p99": _rounded_ms(batch_times.p99_ms(now)) if batch_times is not None else None,
            },
            "rows_per_s": round(batch_times.rows_per_second(now), 1) if batch_times is not None else 0.0,
            "rss_bytes": sample.rss_bytes if sample is not None else None,
            "cpu_percent": sample.cpu_percent if sample is not None else None,
            "device_memory_bytes": sample.device_memory_bytes if sample is not None else None,
            "device_memory_of": sample.device_memory_of if sample is not None else None,
            "utilization_percent": sample.utilization_percent if sample is not None else None,
            "device_present": self._sampler.are_devices_present(slot.number) if self._sampler is not None else None,
            "devices": [
                {
                    "name": device.name,
                    "memory_bytes": device.memory_bytes,
                    "memory_of": device.memory_of,
                    "utilization_percent": device.utilization_percent,
                    "present": device.present,
                }
                for device in (self._sampler.sample_devices(slot.number) if self._sampler is not None else ())
            ],
            "models": [
                {
                    "name": model.name,
                    "version": model.version,
                    "state": model.state,
                    "cause": model.cause,
                    **{key: getattr(model, key) for key in MEMORY},
                }
                for model in slot.models
            ],
            "towers": _towers(route) if route is not None else [],
        }

    def _versions(self, name: str, now: float) -> list[dict[str, Any]]:
        """Returns a row for each version of the model that is served, configured or refused."""
        refused = {version: cause for (model, version), cause in self._refused_versions().items() if model == name}
        specs = (spec for spec in self._settings.models if spec.name == name)
        configured = {spec.version for spec in specs if spec.version is not None}
        served = self._router.versions(name)
        versions: list[str | None] = [*sorted({*served, *configured, *refused}, key=int)] or [None]
        rows = [self._version_row(name, version, refused.get(version or ""), now) for version in versions]
        labels = self._router.labels(name)
        for row in rows:
            row["labels"] = [label for label, version in labels.items() if row["version"] == version]
        rows[-1]["labels_not_served"] = {label: version for label, version in labels.items() if version not in served}
        return rows

    def _version_row(self, name: str, version: str | None, refused: str | None, now: float) -> dict[str, Any]:
        waiting = self._router.scheduler.waiting(name)
        report = self._router.report(name, version) if version is not None else None
        statistics = self._router.statistics[name].get(version or "") or ModelStatistics()
        p50, p99 = statistics.latency.percentiles_ms(now, (0.5, 0.99))
        ready = self._readiness.ready_slots(name, version)
        max_batch_size = next(spec.max_batch_size for spec in self._settings.models if spec.name == name)
        return {
            "name": name,
            "version": version,
            "state": self._model_state(name, version, ready, refused),
            "cause": _join_causes(self._readiness.cause(name, version), refused),
            "slots_ready": ready,
            "slots_total": sum(any(name == spec.name for spec in slot.specs) for slot in self._manager.slots),
            "queue": waiting.requests,
            "queue_bytes": waiting.bytes,
            "queue_oldest_s": _age(waiting.oldest, now),
            "latency_ms": {"p50": _rounded_ms(p50), "p99": _rounded_ms(p99)},
            "completed": statistics.success.count,
            "failed": statistics.fail.count,
            "errors": _report_counts(statistics.errors, now),
            "last_failed_age_s": _age(statistics.last_error, now),
            "refused": _report_counts(self._router.refused.of_models.get(name) or RecentCounts(), now),
            "batches": statistics.batches,
            "batch_rows": statistics.batch_rows,
            "rows": statistics.rows,
            "max_batch_size": report.max_batch_size if report is not None else max_batch_size,
            "unbatched_because": report.unbatched_because if report is not None else None,
            "unverified_because": report.unverified_because if report is not None else None,
            "signatures": {
                other.name: {
                    "max_batch_size": other.max_batch_size,
                    "unbatched_because": other.unbatched_because,
                    "unverified_because": other.unverified_because,
                    "cause": other.cause,
                }
                for other in (report.signatures if report is not None else ())
            },
            "labels_not_served": {},
            **self._memory(name, version),
        }

    def _model_state(self, name: str, version: str | None, ready: int, refused: str | None) -> str:
        if self._readiness.is_unloaded(name):
            return "unloading" if any(slot.serves(name) for slot in self._manager.slots) else "unloaded"
        if ready:
            return "ready"
        if self._readiness.waits_for(name):
            return "waiting"
        refusal = self._router.scheduler.refusal_for_accepted_request(name)
        failed = refused or refusal or self._readiness.load_failure(name, version)
        return "failed" if failed else "loading"

    def _memory(self, name: str, version: str | None) -> dict[str, int | None]:
        """Returns the memory that the model takes in one worker, the most of all workers."""
        reports = [
            model
            for slot in self._manager.slots
            for model in slot.models
            if model.name == name and version in (None, model.version) and model.state == "ready"
        ]
        sizes = {key: [size for report in reports if (size := getattr(report, key)) is not None] for key in MEMORY}
        return {key: max(of_workers, default=None) for key, of_workers in sizes.items()}


def _join_causes(cause: str | None, refused: str | None) -> str | None:
    """Joins why a version is not served and why it was refused; the second one may be a part of the first."""
    if cause is None or refused is None or refused in cause:
        return cause or refused
    return f"{cause}; {refused}"


def _age(at: float | None, now: float) -> float | None:
    """Returns how long ago something was, in seconds; None if it has not been."""
    return None if at is None else round(max(0.0, now - at), 3)


def _report_counts(counts: RecentCounts, now: float) -> dict[str, dict[str, int]]:
    """Returns counts by the reason of an error, the most frequent first."""
    both = {"total": counts.total, "last_minute": counts.last_minute(now)}
    return {name: dict(sorted(each.items(), key=lambda item: -item[1])) for name, each in both.items()}


def _step(process: WorkerProcess | None, now: float) -> dict[str, Any]:
    """Returns what a process is doing while it loads, for people, and since when; None otherwise."""
    step = process.child.read_step() if process is not None and process.exit_cause is None else None
    if step is None:
        return {"step": None, "step_for_s": None}
    return {"step": str(step), "step_for_s": _age(step.began_at, now)}


def _replacement(slot: Slot, now: float) -> dict[str, Any] | None:
    """Returns the process that loads in order to take over from the slot's present one; None if there is none."""
    process = slot.next_process
    if process is None:
        return None
    return {"pid": process.child.pid, "age_s": _age(process.started_at, now), **_step(process, now)}


def _towers(route: Route) -> list[dict[str, Any]]:
    """Returns a row for each tower of a worker, or none for a worker without towers."""
    reports = [report for of_model in route.reports.values() for report in of_model]
    return [
        {
            "devices": sorted({report.towers[number].device for report in here}),
            "depth": tower.worker.depth,
            "completed": tower.worker.completed,
            "batches": tower.batches,
            "models": [_tower_model(report, number) for report in here],
        }
        for number, tower in enumerate(route.towers)
        if (here := [report for report in reports if number < len(report.towers)])
    ]


def _tower_model(report: ModelReport, number: int) -> dict[str, Any]:
    tower = report.towers[number]
    return {
        "name": report.name,
        "version": report.version,
        "device": tower.device,
        "nodes": None if tower.nodes is None else dict(tower.nodes),
        "fallbacks": dict(tower.fallbacks),
    }


def _rounded_ms(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
