"""The rows of the status that describe the daemon's slots: their workers, batches, devices and loaded models."""

from __future__ import annotations

import logging
from typing import Any

from multitower.errors import Reason, make
from multitower.spec import ModelReport

from ..loop.history import iso_time
from ..machine.resources import Sampler
from ..routing.router import Router
from ..routing.routes import Route
from ..workers.manager import WorkerManager
from ..workers.output import Source
from ..workers.slot import Slot, WorkerProcess
from ..workers.slot_conditions import SlotCondition, examine_slots

MEMORY = ("host_memory_bytes", "device_memory_bytes", "device_memory_peak_bytes")
"""Attributes of `ModelReport`: by how much memory grew while a worker loaded a model."""


class SlotRows:
    """Writes the rows of all slots. It reads the live state, and keeps the rows of models until these change.

    Args:
        router: knows what the worker of each slot does.
        manager: the slots.
        sampler: measures the processes.
    """

    def __init__(self, router: Router, manager: WorkerManager, sampler: Sampler) -> None:
        self._router = router
        self._manager = manager
        self._sampler = sampler
        self._models_of_slots: dict[int, tuple[tuple[ModelReport, ...], list[dict[str, Any]]]] = {}

    def report_all(self, now: float) -> list[dict[str, Any]]:
        """Returns a row for each slot, by its number.

        Args:
            now: monotonic seconds.
        """
        slots = self._manager.slots
        conditions = examine_slots(slots, self._router.routes, now)
        return [self._slot(slot, conditions[slot.number], now) for slot in slots]

    def report_one(self, number: object, now: float) -> dict[str, Any]:
        """Returns the row of a slot with `output`: the latest entries that its processes wrote.

        Args:
            number: of the slot, as a request states it.
            now: monotonic seconds.

        Raises:
            MultitowerError: there is no such slot.
        """
        # Of all slots: a worker is compared with the others. A slot keeps its number when a reload removes others.
        rows = {row["slot"]: row for row in self.report_all(now)}
        if type(number) is not int or number not in rows:
            message = f"there is no slot {str(number)[:40]}, only {', '.join(map(str, rows))}"
            raise make(Reason.MALFORMED, message, field="slot")
        slot = next(slot for slot in self._manager.slots if slot.number == number)
        past = slot.past_output
        outputs = [] if past is None else [_report_output(past.pid, past.ended, past.output)]
        outputs += [
            _report_output(process.child.pid, None, process.child.output)
            for process in (slot.process, slot.next_process)
            if process is not None and process.exit_cause is None
        ]
        return {**rows[number], "output": outputs}

    def _slot(self, slot: Slot, condition: SlotCondition, now: float) -> dict[str, Any]:
        route = slot.route
        sample = self._sampler.sample(slot.number)
        batch_times = route.batch_times if route is not None else None
        return {
            "slot": slot.number,
            "state": str(slot.state),
            "state_for_s": age(slot.state_since, now),
            **_condition(condition),
            "pid": slot.process.child.pid if slot.process is not None else None,
            "worker_age_s": age(slot.process.started_at, now) if slot.process is not None else None,
            "device": slot.placement.device,
            "visible_devices": slot.visible_devices,
            "cores": list(slot.placement.cores),
            "incarnation": slot.incarnation,
            "restarts": slot.restarts,
            "last_restart_age_s": age(slot.last_restart_at, now),
            "next_restart_s": None if slot.due is None else round(max(0.0, slot.due - now), 3),
            "last_death_age_s": age(slot.last_death_at, now),
            "depth": route.depth if route is not None else 0,
            "busy_ratio": round(route.busy_ratio(now), 3) if route is not None else 0.0,
            "completed": slot.completed + (route.completed if route is not None else 0),
            "last_error": slot.last_error,
            "last_error_age_s": age(slot.last_error_at, now),
            "safe_rows": dict(slot.safe_rows),
            **_step(slot.process, now),
            "replacement": _replacement(slot, now),
            "batch_ms": {
                "p50": rounded_ms(batch_times.p50_ms(now)) if batch_times is not None else None,
                "p99": rounded_ms(batch_times.p99_ms(now)) if batch_times is not None else None,
            },
            "rows_per_s": round(batch_times.rows_per_second(now), 1) if batch_times is not None else 0.0,
            "rss_bytes": sample.rss_bytes if sample is not None else None,
            "cpu_percent": sample.cpu_percent if sample is not None else None,
            "device_memory_bytes": sample.device_memory_bytes if sample is not None else None,
            "device_memory_of": sample.device_memory_of if sample is not None else None,
            "utilization_percent": sample.utilization_percent if sample is not None else None,
            "device_present": self._sampler.are_devices_present(slot.number),
            "devices": [
                {
                    "name": device.name,
                    "memory_bytes": device.memory_bytes,
                    "memory_of": device.memory_of,
                    "utilization_percent": device.utilization_percent,
                    "present": device.present,
                }
                for device in self._sampler.sample_devices(slot.number)
            ],
            "models": self._slot_models(slot),
            "towers": _towers(route) if route is not None else [],
        }

    def _slot_models(self, slot: Slot) -> list[dict[str, Any]]:
        kept = self._models_of_slots.get(slot.number)
        if kept is None or kept[0] is not slot.models:
            kept = slot.models, [_slot_model(report) for report in slot.models]
            self._models_of_slots[slot.number] = kept
        return kept[1]


def _slot_model(report: ModelReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "version": report.version,
        "state": report.state,
        "cause": report.cause,
        **{key: getattr(report, key) for key in MEMORY},
    }


def _report_output(pid: int, ended: str | None, output: Source) -> dict[str, Any]:
    return {
        "pid": pid,
        "ended": ended,
        "lines": [
            {"time": iso_time(line.at), "level": logging.getLevelName(line.level).lower(), "text": line.text}
            for line in output.latest
        ],
    }


def _step(process: WorkerProcess | None, now: float) -> dict[str, Any]:
    """Returns what a process is doing while it loads, for people, and since when; None otherwise."""
    step = process.child.read_step() if process is not None and process.exit_cause is None else None
    if step is None:
        return {"step": None, "step_for_s": None}
    return {"step": str(step), "step_for_s": age(step.began_at, now)}


def _condition(found: SlotCondition) -> dict[str, Any]:
    """Returns how a slot's worker seems to be, and what tells so."""
    finding = found.finding
    return {
        "condition": finding.condition.value if finding is not None else None,
        "condition_cause": finding.cause if finding is not None else None,
        "heartbeat_age_s": _rounded_s(found.heartbeat_age_s),
        "batch_running_s": _rounded_s(found.batch_running_s),
    }


def _rounded_s(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _replacement(slot: Slot, now: float) -> dict[str, Any] | None:
    """Returns the process that loads in order to take over from the slot's present one; None if there is none."""
    process = slot.next_process
    if process is None:
        return None
    return {"pid": process.child.pid, "age_s": age(process.started_at, now), **_step(process, now)}


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


def age(at: float | None, now: float) -> float | None:
    """Returns how long ago something was, in seconds; None if it has not been."""
    return None if at is None else round(max(0.0, now - at), 3)


def rounded_ms(milliseconds: float | None) -> float | None:
    """Returns milliseconds with three decimals; None if there are none."""
    return None if milliseconds is None else round(milliseconds, 3)
