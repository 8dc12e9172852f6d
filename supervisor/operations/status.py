"""The reply to `MT1:status`: the daemon, its slots and its models, for operators and programs.

Reads the live state, and keeps nothing. `status_slots` writes the rows of slots. docs/protocol.md describes every key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from multitower.compiled import compiled

from ..gateway.supervision import Gateway
from ..lifecycle import Lifecycle
from ..loop.history import PastEvent, iso_time
from ..machine.resources import Sampler
from ..observability.snapshot import count_dropped_replies
from ..observability.tracing import Tracing
from ..routing.endpoints import ENDPOINT, Endpoints, problem_kind
from ..routing.recent import RecentCounts
from ..routing.router import Router
from ..routing.statistics import ModelStatistics
from ..security.access_control import AccessControl
from ..settings import ActiveSettings
from ..workers.manager import WorkerManager
from .orders import LastReload
from .readiness import Readiness
from .status_slots import MEMORY, SlotRows, age, rounded_ms

_NO_STATISTICS: Final = ModelStatistics()
_NO_COUNTS: Final = RecentCounts()


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
        sampler: measures the processes.
        endpoints: the daemon's.
        gateway: the daemon's; None where none is configured.
        tracing: the daemon's.
        access: the daemon's; None without `security`.
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
        sampler: Sampler,
        endpoints: Endpoints,
        gateway: Gateway | None,
        tracing: Tracing,
        access: AccessControl | None,
    ) -> None:
        self._lifecycle = lifecycle
        self._readiness = readiness
        self._router = router
        self._manager = manager
        self._settings = settings
        self._refused_versions = refused_versions
        self._last_reload = last_reload
        self._started = started
        # Read once: a clock that is set later does not change which start this is.
        self._started_time = iso_time(time.time() - (time.monotonic() - started))
        self._sampler = sampler
        self._slots = SlotRows(router, manager, sampler)
        self._endpoints = endpoints
        self._gateway = gateway
        self._tracing = tracing
        self._access = access
        self._version = version("multitower")
        self._compiled = compiled()

    def report(self, now: float, events: int | None = None) -> dict[str, Any]:
        """Returns the whole status.

        Args:
            now: monotonic seconds.
            events: how many of the kept events it has, the latest ones; None for a few of each kind.
        """
        refused = self._refused_by_model()
        return {
            "daemon": self._daemon(now, events),
            "slots": self._slots.report_all(now),
            "models": [
                row for name in self._settings.model_names for row in self._model_rows(name, refused.get(name, {}), now)
            ],
        }

    def report_slot(self, number: object, now: float) -> dict[str, Any]:
        """Returns the row of a slot with the latest output of its processes; see `SlotRows.report_one`."""
        return self._slots.report_one(number, now)

    def report_model(self, name: str, now: float) -> list[dict[str, Any]]:
        """Returns a row for each version of the model that is served, configured or refused.

        Args:
            name: one of `ActiveSettings.model_names`.
            now: monotonic seconds.
        """
        return self._model_rows(name, self._refused_by_model().get(name, {}), now)

    def _refused_by_model(self) -> dict[str, dict[str, str]]:
        """Returns why versions are refused, by their models."""
        refused: dict[str, dict[str, str]] = {}
        for (model, number), cause in self._refused_versions().items():
            refused.setdefault(model, {})[number] = cause
        return refused

    def _model_rows(self, name: str, refused: Mapping[str, str], now: float) -> list[dict[str, Any]]:
        specs = (spec for spec in self._settings.models if spec.name == name)
        configured = {spec.version for spec in specs if spec.version is not None}
        served = self._router.models.versions(name)
        versions: list[str | None] = [*sorted({*served, *configured, *refused}, key=int)] or [None]
        rows = [self._version_row(name, version, refused.get(version or ""), now) for version in versions]
        labels = self._router.models.labels(name)
        for row in rows:
            row["labels"] = [label for label, version in labels.items() if row["version"] == version]
        rows[-1]["labels_not_served"] = {label: version for label, version in labels.items() if version not in served}
        return rows

    def _daemon(self, now: float, events: int | None) -> dict[str, Any]:
        router, scheduler = self._router, self._router.scheduler
        return {
            "pid": os.getpid(),
            "version": self._version,
            "compiled": self._compiled,
            "state": self._lifecycle.state.value,
            "started": self._started_time,
            "uptime_s": round(now - self._started, 3),
            "rss_bytes": self._sampler.own_rss_bytes,
            "listen": [front.endpoint for front in router.fronts],
            "spares": [{"pid": spare.child.pid, "state": spare.state} for spare in self._manager.spares],
            **self._readiness.report(),
            "config": self._report_config(now),
            "rejected": router.refused.count,
            "refused": _report_counts(router.refused.by_reason, now),
            "late": scheduler.late_answers,
            "replies_dropped": count_dropped_replies(router, self._endpoints),
            "unread_bytes": router.unread.total,
            "control": self._endpoints.control.endpoint,
            "connections": self._report_connections(),
            "gateway": self._gateway.report(now) if self._gateway is not None else None,
            "tracing": self._tracing.report(),
            "insecure": self._settings.current.config.insecure,
            "principals": self._access.report() if self._access is not None else None,
            "waiting": self._waiting(),
            "quarantine": [
                {"model": entry.model, "seconds_left": round(entry.until - now, 1), "refused": entry.refused}
                for entry in scheduler.quarantined_requests(now)
            ],
            "events": [past.to_json(now) for past in self._events(events)],
        }

    def _events(self, count: int | None) -> Sequence[PastEvent]:
        history = self._manager.history
        return history.latest() if count is None else history.events()[-count:] if count else ()

    def _report_config(self, now: float) -> dict[str, Any]:
        reload = self._last_reload()
        return {
            "path": str(self._settings.current.config.path),
            "last_reload": None
            if reload is None
            else {
                "outcome": reload.outcome,
                "age_s": age(reload.ended_at if reload.ended_at is not None else reload.began_at, now),
                "cause": reload.cause,
            },
        }

    def _waiting(self) -> list[dict[str, str]]:
        """Returns what the daemon waits for and tries again by itself."""
        addresses = self._gateway.missing if self._gateway is not None else {}
        return [
            *(
                {"kind": problem_kind(name), "name": name, "cause": cause}
                for name, cause in self._endpoints.problems.items()
            ),
            *({"kind": ENDPOINT, "name": address, "cause": cause} for address, cause in addresses.items()),
            *(
                {"kind": entry.kind, "name": entry.name, "cause": entry.cause}
                for entry in self._settings.current.waiting
            ),
        ]

    def _report_connections(self) -> dict[str, Any]:
        connections = self._endpoints.connections
        return {"open": connections.open, "max": connections.maximum, "paused": connections.paused}

    def _version_row(self, name: str, version: str | None, refused: str | None, now: float) -> dict[str, Any]:
        if self._readiness.is_loading(name, version):
            refused = None  # that was an earlier try
        waiting = self._router.scheduler.waiting(name)
        report = self._router.models.report(name, version) if version is not None else None
        statistics = self._router.models.statistics[name].get(version or "") or _NO_STATISTICS
        p50, p99 = statistics.latency.percentiles_ms(now, (0.5, 0.99))
        ready = self._readiness.ready_slots(name, version)
        max_batch_size = next(spec.max_batch_size for spec in self._settings.models if spec.name == name)
        return {
            "name": name,
            "version": version,
            "state": self._model_state(name, version, ready, refused),
            "cause": _join_causes(self._readiness.cause(name, version), refused),
            "slots_ready": ready,
            "slots_total": self._readiness.total_slots(name),
            "queue": waiting.requests,
            "queue_bytes": waiting.bytes,
            "queue_oldest_s": age(waiting.oldest, now),
            "latency_ms": {"p50": rounded_ms(p50), "p99": rounded_ms(p99)},
            "completed": statistics.success.count,
            "failed": statistics.fail.count,
            "errors": _report_counts(statistics.errors, now),
            "last_failed_age_s": age(statistics.last_error, now),
            "refused": _report_counts(self._router.refused.of_models.get(name) or _NO_COUNTS, now),
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
        reports = [report for report in self._readiness.reports(name, version) if report.state == "ready"]
        sizes = {key: [size for report in reports if (size := getattr(report, key)) is not None] for key in MEMORY}
        return {key: max(of_workers, default=None) for key, of_workers in sizes.items()}


def _join_causes(cause: str | None, refused: str | None) -> str | None:
    """Joins why a version is not served and why it was refused; the second one may be a part of the first."""
    if cause is None or refused is None or refused in cause:
        return cause or refused
    return f"{cause}; {refused}"


def _report_counts(counts: RecentCounts, now: float) -> dict[str, dict[str, int]]:
    """Returns counts by the reason of an error, the most frequent first."""
    both = {"total": counts.total, "last_minute": counts.last_minute(now)}
    return {name: dict(sorted(each.items(), key=lambda item: -item[1])) for name, each in both.items()}
