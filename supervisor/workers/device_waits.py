"""What slots wait for that share devices: a slot starts no process before others' processes have left its devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .slot import Slot
from .slot_state_machine import State

LOADING: Final = (State.STARTING, State.LOADING)
"""States of slots whose process does not serve yet, and will."""


def blocks(other: Slot, slot: Slot) -> bool:
    """Whether the slot has to wait for the end of the other's process, which uses some of its devices."""
    return other.process is not None and slot.placement.conflicts_with(other.placement)


def versions_blocked_by(slots: Sequence[Slot], slot: Slot) -> set[tuple[str, str]]:
    """Model versions that only those of the slots will load which wait for the end of this slot's process."""
    blocked = {spec.key for each in slots if blocks(slot, each) for spec in each.specs}
    return blocked - _loading_versions(slots)


def will_be_relieved(slots: Sequence[Slot], slot: Slot) -> bool:
    """Whether another slot is loading a model version that, of the ready slots, only this one has."""
    ready = (each for each in slots if each is not slot and each.state is State.READY)
    missing = _loading_versions(slots) - {spec.key for each in ready for spec in each.specs}
    return any(spec.key in missing for spec in slot.specs)


def _loading_versions(slots: Sequence[Slot]) -> set[tuple[str, str]]:
    loading = (
        each for each in slots if each.state in LOADING and (each.process is not None or _starts_next(slots, each))
    )
    return {spec.key for each in loading for spec in each.specs}


def _starts_next(slots: Sequence[Slot], slot: Slot) -> bool:
    """Whether a slot without a process gets one at once: it waits for no device, and no start has failed."""
    return not slot.start_delay_s and not any(blocks(other, slot) for other in slots if other is not slot)
