"""Whether a worker hangs, judged from its heartbeats and from what it executes. Pure; `process` looks at the process.

A worker's own thread sends a heartbeat with the number of calls of its models so far. The rules:

- One call of a model longer than `max_execution_time` is a hang, whatever the process does meanwhile. A batch that is
  run in several calls, request by request, may take longer in all.
- Heartbeats that stay away prove nothing: a library may compute without letting other threads run. Only when the
  process is stopped, or sleeps and has used no CPU meanwhile, is it a hang. Between batches nothing excuses it long.
- Nothing is a hang because time has passed while the supervisor itself did not run (a paused machine).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MISSED = 2
"""Heartbeats that stay away before the process is looked at."""

MISSED_BETWEEN_BATCHES = 10
"""Heartbeats that may stay away between batches, even while the process computes."""

LEAST_WATCH_S = 1.0
"""Seconds without any use of the CPU from which on a silent process that sleeps hangs."""


@dataclass(frozen=True, slots=True)
class Look:
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


class Pulse:
    """The signs of life of one process.

    Args:
        now: monotonic seconds, of its start.
        heartbeat_s: how often a heartbeat is to come.
    """

    def __init__(self, now: float, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._heard = now
        self._calls = 0
        self._work: object = None
        self._since = now  # the beginning of the call that is under way
        self._seen: tuple[float, float] | None = None  # when the process was first seen asleep, and its CPU seconds

    def beat(self, now: float, calls: int) -> None:
        """A heartbeat has come, with the number of calls begun so far."""
        self._heard = now
        self._seen = None
        if calls != self._calls:
            self._calls = calls
            self._since = now

    def forgive(self, gap: float) -> None:
        """The supervisor itself did not run for so many seconds."""
        self._heard += gap
        self._since += gap
        self._seen = None

    def judge(
        self, now: float, work: object, since: float, limit_s: float | None, look: Callable[[], Look | None]
    ) -> Verdict | None:
        """Whether the process hangs; call it once a heartbeat, after all its heartbeats have been read.

        Args:
            now: monotonic seconds.
            work: what it executes, such as a batch, or None.
            since: when it got that.
            limit_s: seconds that a call of the model may take; None while it loads, which may take any time.
            look: asks the system; None when the process has ended.
        """
        if work is not self._work:
            self._work = work
            self._since = since if work is not None else now
        if work is not None and limit_s is not None and now - self._since > limit_s:
            return Verdict(f"a call of the model took over {limit_s:g} s (max_execution_time)", overrun=True)
        silent = now - self._heard
        if silent <= MISSED * self._heartbeat_s:
            return None
        seen = look()
        if seen is None:
            return None
        told = f"no heartbeat for {silent:.1f} s"
        if seen.state == "T":
            return Verdict(f"{told}: the process is stopped", stopped=True)
        idle = work is None and limit_s is not None
        if idle and silent > max(MISSED_BETWEEN_BATCHES * self._heartbeat_s, LEAST_WATCH_S):
            return Verdict(f"{told} between batches")
        if seen.state != "S" or self._seen is None or seen.cpu_s > self._seen[1]:
            # It wants to run, or waits for a disk; or this is the first look, or it has used the CPU since.
            self._seen = (now, seen.cpu_s)
            return None
        if now - self._seen[0] < max(LEAST_WATCH_S, MISSED * self._heartbeat_s):
            return None
        return Verdict(f"{told}, and it uses no CPU")
