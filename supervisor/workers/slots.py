"""The slots and their processes: carries out what the slots' state machines ask for.

`reports.py`, `slow_loads.py`, `restart_after_death.py` and `planned_replacement.py` change slots through the methods
here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator

from multitower.spec import ModelSpec

from ..loop.history import EventHistory
from ..machine.placement import Placement
from ..scheduling.scheduler import Scheduler
from .assignments import Assignments
from .device_waits import blocks
from .exit_cause import DeathKind, Verdict
from .exits import Exits
from .load_failures import current_reports
from .restart_budget import RestartBudget, RestartPolicy
from .shortage import FIRST_RETRY_S, MAX_RETRY_S, StartFailure
from .slot import Slot, WorkerProcess
from .slot_events import note_if_failed
from .slot_state_machine import Action, Event, State
from .spares import Spares

_WITH_PROCESS = (State.LOADING, State.READY, State.DRAINING, State.STOPPING)


class Slots:
    """All slots, in the order of their numbers.

    Args:
        scheduler: sends no more batches to processes of slots that stop.
        assignments: give the work of slots to processes.
        spares: are ended like other processes.
        exits: ends processes.
        rng: draws what shall differ from slot to slot.
        policy: limits restarts.
        history: gets deaths, restarts, and models that cannot be loaded.

    Attributes:
        history: as given.
        policy: as given; `set_policy` changes it.
        slots: the slots.
        changed: whether something has changed that decides which models are available; reset by its reader.
        stopping: the daemon ends: no process is started any more.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        assignments: Assignments,
        spares: Spares,
        exits: Exits,
        rng: random.Random,
        policy: RestartPolicy,
        history: EventHistory,
    ) -> None:
        self.history = history
        self.slots: list[Slot] = []
        self.changed = True
        self.stopping = False
        self._scheduler = scheduler
        self._assignments = assignments
        self._spares = spares
        self._exits = exits
        self._rng = rng
        self.policy = policy
        self._replaced: list[WorkerProcess] = []  # their slots have other processes; they finish their batches

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def add_slot(self, placement: Placement, specs: tuple[ModelSpec, ...]) -> None:
        """Adds a slot; `advance` starts its process if it has a model to load."""
        state = State.STARTING if specs else State.STOPPED
        budget = RestartBudget(self.policy, self._rng)
        self.slots.append(Slot(placement.slot, budget, state, placement, specs, time.monotonic()))
        self.slots.sort(key=lambda slot: slot.number)
        self.changed = True

    def remove_slot(self, slot: Slot) -> None:
        """Removes a slot whose process has ended."""
        self.slots.remove(slot)
        self.changed = True

    def set_policy(self, policy: RestartPolicy) -> None:
        """Applies a new restart policy to all slots."""
        self.policy = policy
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
        self.carry_out(slot, slot.handle(event, now, cause), now)

    def advance(self, slot: Slot, now: float) -> None:
        """Starts the process of a slot whose back-off is over, or that had to wait for devices or other resources.

        While the daemon ends, a slot whose back-off is over stops instead.
        """
        lost = self._remove_lost_processes(slot, now)
        if slot.process is None and (slot.state in _WITH_PROCESS or (lost and slot.state is State.STARTING)):
            # Only after an internal error that was contained.
            self.carry_out(slot, slot.handle_death(now, "its process was lost", DeathKind.DEFECT), now)
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

    def carry_out(self, slot: Slot, action: Action, now: float) -> None:
        """Does what a transition of the slot asks for."""
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
        if any(blocks(other, slot) for other in self.slots):
            return
        slot.models, slot.visible_devices = (), None
        started = self._assignments.assign(slot, slot.specs, slot.placement, slot.incarnation, now)
        if isinstance(started, WorkerProcess):
            slot.process, slot.start_delay_s = started, 0.0
            started.beside = slot.next_process is not None
        elif started.temporary:
            # Nothing is wrong with the slot: it stays as it is, and its restart budget is not spent.
            slot.record_error(started.cause, now)
            slot.start_delay_s = min(max(2 * slot.start_delay_s, FIRST_RETRY_S), MAX_RETRY_S)
            slot.start_at = now + slot.start_delay_s
            self.changed = True
        else:
            action = slot.handle_death(now, started.cause, DeathKind.NOT_STARTED)
            if slot.state is State.FAILED and slot.aside is not None:
                self.resume(slot, now)
                return
            note_if_failed(self.history, slot)
            self.carry_out(slot, action, now)

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
        started = self._assignments.assign(slot, specs, placement, slot.incarnation + 1, now)
        slot.next_process = started if isinstance(started, WorkerProcess) else None
        slot.short_of_resources = isinstance(started, StartFailure) and started.temporary
        return started

    def forget_other_models(self, slot: Slot) -> None:
        """Forgets attempts to load models, and configurations of models, that the slot does not have (any more)."""
        slot.load_deaths.retain({self._assignments.generation(spec) for spec in slot.specs})

    def retain_generations(self, models: Iterable[ModelSpec]) -> set[int]:
        """Forgets the generations that no slot and no process has any more.

        Args:
            models: more models that slots may load, as after a replacement that fails.

        Returns:
            The generations that are left.
        """
        specs = [*models, *(spec for slot in self.slots for spec in slot.specs)]
        numbers = {number for process in self.processes() for number in process.generations.values()}
        return self._assignments.retain_generations({id(spec): spec for spec in specs}.values(), numbers)

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

    def forget_replaced(self, process: WorkerProcess) -> bool:
        """Forgets a process that has ended, if another one has taken over its slot; returns whether one has."""
        if process not in self._replaced:
            return False
        self._replaced.remove(process)
        return True

    # A model that takes long to load.

    def set_aside(self, slot: Slot, now: float) -> None:
        """Starts another process for a slot, which loads what is not left out, and lets the present one go on loading.

        If one goes on already, the present one ends: the other one will load all models.

        Args:
            slot: it is loading, and its `load_deaths` leave out the model that takes long.
            now: monotonic seconds.
        """
        process, slot.process = slot.process, None
        assert process is not None  # it loads
        if slot.next_process is None:
            process.aside, slot.next_process = True, process
        else:
            self.end_process(process, now)
        self.handle_event(slot, Event.SET_ASIDE, now)

    def resume(self, slot: Slot, now: float) -> WorkerProcess | None:
        """Makes the process that was set aside the slot's current one.

        Returns:
            The process that served until now: it must be told to end once it has finished its batches. None if none
            served; one that was starting ends.
        """
        old, new = slot.process, slot.next_process
        assert new is not None  # it was set aside
        slot.process, slot.next_process = new, None
        slot.due = slot.start_at = None
        new.aside, new.waited_for = False, True
        serves = slot.state is State.READY
        if not serves:
            slot.models, slot.visible_devices = (), None  # those of a process that does not serve
        self.handle_event(slot, Event.RESUMED, now)
        if old is None:
            return None
        if not serves:
            self.end_process(old, now)
            return None
        self._replaced.append(old)
        return old

    def end_aside(self, slot: Slot, now: float) -> None:
        """Ends the process that was set aside, if there is one: the slot gets another one."""
        process = slot.aside
        if process is not None:
            slot.next_process = None
            self.update_reports(slot)
            self.end_process(process, now)

    def update_reports(self, slot: Slot) -> None:
        """Updates what the slot's current process has reported, after the end of the one that was set aside."""
        if slot.process is not None:
            slot.models = current_reports(slot, slot.process, slot.models)
        self.changed = True

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
