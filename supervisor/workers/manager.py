"""All worker processes: the slots' and the spares'. Carries out what the slots' state machines ask for.

The daemon's loop tells the fleet of messages, deaths and the time; the fleet has processes found for its slots
(`hiring.py`), their messages read (`reports.py`), and them seen out when they end (`endings.py`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq

from multitower.spec import ModelSpec

from ..loop.log import event
from ..loop.runtime_dir import RuntimeDir
from ..machine.placement import Placement
from ..routing.router import Router
from ..routing.worker_connection import WorkerProtocolError
from .assigner import Assigner
from .availability import Availability
from .exits import Exits
from .health import Health
from .launcher import Launcher
from .replacement import Replacement, Replacements
from .reports import Reports
from .restart_budget import RestartBudget
from .settings import WorkerSettings
from .slot import Slot, WorkerProcess
from .slot_state_machine import LIVE, Action, Event, State

log = logging.getLogger("multitower.fleet")

_LOADING = (State.STARTING, State.LOADING)

REPLACE_AGAIN_S = 60.0
"""Seconds from one try to replace a worker that has served its time to the next, where the new one cannot load."""


class WorkerManager:
    """The processes of a daemon.

    Args:
        placements: one for each slot.
        settings: see `FleetSettings`.
        import_path: folders for handlers.
        runtime: where sockets are made.
        context: the router's ZeroMQ context.
        router: is told of workers that serve and that are gone.
        watch: is told of each new process, before anything can happen to it.
        unwatch: is told of each dead one, before its sockets are closed.
        fits: whether a slot's device and the machine can hold a second process of it.
        rss: bytes of resident memory of a slot's present process as last measured, or None.
        present: whether a slot's device is there, as last seen; None when that is not known.

    Attributes:
        placements: the slots, in the order of their numbers.
        spares: the spare processes.
        replacements: slots that are given new processes on purpose.
        settings: as given, or as last applied.
    """

    def __init__(
        self,
        *,
        placements: Sequence[Placement],
        settings: WorkerSettings,
        import_path: Sequence[str],
        runtime: RuntimeDir,
        context: zmq.Context[zmq.Socket[bytes]],
        router: Router,
        watch: Callable[[WorkerProcess], None],
        unwatch: Callable[[WorkerProcess], None],
        fits: Callable[[Slot], bool] = lambda _: True,
        rss: Callable[[Slot], int | None] = lambda _: None,
        present: Callable[[int], bool | None] = lambda _: None,
    ) -> None:
        self._rng = random.Random()
        self.settings = settings
        self._router = router
        self._health = Health(router, rss, present)
        launcher = Launcher(context, runtime, import_path=import_path, watch=watch)
        self._assigner = Assigner(launcher, settings, self._rng)
        self._spares = self._assigner.spares
        self._exits = Exits(unwatch)
        self._reports = Reports(self, router, self._spares.failed)
        self.replacements = Replacements(self, router, fits)
        self.slots: list[Slot] = []
        self._availability = Availability(self.slots, self.replacements, router.scheduler)
        self.apply(settings)
        for placement in placements:
            self.add(placement)
        self._stopping = False
        self._leaving: list[WorkerProcess] = []  # their slots have others, and they finish what they have

    # What happens.

    def message(self, process: WorkerProcess, message: list[Any], now: float) -> None:
        """Handles a message of a process that is not a result; `tick` must be called afterwards.

        A process whose message cannot be handled is killed, and its requests run again. The daemon goes on.
        """
        try:
            self._reports.read(process, message, now)
        except Exception as error:  # noqa: BLE001  it is logged there, with its traceback
            self.failed(process, error)

    def failed(self, process: WorkerProcess, error: Exception) -> None:
        """Kills a process whose message could not be handled; it is replaced, and its requests run again."""
        what = "worker broke the protocol" if isinstance(error, WorkerProtocolError) else "a message cannot be read"
        log.error("%s: killing worker %s", what, process.child.fields, exc_info=error)
        process.child.kill()

    def died(self, process: WorkerProcess, now: float) -> None:
        """The process has ended; its answers may still lie in its channel."""
        self._exits.died(process, now)
        if process.route is not None:
            # What it is given until it is buried would count as having died with it.
            self._router.scheduler.stop_dispatch(process.route.worker)

    def tick(self, now: float) -> None:
        """Does what is due: burials, kills, starts after a back-off, new spares."""
        for process in self._exits.due(now):
            self._bury(process, now)
        for slot in self.slots:
            if slot.state is State.STARTING and slot.process is None and not self._stopping:
                self._start(slot, now)
            if slot.due is not None and now >= slot.due:
                slot.due = None
                self.tell(slot, Event.DUE, now)
        if now >= self._health.next_look:
            self._see_to_health(now)
        self.replacements.advance(now)
        # Never while a slot needs the machine to come up.
        if not any(slot.state in _LOADING for slot in self.slots):
            self._spares.replenish(now)

    def _see_to_health(self, now: float) -> None:
        for process in self._health.look(self.processes(), now):
            self._exits.condemn(process, now)
        for slot, why in self._health.recycle(self.slots, self.settings):
            self.recycle(slot, why, now)

    def recycle(self, slot: Slot, why: str, now: float) -> None:
        """Replaces a worker that has served its time, unless that is under way, or has just been tried in vain."""
        process = slot.process
        if process is None or now < process.replace_after or self.replacements.includes(slot):
            return
        process.replace_after = now + REPLACE_AGAIN_S
        self.replacements.ask(Replacement(slot, why))

    def next_wake(self, now: float) -> float | None:
        """When `tick` must be called at the latest, in monotonic seconds."""
        times = [slot.due for slot in self.slots if slot.due is not None]
        times.append(self._health.next_look)
        times += self._exits.times()
        spare = self._spares.next_wake(now)
        if spare is not None:
            times.append(spare)
        return min(times, default=None)

    # Orders.

    def stop(self, now: float) -> None:
        """Ends all workers, the slots in reverse order; nothing is started any more."""
        self._stopping = True
        self._spares.want(0)
        self.replacements.clear()
        for process in (*self.spares, *self._leaving):
            self.end(process, now)
        for slot in reversed(self.slots):
            slot.due = None
            next_process, slot.next_process = slot.next_process, None
            if next_process is not None:
                self.end(next_process, now)
            if slot.route is not None and slot.state is State.READY:
                self._router.scheduler.retire(slot.route.worker)
                self.tell(slot, Event.DRAIN, now)
                self.tell(slot, Event.DRAINED, now)
            else:
                self.tell(slot, Event.STOP, now)

    def restart(self, slot: Slot, done: Callable[[str | None], None]) -> None:
        """Gives a slot a new process, as an operator who has seen to the cause wants it.

        Spares may come again, too, and models that were kept away are tried again.

        Args:
            slot: the slot.
            done: is told of the end: None, or why it failed.
        """
        slot.safe_rows.clear()
        self._router.scheduler.reset_crash_count()
        self._spares.resume(self.settings.spares)
        slot.operator_restart = True

        def ended(error: str | None) -> None:
            slot.operator_restart = False
            done(error)

        self.replacements.ask(Replacement(slot, "multitower restart", done=ended))

    def kill(self) -> None:
        """Kills every process at once."""
        for process in self.processes():
            if process.cause is None:
                process.child.kill()

    def close(self) -> None:
        """Gives back what is left, after all processes have been buried."""
        self._assigner.close()

    # What there is.

    @property
    def spares(self) -> list[WorkerProcess]:
        """The spare processes."""
        return self._spares.processes

    def processes(self) -> Iterator[WorkerProcess]:
        """Every process that has not been buried."""
        seen = {id(process): process for process in self._exits.processes}
        seen.update((id(process), process) for process in self.spares)
        for slot in self.slots:
            held = (slot.process, slot.next_process)
            seen.update((id(process), process) for process in held if process is not None)
        seen.update((id(process), process) for process in self._leaving)
        return iter(seen.values())

    @property
    def unavailable(self) -> bool:
        """No slot serves or is on its way to serving."""
        return self._availability.unavailable

    def judge_models(self) -> None:
        """Finds the models and versions that nothing serves or will serve, so that their requests need not wait."""
        self._availability.judge(self.settings.models)
        if not self.replacements.active:  # one may go back to what was before
            self._router.retain_versions(self._availability.versions())

    # How it is done.

    def _act(self, slot: Slot, action: Action, now: float) -> None:
        if action is Action.START:
            self._start(slot, now)
        elif action is Action.WAIT:
            slot.due = now + slot.delay_s
        elif action is Action.STOP and slot.process is not None:
            self.end(slot.process, now)
        elif action is Action.STOP:
            slot.handle(Event.DIED, now)  # it was held back, and has no process to end

    def _start(self, slot: Slot, now: float) -> None:
        """Gives the slot its next process: the spare that is furthest, or a new one. One held back waits for `tick`."""
        if any(self._holds_back(other, slot) for other in self.slots):
            return
        slot.models, slot.visible_devices = (), None
        slot.process = self._assigner.give_work(slot, slot.specs, slot.placement, slot.incarnation)
        if slot.process is None:
            self._act(slot, slot.died(now, "no process could be started"), now)
            self._log_if_failed(slot)
            self.judge_models()

    def start_next_process(
        self, slot: Slot, specs: tuple[ModelSpec, ...], placement: Placement
    ) -> WorkerProcess | None:
        """Starts a process that is to take over a slot which serves; None when there is no room for one."""
        slot.refused = ()
        slot.next_process = self._assigner.give_work(slot, specs, placement, slot.incarnation + 1)
        return slot.next_process

    def take_over(self, slot: Slot, process: WorkerProcess, serve: Callable[[], None], now: float) -> None:
        """A process takes the place of the one that serves; `serve` lets it."""
        old = slot.process
        assert old is not None  # it serves
        slot.process, slot.next_process = process, None
        self._leaving.append(old)
        self.tell(slot, Event.REPLACED, now)
        serve()
        self.replacements.took_over(slot, old)

    def _log_if_failed(self, slot: Slot) -> None:
        if slot.state is State.FAILED:
            event(log, logging.ERROR, "slot failed", **slot.fields, cause=slot.last_error)

    def tell(self, slot: Slot, event: Event, now: float, cause: str | None = None) -> None:
        """Tells the slot of an event, and does what follows from it."""
        self._act(slot, slot.handle(event, now, cause), now)

    def end(self, process: WorkerProcess, now: float) -> None:
        """Tells a process to end, and kills it when it does not, or when it has nothing to finish."""
        if process in self.spares:
            self.spares.remove(process)
        self._exits.tell(process, now)

    def _bury(self, process: WorkerProcess, now: float) -> None:
        """The process is dead: reads its last answers, frees it, and decides what comes next."""
        assert process.cause is not None
        if process in self._leaving:
            self._leaving.remove(process)
        connection = process.child.connection
        while self._router.receive_from_worker(connection):
            pass
        self._exits.bury(process)
        if process in self.spares:
            self.spares.remove(process)
            self._spares.died(process, now)
        lone_suspect = False
        if process.route is not None:
            crashed = process.cause.crash or (process.verdict is not None and process.verdict.overrun)
            before = self._router.scheduler.quarantined_models
            lone_suspect = self._router.remove_worker(process.route, now, crashed=crashed, begun=process.child.begun)
            for model, cause in self._router.scheduler.quarantined_models.items():
                if model not in before:
                    event(log, logging.ERROR, "model quarantined", model=model, cause=cause)
        slot = process.slot
        if slot is None:
            return
        if process.route is not None:
            slot.completed += process.route.completed
        if slot.next_process is process:
            slot.next_process = None
            event(log, logging.ERROR, "the new worker died", **process.child.fields, cause=process.told_cause)
            slot.last_error = process.told_cause
        if slot.process is not process:
            return
        slot.process = None
        if slot.next_process is not None and slot.state is State.READY:
            self._succeed(slot, process, now)
            return
        expected = slot.state not in LIVE
        slot.away_since = now if not expected else None
        action = slot.died(now, process.told_cause, counts=not lone_suspect)
        if expected:
            event(log, logging.INFO, "worker ended", **process.child.fields, cause=process.cause)
        else:
            event(
                log,
                logging.WARNING,
                "worker died",
                **process.child.fields,
                cause=process.told_cause,
                check=process.advice,
                next=f"restart in {slot.delay_s:.1f}s" if action is Action.WAIT else "slot failed",
            )
        slot.models = tuple(model for model in slot.models if model.state != "ready")
        slot.visible_devices = None
        if not expected:
            self._log_if_failed(slot)
        self._act(slot, action, now)
        self.judge_models()

    def _succeed(self, slot: Slot, process: WorkerProcess, now: float) -> None:
        """The slot's process died while another one was loading to take over."""
        slot.away_since = now
        slot.last_error = process.told_cause
        slot.process, slot.next_process = slot.next_process, None
        slot.models, slot.visible_devices = (), None
        event(log, logging.WARNING, "worker died", **process.child.fields, cause=process.told_cause, next="is loading")
        self.tell(slot, Event.SUCCEEDED, now)

    # What a reload changes.

    def apply(self, settings: WorkerSettings) -> None:
        """Takes new settings for whatever happens from now on; of those that serve, limits and times change."""
        self.settings = settings
        self._assigner.apply(settings)
        self._health.apply(settings)
        for slot in self.slots:
            slot.set_policy(settings.policy)

    def add(self, placement: Placement) -> None:
        """A new slot; `tick` starts it, if it has a model."""
        specs = placement.select_models(self.settings.models)
        state = State.STARTING if specs else State.STOPPED
        budget = RestartBudget(self.settings.policy, self._rng)
        self.slots.append(Slot(placement.slot, budget, state, placement, specs))
        self.slots.sort(key=lambda slot: slot.number)

    def _holds_back(self, leaving: Slot, slot: Slot) -> bool:
        """The slot waits for the end of the other's process, which has some of its devices."""
        return leaving.process is not None and slot.placement.conflicts_with(leaving.placement)

    def promised(self, slot: Slot) -> set[tuple[str, str]]:
        """Models and versions that nothing brings but slots which this one holds back: what waits for them waits on."""
        held = {spec.key for each in self.slots if self._holds_back(slot, each) for spec in each.specs}
        return held - self._loading()

    def relieved(self, slot: Slot) -> bool:
        """A slot that loads is to serve what nothing but this one serves."""
        ready = (each for each in self.slots if each is not slot and each.state is State.READY)
        missing = self._loading() - {spec.key for each in ready for spec in each.specs}
        return any(spec.key in missing for spec in slot.specs)

    def _loading(self) -> set[tuple[str, str]]:
        """Models and versions of slots whose process is to serve soon."""
        loading = (each for each in self.slots if each.process is not None and each.state in _LOADING)
        return {spec.key for each in loading for spec in each.specs}

    def drop(self, slot: Slot) -> None:
        """The slot is no more; its process has ended."""
        self.slots.remove(slot)
