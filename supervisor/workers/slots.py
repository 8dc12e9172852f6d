"""The slots and their processes: carries out what the slots' state machines ask for.

`manager.py` reports what happens to processes; `reports.py` and `replacer.py` change slots through the methods here.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterator
from dataclasses import replace

from multitower import worker_wire
from multitower.spec import ModelSpec

from ..loop.history import EventHistory, EventKind
from ..loop.log import event
from ..machine.placement import Placement
from ..scheduling.scheduler import Scheduler
from .exit_cause import Fault, Verdict
from .exits import Exits
from .known_contents import KnownContents
from .launcher import Launcher
from .load_failures import failed_reports, record_load_death
from .load_timer import LoadTimer
from .restart_budget import RestartBudget, RestartPolicy
from .shortage import FIRST_RETRY_S, MAX_RETRY_S, StartFailure
from .slot import Slot, WorkerProcess
from .slot_state_machine import LIVE, Action, Event, State
from .spares import Spares

log = logging.getLogger("multitower.manager")

LOADING = (State.STARTING, State.LOADING)
_WITH_PROCESS = (State.LOADING, State.READY, State.DRAINING, State.STOPPING)


class Slots:
    """All slots, in the order of their numbers.

    Args:
        scheduler: sends no more batches to processes of slots that stop.
        launcher: starts processes where there is no spare.
        spares: are assigned to slots first.
        exits: ends processes.
        rng: draws what shall differ from slot to slot.
        policy: limits restarts.
        known: what is known of the contents of models.
        history: gets deaths, restarts, and models that cannot be loaded.

    Attributes:
        history: as given.
        slots: the slots.
        changed: whether something has changed that decides which models are available; reset by its reader.
        stopping: the daemon ends: no process is started any more.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: Launcher,
        spares: Spares,
        exits: Exits,
        rng: random.Random,
        policy: RestartPolicy,
        known: KnownContents,
        history: EventHistory,
    ) -> None:
        self.history = history
        self.slots: list[Slot] = []
        self.changed = True
        self.stopping = False
        self._scheduler = scheduler
        self._launcher = launcher
        self._spares = spares
        self._exits = exits
        self._rng = rng
        self._policy = policy
        self._known = known
        self._replaced: list[WorkerProcess] = []  # their slots have other processes; they finish their batches
        self._generations: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def add_slot(self, placement: Placement, specs: tuple[ModelSpec, ...]) -> None:
        """Adds a slot; `advance` starts its process if it has a model to load."""
        state = State.STARTING if specs else State.STOPPED
        budget = RestartBudget(self._policy, self._rng)
        self.slots.append(Slot(placement.slot, budget, state, placement, specs, time.monotonic()))
        self.slots.sort(key=lambda slot: slot.number)
        self.changed = True

    def remove_slot(self, slot: Slot) -> None:
        """Removes a slot whose process has ended."""
        self.slots.remove(slot)
        self.changed = True

    def set_policy(self, policy: RestartPolicy) -> None:
        """Applies a new restart policy to all slots."""
        self._policy = policy
        for slot in self.slots:
            slot.set_policy(policy)

    def processes(self) -> Iterator[WorkerProcess]:
        """Every process that has not been released: of the slots, spares, and those that end."""
        found = dict.fromkeys(self._exits.processes)
        found.update(dict.fromkeys(self._spares.processes))
        for slot in self.slots:
            found.update((each, None) for each in (slot.process, slot.next_process) if each is not None)
        found.update(dict.fromkeys(self._replaced))
        return iter(found)

    # Events.

    def handle_event(self, slot: Slot, event: Event, now: float, cause: str | None = None) -> None:
        """Makes the transition for an event, and does what it asks for.

        Raises:
            LookupError: the event cannot happen in the slot's state.
        """
        self._carry_out(slot, slot.handle(event, now, cause), now)

    def advance(self, slot: Slot, now: float) -> None:
        """Starts the process of a slot whose back-off is over, or that had to wait for devices or other resources.

        While the daemon ends, a slot whose back-off is over stops instead.
        """
        lost = self._remove_lost_processes(slot, now)
        if slot.process is None and (slot.state in _WITH_PROCESS or (lost and slot.state is State.STARTING)):
            # Only after an internal error that was contained.
            self._carry_out(slot, slot.handle_death(now, "its process was lost"), now)
        if slot.state is State.STARTING and slot.process is None and now >= (slot.start_at or now):
            self._start_process(slot, now)
        if slot.due is not None and now >= slot.due:
            slot.due = None
            self.handle_event(slot, Event.STOP if self.stopping else Event.DUE, now)

    def _remove_lost_processes(self, slot: Slot, now: float) -> bool:
        """Removes processes that were released although an internal error kept `handle_death` from removing them.

        Returns:
            Whether the slot's current process was one of them.
        """
        self._replaced = [each for each in self._replaced if each.slot is not slot or not self._is_lost(each)]
        if slot.next_process is not None and self._is_lost(slot.next_process):
            slot.next_process = None
        if slot.process is None or not self._is_lost(slot.process):
            return False
        slot.process = None
        next_process, slot.next_process = slot.next_process, None
        if next_process is not None:
            self.end_process(next_process, now)
        return True

    def _is_lost(self, process: WorkerProcess) -> bool:
        return process.exit_cause is not None and process not in self._exits.processes

    def next_wakes(self) -> list[float]:
        """When `advance` must be called, in monotonic seconds."""
        retries = (slot.start_at for slot in self.slots if slot.state is State.STARTING)
        return [due for due in (*(slot.due for slot in self.slots), *retries) if due is not None]

    def _carry_out(self, slot: Slot, action: Action, now: float) -> None:
        self.changed = True
        if action is Action.START:
            self._start_process(slot, now)
        elif action is Action.WAIT:
            slot.due = now + slot.delay_s
        elif action is Action.STOP and slot.process is not None:
            self._exits.end_process(slot.process, now)
        elif action is Action.STOP:
            slot.handle(Event.DIED, now)  # it waited for devices, and has no process to end

    # Starting processes.

    def _start_process(self, slot: Slot, now: float) -> None:
        """Gives the slot its next process, unless it has to wait for devices; then `advance` tries again."""
        slot.start_at = None
        if self.stopping:
            return
        if any(self.blocks(other, slot) for other in self.slots):
            return
        slot.models, slot.visible_devices = (), None
        started = self._assign_process(slot, slot.specs, slot.placement, slot.incarnation, now)
        if isinstance(started, WorkerProcess):
            slot.process, slot.start_delay_s = started, 0.0
        elif started.passing:
            # Nothing is wrong with the slot: it stays as it is, and its restart budget is not spent.
            slot.record_error(started.cause, now)
            slot.start_delay_s = min(max(2 * slot.start_delay_s, FIRST_RETRY_S), MAX_RETRY_S)
            slot.start_at = now + slot.start_delay_s
            self.changed = True
        else:
            action = slot.handle_death(now, started.cause)
            self._note_if_failed(slot)
            self._carry_out(slot, action, now)

    def start_next_process(
        self, slot: Slot, specs: tuple[ModelSpec, ...], placement: Placement, now: float
    ) -> WorkerProcess | StartFailure:
        """Starts a process that is to take over a slot while its present process serves.

        Args:
            slot: it is ready.
            specs: the models that the new process loads.
            placement: its devices and its share of the host.
            now: monotonic seconds.

        Returns:
            The process, or why none could be started; that is logged.
        """
        slot.refused = ()
        started = self._assign_process(slot, specs, placement, slot.incarnation + 1, now)
        slot.next_process = started if isinstance(started, WorkerProcess) else None
        slot.short_of_resources = isinstance(started, StartFailure) and started.passing
        return started

    def _assign_process(
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
                process.load_timer = LoadTimer()  # its time as a spare is not that of its load
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
            not_loaded_because=slot.load_deaths.not_loaded[generation] if generation in left_out else "",
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
        """A number for a model version as it is configured, equal for equal configurations."""
        return self._generations.setdefault(spec.to_json(), len(self._generations))

    def forget_other_models(self, slot: Slot) -> None:
        """Forgets attempts to load models, and configurations of models, that the slot does not have (any more)."""
        slot.load_deaths.retain({self.generation(spec) for spec in slot.specs})

    # Replacing and ending processes.

    def take_over(self, slot: Slot, now: float) -> WorkerProcess:
        """Makes the slot's next process its current one.

        Returns:
            The process that was the current one: it must be told to end once it has finished its batches.
        """
        old, new = slot.process, slot.next_process
        assert old is not None  # it serves
        assert new is not None  # it has reported that it is ready
        slot.process, slot.next_process = new, None
        self._replaced.append(old)
        self.handle_event(slot, Event.REPLACED, now)
        return old

    def end_process(self, process: WorkerProcess, now: float) -> None:
        """Tells a process to end, and kills it if it does not."""
        if process in self._spares.processes:
            self._spares.processes.remove(process)
        self._exits.end_process(process, now)

    def condemn_process(self, process: WorkerProcess, verdict: Verdict, now: float) -> None:
        """Kills a process for a fault; its slot starts another one as after any death."""
        self._exits.condemn_process(process, verdict, now)

    def stop_slot(self, slot: Slot, now: float) -> None:
        """Ends the slot's processes."""
        slot.due = None
        next_process, slot.next_process = slot.next_process, None
        if next_process is not None:
            self.end_process(next_process, now)
        if slot.route is not None and slot.state is State.READY:
            self._scheduler.retire(slot.route.worker)
            self.handle_event(slot, Event.DRAIN, now)
            self.handle_event(slot, Event.DRAINED, now)
        else:
            self.handle_event(slot, Event.STOP, now)

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
        if process in self._replaced:
            self._replaced.remove(process)
            event(log, logging.INFO, "worker ended", **process.child.fields, cause=process.exit_description)
        elif slot.next_process is process:
            slot.next_process = None
            slot.record_error(process.exit_description, now)
            slot.last_death_at = now
            if self._was_another_try(slot, process):
                record_load_death(slot, process, self._policy, self.history, now, beside=True)
            self.history.note(
                log,
                logging.ERROR,
                EventKind.DEATH,
                "replacement worker died",
                **process.child.fields,
                **process.exit_model,
                cause=process.exit_description,
                check=process.exit_advice,
            )
        elif slot.process is process:
            slot.process = None
            if slot.next_process is not None and slot.state is State.READY:
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
        configured = (self.generation(spec) for spec in slot.specs)
        return generation is not None and generation in configured and not slot.serves_generation(generation)

    def _handle_end_of_current_process(
        self, slot: Slot, process: WorkerProcess, now: float, suspect_to_blame: bool
    ) -> None:
        expected = slot.state not in LIVE
        slot.unavailable_since = now if not expected else None
        does_less, given_up = False, None
        if not expected and slot.state in LOADING:
            does_less = record_load_death(slot, process, self._policy, self.history, now)
            given_up = slot.load_deaths.all_given_up(process.generations.values())
        cause = given_up or process.exit_description
        counts = not (suspect_to_blame or does_less)
        action = slot.handle_death(now, cause, counts=counts, final=given_up is not None)
        if expected:
            event(log, logging.INFO, "worker ended", **process.child.fields, cause=process.exit_cause)
        else:
            self.history.note(
                log,
                logging.WARNING,
                EventKind.DEATH,
                "worker died",
                **process.child.fields,
                **process.exit_model,
                cause=process.exit_description,
                check=process.exit_advice,
                next=f"restart in {slot.delay_s:.1f}s" if action is Action.WAIT else "slot failed",
            )
            self._note_if_failed(slot)
        slot.models = tuple(model for model in slot.models if model.state != "ready")
        if given_up is not None:
            slot.models = failed_reports(slot, process)
        slot.visible_devices = None
        self._carry_out(slot, action, now)

    def _promote_next_process(self, slot: Slot, died: WorkerProcess, now: float) -> None:
        """The slot's process died while another one loads to take over: that is the current one from now on."""
        slot.unavailable_since = now
        slot.record_error(died.exit_description, now)
        slot.last_death_at = now
        slot.process, slot.next_process = slot.next_process, None
        slot.models, slot.visible_devices = (), None
        self.history.note(
            log,
            logging.WARNING,
            EventKind.DEATH,
            "worker died",
            **died.child.fields,
            **died.exit_model,
            cause=died.exit_description,
            check=died.exit_advice,
            next="its replacement is loading",
        )
        self.handle_event(slot, Event.PROMOTED, now)

    def _note_if_failed(self, slot: Slot) -> None:
        """Logs and keeps that a slot has failed, if it has."""
        if slot.state is State.FAILED:
            fields = {**slot.fields, "cause": slot.last_error}
            self.history.note(log, logging.ERROR, EventKind.SLOT_FAILED, "slot failed", **fields)

    # What slots wait for.

    def blocks(self, other: Slot, slot: Slot) -> bool:
        """Whether the slot has to wait for the end of the other's process, which uses some of its devices."""
        return other.process is not None and slot.placement.conflicts_with(other.placement)

    def versions_blocked_by(self, slot: Slot) -> set[tuple[str, str]]:
        """Model versions that only slots will load which wait for the end of this slot's process."""
        blocked = {spec.key for each in self.slots if self.blocks(slot, each) for spec in each.specs}
        return blocked - self._loading_versions()

    def will_be_relieved(self, slot: Slot) -> bool:
        """Whether another slot is loading a model version that, of the ready slots, only this one has."""
        ready = (each for each in self.slots if each is not slot and each.state is State.READY)
        missing = self._loading_versions() - {spec.key for each in ready for spec in each.specs}
        return any(spec.key in missing for spec in slot.specs)

    def _loading_versions(self) -> set[tuple[str, str]]:
        loading = (
            each
            for each in self.slots
            if each.state in LOADING and (each.process is not None or self._starts_next(each))
        )
        return {spec.key for each in loading for spec in each.specs}

    def _starts_next(self, slot: Slot) -> bool:
        """Whether a slot without a process gets one at once: it waits for no device, and no start has failed."""
        return not slot.start_delay_s and not any(self.blocks(other, slot) for other in self.slots if other is not slot)
