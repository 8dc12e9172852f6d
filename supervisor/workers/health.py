"""Which workers hang, which have lost their device, and which have served their time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator

from ..loop.log import event
from ..routing.router import Router
from ..scheduling.queue import Batch
from .hang_detector import Call, Verdict
from .settings import WorkerSettings
from .slot import Slot, WorkerProcess
from .slot_state_machine import State

log = logging.getLogger("multitower.fleet")

PAUSE_S = 1.0
"""The supervisor did not run when its loop comes back this much later than it meant to; nobody else is to blame."""


class Health:
    """Looks at all processes once a heartbeat.

    Args:
        router: knows what each is executing.
        rss: bytes of resident memory of a slot's present process as last measured, or None.
        present: whether a slot's device is there, as last seen; None when that is not known.

    Attributes:
        next_look: when `look` is to be called, in monotonic seconds.
    """

    def __init__(
        self, router: Router, rss: Callable[[Slot], int | None], present: Callable[[int], bool | None]
    ) -> None:
        self._router = router
        self._rss = rss
        self._present = present
        self._heartbeat_s = 1.0
        self._execution_s = dict[str, float]()
        self.next_look = 0.0

    def apply(self, settings: WorkerSettings) -> None:
        """Takes new settings."""
        self._heartbeat_s = settings.heartbeat_s
        self._execution_s = dict(settings.execution_s)
        self.next_look = 0.0

    def look(self, processes: Iterable[WorkerProcess], now: float) -> list[WorkerProcess]:
        """The processes that have been found to hang or to be of no use; each is told once, and gets no more work."""
        processes = [process for process in processes if process.cause is None and process.verdict is None]
        gap = now - self.next_look if self.next_look else 0.0
        if gap > PAUSE_S:
            event(log, logging.WARNING, "the supervisor itself did not run", seconds=round(gap, 1))
            for process in processes:
                process.hang_detector.forgive_pause(gap)
        self.next_look = now + self._heartbeat_s
        return [process for process in processes if self._condemned(process, now)]

    def _condemned(self, process: WorkerProcess, now: float) -> bool:
        # What lies in the pipe was sent in time.
        read_heartbeats(process, now)
        batches = [worker.batch for worker in process.route.workers] if process.route is not None else []
        calls = [Call(batch, batch.begun, self._limit(batch)) if batch is not None else None for batch in batches]
        loads = process.state not in ("ready", "idle")
        verdict = self._lost(process) or process.hang_detector.judge(now, calls, process.child.look, loads=loads)
        if verdict is None:
            return False
        process.verdict = verdict
        message = "worker has lost its device" if verdict.lost else "worker hangs"
        event(log, logging.ERROR, message, **process.child.fields, cause=verdict.cause)
        if process.route is not None:
            self._router.scheduler.retire(process.route.worker)
        if verdict.stacks:
            process.child.show_stacks()
        return True

    def _limit(self, batch: Batch) -> float:
        """Seconds that a call of its model may take."""
        return self._execution_s.get(batch.key.spec.model, math.inf)

    def _lost(self, process: WorkerProcess) -> Verdict | None:
        """A worker whose device goes would answer everything with errors, and faster than the others can work."""
        slot = process.slot
        if slot is None or slot.process is not process or process.route is None:
            return None
        present = self._present(slot.number)
        # One that began while the device was away, perhaps as it needs none, is let be: NVML may only not know yet.
        process.device_seen = process.device_seen or bool(present)
        return Verdict("its device is gone", lost=True) if present is False and process.device_seen else None

    def recycle(self, slots: Iterable[Slot], settings: WorkerSettings) -> Iterator[tuple[Slot, str]]:
        """Slots whose workers have answered enough, or have grown too large by now, and why.

        The limits are those of `settings` at this moment, also for workers that began under others.
        """
        if settings.max_requests is None and settings.max_rss is None:
            return
        for slot in slots:
            process = slot.process
            if process is None or process.route is None or slot.state is not State.READY:
                continue
            requests = process.route.requests
            rss = self._rss(slot)
            # Not all at once, where all have had the same share of the requests.
            most_requests = (settings.max_requests or math.inf) * (0.9 + 0.2 * process.replacement_jitter)
            most_rss = (settings.max_rss or math.inf) * (0.9 + 0.1 * process.replacement_jitter)
            if requests >= most_requests:
                yield slot, f"{requests} requests (max_requests)"
            elif rss is not None and rss > most_rss:
                yield slot, f"{rss} bytes of memory (max_rss)"


def read_heartbeats(process: WorkerProcess, now: float) -> None:
    """Reads the heartbeats of a process that have come."""
    calls = process.child.heartbeat()
    if calls is not None:
        process.hang_detector.beat(now, calls)
