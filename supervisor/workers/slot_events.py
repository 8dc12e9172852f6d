"""Logs deaths of processes of slots, and slots that fail, and keeps them for `status`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from multitower.durations import exact_duration

from ..loop.history import EventHistory, EventKind
from .slot import Slot, WorkerProcess
from .slot_state_machine import State

log = logging.getLogger("multitower.manager")


def note_death(
    history: EventHistory,
    process: WorkerProcess,
    after: str | None = None,
    *,
    message: str = "worker died",
    level: int = logging.WARNING,
) -> None:
    """Logs and keeps how a process ended.

    Args:
        history: keeps it.
        process: it has ended.
        after: what comes next, for people; None if nothing does.
        message: what happened.
        level: of the log line.
    """
    history.note(
        log,
        level,
        EventKind.DEATH,
        message,
        **process.child.fields,
        **process.exit_model,
        cause=process.exit_description,
        check=process.exit_advice,
        next=after,
    )


def note_if_failed(history: EventHistory, slot: Slot) -> None:
    """Logs and keeps that a slot has failed, if it has."""
    if slot.state is State.FAILED:
        note_failed(history, slot, slot.fields, slot.last_error)


def note_failed(history: EventHistory, slot: Slot, fields: Mapping[str, object], cause: str | None) -> None:
    """Logs and keeps that a slot has failed, and what starts it again.

    Args:
        history: keeps it.
        slot: which has failed.
        fields: of the slot or of its last process.
        cause: of the failure, for people.
    """
    after = f"`multitower restart {slot.number}` tries again"
    history.note(log, logging.ERROR, EventKind.SLOT_FAILED, "slot failed", **fields, cause=cause, next=after)


def describe_restart(delay_s: float) -> str:
    """When a process is started again, for people."""
    return "restart at once" if delay_s < 0.05 else f"restart in {exact_duration(round(delay_s, 1))}"
