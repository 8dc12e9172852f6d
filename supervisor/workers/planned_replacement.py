"""Replaces the processes of slots on purpose, one after the other, without losing a request.

Where the machine can hold two processes of a slot at once, the new one loads while the old one serves, and takes over
when it is ready. Otherwise the old one drains and ends first. A slot whose new process cannot load keeps its old one,
or gets one with the same models again.
"""

from __future__ import annotations

import logging
from math import inf

from multitower.spec import ModelReport

from ..loop.history import EventKind
from ..loop.log import event
from ..routing.router import Router
from .capacity import Capacity
from .device_waits import versions_blocked_by, will_be_relieved
from .exit_cause import Fault, Verdict
from .planned_replacement_queue import Replacement, ReplacementQueue, Step
from .shortage import FIRST_RETRY_S
from .slot import WorkerProcess, describe_failures
from .slot_state_machine import LIVE, Event, State
from .slots import Slots

log = logging.getLogger("multitower.manager")

RECOVERY = "recovery after an internal error"
"""Why a slot is replaced whose replacement raised."""


START_S = 30.0
"""Seconds for which a start that lacked a resource is tried again; the old process serves meanwhile."""


class Replacer:
    """Carries out the replacements of a queue.

    Args:
        slots: all slots.
        queue: what is to be replaced.
        router: stops sending requests to processes that are replaced.
        capacity: decides whether a second process of a slot fits on the machine.
    """

    def __init__(self, slots: Slots, queue: ReplacementQueue, router: Router, capacity: Capacity) -> None:
        self._slots = slots
        self._queue = queue
        self._router = router
        self._scheduler = router.scheduler
        self._capacity = capacity

    def advance(self, now: float) -> None:
        """Does every step that can be done now. Call it after each burst of events."""
        queue = self._queue
        while True:
            if queue.current is None:
                if not queue.waiting:
                    return
                queue.current = queue.waiting.popleft()
                if queue.current.wanted is not None and not queue.current.wanted():
                    self._drop(queue.current)
                    continue
                message = "removing slot" if queue.current.remove else "replacing worker"
                event(log, logging.INFO, message, **queue.current.slot.fields, why=queue.current.why)
            before = queue.current, queue.current.step
            self._advance_one(queue.current, now)
            if (queue.current, queue.current.step if queue.current is not None else None) == before:
                return

    def _drop(self, replacement: Replacement) -> None:
        """Ends the replacement whose turn has come, and that is not wanted any more."""
        self._queue.current = None
        if replacement.done is not None:
            replacement.done("it is not wanted any more")

    def abort(self, error: str, now: float) -> None:
        """Gives up the replacement in progress after an internal error.

        Processes that are not the slot's current one end. A current one that gets no more batches is killed, and a
        slot that would not start another process by itself gets one by a new replacement, unless this one was that.
        """
        current = self._queue.current
        if current is None:
            return
        slot = current.slot
        for process in (current.old, current.new):
            if process is not None and process is not slot.process:
                self._slots.end_process(process, now)
        if slot.process is not None and slot.route is not None and slot.route.worker.retiring:
            self._slots.condemn_process(slot.process, Verdict(Fault.DEFECT, "its replacement failed"), now)
        if slot.state not in LIVE and not current.remove and current.why != RECOVERY:
            self._queue.waiting.appendleft(Replacement(slot, RECOVERY))
        slot.record_error(error, now)
        self._finish(error)

    def _advance_one(self, replacement: Replacement, now: float) -> None:
        steps = {
            Step.BEGIN: self._begin,
            Step.LOADING: self._wait_for_takeover,
            Step.DRAINING: self._drain,
            Step.STOPPING: self._wait_for_end,
            Step.STARTING: self._wait_for_new_process,
        }
        steps[replacement.step](replacement, now)

    def _begin(self, replacement: Replacement, now: float) -> None:
        slot = replacement.slot
        if replacement.beside_only and slot.aside is not None:
            self._finish("a process of the slot is loading all models already", level=logging.INFO)
            return
        self._slots.end_aside(slot, now)
        state = slot.state
        if replacement.beside_only and (state is not State.READY or not self._overlaps(replacement)):
            self._finish("it could not be loaded beside a worker that serves")
        elif state is State.STARTING and slot.process is None and replacement.has_new_process:
            # It waits for devices: its first process, which is still to be started, is the new one.
            replacement.apply()
            self._finish(None)
        elif state in (State.STARTING, State.LOADING):
            self._slots.handle_event(slot, Event.STOP, now)
            replacement.step = Step.STOPPING
        elif state is State.READY and slot.process is not None:
            if now < replacement.start_at:
                return
            replacement.old = slot.process
            if not self._overlaps(replacement):
                replacement.step = Step.DRAINING
                return
            replacement.overlap = True
            started = self._slots.start_next_process(
                slot, replacement.target_specs, replacement.placement or slot.placement, now
            )
            if isinstance(started, WorkerProcess):
                replacement.new = started
                replacement.step = Step.LOADING
            elif started.temporary and now < (replacement.start_by or inf):
                replacement.start_by = replacement.start_by or now + START_S
                replacement.start_at = now + FIRST_RETRY_S
            else:
                slot.record_error(started.cause, now)
                self._finish(started.cause)
        else:
            replacement.step = Step.STOPPING

    def _overlaps(self, replacement: Replacement) -> bool:
        """Whether the new process loads while the old one serves."""
        if not replacement.has_new_process:
            return False
        obstacle = replacement.no_overlap_because or self._capacity.obstacle_to_second_process(
            replacement.slot, replacement.target_specs
        )
        if obstacle is not None:
            message = "no room for a second worker: the one that serves ends first"
            event(log, logging.INFO, message, **replacement.slot.fields, cause=obstacle)
        return obstacle is None

    def _wait_for_takeover(self, replacement: Replacement, now: float) -> None:
        """While the new process loads: `record_takeover` ends this step when it is ready."""
        slot = replacement.slot
        if slot.next_process is not None:
            if replacement.beside_only and any(not each.beside_only for each in self._queue.waiting):
                # Nobody waits for it, and its load may take long.
                process, slot.next_process = slot.next_process, None
                self._slots.end_process(process, now)
                self._finish("another replacement was due; it will be tried again", level=logging.INFO)
            return
        new = replacement.new
        may_fit = new is not None and new.killed_by_others and replacement.no_overlap_because is None
        if slot.state is State.READY and may_fit and not replacement.beside_only:
            # The new models may fit alone.
            replacement.no_overlap_because = "the last one was killed while it loaded, perhaps because memory was short"
            replacement.reset()
        elif slot.state is State.READY:
            self._finish(f"the replacement worker could not load, and the old one continues: {slot.last_error}")
        elif slot.process is replacement.new:
            # The old process died, and the new one was promoted.
            replacement.apply()
            replacement.step = Step.STARTING
        else:
            replacement.reset()  # both have died

    def _drain(self, replacement: Replacement, now: float) -> None:
        old, slot = replacement.old, replacement.slot
        assert old is not None  # set with the step
        if old.route is None or old.route.worker not in self._router.routes:
            self._end_drain(replacement)
            return
        if not old.usable:
            return  # it is dead, or will be: what it was executing must first be given to other workers
        worker = old.route.worker
        if not worker.retiring:
            if replacement.remove and will_be_relieved(self._slots.slots, slot):
                return
            expected = self._expected_versions(replacement)
            self._router.models.withdraw_versions(old.route, expected)
            if replacement.draining_since is None:
                replacement.draining_since = now
            if self._scheduler.is_needed(worker, {name for name, _ in expected}, replacement.draining_since):
                return
            self._scheduler.retire(worker)
            if not replacement.overlap:
                self._slots.handle_event(slot, Event.DRAIN, now)
        if worker.process_idle:
            if replacement.overlap:
                self._slots.end_process(old, now)
            else:
                self._slots.handle_event(slot, Event.DRAINED, now)
            self._end_drain(replacement)

    def _expected_versions(self, replacement: Replacement) -> set[tuple[str, str]]:
        """Model versions of the old process that other processes will load: requests for them can wait."""
        own = (
            versions_blocked_by(self._slots.slots, replacement.slot)
            if replacement.remove
            else {spec.key for spec in replacement.target_specs}
        )
        # Where the new process serves already, its versions are not expected, but present.
        return (self._queue.added_versions() - own) | (set() if replacement.overlap else own)

    def _end_drain(self, replacement: Replacement) -> None:
        if replacement.overlap:
            self._finish(None)
        else:
            replacement.step = Step.STOPPING

    def _wait_for_end(self, replacement: Replacement, now: float) -> None:
        slot = replacement.slot
        if slot.state in (State.STARTING, State.LOADING, State.READY):
            replacement.reset()  # it died before it was told to end, and was restarted at once
            return
        if slot.process is not None or slot.state not in (State.STOPPED, State.FAILED, State.BACKOFF):
            return
        slot.due = None
        if replacement.remove:
            self._remove_slot(replacement)
            return
        replacement.apply()
        if not slot.specs:
            self._slots.handle_event(slot, Event.STOP, now)  # it is not to be restarted
            self._finish(None)
            return
        self._slots.handle_event(slot, Event.RESTART, now)
        replacement.step = Step.STARTING

    def _remove_slot(self, replacement: Replacement) -> None:
        slot = replacement.slot
        self._slots.remove_slot(slot)
        self._finish(None)
        others = list(self._queue.of_slot(slot))
        self._queue.withdraw(others)
        for other in others:
            if other.done is not None:
                other.done("the slot is no longer configured")

    def _wait_for_new_process(self, replacement: Replacement, now: float) -> None:
        slot = replacement.slot
        changed = [model for model in slot.models if model.key in replacement.changed]
        if slot.state is State.READY and any(model.state == "loading" for model in changed):
            return  # it takes long, and the others are served meanwhile
        failed = tuple(model for model in changed if model.state != "ready")
        if slot.state is State.READY and not failed:
            self._finish(None)
            return
        if replacement.may_fail and slot.state in (State.READY, State.FAILED, State.STOPPED, State.BACKOFF):
            self._finish(None)
            return
        ended = slot.state in (State.READY, State.FAILED, State.STOPPED)
        if ended or (slot.state is State.BACKOFF and replacement.former is not None):
            cause = describe_failures(failed) or slot.last_error or str(slot.state)
            slot.record_error(cause, now)
            self._roll_back(replacement, cause, failed)

    def _roll_back(self, replacement: Replacement, cause: str, failed: tuple[ModelReport, ...]) -> None:
        """After the new process could not load: the slot gets back the models that it served, if it did."""
        former, replacement.former = replacement.former, None
        if former is None:
            self._finish(cause)
            return
        slot = replacement.slot
        message = "replacement worker cannot load: back to the former models"
        event(log, logging.ERROR, message, **slot.fields, cause=cause)
        slot.refused, replacement.rollback_cause = failed or slot.refused, cause
        if replacement.old is not None:
            # Its models could be loaded: the end of the new process shows nothing about them.
            slot.load_deaths.record_loaded(replacement.old.loads)
        replacement.specs, replacement.placement = former
        replacement.reset()

    def _finish(self, error: str | None, level: int = logging.ERROR) -> None:
        """Ends the replacement in progress.

        Args:
            error: why it failed, or None.
            level: of the log line if it failed.
        """
        replacement, self._queue.current = self._queue.current, None
        assert replacement is not None  # it is the one that ends
        error = replacement.rollback_cause or error
        subject = "slot" if replacement.remove else "worker"
        done = "removed" if replacement.remove else "replaced"
        message = f"{subject} {done}" if error is None else f"{subject} not {done}"
        level = logging.INFO if error is None else level
        self._slots.history.note(
            log, level, EventKind.REPLACEMENT, message, **replacement.slot.fields, why=replacement.why, cause=error
        )
        self._slots.changed = True
        self._slots.forget_other_models(replacement.slot)
        if replacement.done is not None:
            replacement.done(error)
