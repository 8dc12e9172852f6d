"""Loads models again that a slot has left out, where that costs the models that it serves nothing."""

from __future__ import annotations

from .capacity import Capacity
from .planned_replacement_queue import RETRY_S, Replacement, ReplacementQueue
from .slot import Slot
from .slot_state_machine import State
from .slots import Slots


class LoadTries:
    """Asks for replacements whose process loads what the present one has left out; see `load_deaths.py`.

    Args:
        slots: all slots.
        replacements: gets the replacements.
        capacity: decides whether a second process of a slot fits on the machine.
    """

    def __init__(self, slots: Slots, replacements: ReplacementQueue, capacity: Capacity) -> None:
        self._slots = slots
        self._replacements = replacements
        self._capacity = capacity

    def begin_due(self, now: float) -> None:
        """Begins the tries whose time has come. Call it once a heartbeat.

        Args:
            now: monotonic seconds.
        """
        for slot in self._slots:
            is_free = slot.state is State.READY and slot.next_process is None and not self._replacements.includes(slot)
            if slot.process is None or not is_free:
                continue
            due = slot.load_deaths.due(slot.process.generations.values(), now)
            if due and self._costs_nothing(slot):
                names = slot.load_deaths.begin_tries(due, now + RETRY_S)

                def ended(_: str | None, slot: Slot = slot) -> None:
                    slot.load_deaths.end_tries()

                why = f"another try to load {names}"
                self._replacements.add(Replacement(slot, why, beside_only=True, done=ended))

    def _costs_nothing(self, slot: Slot) -> bool:
        """Whether a process that loads all models of the slot fits beside the one that serves."""
        return self._capacity.obstacle_to_second_process(slot, slot.specs) is None
