"""Records the death of a worker that loaded a model in its slot, and logs what follows for the model."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from multitower.durations import exact_duration
from multitower.spec import ModelReport

from ..loop.history import EventHistory, EventKind
from ..loop.log import event
from .exit_cause import Fault
from .load_deaths import INTERRUPTED, MAX_DEATHS, LoadDeath
from .restart_budget import RestartPolicy
from .slot import Slot, WorkerProcess

log = logging.getLogger("multitower.manager")


def record_load_death(
    slot: Slot,
    process: WorkerProcess,
    policy: RestartPolicy,
    history: EventHistory,
    now: float,
    *,
    beside: bool = False,
) -> bool:
    """Records which model was being loaded when a process died.

    Args:
        slot: the slot of the process.
        process: it has ended.
        policy: limits how often a model is tried, and says when a model that is left out is tried again.
        history: gets the models that are left out.
        now: monotonic seconds.
        beside: it loaded beside another process of the slot: a SIGKILL, as when memory is short, says nothing about the
            rows for which the memory suffices when it is alone.

    Returns:
        Whether the slot's next process does less, so that the death need not be repeated.
    """
    step, verdict = process.exit_step, process.verdict
    if step is None or (verdict is not None and not verdict.wants_stacks):
        return False
    generation = process.generations.get(step.key)
    if generation is None or generation in process.left_out:
        return False
    deaths = slot.load_deaths
    timed_out = verdict is not None and verdict.fault is Fault.LOAD_TIMEOUT
    exit_cause = process.exit_cause
    to_blame = verdict is not None or (exit_cause is not None and exit_cause.crash)
    does_less = deaths.record(
        LoadDeath(step, generation, process.exit_description, timed_out=timed_out, to_blame=to_blame),
        has_others=bool(process.loads - {generation}),
        try_at=now + policy.max_s,
        max_deaths=min(MAX_DEATHS, max(1, policy.max_restarts)),
    )
    fields = {**process.child.fields, "model": step.model, "version": step.version}
    if step.fewer_rows and not timed_out and not (beside and process.killed_while_loading):
        slot.safe_rows[step.model] = min(step.fewer_rows, slot.safe_rows.get(step.model, step.fewer_rows))
    cause = deaths.why_left_out(generation)
    if cause is not None:
        # What the process that serves has reported is out of date.
        slot.models = tuple(
            replace(model, state="failed", cause=cause) if model.key == step.key and model.state != "ready" else model
            for model in slot.models
        )
    if cause is not None and deaths.will_try(generation):
        message = "model is left out for now"
        after = f"tried again after {exact_duration(policy.max_s)}, once a second worker fits"
        history.note(log, logging.WARNING, EventKind.MODEL_REFUSED, message, **fields, cause=cause, next=after)
    elif cause is not None:
        message = "model is not loaded any more"
        history.note(log, logging.ERROR, EventKind.MODEL_REFUSED, message, **fields, cause=cause)
    elif step.fewer_rows and step.model in slot.safe_rows:
        message = "worker died in a warm-up: the next one stops at fewer rows"
        event(log, logging.WARNING, message, **fields, rows=step.rows, safe_rows=slot.safe_rows[step.model])
    return does_less


def ended_by_load(process: WorkerProcess) -> tuple[ModelReport, ...]:
    """A report of the model whose loading has ended a process.

    None where the process did not load a model, was killed for another reason, or by SIGKILL, as when memory is short:
    that may have hit any model.
    """
    step, verdict = process.exit_step, process.verdict
    if step is None or process.killed_while_loading or (verdict is not None and not verdict.wants_stacks):
        return ()
    return (ModelReport(name=step.model, version=step.version, state="failed", cause=process.exit_description),)


def current_reports(slot: Slot, process: WorkerProcess, reports: Iterable[ModelReport]) -> tuple[ModelReport, ...]:
    """The reports of a process, with what has become of the models that it leaves out since it was told so.

    Args:
        slot: the slot of the process.
        process: it has loaded the other models.
        reports: as it has sent them.
    """
    aside, deaths = slot.aside, slot.load_deaths

    def current(report: ModelReport) -> ModelReport:
        generation = process.generations.get(report.key)
        if generation is None or generation not in process.left_out:
            return report
        if aside is not None and generation in aside.loads:
            return replace(report, state="loading", cause=None)
        return replace(report, state="failed", cause=deaths.why_left_out(generation) or report.cause or INTERRUPTED)

    return tuple(map(current, reports))


def failed_reports(slot: Slot, process: WorkerProcess) -> tuple[ModelReport, ...]:
    """Reports of models none of which is loaded any more, each with its cause."""
    return tuple(
        ModelReport(name=name, version=version, state="failed", cause=slot.load_deaths.why_left_out(generation))
        for (name, version), generation in process.generations.items()
    )
