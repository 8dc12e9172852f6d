"""Examines the workers of all slots: their heartbeats, the state of their processes, and how long batches take.

The rules are in `condition.py`. Nothing is kept, so the outcome is true at the moment of the question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..scheduling.pool_worker import Worker
from .condition import (
    EXAMINED_AFTER_S,
    OK,
    Condition,
    Finding,
    RunningBatch,
    examine_process,
    find_slow_workers,
    usual_seconds,
)
from .process_watcher import read_heartbeat
from .slot import Slot, WorkerProcess
from .slot_state_machine import State


@dataclass(frozen=True, slots=True)
class SlotCondition:
    """How the worker of a slot seems to be.

    Attributes:
        finding: None while the slot has no worker and none has died, as when it is stopped, or starts for the first
            time.
        heartbeat_age_s: seconds since the last heartbeat of its process; None without one.
        batch_running_s: seconds for which its process has executed its present batch, the longest of all towers; None
            while it executes none.
    """

    finding: Finding | None
    heartbeat_age_s: float | None = None
    batch_running_s: float | None = None


def examine_slots(slots: Iterable[Slot], workers: Collection[Worker], now: float) -> dict[int, SlotCondition]:
    """Examines all slots.

    Args:
        slots: the slots.
        workers: all that serve, as the scheduler knows them.
        now: monotonic seconds.

    Returns:
        By the number of the slot.
    """
    slow = find_slow_workers(workers, now)
    return {slot.number: _examine_slot(slot, workers, slow, now) for slot in slots}


def _examine_slot(slot: Slot, workers: Collection[Worker], slow: dict[Worker, Finding], now: float) -> SlotCondition:
    process = slot.process
    if process is None or process.exit_cause is not None:
        return SlotCondition(_death(slot, process))
    read_heartbeat(process, now)  # those that are still in the pipe were sent in time
    heartbeat_age_s = process.hang_detector.heartbeat_age(now)
    towers = process.route.workers if process.route is not None else ()
    batches = [
        RunningBatch(max(0.0, now - worker.batch.started), usual_seconds(worker.batch, workers))
        for worker in towers
        if worker.batch is not None
    ]
    finding = _judge(process, heartbeat_age_s, batches)
    if finding is OK:
        finding = next((slow[worker] for worker in towers if worker in slow), finding)
    if finding is OK and process.route is None:
        died = _death(slot, process)
        finding = died if died is not None else finding
    return SlotCondition(finding, heartbeat_age_s, max((batch.running_s for batch in batches), default=None))


def _judge(process: WorkerProcess, heartbeat_age_s: float, batches: list[RunningBatch]) -> Finding:
    if process.verdict is not None and process.verdict.hung:
        return Finding(Condition.UNRESPONSIVE, process.verdict.cause)
    state: str | None = None
    heartbeat_s = process.hang_detector.heartbeat_s
    if heartbeat_age_s > min(EXAMINED_AFTER_S, heartbeat_s):
        stat = process.child.read_stat()
        if stat is not None and stat.dumping:
            return Finding(Condition.UNRESPONSIVE, "it has crashed, and its core is being dumped")
        state = stat.state if stat is not None else None
    loading = process.route is None
    return examine_process(heartbeat_age_s, heartbeat_s, state, batches, loading=loading)


def _death(slot: Slot, process: WorkerProcess | None) -> Finding | None:
    """Returns that the slot's worker has died and none serves yet; None if none has died, or it was stopped since."""
    just_died = process is not None and process.exit_cause is not None and process.unexpected_end is not None
    if not just_died and (slot.unavailable_since is None or slot.state is State.STOPPED):
        return None
    return Finding(Condition.DIED, process.exit_description if just_died and process is not None else slot.last_error)
