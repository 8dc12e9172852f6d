"""What the daemon says of itself: `MT1:status`, readiness, and the models' metadata.

Every function reads the live state; nothing is kept here that could be out of date.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psutil

from multitower import tensors, wire
from multitower.compiled import compiled
from multitower.errors import Reason, make
from multitower.infer_header import parse_version
from multitower.spec import ModelReport, ModelSpec, SignatureReport, TensorReport
from multitower.supervisor.fleet import Fleet
from multitower.supervisor.member import Place
from multitower.supervisor.resources import Sampler
from multitower.supervisor.router import Router
from multitower.supervisor.slot import State

EXTENSIONS = ("model_configuration", "statistics", "binary_tensor_data", wire.SHARED_MEMORY_EXTENSION)


@dataclass(slots=True)
class Reporter:
    """Answers every kind of request that is not inference.

    Attributes:
        router, fleet: the live ones.
        models: as configured.
        max_message_size: bytes.
        started: monotonic seconds.
        sampler: measures what the workers use of the machine.
        state: `starting`, `running`, `draining` or `stopping`; the daemon keeps it up to date.
        control: the operator's endpoint.
    """

    router: Router
    fleet: Fleet
    models: Sequence[ModelSpec]
    max_message_size: int
    started: float
    sampler: Sampler | None = None
    state: str = "running"
    control: str | None = None

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
            return {"name": name, "ready": self._slots_ready(name) > 0}
        if report is None:
            cause = self._model_cause(name) or "it is still loading"
            raise make(Reason.NO_WORKER, f"{name!r} is not loaded: {cause}")
        if kind == wire.MODEL_METADATA:
            return _metadata(report)
        return _config(report)

    def readiness(self) -> dict[str, Any]:
        """`{ready, slots_ready, slots_total}`: ready when each model has a ready slot."""
        ready = self.state == "running" and all(self._slots_ready(model.name) for model in self.models)
        slots_ready = sum(place.slot.state is State.READY for place in self.fleet.places)
        return {"ready": ready, "slots_ready": slots_ready, "slots_total": len(self.fleet.places)}

    def line(self) -> str:
        """The state in one line, for a service manager."""
        state = self.readiness()
        models = ", ".join(f"{model.name} {self._slots_ready(model.name)}" for model in self.models)
        return f"{self.state}: {state['slots_ready']}/{state['slots_total']} slots ready; workers per model: {models}"

    @property
    def settled(self) -> bool:
        """Each model has a ready slot, or nothing that is on its way could give it one."""
        on_the_way = (State.STARTING, State.LOADING, State.BACKOFF)
        return self.readiness()["ready"] or not any(place.slot.state in on_the_way for place in self.fleet.places)

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
                "spares": [{"pid": spare.process.pid, "state": spare.state} for spare in self.fleet.spares],
                **self.readiness(),
                "rejected": router.rejected,
                "late": router.balancer.late,
                "replies_dropped": sum(front.dropped for front in router.fronts),
                "control": self.control,
                "quarantine": [
                    {"model": entry.model, "seconds_left": round(entry.until - now, 1), "refused": entry.refused}
                    for entry in router.balancer.refusals.quarantine.entries(now)
                ],
            },
            "slots": [self._slot(place, now) for place in self.fleet.places],
            "models": [self._model(model) for model in self.models],
        }

    def _slot(self, place: Place, now: float) -> dict[str, Any]:
        channel = place.channel
        sample = self.sampler.sample(place.slot.number) if self.sampler is not None else None
        window = channel.window if channel is not None else None
        return {
            "slot": place.slot.number,
            "state": str(place.slot.state),
            "pid": place.member.process.pid if place.member is not None else None,
            "device": place.placement.device,
            "visible_devices": place.visible_devices,
            "incarnation": place.slot.incarnation,
            "restarts": place.slot.restarts,
            "depth": channel.worker.depth if channel is not None else 0,
            "completed": place.completed + (channel.worker.completed if channel is not None else 0),
            "last_error": place.slot.last_error,
            "safe_rows": dict(place.safe_rows),
            "batch_ms": {
                "p50": _ms(window.p50_ms(now)) if window is not None else None,
                "p99": _ms(window.p99_ms(now)) if window is not None else None,
            },
            "rows_per_s": round(window.rows_per_second(now), 1) if window is not None else 0.0,
            "rss_bytes": sample.rss_bytes if sample is not None else None,
            "cpu_percent": sample.cpu_percent if sample is not None else None,
            "device_memory_bytes": sample.device_memory_bytes if sample is not None else None,
            "device_memory_of": sample.device_memory_of if sample is not None else None,
            "utilization_percent": sample.utilization_percent if sample is not None else None,
            "device_present": self.sampler.present(place.slot.number) if self.sampler is not None else None,
            "devices": [
                {
                    "name": device.name,
                    "memory_bytes": device.memory_bytes,
                    "memory_of": device.memory_of,
                    "utilization_percent": device.utilization_percent,
                    "present": device.present,
                }
                for device in (self.sampler.devices(place.slot.number) if self.sampler is not None else ())
            ],
            "models": [
                {"name": model.name, "version": model.version, "state": model.state, "cause": model.cause}
                for model in place.models
            ],
        }

    def _model(self, model: ModelSpec) -> dict[str, Any]:
        report = self.router.admission.reports.get(model.name)
        queue = self.router.balancer.queues[model.name]
        statistics = self.router.statistics[model.name]
        ready = self._slots_ready(model.name)
        hopeless = self.router.balancer.refusals.of(model.name)
        return {
            "name": model.name,
            "version": report.version if report is not None else None,
            "state": "ready" if ready else "failed" if hopeless else "loading",
            "cause": self._model_cause(model.name),
            "slots_ready": ready,
            "slots_total": sum(model.name in map(_name, place.specs) for place in self.fleet.places),
            "queue": queue.size,
            "queue_bytes": queue.bytes,
            "completed": statistics.success.count,
            "failed": statistics.fail.count,
            "batches": statistics.batches,
            "rows": statistics.rows,
            "max_batch_size": report.max_batch_size if report is not None else model.max_batch_size,
            "unbatched_because": self._unbatched_because(model.name),
        }

    def _unbatched_because(self, name: str) -> str | None:
        """As its warm-up has shown, or a batch since then, on any worker."""
        models = (model for place in self.fleet.places for model in place.models if model.name == name)
        report = self.router.admission.reports.get(name)
        found = report.unbatched_because if report is not None else None
        return found or next(filter(None, (model.unbatched_because for model in models)), None)

    def _slots_ready(self, model: str) -> int:
        if model in self.router.balancer.refusals.crashing.until:
            return 0  # it is loaded, and kept away
        return sum(place.channel is not None and model in place.channel.worker.serves for place in self.fleet.places)

    def _model_cause(self, name: str) -> str | None:
        hopeless = self.router.balancer.refusals.of(name)
        if hopeless is not None:
            return hopeless.message
        causes = [
            f"slot {place.slot.number}: {model.cause}"
            for place in self.fleet.places
            for model in place.models
            if model.name == name and model.cause is not None
        ]
        return "; ".join(causes) or None

    def _named(self, header: dict[str, Any]) -> tuple[str, ModelReport | None]:
        name = header.get("model_name")
        if not isinstance(name, str) or not name:
            raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
        return name, self.router.admission.model(name, parse_version(header))

    def _statistics(self, header: dict[str, Any]) -> dict[str, Any]:
        names = [self._named(header)[0]] if "model_name" in header else [model.name for model in self.models]
        reports = self.router.admission.reports
        return {
            "model_stats": [
                self.router.statistics[name].to_json(name, reports[name].version if name in reports else "")
                for name in names
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


def _name(spec: ModelSpec) -> str:
    return spec.name


def _metadata(report: ModelReport) -> dict[str, Any]:
    """The Open Inference Protocol's model metadata; a handler that declares nothing has empty lists."""
    return {
        "name": report.name,
        "versions": [report.version],
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


def _config(report: ModelReport) -> dict[str, Any]:
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
        "version_policy": {"specific": {"versions": [report.version]}},
        "max_batch_size": report.max_batch_size,
        "input": side(report.inputs),
        "output": side(report.outputs),
    }


def _ms(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


def _tensor(tensor: TensorReport) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape or ())}
