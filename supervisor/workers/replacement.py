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
from .slot import Slot, WorkerProcess
from .slot_state_machine import Event, State

log = logging.getLogger("multitower.fleet")


class _Step(Enum):
    BEGIN = auto()
    LOADING = auto()  # the successor loads while the old process serves
    LEAVING = auto()  # the old process answers what only it can, then what it has
    STOPPING = auto()  # it was told to end
    STARTING = auto()  # the new process loads, and nothing serves meanwhile


@dataclass(slots=True, eq=False)
class Replacement:
    """One slot's renewal.

    Attributes:
        placement: the slot.
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

    slot: Slot
    why: str
    specs: tuple[ModelSpec, ...] | None = None
    placement: Placement | None = None
    remove: bool = False
    done: Callable[[str | None], None] | None = None
    step: _Step = _Step.BEGIN
    old: WorkerProcess | None = None
    since: float | None = None
    overlap: bool = False
    new: WorkerProcess | None = None
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
        return self.specs if self.specs is not None else self.slot.specs

    def begin_again(self) -> None:
        """The slot has lived on by itself meanwhile."""
        self.step, self.old, self.new, self.overlap = _Step.BEGIN, None, None, False
        self.since = None


class Staff(Protocol):
    """What the renewals need of the fleet."""

    def start_next_process(
        self, slot: Slot, specs: tuple[ModelSpec, ...], placement: Placement
    ) -> WorkerProcess | None:
        """Starts a process that is to take over; None when there is no room for one."""

    def tell(self, slot: Slot, event: Event, now: float) -> None:
        """An event for the slot, and what follows from it."""

    def end(self, process: WorkerProcess, now: float) -> None:
        """Tells a process to end."""

    def drop(self, slot: Slot) -> None:
        """The slot is no more."""

    def relieved(self, slot: Slot) -> bool:
        """A slot that loads is to serve what nothing but this one serves."""

    def promised(self, slot: Slot) -> set[tuple[str, str]]:
        """Models and versions that nothing brings but slots which wait for the end of this one's process."""

    def judge_models(self) -> None:
        """Finds the models that nothing serves or will serve."""


class Replacements:
    """The renewals that wait, and the one that is under way.

    Args:
        staff: the fleet.
        router: the fleet's.
        fits: whether a slot's device and the machine can hold a second process of it.
    """

    def __init__(self, staff: Staff, router: Router, fits: Callable[[Slot], bool]) -> None:
        self._staff = staff
        self._router = router
        self._fits = fits
        self._waiting: deque[Replacement] = deque()
        self._current: Replacement | None = None

    @property
    def active(self) -> bool:
        """A renewal is under way or waits for its turn."""
        return self._current is not None or bool(self._waiting)

    def ask(self, replacement: Replacement) -> None:
        """Renews a slot when its turn comes."""
        self._waiting.append(replacement)

    def includes(self, slot: Slot) -> bool:
        """The slot is being renewed, or is to be."""
        return any(True for _ in self._of(slot))

    def revives(self, slot: Slot) -> bool:
        """The slot is going to have a new process, whatever its state is now."""
        return any(not each.remove and each.wanted for each in self._of(slot))

    def _of(self, slot: Slot) -> Iterator[Replacement]:
        if self._current is not None and self._current.slot is slot:
            yield self._current
        yield from (each for each in self._waiting if each.slot is slot)

    def coming(self, slot: Slot) -> tuple[ModelSpec, ...]:
        """The models that the slot is to load, the slot's own if it is not being renewed."""
        replacements = [replacement for replacement in self._of(slot) if not replacement.remove]
        return replacements[-1].wanted if replacements else slot.specs

    def withdraw(self, replacements: Collection[Replacement]) -> None:
        """These are not wanted any more, as far as they have not begun."""
        self._waiting = deque(each for each in self._waiting if each not in replacements)

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
                event(log, logging.INFO, "renewing", **self._current.slot.fields, why=self._current.why)
            before = self._current, self._current.step
            self._step(self._current, now)
            if (self._current, self._current.step if self._current is not None else None) == before:
                return

    def took_over(self, slot: Slot, old: WorkerProcess) -> None:
        """The successor serves in the place of the old process."""
        current = self._current
        if current is not None and current.slot is slot:
            current.old, current.step = old, _Step.LEAVING
            # From now on the slot's next process is as this one.
            self._apply(current)

    # How it is done.

    def _step(self, replacement: Replacement, now: float) -> None:
        steps = {
            _Step.BEGIN: self._begin,
            _Step.LOADING: self._loading,
            _Step.LEAVING: self._leaving,
            _Step.STOPPING: self._stopping,
            _Step.STARTING: self._starting,
        }
        steps[replacement.step](replacement, now)

    def _begin(self, replacement: Replacement, now: float) -> None:
        slot = replacement.slot
        state = slot.state
        if state is State.STARTING and slot.process is None and replacement.overlaps:
            self._apply(replacement)  # it is held back: its first process, which is yet to come, is the new one
            self._finish(None)
        elif state in (State.STARTING, State.LOADING):
            self._staff.tell(slot, Event.STOP, now)
            replacement.step = _Step.STOPPING
        elif state is State.READY and slot.process is not None:
            replacement.old = slot.process
            if not (replacement.overlaps and self._fits(slot)):
                replacement.step = _Step.LEAVING
                return
            replacement.overlap = True
            replacement.new = self._staff.start_next_process(
                slot, replacement.wanted, replacement.placement or slot.placement
            )
            if replacement.new is None:
                self._finish("no process could be started")
                return
            replacement.step = _Step.LOADING
        else:
            replacement.step = _Step.STOPPING

    def _loading(self, replacement: Replacement, _now: float) -> None:
        slot = replacement.slot
        if slot.next_process is not None:
            return
        if slot.state is State.READY:
            self._finish(f"the new worker could not load, and the old one goes on: {slot.last_error}")
        elif slot.process is replacement.new:
            # The old one died, and what was to take over is the slot's own process now.
            self._apply(replacement)
            replacement.step = _Step.STARTING
        else:
            replacement.begin_again()  # both have died

    def _leaving(self, replacement: Replacement, now: float) -> None:
        old, slot = replacement.old, replacement.slot
        assert old is not None  # set with the step
        if old.route is None or old.route.worker not in self._router.routes:
            self._left(replacement)
            return
        if old.cause is not None or old.verdict is not None:
            return  # it is dead, or about to be: what it was executing is still to be given to others
        worker, scheduler = old.route.worker, self._router.scheduler
        if not worker.retiring:
            if replacement.remove and self._staff.relieved(slot):
                return
            coming = self._brought(replacement)
            self._router.withdraw_versions(old.route, coming)
            if replacement.since is None:
                replacement.since = now
            if scheduler.is_needed(worker, {name for name, _ in coming}, replacement.since):
                return
            scheduler.retire(worker)
            if not replacement.overlap:
                self._staff.tell(slot, Event.DRAIN, now)
        if worker.process_idle:
            if replacement.overlap:
                self._staff.end(old, now)
            else:
                self._staff.tell(slot, Event.DRAINED, now)
            self._left(replacement)

    def _brought(self, replacement: Replacement) -> set[tuple[str, str]]:
        """Models and versions of the process that leaves which others are to load yet: requests can wait for those."""
        own = (
            {spec.key for spec in replacement.wanted}
            if not replacement.remove
            else self._staff.promised(replacement.slot)
        )
        later = {
            spec.key
            for other in self._waiting
            if not other.remove
            for spec in other.wanted
            if spec.key not in {known.key for known in other.slot.specs}
        }
        return (later - own) | (set() if replacement.overlap else own)

    def _left(self, replacement: Replacement) -> None:
        if replacement.overlap:
            self._finish(None)
        else:
            replacement.step = _Step.STOPPING

    def _stopping(self, replacement: Replacement, now: float) -> None:
        slot = replacement.slot
        if slot.state in (State.STARTING, State.LOADING, State.READY):
            replacement.begin_again()  # it died before it was told to end, and was restarted at once
            return
        if slot.process is not None or slot.state not in (State.STOPPED, State.FAILED, State.BACKOFF):
            return
        slot.due = None
        if replacement.remove:
            self._staff.drop(slot)
            self._finish(None)
            others = list(self._of(slot))
            self.withdraw(others)
            for other in others:
                if other.done is not None:
                    other.done("the slot is no longer configured")
            return
        self._apply(replacement)
        if not slot.specs:
            self._staff.tell(slot, Event.STOP, now)  # it waits for no restart any more
            self._finish(None)
            return
        self._staff.tell(slot, Event.RESTART, now)
        replacement.step = _Step.STARTING

    def _starting(self, replacement: Replacement, _now: float) -> None:
        slot, slot = replacement.slot, replacement.slot
        failed = tuple(model for model in slot.models if model.state != "ready" and model.key in replacement.changed)
        if slot.state is State.READY and not failed:
            self._finish(None)
            return
        over = slot.state in (State.READY, State.FAILED, State.STOPPED)
        if over or (slot.state is State.BACKOFF and replacement.former is not None):
            cause = "; ".join(f"{model.name}: {model.cause}" for model in failed) or slot.last_error or str(slot.state)
            slot.last_error = cause
            self._fall_back(replacement, cause, failed)

    def _fall_back(self, replacement: Replacement, cause: str, failed: tuple[ModelReport, ...]) -> None:
        """The new process cannot load: the slot gets back what it served with, if it did."""
        former, replacement.former = replacement.former, None
        if former is None:
            self._finish(cause)
            return
        slot = replacement.slot
        event(log, logging.ERROR, "the new worker cannot load: back to the former models", **slot.fields, cause=cause)
        slot.refused, replacement.cause = failed, cause
        replacement.specs, replacement.placement = former
        replacement.begin_again()

    def _apply(self, replacement: Replacement) -> None:
        slot = replacement.slot
        if replacement.specs is not None:
            if replacement.old is not None and replacement.cause is None:
                replacement.former = slot.specs, slot.placement
            replacement.changed = frozenset(spec.key for spec in replacement.specs if spec not in slot.specs)
            slot.specs = replacement.specs
        if replacement.placement is not None:
            slot.placement = replacement.placement

    def _finish(self, error: str | None) -> None:
        replacement, self._current = self._current, None
        assert replacement is not None  # it is the one that ends
        error = replacement.cause or error
        level = logging.INFO if error is None else logging.ERROR
        message = "renewed" if error is None else "not renewed"
        event(log, level, message, **replacement.slot.fields, why=replacement.why, cause=error)
        self._staff.judge_models()
        if replacement.done is not None:
            replacement.done(error)
