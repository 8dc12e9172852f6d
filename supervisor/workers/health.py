"""Which workers hang, take too long to load, have lost their device, or have reached a limit and must be replaced."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator

from ..loop.log import event
from ..scheduling.pool_worker import Batch
from .capacity import Capacity
from .exit_cause import Fault, Verdict
from .hang_detector import Call
from .process_watcher import read_heartbeat
from .settings import WorkerSettings
from .slot import Slot, WorkerProcess
from .slot_state_machine import State

log = logging.getLogger("multitower.manager")

STALL_S = 1.0
"""The event loop counts as stalled when it checks the workers this much later than planned: no worker is to blame."""


class Health:
    """Checks all processes once a heartbeat.

    Args:
        capacity: knows what is measured of the slots.
        settings: see `WorkerSettings`.

    Attributes:
        next_check: when `check` must be called, in monotonic seconds.
    """

    def __init__(self, capacity: Capacity, settings: WorkerSettings) -> None:
        self._capacity = capacity
        self._settings = settings
        self.next_check = 0.0

    def apply_settings(self, settings: WorkerSettings) -> None:
        """Applies new settings, also to workers that were started with others."""
        self._settings = settings
        self.next_check = 0.0

    def check(self, processes: Iterable[WorkerProcess], now: float) -> list[tuple[WorkerProcess, Verdict]]:
        """Finds the processes that must be killed, and why."""
        processes = [process for process in processes if process.usable]
        delay = now - self.next_check if self.next_check else 0.0
        if delay > STALL_S:
            event(log, logging.WARNING, "event loop stalled", seconds=round(delay, 1))
            for process in processes:
                process.hang_detector.excuse_stall(delay)
                process.load_timer.excuse_stall(delay)
        self.next_check = now + self._settings.heartbeat_s
        verdicts = [(process, self._judge(process, now)) for process in processes]
        return [(process, verdict) for process, verdict in verdicts if verdict is not None]

    def _judge(self, process: WorkerProcess, now: float) -> Verdict | None:
        try:
            # Heartbeats that are still in the pipe were sent in time.
            read_heartbeat(process, now)
            return (
                self._find_lost_device(process) or self._find_hang(process, now) or self._find_slow_load(process, now)
            )
        except Exception as error:
            log.exception("internal error while checking a worker", extra={"fields": dict(process.child.fields)})
            return Verdict(Fault.DEFECT, f"it could not be checked: {error}")

    def _find_hang(self, process: WorkerProcess, now: float) -> Verdict | None:
        batches = [worker.batch for worker in process.route.workers] if process.route is not None else []
        calls = [Call(batch, batch.started, self._limit_s(batch)) if batch is not None else None for batch in batches]
        loading = process.state not in ("ready", "idle")
        return process.hang_detector.check(now, calls, process.child.read_stat, loading=loading)

    def _find_slow_load(self, process: WorkerProcess, now: float) -> Verdict | None:
        if process.state not in ("starting", "importing", "loading"):
            return None
        if process.dumps_core:
            return None  # it has crashed, and its dump has a limit of its own
        settings, step = self._settings, process.child.read_step()
        loading = process.state == "loading"
        return process.load_timer.check(now, step, settings.load_s, settings.start_s, loading=loading)

    def _limit_s(self, batch: Batch) -> float:
        """Seconds that one model call of the batch may take."""
        return self._settings.execution_s.get(batch.key.spec.model, math.inf)

    def _find_lost_device(self, process: WorkerProcess) -> Verdict | None:
        """A worker that lost its GPU fails fast and would attract all traffic."""
        slot = process.slot
        if slot is None or slot.process is not process:
            return None
        present = self._capacity.device_present(slot)
        # One that started while its device was missing may not need it, or NVML may not know the device yet. What was
        # seen while it loaded counts: the device may be lost before the first check of a worker that serves.
        process.device_seen = process.device_seen or bool(present)
        lost = present is False and process.device_seen and process.route is not None
        return Verdict(Fault.DEVICE_LOST, "its device is gone") if lost else None

    def find_over_limits(self, slots: Iterable[Slot]) -> Iterator[tuple[Slot, str]]:
        """The slots whose workers have answered too many requests or use too much memory, with the reason of each."""
        settings = self._settings
        if settings.max_requests is None and settings.max_rss is None:
            return
        for slot in slots:
            process = slot.process
            if process is None or process.route is None or slot.state is not State.READY:
                continue
            requests = process.route.requests
            rss_bytes = self._capacity.rss_bytes(slot)
            # The jitter prevents that workers with equal shares of the requests are all replaced at the same time.
            max_requests = (settings.max_requests or math.inf) * (0.9 + 0.2 * process.replacement_jitter)
            max_rss = (settings.max_rss or math.inf) * (0.9 + 0.1 * process.replacement_jitter)
            if requests >= max_requests:
                yield slot, f"{requests} requests (max_requests)"
            elif rss_bytes is not None and rss_bytes > max_rss:
                yield slot, f"{rss_bytes} bytes of memory (max_rss)"
