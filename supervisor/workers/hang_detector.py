"""Decides whether a worker hangs, from its heartbeats and from what it executes. Pure: the caller reads the system.

A thread of the worker sends heartbeats. Each carries the number of model calls that each tower has begun. The rules:

- One model call longer than `max_execution_time` is a hang, whatever the process and its other towers do meanwhile.
  A batch that runs in several calls, request by request, may take longer in total.
- While a batch or a load is under way, missing heartbeats alone prove nothing: a library may compute without letting
  other threads run. It is a hang if the process is suspended, or if it sleeps and uses no CPU. Between batches,
  `MISSED_BETWEEN_BATCHES` missing heartbeats are a hang, even if the process uses the CPU.
- A process that has closed its socket can answer nothing any more. It is about to exit; after `MAX_CLOSED_S` it is a
  hang.
- A process whose core is being dumped has crashed already and will end; killing it would cut the dump off. It may take
  `MAX_DUMP_S`. So may any process whose memory is being freed.
- Time in which the supervisor itself did not run (a suspended machine) counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multitower.durations import exact_duration

from .exit_cause import Fault, Verdict

MISSED = 2
"""Heartbeats that must be missing before the process is examined."""

MISSED_BETWEEN_BATCHES = 10
"""Heartbeats that may be missing between batches, even while the process computes."""

MIN_OBSERVATION_S = 1.0
"""Seconds for which a silent process must sleep and use no CPU to count as hanging."""

MAX_CLOSED_S = 5.0
"""Seconds that a process may take to exit after it has closed its socket."""

MAX_DUMP_S = 600.0
"""Seconds that the kernel may take to dump the core of a process."""


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What the system reports of a process.

    Attributes:
        state: the letter of its state as in proc(5).
        cpu_s: the CPU seconds that it has used.
        dumping: the kernel is dumping its core, or has done so and frees its memory.
    """

    state: str
    cpu_s: float
    dumping: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """What a tower executes.

    Attributes:
        work: anything that differs from one batch to the next.
        since: when the batch began, in monotonic seconds.
        limit_s: seconds that one model call of it may take.
    """

    work: object
    since: float
    limit_s: float


@dataclass(slots=True)
class _Tower:
    """What is known of one tower.

    Attributes:
        work: the batch that it executes.
        calls: model calls begun, as in the last heartbeat.
        since: when the present call began, as far as known, in monotonic seconds.
    """

    work: object | None = None
    calls: int = 0
    since: float = 0.0


class HangDetector:
    """Watches the heartbeats of one process.

    Args:
        now: when the process was started, in monotonic seconds.
        heartbeat_s: the interval of its heartbeats.

    Attributes:
        heartbeat_s: as given.
    """

    def __init__(self, now: float, heartbeat_s: float) -> None:
        self.heartbeat_s = heartbeat_s
        self._last_heartbeat = now
        self._towers: list[_Tower] = []
        self._closed_since: float | None = None
        self._dumping_since: float | None = None
        self._asleep: tuple[float, float] | None = None  # when it was first seen asleep, and its CPU seconds then

    def record_heartbeat(self, now: float, calls: Sequence[int]) -> None:
        """Records a heartbeat.

        Args:
            now: monotonic seconds.
            calls: the number of model calls that each tower has begun.
        """
        self._last_heartbeat = now
        self._asleep = None
        self._add_towers(len(calls))
        for tower, count in zip(self._towers, calls, strict=False):
            if count != tower.calls:
                tower.calls = count
                tower.since = now

    def heartbeat_age(self, now: float) -> float:
        """Seconds since the last heartbeat that was recorded, or since the start of the process."""
        return max(0.0, now - self._last_heartbeat)

    def record_closed_socket(self, now: float) -> None:
        """Records that the process has closed its socket.

        Args:
            now: monotonic seconds.
        """
        self._closed_since = now

    def _add_towers(self, count: int) -> None:
        self._towers += [_Tower() for _ in range(count - len(self._towers))]

    def excuse_stall(self, seconds: float) -> None:
        """Discounts time in which the supervisor did not run."""
        self._last_heartbeat += seconds
        for tower in self._towers:
            tower.since += seconds
        if self._closed_since is not None:
            self._closed_since += seconds
        if self._dumping_since is not None:
            self._dumping_since += seconds
        self._asleep = None

    @property
    def dumping(self) -> bool:
        """Whether the last checks have shown that the process dumps its core."""
        return self._dumping_since is not None

    def check(
        self, now: float, calls: Sequence[Call | None], read_stat: Callable[[], ProcessStat | None], *, loading: bool
    ) -> Verdict | None:
        """Decides whether the process hangs. Call it once a heartbeat, after all received heartbeats were recorded.

        Args:
            now: monotonic seconds.
            calls: what each of its towers executes.
            read_stat: reads the state of the process from the system; returns None when the process has ended.
            loading: it is not ready yet, and may take any time to load.

        Returns:
            The verdict, or None when it does not hang.
        """
        overrun = self._find_overrun(now, calls)
        silent = now - self._last_heartbeat
        closed = 0.0 if self._closed_since is None else now - self._closed_since
        if overrun is None and closed <= MAX_CLOSED_S and silent <= MISSED * self.heartbeat_s:
            return None
        stat = read_stat()
        if stat is not None and stat.dumping:
            return self._check_dump(now)
        if overrun is not None or stat is None:
            return overrun
        if closed > MAX_CLOSED_S:
            return Verdict(Fault.HANGS, f"it closed its socket {closed:.1f} s ago and has not exited")
        description = f"no heartbeat for {silent:.1f} s"
        if stat.state == "T":
            return Verdict(Fault.STOPPED, f"{description}: the process is stopped")
        between_batches = not loading and all(call is None for call in calls)
        if between_batches and silent > max(MISSED_BETWEEN_BATCHES * self.heartbeat_s, MIN_OBSERVATION_S):
            return Verdict(Fault.HANGS, f"{description} between batches")
        if stat.state != "S" or self._asleep is None or stat.cpu_s > self._asleep[1]:
            # It is runnable or waits for a disk; or it is examined for the first time, or has used CPU since.
            self._asleep = (now, stat.cpu_s)
            return None
        if now - self._asleep[0] < max(MIN_OBSERVATION_S, MISSED * self.heartbeat_s):
            return None
        return Verdict(Fault.HANGS, f"{description}, and it uses no CPU")

    def _find_overrun(self, now: float, calls: Sequence[Call | None]) -> Verdict | None:
        self._add_towers(len(calls))
        found: Verdict | None = None
        for tower, call in zip(self._towers, calls, strict=False):
            work = call.work if call is not None else None
            if work is not tower.work:
                tower.work = work
                tower.since = call.since if call is not None else now
            if found is None and call is not None and now - tower.since > call.limit_s:
                cause = f"a model call took over {exact_duration(call.limit_s)} (max_execution_time)"
                found = Verdict(Fault.OVERRUN, cause, call.limit_s)
        return found

    def _check_dump(self, now: float) -> Verdict | None:
        if self._dumping_since is None:
            self._dumping_since = now
        if now - self._dumping_since <= MAX_DUMP_S:
            return None
        return Verdict(Fault.DUMPS, f"the dump of its core took over {exact_duration(MAX_DUMP_S)}")
