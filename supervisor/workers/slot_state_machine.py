"""The life of a slot: the supervisor's place for a worker, which outlives the worker's crashes.

A slot holds at most one process at a time, its current incarnation. `TRANSITIONS` is the whole of its life; the
fleet (`fleet.py`) tells a slot what happened and carries out the action that comes back. An event that the table
does not know in a state is a mistake of the supervisor and raises, it is never ignored.

    starting   a process is being started, or a spare is being given the slot's work
    loading    the process sets up its device and loads its models
    ready      at least one model serves
    draining   it finishes what it has and gets nothing new
    stopping   it was told to end
    stopped    it has ended, and nothing will start it again; or it has no model to load
    backoff    it died, and the next start waits
    failed     starting it again would not help: none of its models loads, or the restart budget is spent
"""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Final

from .restart_budget import RestartBudget, RestartPolicy


class State(StrEnum):
    """Where a slot stands; the words of the log and of `status`."""

    STARTING = auto()
    LOADING = auto()
    READY = auto()
    DRAINING = auto()
    STOPPING = auto()
    STOPPED = auto()
    BACKOFF = auto()
    FAILED = auto()


class Event(StrEnum):
    """What can happen to a slot."""

    LOADING = auto()  # the worker began with its assignment
    LOADED = auto()  # the worker serves
    UNLOADABLE = auto()  # the worker lives, but none of its models loads
    DIED = auto()  # the process ended, and the budget allows another
    SPENT = auto()  # the process ended, and the budget is spent
    DUE = auto()  # the back-off is over
    DRAIN = auto()  # end when nothing is left to do
    DRAINED = auto()  # nothing is left to do
    STOP = auto()  # end now
    REPLACED = auto()  # another process has taken over while this one served
    SUCCEEDED = auto()  # the process ended, and another was already loading to take over
    RESTART = auto()  # an operator or a reload wants it started


class Action(StrEnum):
    """What the fleet has to do about it."""

    NOTHING = auto()
    START = auto()  # give the slot its next incarnation
    WAIT = auto()  # report DUE after `Slot.delay_s`
    STOP = auto()  # tell the process to end


_S, _E, _A = State, Event, Action

TRANSITIONS: Final[dict[tuple[State, Event], tuple[State, Action]]] = {
    (_S.STARTING, _E.LOADING): (_S.LOADING, _A.NOTHING),
    (_S.STARTING, _E.UNLOADABLE): (_S.FAILED, _A.STOP),
    (_S.STARTING, _E.DIED): (_S.BACKOFF, _A.WAIT),
    (_S.STARTING, _E.SPENT): (_S.FAILED, _A.NOTHING),
    (_S.STARTING, _E.DRAIN): (_S.STOPPING, _A.STOP),
    (_S.STARTING, _E.STOP): (_S.STOPPING, _A.STOP),
    # A process that was to take over, and had not begun when it became the slot's own.
    (_S.LOADING, _E.LOADING): (_S.LOADING, _A.NOTHING),
    (_S.LOADING, _E.LOADED): (_S.READY, _A.NOTHING),
    (_S.LOADING, _E.UNLOADABLE): (_S.FAILED, _A.STOP),
    (_S.LOADING, _E.DIED): (_S.BACKOFF, _A.WAIT),
    (_S.LOADING, _E.SPENT): (_S.FAILED, _A.NOTHING),
    (_S.LOADING, _E.DRAIN): (_S.STOPPING, _A.STOP),
    (_S.LOADING, _E.STOP): (_S.STOPPING, _A.STOP),
    (_S.READY, _E.DIED): (_S.BACKOFF, _A.WAIT),
    (_S.READY, _E.SPENT): (_S.FAILED, _A.NOTHING),
    (_S.READY, _E.DRAIN): (_S.DRAINING, _A.NOTHING),
    (_S.READY, _E.STOP): (_S.STOPPING, _A.STOP),
    (_S.DRAINING, _E.DRAINED): (_S.STOPPING, _A.STOP),
    (_S.DRAINING, _E.DIED): (_S.STOPPED, _A.NOTHING),
    (_S.DRAINING, _E.SPENT): (_S.STOPPED, _A.NOTHING),
    (_S.DRAINING, _E.STOP): (_S.STOPPING, _A.STOP),
    # What a process still says after it was told to end changes nothing; only its end does.
    (_S.STOPPING, _E.LOADING): (_S.STOPPING, _A.NOTHING),
    (_S.STOPPING, _E.LOADED): (_S.STOPPING, _A.NOTHING),
    (_S.STOPPING, _E.UNLOADABLE): (_S.STOPPING, _A.NOTHING),
    (_S.STOPPING, _E.DIED): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPING, _E.SPENT): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPING, _E.STOP): (_S.STOPPING, _A.NOTHING),
    (_S.READY, _E.REPLACED): (_S.READY, _A.NOTHING),
    (_S.READY, _E.SUCCEEDED): (_S.LOADING, _A.NOTHING),
    (_S.BACKOFF, _E.RESTART): (_S.STARTING, _A.START),
    (_S.FAILED, _E.RESTART): (_S.STARTING, _A.START),
    (_S.STOPPED, _E.RESTART): (_S.STARTING, _A.START),
    (_S.BACKOFF, _E.DUE): (_S.STARTING, _A.START),
    (_S.BACKOFF, _E.DRAIN): (_S.STOPPED, _A.NOTHING),
    (_S.BACKOFF, _E.STOP): (_S.STOPPED, _A.NOTHING),
    # The process of a slot that failed to load is told to end; its end is no news.
    (_S.FAILED, _E.DIED): (_S.FAILED, _A.NOTHING),
    (_S.FAILED, _E.SPENT): (_S.FAILED, _A.NOTHING),
    (_S.FAILED, _E.DRAIN): (_S.STOPPED, _A.NOTHING),
    (_S.FAILED, _E.STOP): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPED, _E.STOP): (_S.STOPPED, _A.NOTHING),
    # It had failed before, and its process ends only now.
    (_S.STOPPED, _E.DIED): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPED, _E.SPENT): (_S.STOPPED, _A.NOTHING),
}

LIVE: Final = frozenset((_S.STARTING, _S.LOADING, _S.READY, _S.BACKOFF))
"""States in which a slot serves, or is on its way to serving."""


class SlotStateMachine:
    """One slot's state, and what an operator wants to know of it.

    Attributes:
        number: from 0, in the order of the devices.
        state: see `State`.
        incarnation: the number of processes this slot has had.
        restarts: how many of them were started after a death.
        last_error: why the last one died or failed, or None.
        delay_s: how long a `WAIT` action waits.
    """

    def __init__(self, number: int, budget: RestartBudget, state: State = State.STARTING) -> None:
        self.number = number
        self.state = state
        self.incarnation = 1
        self.restarts = 0
        self.last_error: str | None = None
        self.delay_s = 0.0
        self._budget = budget
        self._ready_since: float | None = None

    def handle(self, event: Event, now: float, cause: str | None = None) -> Action:
        """Takes an event to the next state.

        Args:
            event: what happened; a death is told with `died`, not here.
            now: monotonic seconds.
            cause: why, for UNLOADABLE.

        Returns:
            What is to be done.

        Raises:
            LookupError: the event cannot happen in this state.
        """
        try:
            state, action = TRANSITIONS[self.state, event]
        except KeyError:
            raise LookupError(f"slot {self.number}: {event} cannot happen while {self.state}") from None
        if cause is not None:
            self.last_error = cause
        if event is Event.RESTART:
            # Whoever asks for it has seen to the cause.
            self._budget.reset()
        if state is State.READY and (self.state is not State.READY or event is Event.REPLACED):
            self._ready_since = now
        if action is Action.START or event in (Event.REPLACED, Event.SUCCEEDED):
            self.incarnation += 1
        if action is Action.START:
            self.restarts += event is Event.DUE
            self._ready_since = None
        self.state = state
        return action

    def set_policy(self, policy: RestartPolicy) -> None:
        """A reload has changed when it is started again."""
        self._budget.policy = policy

    def died(self, now: float, cause: str, *, counts: bool = True) -> Action:
        """The process of the current incarnation has ended.

        Args:
            now: monotonic seconds.
            cause: how it ended, for people.
            counts: False when a suspect request was being executed alone: that spends no budget.
        """
        if self.state not in LIVE:
            return self.handle(Event.DIED, now)
        ready_for_s = None if self._ready_since is None else now - self._ready_since
        delay = self._budget.died(now, ready_for_s=ready_for_s, counts=counts)
        if delay is None:
            return self.handle(Event.SPENT, now, f"{cause}; too many restarts")
        self.delay_s = delay
        return self.handle(Event.DIED, now, cause)
