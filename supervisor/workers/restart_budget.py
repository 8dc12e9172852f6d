"""When a dead worker is started again, and when its slot fails. Pure: no clock and no process of its own.

The rule is Erlang/OTP's restart intensity and period (https://www.erlang.org/doc/system/sup_princ.html): more
than `max_restarts` within `window` seconds is a fault that restarting does not cure. In between, the delay grows
exponentially with jitter, so that several slots that died of one cause do not restart in step.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from multitower.durations import exact_duration


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The settings of `restart:` in the configuration; times in seconds."""

    max_restarts: int = 5
    window_s: float = 60.0
    first_s: float = 0.5
    max_s: float = 30.0

    def __str__(self) -> str:
        return f"restart.max_restarts is {self.max_restarts} within {exact_duration(self.window_s)}"


class RestartBudget:
    """Counts one slot's restarts, or those of all spares.

    The first death of a worker that had been ready is followed by a restart at once. Each further one waits, from
    `first_s` doubling up to `max_s`. A worker that was ready for `window_s` resets the delay.

    Args:
        policy: the limits.
        rng: draws the jitter.

    Attributes:
        policy: as given; may be changed.
    """

    def __init__(self, policy: RestartPolicy, rng: random.Random) -> None:
        self.policy = policy
        self._rng = rng
        self._spent: deque[float] = deque()
        self._in_a_row = 0

    def reset(self) -> None:
        """Forgets all restarts so far."""
        self._spent.clear()
        self._in_a_row = 0

    def spend(self, now: float, *, ready_for_s: float | None, counts: bool = True) -> float | None:
        """Takes one restart from the budget, after a death.

        Args:
            now: monotonic seconds.
            ready_for_s: how long the dead worker had been ready; None when it never was.
            counts: False for a death that a suspect is to blame for: it takes nothing from the budget.

        Returns:
            The seconds to wait before the next start, or None when the budget is spent.
        """
        policy = self.policy
        if ready_for_s is not None and ready_for_s >= policy.window_s:
            self._in_a_row = 0
        if not counts:
            return 0.0
        while self._spent and now - self._spent[0] >= policy.window_s:
            self._spent.popleft()
        if len(self._spent) >= policy.max_restarts:
            return None
        self._spent.append(now)
        self._in_a_row += 1
        if self._in_a_row == 1 and ready_for_s is not None:
            return 0.0
        doublings = min(self._in_a_row - (2 if ready_for_s is not None else 1), 32)
        delay = min(policy.first_s * 2.0 ** max(doublings, 0), policy.max_s)
        return delay * self._rng.uniform(0.75, 1.0)
