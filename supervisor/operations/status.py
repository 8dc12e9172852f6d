"""What the daemon says of itself: `MT1:status`, readiness, and the models' metadata.

Every function reads the live state; nothing is kept here that could be out of date.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psutil

from multitower import tensors, wire
from multitower.compiled import compiled
from multitower.errors import Reason, make
from multitower.infer_header import parse_version
from multitower.spec import ModelReport, ModelSpec, SignatureReport, TensorReport

from ..machine.resources import Sampler
from ..routing.router import Router
from ..routing.routes import Route
from ..routing.statistics import ModelStatistics
from ..workers.availability import by_slots
from ..workers.manager import WorkerManager
from ..workers.slot import Slot
from ..workers.slot_state_machine import State

EXTENSIONS = ("model_configuration", "statistics", "binary_tensor_data", wire.SHARED_MEMORY_EXTENSION)

MEMORY = ("host_memory_bytes", "device_memory_bytes", "device_memory_peak_bytes")
"""Of `ModelReport`: by how much memory grew while a worker loaded a model."""


@dataclass(slots=True)
class StatusReporter:
    """Answers every kind of request that is not inference.

    Attributes:
        router, manager: the live ones.
        models: as configured, with their versions.
        refused: why new versions are not tried any more, by model and version, as the watch says.
        max_message_size: bytes.
        started: monotonic seconds.
        sampler: measures what the workers use of the machine.
        state: `starting`, `running`, `draining` or `stopping`; the daemon keeps it up to date.
        control: the operator's endpoint.
    """

    router: Router
    manager: WorkerManager
    models: Sequence[ModelSpec]
    max_message_size: int
    started: float
    sampler: Sampler | None = None
    state: str = "running"
    control: str | None = None
    refused: Callable[[], Mapping[tuple[str, str], str]] = dict

    def answer(self, kind: bytes, header: dict[str, Any], now: float) -> dict[str, Any]:
        """The header of the reply.

        Raises:
            MultitowerError: the model is unknown, not loaded, or not named.
        """
        if kind == wire.SERVER_LIVE:
            return {"live": True}
        if kind == wire.SERVER_READY:
            return self.readiness()
        if kind == wire.SERVER_METADATA:
            return self._server_metadata()
        if kind == wire.STATUS:
            return self.status(now)
        if kind == wire.STATISTICS:
            return self._statistics(header)
        name, report = self._named(header)
        if kind == wire.MODEL_READY:
            named = report is not None and any(parse_version(header))
            ready = self._slots_ready(name, report.version if report and named else None)
            return {"name": name, "ready": not self._unloaded(name) and ready > 0}
        if report is None:
            if (refused := self.router.scheduler.refusal_for_new_request(name)) is not None:
                raise refused
            cause = self._model_cause(name) or "it is still loading"
            raise make(Reason.NO_WORKER, f"{name!r} is not loaded: {cause}")
        served = self.router.versions(name)
        return _metadata(report, served) if kind == wire.MODEL_METADATA else _config(report, served)

    def readiness(self) -> dict[str, Any]:
        """`{ready, slots_ready, slots_total}`: ready when each model has a ready slot, of those that are not unloaded.

        Slots without a model do not count.
        """
        names = [name for name in self._names if not self._unloaded(name)]
        ready = self.state == "running" and all(self._slots_ready(name) for name in names)
        slots_ready = sum(slot.state is State.READY for slot in self.manager.slots)
        slots_total = sum(bool(slot.specs) for slot in self.manager.slots)
        return {"ready": ready, "slots_ready": slots_ready, "slots_total": slots_total}

    def line(self) -> str:
        """The state in one line, for a service manager."""
        state = self.readiness()
        models = ", ".join(
            f"{name} {'unloaded' if self._unloaded(name) else self._slots_ready(name)}" for name in self._names
        )
        return f"{self.state}: {state['slots_ready']}/{state['slots_total']} slots ready; workers per model: {models}"

    @property
    def settled(self) -> bool:
        """Each model has a ready slot, or nothing that is on its way could give it one."""
        on_the_way = (State.STARTING, State.LOADING, State.BACKOFF)
        return self.readiness()["ready"] or not any(slot.state in on_the_way for slot in self.manager.slots)

    def status(self, now: float) -> dict[str, Any]:
        """The whole state, for operators and programs."""
        router = self.router
        return {
            "daemon": {
                "pid": os.getpid(),
                "version": version("multitower"),
                "compiled": compiled(),
                "state": self.state,
                "uptime_s": round(now - self.started, 3),
                "rss_bytes": psutil.Process().memory_info().rss,
                "listen": [front.endpoint for front in router.fronts],
                "spares": [{"pid": spare.child.pid, "state": spare.state} for spare in self.manager.spares],
                **self.readiness(),
                "rejected": router.rejected,
                "late": router.scheduler.late_answers,
                "replies_dropped": sum(front.dropped for front in router.fronts),
                "control": self.control,
                "quarantine": [
                    {"model": entry.model, "seconds_left": round(entry.until - now, 1), "refused": entry.refused}
                    for entry in router.scheduler.quarantined_requests(now)
                ],
            },
            "slots": [self._slot(slot, now) for slot in self.manager.slots],
            "models": [row for name in self._names for row in self._rows(name)],
        }

    def _slot(self, slot: Slot, now: float) -> dict[str, Any]:
        route = slot.route
        sample = self.sampler.sample(slot.number) if self.sampler is not None else None
        batch_times = route.batch_times if route is not None else None
        return {
            "slot": slot.number,
            "state": str(slot.state),
            "pid": slot.process.child.pid if slot.process is not None else None,
            "device": slot.placement.device,
            "visible_devices": slot.visible_devices,
            "cores": list(slot.placement.cores),
            "incarnation": slot.incarnation,
            "restarts": slot.restarts,
            "depth": route.depth if route is not None else 0,
            "completed": slot.completed + (route.completed if route is not None else 0),
            "last_error": slot.last_error,
            "safe_rows": dict(slot.safe_rows),
            "batch_ms": {
                "p50": _ms(batch_times.p50_ms(now)) if batch_times is not None else None,
                "p99": _ms(batch_times.p99_ms(now)) if batch_times is not None else None,
            },
            "rows_per_s": round(batch_times.rows_per_second(now), 1) if batch_times is not None else 0.0,
            "rss_bytes": sample.rss_bytes if sample is not None else None,
            "cpu_percent": sample.cpu_percent if sample is not None else None,
            "device_memory_bytes": sample.device_memory_bytes if sample is not None else None,
            "device_memory_of": sample.device_memory_of if sample is not None else None,
            "utilization_percent": sample.utilization_percent if sample is not None else None,
            "device_present": self.sampler.are_devices_present(slot.number) if self.sampler is not None else None,
            "devices": [
                {
                    "name": device.name,
                    "memory_bytes": device.memory_bytes,
                    "memory_of": device.memory_of,
                    "utilization_percent": device.utilization_percent,
                    "present": device.present,
                }
                for device in (self.sampler.sample_devices(slot.number) if self.sampler is not None else ())
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

    @property
    def _names(self) -> Collection[str]:
        return dict.fromkeys(model.name for model in self.models)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        """One for each version of the model that is served, is to be, or was tried in vain."""
        refused = {version: why for (of, version), why in self.refused().items() if of == name}
        wanted = {model.version for model in self.models if model.name == name and model.version is not None}
        served = self.router.versions(name)
        versions: list[str | None] = [*sorted({*served, *wanted, *refused}, key=int)] or [None]
        rows = [self._model(name, version, refused.get(version or "")) for version in versions]
        labels = self.router.labels(name)
        for row in rows:
            row["labels"] = [label for label, version in labels.items() if row["version"] == version]
        rows[-1]["labels_not_served"] = {label: version for label, version in labels.items() if version not in served}
        return rows

    def _model(self, name: str, version: str | None, refused: str | None) -> dict[str, Any]:
        waiting = self.router.scheduler.waiting(name)
        report = self.router.report(name, version) if version is not None else None
        statistics = self.router.statistics[name].get(version or "") or ModelStatistics()
        ready = self._slots_ready(name, version)
        max_batch_size = next(model.max_batch_size for model in self.models if model.name == name)
        return {
            "name": name,
            "version": version,
            "state": self._state(name, ready, refused, version),
            "cause": self._model_cause(name, version) or refused,
            "slots_ready": ready,
            "slots_total": sum(any(name == spec.name for spec in slot.specs) for slot in self.manager.slots),
            "queue": waiting.requests,
            "queue_bytes": waiting.bytes,
            "completed": statistics.success.count,
            "failed": statistics.fail.count,
            "batches": statistics.batches,
            "rows": statistics.rows,
            "max_batch_size": report.max_batch_size if report is not None else max_batch_size,
            "unbatched_because": self._unbatched_because(name, report) if report is not None else None,
            "labels_not_served": {},
            **self._memory(name, version),
        }

    def _state(self, name: str, ready: int, refused: str | None, version: str | None) -> str:
        if self._unloaded(name):
            return "unloading" if any(slot.serves(name) for slot in self.manager.slots) else "unloaded"
        failed = refused or self.router.scheduler.refusal_for_accepted_request(name) or self.failure(name, version)
        return "ready" if ready else "failed" if failed else "loading"

    def _unloaded(self, name: str) -> bool:
        """An operator has taken it out."""
        return name in self.router.scheduler.unloaded_models

    def _memory(self, name: str, version: str | None) -> dict[str, int | None]:
        """What the model took in one worker, the most of any."""
        reports = [
            model
            for slot in self.manager.slots
            for model in slot.models
            if model.name == name and version in (None, model.version) and model.state == "ready"
        ]
        told = {key: [size for model in reports if (size := getattr(model, key)) is not None] for key in MEMORY}
        return {key: max(sizes, default=None) for key, sizes in told.items()}

    def _unbatched_because(self, name: str, report: ModelReport) -> str | None:
        """As its warm-up has shown, or a batch since then, on any worker."""
        models = (model for slot in self.manager.slots for model in slot.models if model.key == report.key)
        return report.unbatched_because or next(filter(None, (model.unbatched_because for model in models)), None)

    def _slots_ready(self, name: str, version: str | None = None) -> int:
        if name in self.router.scheduler.quarantined_models:
            return 0  # it is loaded, and in quarantine
        workers = [slot.route.worker for slot in self.manager.slots if slot.route is not None]
        return sum(
            name in worker.serves if version is None else (name, version) in worker.versions for worker in workers
        )

    def failure(self, name: str, version: str | None) -> str | None:
        """Why no worker could load the version, where none serves it and none is about to."""
        causes = self._causes(name, version)
        coming = any(slot.state in (State.STARTING, State.LOADING, State.BACKOFF) for slot in self.manager.slots)
        return causes if causes and not coming and not self._slots_ready(name, version) else None

    def _causes(self, name: str, version: str | None) -> str:
        return by_slots(
            (slot.number, model.cause)
            for slot in self.manager.slots
            for model in slot.models
            if model.name == name and version in (None, model.version) and model.cause is not None
        )

    def _model_cause(self, name: str, version: str | None = None) -> str | None:
        refused = self.router.scheduler.refusal_for_new_request(name)
        return refused.message if refused is not None else self._causes(name, version) or None

    def _named(self, header: dict[str, Any]) -> tuple[str, ModelReport | None]:
        name = header.get("model_name")
        if not isinstance(name, str) or not name:
            raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
        return name, self.router.find_report(name, *parse_version(header))

    def _statistics(self, header: dict[str, Any]) -> dict[str, Any]:
        versions: dict[str, list[str]] = {name: self.router.versions(name) or [""] for name in self._names}
        if "model_name" in header:
            name, report = self._named(header)
            named = report is not None and any(parse_version(header))
            versions = {name: [report.version] if report and named else versions.get(name, [""])}
        return {
            "model_stats": [
                self.router.statistics[name][version].to_json(name, version)
                for name, found in versions.items()
                for version in found
            ]
        }

    def _server_metadata(self) -> dict[str, Any]:
        return {
            "name": "multitower",
            "version": version("multitower"),
            "extensions": list(EXTENSIONS),
            "protocol": wire.VERSION,
            "max_message_size": self.max_message_size,
        }


def _towers(route: Route) -> list[dict[str, Any]]:
    """The towers of a process that has some: what each does, and where its models' nodes really are."""
    reports = [report for of_model in route.reports.values() for report in of_model]
    return [
        {
            "devices": sorted({report.towers[number].device for report in here}),
            "depth": tower.worker.depth,
            "completed": tower.worker.completed,
            "batches": tower.batches,
            "models": [_replica(report, number) for report in here],
        }
        for number, tower in enumerate(route.towers)
        if (here := [report for report in reports if number < len(report.towers)])
    ]


def _replica(report: ModelReport, number: int) -> dict[str, Any]:
    tower = report.towers[number]
    return {
        "name": report.name,
        "version": report.version,
        "device": tower.device,
        "nodes": None if tower.nodes is None else dict(tower.nodes),
        "fallbacks": dict(tower.fallbacks),
    }


def _metadata(report: ModelReport, versions: Sequence[str]) -> dict[str, Any]:
    """The Open Inference Protocol's model metadata; a handler that declares nothing has empty lists."""
    return {
        "name": report.name,
        "versions": list(versions),
        "platform": report.platform,
        "inputs": [_tensor(tensor) for tensor in report.inputs or ()],
        "outputs": [_tensor(tensor) for tensor in report.outputs or ()],
        **(_signatures(report) if report.signature else {}),
    }


def _signatures(report: ModelReport) -> dict[str, Any]:
    """All signatures that requests may name, and those that cannot be served, with the cause."""
    described: list[tuple[str, ModelReport | SignatureReport]] = [
        (report.signature, report),
        *((signature.name, signature) for signature in report.signatures),
    ]
    return {
        "signature_name": report.signature,
        "signatures": {
            name: {
                "inputs": [_tensor(tensor) for tensor in signature.inputs or ()],
                "outputs": [_tensor(tensor) for tensor in signature.outputs or ()],
                "max_batch_size": signature.max_batch_size,
                "unbatched_because": signature.unbatched_because,
                "cause": signature.cause,
            }
            for name, signature in described
        },
    }


def _config(report: ModelReport, versions: Sequence[str]) -> dict[str, Any]:
    """The part of Triton's model configuration that its clients read; dims are without the batch dimension."""
    batched = report.max_batch_size > 0

    def side(tensors_: Sequence[TensorReport] | None) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor.name,
                "data_type": "TYPE_STRING" if tensor.datatype == tensors.BYTES else f"TYPE_{tensor.datatype}",
                "dims": list(tensor.shape or ())[1 if batched else 0 :],
            }
            for tensor in tensors_ or ()
        ]

    return {
        "name": report.name,
        "platform": report.platform,
        "backend": "multitower",
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": report.max_batch_size,
        "input": side(report.inputs),
        "output": side(report.outputs),
    }


def _ms(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


def _tensor(tensor: TensorReport) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape or ())}
