"""Replacing the workers of slots on purpose, one after the other, without losing a request.

Where the machine can hold two processes of a slot at once, the new one loads while the old one serves, and takes over
when it is ready; otherwise the old one finishes and ends first. Reloads, `multitower restart SLOT` and the recycling of
leaking workers come through here. A slot whose new worker cannot load keeps its old one, or gets one like it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from multitower.spec import ModelReport, ModelSpec

from ..loop.log import event
from ..machine.placement import Placement
from ..routing.router import Router
from .slot import Event, State
from .worker_process import Member, Place

log = logging.getLogger("multitower.fleet")


class _Step(Enum):
    BEGIN = auto()
    LOADING = auto()  # the successor loads while the old process serves
    LEAVING = auto()  # the old process answers what only it can, then what it has
    STOPPING = auto()  # it was told to end
    STARTING = auto()  # the new process loads, and nothing serves meanwhile


@dataclass(slots=True, eq=False)
class Renewal:
    """One slot's renewal.

    Attributes:
        place: the slot.
        why: for the log.
        specs: the models of the new process; None for the slot's own. Without any there is no new process.
        placement: its share of the machine; None for the slot's own.
        remove: the slot is given up: nothing takes over.
        done: is told of the end: None, or why it failed.
        step: how far it is.
        old: the process that leaves.
        since: when it began to leave, in monotonic seconds: what it alone can run it answers as far as that was there.
        overlap: the new process loads while the old one serves.
        new: the process that loads meanwhile.
        changed: models and versions that it loads otherwise than the former one.
        former: models and placement of a slot that served with them, and is to go back to them where it has to.
        cause: why it goes back to them.
    """

    place: Place
    why: str
    specs: tuple[ModelSpec, ...] | None = None
    placement: Placement | None = None
    remove: bool = False
    done: Callable[[str | None], None] | None = None
    step: _Step = _Step.BEGIN
    old: Member | None = None
    since: float | None = None
    overlap: bool = False
    new: Member | None = None
    changed: frozenset[tuple[str, str]] = frozenset()
    former: tuple[tuple[ModelSpec, ...], Placement] | None = None
    cause: str | None = None

    @property
    def overlaps(self) -> bool:
        """A new process could load while the old one serves."""
        return not self.remove and bool(self.wanted)

    @property
    def wanted(self) -> tuple[ModelSpec, ...]:
        """The models that the new process is to load."""
        return self.specs if self.specs is not None else self.place.specs

    def begin_again(self) -> None:
        """The slot has lived on by itself meanwhile."""
        self.step, self.old, self.new, self.overlap = _Step.BEGIN, None, None, False
        self.since = None


class Staff(Protocol):
    """What the renewals need of the fleet."""

    def start_successor(self, place: Place, specs: tuple[ModelSpec, ...], placement: Placement) -> Member | None:
        """Starts a process that is to take over; None when there is no room for one."""

    def tell(self, place: Place, event: Event, now: float) -> None:
        """An event for the slot, and what follows from it."""

    def end(self, member: Member, now: float) -> None:
        """Tells a process to end."""

    def drop(self, place: Place) -> None:
        """The slot is no more."""

    def relieved(self, place: Place) -> bool:
        """A slot that loads is to serve what nothing but this one serves."""

    def promised(self, place: Place) -> set[tuple[str, str]]:
        """Models and versions that nothing brings but slots which wait for the end of this one's process."""

    def judge_models(self) -> None:
        """Finds the models that nothing serves or will serve."""


class Renewals:
    """The renewals that wait, and the one that is under way.

    Args:
        staff: the fleet.
        router: the fleet's.
        fits: whether a slot's device and the machine can hold a second process of it.
    """

    def __init__(self, staff: Staff, router: Router, fits: Callable[[Place], bool]) -> None:
        self._staff = staff
        self._router = router
        self._fits = fits
        self._waiting: deque[Renewal] = deque()
        self._current: Renewal | None = None

    @property
    def active(self) -> bool:
        """A renewal is under way or waits for its turn."""
        return self._current is not None or bool(self._waiting)

    def ask(self, renewal: Renewal) -> None:
        """Renews a slot when its turn comes."""
        self._waiting.append(renewal)

    def includes(self, place: Place) -> bool:
        """The slot is being renewed, or is to be."""
        return any(True for _ in self._of(place))

    def revives(self, place: Place) -> bool:
        """The slot is going to have a new process, whatever its state is now."""
        return any(not each.remove and each.wanted for each in self._of(place))

    def _of(self, place: Place) -> Iterator[Renewal]:
        if self._current is not None and self._current.place is place:
            yield self._current
        yield from (each for each in self._waiting if each.place is place)

    def coming(self, place: Place) -> tuple[ModelSpec, ...]:
        """The models that the slot is to load, the slot's own if it is not being renewed."""
        renewals = [renewal for renewal in self._of(place) if not renewal.remove]
        return renewals[-1].wanted if renewals else place.specs

    def withdraw(self, renewals: Collection[Renewal]) -> None:
        """These are not wanted any more, as far as they have not begun."""
        self._waiting = deque(each for each in self._waiting if each not in renewals)

    def clear(self) -> None:
        """The daemon ends: nothing is renewed any more."""
        self._waiting.clear()
        self._current = None

    def advance(self, now: float) -> None:
        """Does what can be done. Call it after each burst of events."""
        while True:
            if self._current is None:
                if not self._waiting:
                    return
                self._current = self._waiting.popleft()
                event(log, logging.INFO, "renewing", **self._current.place.fields, why=self._current.why)
            before = self._current, self._current.step
            self._step(self._current, now)
            if (self._current, self._current.step if self._current is not None else None) == before:
                return

    def took_over(self, place: Place, old: Member) -> None:
        """The successor serves in the place of the old process."""
        current = self._current
        if current is not None and current.place is place:
            current.old, current.step = old, _Step.LEAVING
            # From now on the slot's next process is as this one.
            self._apply(current)

    # How it is done.

    def _step(self, renewal: Renewal, now: float) -> None:
        steps = {
            _Step.BEGIN: self._begin,
            _Step.LOADING: self._loading,
            _Step.LEAVING: self._leaving,
            _Step.STOPPING: self._stopping,
            _Step.STARTING: self._starting,
        }
        steps[renewal.step](renewal, now)

    def _begin(self, renewal: Renewal, now: float) -> None:
        place = renewal.place
        state = place.slot.state
        if state is State.STARTING and place.member is None and renewal.overlaps:
            self._apply(renewal)  # it is held back: its first process, which is yet to come, is the new one
            self._finish(None)
        elif state in (State.STARTING, State.LOADING):
            self._staff.tell(place, Event.STOP, now)
            renewal.step = _Step.STOPPING
        elif state is State.READY and place.member is not None:
            renewal.old = place.member
            if not (renewal.overlaps and self._fits(place)):
                renewal.step = _Step.LEAVING
                return
            renewal.overlap = True
            renewal.new = self._staff.start_successor(place, renewal.wanted, renewal.placement or place.placement)
            if renewal.new is None:
                self._finish("no process could be started")
                return
            renewal.step = _Step.LOADING
        else:
            renewal.step = _Step.STOPPING

    def _loading(self, renewal: Renewal, _now: float) -> None:
        place = renewal.place
        if place.successor is not None:
            return
        if place.slot.state is State.READY:
            self._finish(f"the new worker could not load, and the old one goes on: {place.slot.last_error}")
        elif place.member is renewal.new:
            # The old one died, and what was to take over is the slot's own process now.
            self._apply(renewal)
            renewal.step = _Step.STARTING
        else:
            renewal.begin_again()  # both have died

    def _leaving(self, renewal: Renewal, now: float) -> None:
        old, place = renewal.old, renewal.place
        assert old is not None  # set with the step
        if old.channel is None or old.channel.worker not in self._router.channels:
            self._left(renewal)
            return
        if old.cause is not None or old.verdict is not None:
            return  # it is dead, or about to be: what it was executing is still to be given to others
        worker, balancer = old.channel.worker, self._router.balancer
        if not worker.retiring:
            if renewal.remove and self._staff.relieved(place):
                return
            coming = self._brought(renewal)
            self._router.withdraw(old.channel, coming)
            if renewal.since is None:
                renewal.since = now
            if balancer.needed(worker, {name for name, _ in coming}, renewal.since):
                return
            balancer.retire(worker)
            if not renewal.overlap:
                self._staff.tell(place, Event.DRAIN, now)
        if worker.alone:
            if renewal.overlap:
                self._staff.end(old, now)
            else:
                self._staff.tell(place, Event.DRAINED, now)
            self._left(renewal)

    def _brought(self, renewal: Renewal) -> set[tuple[str, str]]:
        """Models and versions of the process that leaves which others are to load yet: requests can wait for those."""
        own = {spec.key for spec in renewal.wanted} if not renewal.remove else self._staff.promised(renewal.place)
        later = {
            spec.key
            for other in self._waiting
            if not other.remove
            for spec in other.wanted
            if spec.key not in {known.key for known in other.place.specs}
        }
        return (later - own) | (set() if renewal.overlap else own)

    def _left(self, renewal: Renewal) -> None:
        if renewal.overlap:
            self._finish(None)
        else:
            renewal.step = _Step.STOPPING

    def _stopping(self, renewal: Renewal, now: float) -> None:
        place = renewal.place
        if place.slot.state in (State.STARTING, State.LOADING, State.READY):
            renewal.begin_again()  # it died before it was told to end, and was restarted at once
            return
        if place.member is not None or place.slot.state not in (State.STOPPED, State.FAILED, State.BACKOFF):
            return
        place.due = None
        if renewal.remove:
            self._staff.drop(place)
            self._finish(None)
            others = list(self._of(place))
            self.withdraw(others)
            for other in others:
                if other.done is not None:
                    other.done("the slot is no longer configured")
            return
        self._apply(renewal)
        if not place.specs:
            self._staff.tell(place, Event.STOP, now)  # it waits for no restart any more
            self._finish(None)
            return
        self._staff.tell(place, Event.RESTART, now)
        renewal.step = _Step.STARTING

    def _starting(self, renewal: Renewal, _now: float) -> None:
        place, slot = renewal.place, renewal.place.slot
        failed = tuple(model for model in place.models if model.state != "ready" and model.key in renewal.changed)
        if slot.state is State.READY and not failed:
            self._finish(None)
            return
        over = slot.state in (State.READY, State.FAILED, State.STOPPED)
        if over or (slot.state is State.BACKOFF and renewal.former is not None):
            cause = "; ".join(f"{model.name}: {model.cause}" for model in failed) or slot.last_error or str(slot.state)
            slot.last_error = cause
            self._fall_back(renewal, cause, failed)

    def _fall_back(self, renewal: Renewal, cause: str, failed: tuple[ModelReport, ...]) -> None:
        """The new process cannot load: the slot gets back what it served with, if it did."""
        former, renewal.former = renewal.former, None
        if former is None:
            self._finish(cause)
            return
        place = renewal.place
        event(log, logging.ERROR, "the new worker cannot load: back to the former models", **place.fields, cause=cause)
        place.refused, renewal.cause = failed, cause
        renewal.specs, renewal.placement = former
        renewal.begin_again()

    def _apply(self, renewal: Renewal) -> None:
        place = renewal.place
        if renewal.specs is not None:
            if renewal.old is not None and renewal.cause is None:
                renewal.former = place.specs, place.placement
            renewal.changed = frozenset(spec.key for spec in renewal.specs if spec not in place.specs)
            place.specs = renewal.specs
        if renewal.placement is not None:
            place.placement = renewal.placement

    def _finish(self, error: str | None) -> None:
        renewal, self._current = self._current, None
        assert renewal is not None  # it is the one that ends
        error = renewal.cause or error
        level = logging.INFO if error is None else logging.ERROR
        message = "renewed" if error is None else "not renewed"
        event(log, level, message, **renewal.place.fields, why=renewal.why, cause=error)
        self._staff.judge_models()
        if renewal.done is not None:
            renewal.done(error)
