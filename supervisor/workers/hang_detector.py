"""Whether a worker hangs, judged from its heartbeats and from what it executes. Pure; `process` looks at the process.

A worker's own thread sends a heartbeat with the number of calls of models that each of its towers has begun. The rules:

- One call of a model longer than `max_execution_time` is a hang, whatever the process does meanwhile, and whatever its
  other towers do. A batch that is run in several calls, request by request, may take longer in all.
- Heartbeats that stay away prove nothing: a library may compute without letting other threads run. Only when the
  process is stopped, or sleeps and has used no CPU meanwhile, is it a hang. Between batches nothing excuses it long.
- Nothing is a hang because time has passed while the supervisor itself did not run (a paused machine).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MISSED = 2
"""Heartbeats that stay away before the process is looked at."""

MISSED_BETWEEN_BATCHES = 10
"""Heartbeats that may stay away between batches, even while the process computes."""

LEAST_WATCH_S = 1.0
"""Seconds without any use of the CPU from which on a silent process that sleeps hangs."""


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What the system says of a process: its state's letter as in proc(5), and the CPU seconds it has used."""

    state: str
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a process is to be killed: it hangs, or cannot be of use any more.

    Attributes:
        cause: for people.
        stopped: the process cannot answer signals that it handles itself.
        overrun: a call of a model took longer than it may.
        lost: it does not hang, but its device is gone.
    """

    cause: str
    stopped: bool = False
    overrun: bool = False
    lost: bool = False

    def __str__(self) -> str:
        return f"killed as {self.cause}" if self.lost else f"killed as it hung: {self.cause}"

    @property
    def stacks(self) -> bool:
        """Where it hangs is worth to be known, and it can tell."""
        return not (self.stopped or self.lost)


@dataclass(frozen=True, slots=True)
class Call:
    """What a tower of a process executes.

    Attributes:
        work: such as a batch.
        since: when it could begin with it, in monotonic seconds.
        limit_s: seconds that a call of its model may take.
    """

    work: object
    since: float
    limit_s: float


@dataclass(slots=True)
class _Tower:
    """The same as it has been seen: the work, the calls of models so far, and since when the last of them runs."""

    work: object = None
    calls: int = 0
    since: float = 0.0


class HangDetector:
    """The signs of life of one process.

    Args:
        now: monotonic seconds, of its start.
        heartbeat_s: how often a heartbeat is to come.
    """

    def __init__(self, now: float, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._heard = now
        self._towers: list[_Tower] = []
        self._seen: tuple[float, float] | None = None  # when the process was first seen asleep, and its CPU seconds

    def beat(self, now: float, calls: Sequence[int]) -> None:
        """A heartbeat has come, with the number of calls that each tower has begun so far."""
        self._heard = now
        self._seen = None
        self._room(len(calls))
        for tower, count in zip(self._towers, calls, strict=False):
            if count != tower.calls:
                tower.calls = count
                tower.since = now

    def _room(self, towers: int) -> None:
        self._towers += [_Tower() for _ in range(towers - len(self._towers))]

    def forgive_pause(self, gap: float) -> None:
        """The supervisor itself did not run for so many seconds."""
        self._heard += gap
        for tower in self._towers:
            tower.since += gap
        self._seen = None

    def judge(
        self, now: float, calls: Sequence[Call | None], look: Callable[[], ProcessStat | None], *, loads: bool = False
    ) -> Verdict | None:
        """Whether the process hangs; call it once a heartbeat, after all its heartbeats have been read.

        Args:
            now: monotonic seconds.
            calls: what each of its towers executes.
            look: asks the system; None when the process has ended.
            loads: it is not ready yet, which may take any time.
        """
        self._room(len(calls))
        for tower, call in zip(self._towers, calls, strict=False):
            work = call.work if call is not None else None
            if work is not tower.work:
                tower.work = work
                tower.since = call.since if call is not None else now
            if call is not None and now - tower.since > call.limit_s:
                return Verdict(f"a call of the model took over {call.limit_s:g} s (max_execution_time)", overrun=True)
        silent = now - self._heard
        if silent <= MISSED * self._heartbeat_s:
            return None
        seen = look()
        if seen is None:
            return None
        told = f"no heartbeat for {silent:.1f} s"
        if seen.state == "T":
            return Verdict(f"{told}: the process is stopped", stopped=True)
        idle = not loads and all(call is None for call in calls)
        if idle and silent > max(MISSED_BETWEEN_BATCHES * self._heartbeat_s, LEAST_WATCH_S):
            return Verdict(f"{told} between batches")
        if seen.state != "S" or self._seen is None or seen.cpu_s > self._seen[1]:
            # It wants to run, or waits for a disk; or this is the first look, or it has used the CPU since.
            self._seen = (now, seen.cpu_s)
            return None
        if now - self._seen[0] < max(LEAST_WATCH_S, MISSED * self._heartbeat_s):
            return None
        return Verdict(f"{told}, and it uses no CPU")
