"""Tells a slow worker from one that seems to hang and from one that has died, while it is suspected. Pure.

`hang_detector.py` decides later, and more carefully, whether to kill a worker. This is for people and monitoring: it
may be wrong for a moment, and nothing follows from it. docs/operating.md has the rules.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from multitower.durations import measured_duration

from ..scheduling.estimate import Estimate
from ..scheduling.pool_worker import Batch, Worker
from ..scheduling.request import BatchKey

EXAMINED_AFTER_S: Final = 0.5
"""Seconds without a heartbeat after which the state of the process is read; sooner where heartbeats are frequent."""

MISSED_HEARTBEATS: Final = 1.5
MIN_LATE_S: Final = 1.0
"""A process that does not compute is unresponsive when its last heartbeat is older than so many intervals of them, and
older than so many seconds."""

OVERDUE_FACTOR: Final = 10.0
MIN_OVERDUE_S: Final = 0.75
"""A worker is unresponsive while its batch has run for so many times the time that such batches take, and for at least
so many seconds: with the second from one look of a page to the next, less than two."""

SLOW_FACTOR: Final = 3.0
MIN_SLOW_S: Final = 0.001
"""A worker is slow if its batches take so many times as long as those of the others, or as before, and so many seconds
longer."""

IN_USE_S: Final = 60.0
"""Batches of a key say something if one of them was measured on any worker within so many seconds."""


class Condition(StrEnum):
    """How a slot's worker seems to be. Stable: programs may rely on it."""

    OK = "ok"  # it serves, or loads, as expected
    SLOW = "slow"  # its batches take several times as long as those of the others, or as before
    UNRESPONSIVE = (
        "unresponsive"  # it seems to hang: no heartbeats, or a batch that runs far longer than such batches do
    )
    DIED = "died"  # it has died, and none serves the slot yet


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about a worker.

    Attributes:
        condition: how it seems to be.
        cause: why, for people; None if it is `OK`.
    """

    condition: Condition
    cause: str | None = None


OK: Final = Finding(Condition.OK)


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch that a worker executes.

    Attributes:
        running_s: seconds since it began.
        usual_s: seconds that such a batch takes; None if unknown.
    """

    running_s: float
    usual_s: float | None


def usual_seconds(batch: Batch, workers: Iterable[Worker]) -> float | None:
    """Returns the seconds that a batch usually takes on its worker, or on the slowest of others; None if unknown."""
    own = batch.worker.estimates.find(batch.key.id)
    if own is not None:
        return own.seconds(batch.size)
    others = [worker.estimates.find(batch.key.id) for worker in workers]
    return max((estimate.seconds(batch.size) for estimate in others if estimate is not None), default=None)


def examine_process(
    heartbeat_age_s: float, heartbeat_s: float, state: str | None, batches: Sequence[RunningBatch], *, loading: bool
) -> Finding:
    """Finds out whether a process seems to hang.

    Args:
        heartbeat_age_s: seconds since its last heartbeat.
        heartbeat_s: seconds from one heartbeat to the next.
        state: the letter of its state as in proc(5); None if it was not read.
        batches: what its towers execute.
        loading: it loads models; a library may keep it from sending heartbeats meanwhile.
    """
    if state in ("T", "t"):
        return Finding(Condition.UNRESPONSIVE, "its process is stopped")
    late_s = max(MISSED_HEARTBEATS * heartbeat_s, MIN_LATE_S)
    if heartbeat_age_s > late_s and state not in ("R", None) and not loading:
        return Finding(Condition.UNRESPONSIVE, f"no heartbeat for {measured_duration(heartbeat_age_s)}")
    for batch in batches:
        if batch.usual_s is not None and batch.running_s > max(OVERDUE_FACTOR * batch.usual_s, MIN_OVERDUE_S):
            running, usual = measured_duration(batch.running_s), measured_duration(batch.usual_s)
            return Finding(Condition.UNRESPONSIVE, f"its batch has run for {running}; such batches take {usual}")
    return OK


def find_slow_workers(workers: Iterable[Worker], now: float) -> dict[Worker, Finding]:
    """Finds the workers whose batches take much longer than those of the others, or than before.

    Args:
        workers: all that serve.
        now: monotonic seconds.

    Returns:
        The slow ones, each with its cause: that of the batches with the largest factor.
    """
    by_key: dict[BatchKey, dict[Worker, Estimate]] = {}
    for worker in workers:
        for key, estimate in worker.estimates.known():
            by_key.setdefault(key, {})[worker] = estimate
    slow: dict[Worker, tuple[float, Finding]] = {}
    for key, estimates in by_key.items():
        if max(estimate.measured_at for estimate in estimates.values()) < now - IN_USE_S:
            continue
        for worker, (factor, cause) in _compare(estimates, now).items():
            if worker not in slow or factor > slow[worker][0]:
                slow[worker] = factor, Finding(Condition.SLOW, f"its batches of {key.spec.model} {cause}")
    return {worker: finding for worker, (_, finding) in slow.items()}


def _compare(estimates: Mapping[Worker, Estimate], now: float) -> dict[Worker, tuple[float, str]]:
    """Returns the workers whose batches of one key are slow, each with a factor and a text: how slow they are."""
    rows = {worker: max(1, round(estimate.mean_rows)) for worker, estimate in estimates.items()}
    # No worker takes less than this for as many rows as any of them has: most are not slow, whatever the others take.
    fewest = min(rows.values())
    least = min([estimate.seconds(fewest) for estimate in estimates.values()])
    found: dict[Worker, tuple[float, str]] = {}
    for worker, estimate in estimates.items():
        took, slowdown = estimate.seconds(rows[worker]), estimate.slowdown(now)
        if not _is_slow(took, least) and slowdown == 1.0:
            continue
        typical = {"before": took / slowdown}
        # Not those that have run much smaller batches: nothing is known of their time for so many rows.
        others = [other for each, other in estimates.items() if each is not worker and 2 * rows[each] >= rows[worker]]
        if others:
            # The lower median: of two others, the faster one.
            typical["those of the other workers"] = statistics.median_low(
                other.seconds(rows[worker]) for other in others
            )
        whose, usual = min(typical.items(), key=lambda item: item[1])
        if _is_slow(took, usual):
            factor = took / usual
            found[worker] = factor, f"take {measured_duration(took)}, {factor:.0f} times as long as {whose}"
    return found


def _is_slow(took: float, usual: float) -> bool:
    return took >= SLOW_FACTOR * usual and took - usual >= MIN_SLOW_S
