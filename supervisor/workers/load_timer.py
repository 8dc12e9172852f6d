"""Measures how long a worker process takes to start, and to load each model. Pure: no clock and no process of its own.

The process records in shared memory which model it loads (`LoadStep`). The supervisor reads that once a heartbeat, also
while native code holds the interpreter of the process. Only time in which the supervisor ran counts: a machine or a
container that was suspended ends no load.
"""

from __future__ import annotations

from collections.abc import Mapping

from multitower.durations import exact_duration
from multitower.load_step import LoadStep

from .exit_cause import Fault, Verdict


class LoadTimer:
    """The time that one process takes before it serves.

    Args:
        start_s: seconds that a spare had taken to start before it got its assignment; 0 for any other process.

    Attributes:
        step: what the process loads, as seen last; None while it loads no model.
        since: when it began to load that model, or to start, in monotonic seconds, as far as the supervisor has seen
            it, without the time that it spent on other models since; None before the first check.
        start_s: seconds that it has taken to start and to import TensorFlow, as a spare too; without the time that a
            spare waited after that.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self.step: LoadStep | None = None
        self.since: float | None = None
        self.start_s = self._start_as_spare_s = start_s
        self._stage: tuple[bool, tuple[str, str] | None] = (False, None)
        self._used: dict[tuple[str, str], float] = {}

    def excuse_stall(self, seconds: float) -> None:
        """Discounts time in which the supervisor did not run."""
        if self.since is not None:
            self.since += seconds

    def step_s(self, now: float) -> float:
        """Seconds that the process has spent on the model that it loads; 0 while it loads none."""
        return 0.0 if self.step is None or self.since is None else now - self.since

    def check(
        self, now: float, step: LoadStep | None, load_s: Mapping[str, float], start_s: float, *, loading: bool
    ) -> Verdict | None:
        """Decides whether a process that starts or loads takes too long. Call it once a heartbeat until it serves.

        Args:
            now: monotonic seconds.
            step: what the process has recorded last; None while it loads no model.
            load_s: by model name, the seconds that loading one version may take.
            start_s: the seconds that the process may take before it loads its first model.
            loading: it has its assignment; until then it imports TensorFlow, which is timed by itself.

        Returns:
            The verdict, or None while the process is within its time.
        """
        self.step = step
        stage = (loading, None if step is None else step.key)
        if self.since is None or stage != self._stage:
            former, key = self._stage[1], stage[1]
            if former is not None and self.since is not None:
                self._used[former] = now - self.since
            # The files of all handlers are read before the first of them is loaded.
            self._stage, self.since = stage, now if key is None else now - self._used.get(key, 0.0)
        if not loading:
            self.start_s = self._start_as_spare_s + now - self.since
        limit_s = start_s if step is None else load_s.get(step.model, start_s)
        if now - self.since <= limit_s:
            return None
        subject = "its start" if step is None else "it"  # the description of its end names the model
        return Verdict(Fault.LOAD_TIMEOUT, f"{subject} took over {exact_duration(limit_s)} (load_timeout)")
