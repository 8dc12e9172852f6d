"""The states of a slot: the supervisor's position for one worker, which outlives the worker's crashes.

A slot has at most one current process, its incarnation. `TRANSITIONS` holds every transition. `slots.py` reports events
and carries out the action that comes back. An event that the table does not have for a state is a defect of the
supervisor: it raises and is never ignored.

    starting   a process is being started, or a spare is being assigned to the slot
    loading    the process sets up its device and loads its models
    ready      at least one model serves
    draining   the process finishes its batches and gets no new ones
    stopping   the process was told to end
    stopped    the process has ended and will not be started again; or the slot has no model to load
    backoff    the process died, and the next start is delayed
    failed     another start would not help: no model loads, or the restart budget is spent
"""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Final

from .exit_cause import DeathKind
from .restart_budget import RestartBudget, RestartPolicy


class State(StrEnum):
    """The state of a slot, by the words of the log and of `status`."""

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

    LOADING = auto()  # the process has its assignment and loads
    LOADED = auto()  # the process serves
    UNLOADABLE = auto()  # the process runs, but none of its models loads
    DIED = auto()  # the process ended, and the restart budget allows another start
    SPENT = auto()  # the process ended, and the restart budget is spent
    DUE = auto()  # the back-off is over
    DRAIN = auto()  # end the process when it has finished its batches
    DRAINED = auto()  # the process has finished its batches
    STOP = auto()  # end the process now
    REPLACED = auto()  # the next process took over while the current one served
    PROMOTED = auto()  # the process ended, and the next process, which is loading, became the current one
    RESTART = auto()  # an operator or a reload wants a new process
    SET_ASIDE = auto()  # a model takes long to load: the process goes on beside another one, which loads the others
    RESUMED = auto()  # the process that went on beside the current one is the current one again


class Action(StrEnum):
    """What the caller must do after an event."""

    NOTHING = auto()
    START = auto()  # start the slot's next incarnation
    WAIT = auto()  # report DUE after `SlotStateMachine.delay_s`
    STOP = auto()  # tell the process to end


_S, _E, _A = State, Event, Action

TRANSITIONS: Final[dict[tuple[State, Event], tuple[State, Action]]] = {
    (_S.STARTING, _E.LOADING): (_S.LOADING, _A.NOTHING),
    (_S.STARTING, _E.UNLOADABLE): (_S.FAILED, _A.STOP),
    (_S.STARTING, _E.DIED): (_S.BACKOFF, _A.WAIT),
    (_S.STARTING, _E.SPENT): (_S.FAILED, _A.NOTHING),
    (_S.STARTING, _E.DRAIN): (_S.STOPPING, _A.STOP),
    (_S.STARTING, _E.STOP): (_S.STOPPING, _A.STOP),
    # A next process that had not begun to load when it was promoted.
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
    # After a process was told to end, only its end matters, not its reports.
    (_S.STOPPING, _E.LOADING): (_S.STOPPING, _A.NOTHING),
    (_S.STOPPING, _E.LOADED): (_S.STOPPING, _A.NOTHING),
    (_S.STOPPING, _E.UNLOADABLE): (_S.STOPPING, _A.NOTHING),
    (_S.STOPPING, _E.DIED): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPING, _E.SPENT): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPING, _E.STOP): (_S.STOPPING, _A.NOTHING),
    (_S.READY, _E.REPLACED): (_S.READY, _A.NOTHING),
    (_S.READY, _E.PROMOTED): (_S.LOADING, _A.NOTHING),
    (_S.LOADING, _E.SET_ASIDE): (_S.STARTING, _A.START),
    (_S.STARTING, _E.RESUMED): (_S.LOADING, _A.NOTHING),
    (_S.LOADING, _E.RESUMED): (_S.LOADING, _A.NOTHING),
    (_S.BACKOFF, _E.RESUMED): (_S.LOADING, _A.NOTHING),
    (_S.FAILED, _E.RESUMED): (_S.LOADING, _A.NOTHING),
    (_S.READY, _E.RESUMED): (_S.READY, _A.NOTHING),
    (_S.BACKOFF, _E.RESTART): (_S.STARTING, _A.START),
    (_S.FAILED, _E.RESTART): (_S.STARTING, _A.START),
    (_S.STOPPED, _E.RESTART): (_S.STARTING, _A.START),
    (_S.BACKOFF, _E.DUE): (_S.STARTING, _A.START),
    (_S.BACKOFF, _E.DRAIN): (_S.STOPPED, _A.NOTHING),
    (_S.BACKOFF, _E.STOP): (_S.STOPPED, _A.NOTHING),
    # The process of a slot that failed to load was told to end: its end changes nothing.
    (_S.FAILED, _E.DIED): (_S.FAILED, _A.NOTHING),
    (_S.FAILED, _E.SPENT): (_S.FAILED, _A.NOTHING),
    (_S.FAILED, _E.DRAIN): (_S.STOPPED, _A.NOTHING),
    (_S.FAILED, _E.STOP): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPED, _E.STOP): (_S.STOPPED, _A.NOTHING),
    # The slot failed first, and its process ends only now.
    (_S.STOPPED, _E.DIED): (_S.STOPPED, _A.NOTHING),
    (_S.STOPPED, _E.SPENT): (_S.STOPPED, _A.NOTHING),
}

LIVE: Final = frozenset((_S.STARTING, _S.LOADING, _S.READY, _S.BACKOFF))
"""States in which a slot serves, or will serve without further orders."""


class SlotStateMachine:
    """The state of one slot, and its history as operators want to know it.

    Args:
        number: from 0, in the order of the devices.
        budget: limits its restarts.
        state: the initial state.
        now: when it is in this state, in monotonic seconds.

    Attributes:
        number: as given.
        state: see `State`.
        state_since: when it came into this state, in monotonic seconds.
        incarnation: the number of processes that this slot has had.
        restarts: how many of them were started after a death.
        restarts_by_kind: the same, by how the one before had ended.
        last_error: why the last one died or failed, or None.
        last_error_at: when that happened, in monotonic seconds; None if nothing has.
        last_death_at: when a process died last, likewise.
        last_restart_at: when a process was started last after a death, likewise.
        delay_s: how long a `WAIT` action waits, in seconds.
    """

    def __init__(self, number: int, budget: RestartBudget, state: State = State.STARTING, now: float = 0.0) -> None:
        self.number = number
        self.state = state
        self.state_since = now
        self.incarnation = 1
        self.restarts = 0
        self.restarts_by_kind: dict[DeathKind, int] = {}
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.last_death_at: float | None = None
        self.last_restart_at: float | None = None
        self.delay_s = 0.0
        self._budget = budget
        self._ready_since: float | None = None
        self._last_death = DeathKind.UNKNOWN

    def allows(self, event: Event) -> bool:
        """Whether the event can happen in the present state."""
        return (self.state, event) in TRANSITIONS

    def handle(self, event: Event, now: float, cause: str | None = None) -> Action:
        """Makes the transition for an event.

        Args:
            event: what happened; for the end of a process call `handle_death` instead.
            now: monotonic seconds.
            cause: why, for UNLOADABLE.

        Returns:
            What the caller must do.

        Raises:
            LookupError: the event cannot happen in this state.
        """
        try:
            state, action = TRANSITIONS[self.state, event]
        except KeyError:
            raise LookupError(f"slot {self.number}: {event} cannot happen while {self.state}") from None
        if cause is not None:
            self.record_error(cause, now)
        if event is Event.RESTART:
            self._budget.reset()  # the operator is expected to have removed the cause
        if state is State.READY and (self.state is not State.READY or event is Event.REPLACED):
            self._ready_since = now
        if action is Action.START or event in (Event.REPLACED, Event.PROMOTED):
            self.incarnation += 1
        if action is Action.START:
            if event is Event.DUE:
                self.restarts += 1
                self.restarts_by_kind[self._last_death] = self.restarts_by_kind.get(self._last_death, 0) + 1
                self.last_restart_at = now
            self._ready_since = None
        if state is not self.state:
            self.state, self.state_since = state, now
        return action

    def record_error(self, cause: str, now: float) -> None:
        """Keeps why a process died or failed, or could not be started."""
        self.last_error, self.last_error_at = cause, now

    def set_policy(self, policy: RestartPolicy) -> None:
        """Applies a new restart policy from the next death on."""
        self._budget.policy = policy

    def handle_death(
        self,
        now: float,
        cause: str,
        kind: DeathKind = DeathKind.UNKNOWN,
        *,
        counts: bool = True,
        final: bool = False,
    ) -> Action:
        """Makes the transition for the end of the current process.

        Args:
            now: monotonic seconds.
            cause: how it ended, for people.
            kind: the same, for programs.
            counts: False when a suspect request, which ran by itself, is to blame: that spends no restart budget.
            final: another process could load no model: none is started, whatever is left of the restart budget.

        Returns:
            What the caller must do.
        """
        if self.state not in LIVE:
            return self.handle(Event.DIED, now)
        self.last_death_at, self._last_death = now, kind
        if final:
            return self.handle(Event.SPENT, now, cause)
        ready_for_s = None if self._ready_since is None else now - self._ready_since
        delay = self._budget.spend(now, ready_for_s=ready_for_s, counts=counts)
        if delay is None:
            return self.handle(Event.SPENT, now, f"{cause}; too many restarts ({self._budget.policy})")
        self.delay_s = delay
        return self.handle(Event.DIED, now, cause)
