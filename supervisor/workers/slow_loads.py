"""Lets the other models of a slot be served while one takes long to load.

A worker loads its models one after the other. If one takes longer than `slow_load`, the worker goes on loading, *set
aside*, and the slot gets a second worker, which leaves that model out and serves the others. The first one takes over
once it has loaded all models. Where the machine is slow or busy, `slow_load` is too short for an ordinary model, and a
second worker would delay the first one further: a load also has to exceed `STARTS` times the start of its worker. If it
hangs or aborts, that costs the others nothing: `load_deaths.py` decides what becomes of the model. The two workers need
memory at the same time; where that does not suffice for both, the slot has one worker, and the other models wait.
"""

from __future__ import annotations

import logging
from typing import Final

from multitower.durations import exact_duration
from multitower.load_step import LoadStep

from ..loop.log import event
from .capacity import Capacity
from .planned_replacement_queue import Replacement, ReplacementQueue
from .settings import WorkerSettings
from .slot import Slot, WorkerProcess
from .slot_state_machine import State
from .slots import Slots

log = logging.getLogger("multitower.manager")

STARTS: Final = 3
"""A load is slow after `slow_load`, or after this many times what its worker took to start, whichever is longer. A
second worker takes as long to start. Most of a start is the import of TensorFlow, 5 s where the cores are free."""


class SlowLoads:
    """Finds models that take long to load; see above.

    Args:
        slots: all slots.
        replacements: gets workers that must load all models anew.
        capacity: decides whether a second process of a slot fits on the machine.
        settings: see `WorkerSettings`.
    """

    def __init__(
        self, slots: Slots, replacements: ReplacementQueue, capacity: Capacity, settings: WorkerSettings
    ) -> None:
        self._slots = slots
        self._replacements = replacements
        self._capacity = capacity
        self._settings = settings

    def apply_settings(self, settings: WorkerSettings) -> None:
        """Applies new settings, also to loads in progress."""
        self._settings = settings

    def check(self, now: float) -> None:
        """Does what is due for each slot. Call it once a heartbeat.

        Args:
            now: monotonic seconds.
        """
        for slot in tuple(self._slots):
            process = slot.process
            if process is None or not process.usable:
                continue
            if slot.state is State.LOADING:
                self._check_load(slot, process, now)
            elif slot.state is State.READY and slot.next_process is None:
                self._make_up_for_lack_of_memory(slot, process, now)

    def _check_load(self, slot: Slot, process: WorkerProcess, now: float) -> None:
        step = process.load_timer.step
        limit_s = max(self._settings.slow_load_s, STARTS * process.load_timer.start_s)
        if step is None or process.load_timer.step_s(now) <= limit_s:
            return
        generation = process.generations.get(step.key)
        if generation is None or not self._may_set_aside(slot, process, generation):
            return
        self._log(process, step)
        slot.load_deaths.set_aside(generation, step.model)
        self._slots.set_aside(slot, now)

    def _may_set_aside(self, slot: Slot, process: WorkerProcess, generation: int) -> bool:
        """Whether the other models of a process need not wait for the one with this generation."""
        others = process.loads - {generation}
        is_loading = process.state == "loading" and not process.dumps_core
        if process.waited_for or not is_loading or not others or not slot.load_deaths.may_set_aside(generation):
            return False
        # The former models are served again if these do not load: see `Replacer`.
        if any(each.former is not None for each in self._replacements.of_slot(slot)):
            return False
        return slot.aside is not None or self._capacity.obstacle_to_second_process(slot, slot.specs) is None

    def _log(self, process: WorkerProcess, step: LoadStep) -> None:
        fields = {**process.child.fields, "model": step.model, "version": step.version, "step": str(step)}
        message = "model takes long to load: another worker serves the other models meanwhile"
        slow_load_s, start_s = self._settings.slow_load_s, STARTS * process.load_timer.start_s
        cause = f"it takes over {exact_duration(slow_load_s)} (slow_load)"
        if start_s > slow_load_s:
            cause = f"{cause} and over {start_s:.1f} s, {STARTS} times as long as the worker's start"
        event(log, logging.INFO, message, **fields, cause=cause)

    def _make_up_for_lack_of_memory(self, slot: Slot, process: WorkerProcess, now: float) -> None:
        """Lets a slot load its models anew if memory did not suffice for two workers, and it has one again."""
        if self._replacements.includes(slot):
            return
        names = slot.load_deaths.needs_reload(process.left_out)
        if names:
            because = f"memory did not suffice for loading {names} beside it"
            self._replacements.add(Replacement(slot, f"{names} could not be loaded", no_overlap_because=because))
        elif process.beside and any(model.out_of_memory for model in slot.models):
            self._replacements.add_automatic(slot, "memory did not suffice for all models beside another worker", now)
