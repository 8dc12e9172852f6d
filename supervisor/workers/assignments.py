"""Gives the work of slots to processes: to a spare, or to a new process, with what is known of its models."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Collection, Iterable
from dataclasses import replace

from multitower import worker_wire
from multitower.spec import ModelSpec

from ..loop.log import event
from ..machine.placement import Placement
from ..scheduling.scheduler import Scheduler
from .exit_cause import Fault, Verdict
from .exits import Exits
from .known_contents import KnownContents
from .launcher import Launcher
from .load_timer import LoadTimer
from .shortage import StartFailure
from .slot import Slot, WorkerProcess
from .spares import Spares

log = logging.getLogger("multitower.manager")


class Assignments:
    """Assigns the work of slots.

    Args:
        scheduler: knows what other slots serve.
        launcher: starts processes where there is no spare.
        spares: are assigned to slots first.
        exits: ends a process whose assignment fails.
        rng: draws what shall differ from process to process.
        known: what is known of the contents of models.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: Launcher,
        spares: Spares,
        exits: Exits,
        rng: random.Random,
        known: KnownContents,
    ) -> None:
        self._scheduler = scheduler
        self._launcher = launcher
        self._spares = spares
        self._exits = exits
        self._rng = rng
        self._known = known
        self._generations: dict[bytes, int] = {}
        self._numbers = itertools.count()

    def assign(
        self, slot: Slot, specs: tuple[ModelSpec, ...], placement: Placement, incarnation: int, now: float
    ) -> WorkerProcess | StartFailure:
        """Assigns a slot's work to a spare, or to a new process; returns why, when no process could be started.

        An internal error is logged, and a process that it concerns is killed: the slot tries again after a back-off.
        """
        fields = {**slot.fields, "incarnation": incarnation, "device": placement.device}
        process: WorkerProcess | None = None
        try:
            takes_over = slot.process is not None
            generations = {spec.key: self.generation(spec) for spec in specs}
            loaded = generations.values()
            left_out = frozenset(
                each for each in loaded if slot.load_deaths.is_left_out(each, loaded, takes_over=takes_over)
            )
            assigned = tuple(self._complete_spec(slot, spec, left_out, takes_over=takes_over) for spec in specs)
            assignment = placement.make_assignment(slot.number, incarnation, assigned)
            self._launcher.restore_folder()  # a spare may be about to make its socket
            process = self._spares.pop()
            from_spares = process is not None
            if process is None:
                started = self._launcher.launch(f"mt-worker-{slot.number}", assignment, fields)
                if isinstance(started, StartFailure):
                    return started
                process = started
            process.slot = slot
            process.specs = specs
            process.generations, process.left_out = generations, left_out
            process.replacement_jitter = self._rng.random()
            if from_spares:
                process.load_timer = LoadTimer(process.load_timer.start_s)  # the time that it has waited is no load
                process.child.fields.clear()
                process.child.fields.update(fields, pid=process.child.pid)
                process.child.connection.send([worker_wire.ASSIGN, assignment.to_json()])
            message = "spare assigned" if from_spares else "worker started"
            event(log, logging.INFO, message, **process.child.fields)
        except Exception as error:
            log.exception("internal error while starting a worker", extra={"fields": fields})
            if process is not None:
                self._exits.condemn_process(process, Verdict(Fault.DEFECT, f"of an internal error: {error}"), now)
            return StartFailure()
        return process

    def _complete_spec(self, slot: Slot, spec: ModelSpec, left_out: Collection[int], *, takes_over: bool) -> ModelSpec:
        """Returns the specification for a process, with what former processes and scans of the files have shown."""
        generation = self.generation(spec)
        return replace(
            spec,
            fingerprint=self._known.latest(spec.fingerprint),
            content_digest=self._known.digest(spec.fingerprint),
            must_match=self.must_match(slot, spec, takes_over=takes_over),
            safe_rows=slot.safe_rows.get(spec.name, 0),
            not_loaded_because=(slot.load_deaths.why_left_out(generation) or "") if generation in left_out else "",
        )

    def must_match(self, slot: Slot, spec: ModelSpec, *, takes_over: bool) -> bool:
        """Whether a process of the slot may serve the version only with the contents of the specification.

        Args:
            slot: the slot.
            spec: of the version.
            takes_over: the slot has another process, which serves until this one has loaded. It keeps its contents,
                unless an operator has asked for the new process.
        """
        return (takes_over and not slot.operator_restart) or self.serves_elsewhere(slot, spec)

    def serves_elsewhere(self, slot: Slot, spec: ModelSpec) -> bool:
        """Whether another slot serves the version."""
        return any(
            worker.slot != slot.number and not worker.retiring and spec.key in worker.versions
            for worker in self._scheduler.workers
        )

    def generation(self, spec: ModelSpec) -> int:
        """A number for a model version as it is configured, equal for equal configurations that are in use."""
        key = spec.to_json()
        number = self._generations.get(key)
        if number is None:
            number = self._generations[key] = next(self._numbers)
        return number

    def retain_generations(self, specs: Iterable[ModelSpec], numbers: Collection[int]) -> set[int]:
        """Forgets the generations that nothing uses any more; their numbers are not used again.

        Args:
            specs: the model versions that processes load, or may load.
            numbers: the generations that processes have.

        Returns:
            The generations that are left.
        """
        used = {spec.to_json() for spec in specs}
        self._generations = {
            key: number for key, number in self._generations.items() if key in used or number in numbers
        }
        return set(self._generations.values())
