"""Logs deaths of processes of slots, and slots that fail, and keeps them for `status`."""

from __future__ import annotations

import logging

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
        fields = {**slot.fields, "cause": slot.last_error}
        history.note(log, logging.ERROR, EventKind.SLOT_FAILED, "slot failed", **fields)


def describe_restart(delay_s: float) -> str:
    """When a process is started again, for people."""
    return "restart at once" if delay_s < 0.05 else f"restart in {exact_duration(round(delay_s, 1))}"
