"""What a slot does after one of its processes has died: it starts another one, goes on with one it has, or fails.

`manager.py` calls `RestartAfterDeath.handle_death` once the process has been released and its requests belong to
others. Processes that are replaced on purpose are the subject of `planned_replacement.py`.
"""

from __future__ import annotations

import logging

from ..loop.log import event
from .assignments import Assignments
from .device_waits import LOADING
from .exit_cause import kind_of_death
from .load_deaths import MAX_KILLS_BESIDE
from .load_failures import ended_by_load, failed_reports, record_load_death
from .slot import Slot, WorkerProcess
from .slot_events import describe_restart, note_death, note_if_failed
from .slot_state_machine import LIVE, Action, Event, State
from .slots import Slots

log = logging.getLogger("multitower.manager")

LOADS_ON = "the worker beside which it was started goes on loading all models"


class RestartAfterDeath:
    """Decides what slots do after processes have died.

    Args:
        slots: all slots.
        assignments: tells which configuration of a model a slot is to serve.
    """

    def __init__(self, slots: Slots, assignments: Assignments) -> None:
        self._slots = slots
        self._assignments = assignments

    def handle_death(self, process: WorkerProcess, now: float, *, suspect_to_blame: bool) -> None:
        """Decides what its slot does after a process that was not a spare has ended and was released.

        Args:
            process: the process.
            now: monotonic seconds.
            suspect_to_blame: it executed nothing but a suspect request, so its death spends no restart budget.
        """
        slot = process.slot
        assert slot is not None  # it was not a spare
        if process.route is not None:
            slot.completed += process.route.completed
        if process.killed_while_loading:
            slot.killed_while_loading = True
        if self._slots.forget_replaced(process):
            event(log, logging.INFO, "worker ended", **process.child.fields, cause=process.exit_description)
        elif slot.next_process is process:
            slot.next_process = None
            slot.refused = ended_by_load(process)
            slot.record_error(process.exit_description, now)
            slot.last_death_at = now
            is_short = process.killed_while_loading and slot.load_deaths.record_kill_beside(process.loads)
            if not is_short and self._was_another_try(slot, process):
                record_load_death(slot, process, self._slots.policy, self._slots.history, now, beside=True)
            if process.aside:
                self._slots.update_reports(slot)
            note_death(self._slots.history, process, message="replacement worker died", level=logging.ERROR)
        elif slot.process is process:
            slot.process = None
            if slot.next_process is not None and not slot.next_process.aside and slot.state is State.READY:
                self._promote_next_process(slot, process, now)
            else:
                self._handle_end_of_current_process(slot, process, now, suspect_to_blame)

    def _was_another_try(self, slot: Slot, process: WorkerProcess) -> bool:
        """Whether a replacement worker died while it loaded a model that the slot is to serve and does not serve.

        Other deaths of replacement workers are not the model's: what the present worker serves can be loaded, and a new
        configuration is given up with the replacement.
        """
        step = process.exit_step
        generation = process.generations.get(step.key) if step is not None else None
        configured = (self._assignments.generation(spec) for spec in slot.specs)
        return generation is not None and generation in configured and not slot.serves_generation(generation)

    def _handle_end_of_current_process(
        self, slot: Slot, process: WorkerProcess, now: float, suspect_to_blame: bool
    ) -> None:
        expected = slot.state not in LIVE
        slot.unavailable_since = now if not expected else None
        does_less, given_up = False, None
        if not expected and slot.state in LOADING:
            slot.refused = ended_by_load(process)
            does_less = record_load_death(slot, process, self._slots.policy, self._slots.history, now)
            given_up = slot.load_deaths.all_given_up(process.generations.values())
        cause = given_up or process.exit_description
        counts = not (suspect_to_blame or does_less)
        resumes = slot.aside is not None and self._gets_no_other_worker(slot, slot.aside, process)
        kind = kind_of_death(process.exit_cause, process.verdict)
        action = slot.handle_death(now, cause, kind, counts=counts, final=given_up is not None)
        if expected:
            event(log, logging.INFO, "worker ended", **process.child.fields, cause=process.exit_cause)
        else:
            resumes = resumes or (slot.state is State.FAILED and slot.aside is not None)
            after = describe_restart(slot.delay_s) if action is Action.WAIT else "slot failed"
            note_death(self._slots.history, process, LOADS_ON if resumes else after)
            if resumes:
                self._slots.resume(slot, now)
                return
            note_if_failed(self._slots.history, slot)
        slot.models = tuple(model for model in slot.models if model.state != "ready")
        if given_up is not None:
            slot.models = failed_reports(slot, process)
        slot.visible_devices = None
        self._slots.carry_out(slot, action, now)

    def _gets_no_other_worker(self, slot: Slot, aside: WorkerProcess, died: WorkerProcess) -> bool:
        """Whether a slot gets no other process beside the one that was set aside, after the last one has died."""
        aside.kills_beside += died.killed_while_loading
        nothing_else = all(slot.load_deaths.why_left_out(each) is not None for each in aside.loads)
        return nothing_else or aside.kills_beside >= MAX_KILLS_BESIDE

    def _promote_next_process(self, slot: Slot, died: WorkerProcess, now: float) -> None:
        """The slot's process died while another one loads to take over: that is the current one from now on."""
        slot.unavailable_since = now
        slot.record_error(died.exit_description, now)
        slot.last_death_at = now
        slot.process, slot.next_process = slot.next_process, None
        slot.models, slot.visible_devices = (), None
        note_death(self._slots.history, died, "its replacement is loading")
        self._slots.handle_event(slot, Event.PROMOTED, now)
