"""Manages all worker processes: those of the slots, and the spares.

The daemon's loop calls `tick` whenever something has happened or is due. What happened to processes is taken from
`process_watcher.py`; `slots.py` starts and ends processes, `reports.py` handles what they report,
`restart_after_death.py` decides what follows a death, `health.py` finds those that hang, `planned_replacement.py`
replaces them on purpose, and `availability.py` decides which models can be served.

A defect costs at most the worker that it concerns: each event and each step is contained. Its error is logged with a
traceback, the worker is killed and replaced, and its requests run again. A `StateError` of the scheduler is not
contained: the requests' own state is in doubt then, and the daemon ends.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence

from ..loop.containment import ErrorLog
from ..loop.history import EventHistory, EventKind
from ..machine.placement import Placement
from ..routing.router import Router
from ..routing.worker_connection import WorkerProtocolError
from ..scheduling.scheduler import StateError
from .assignments import Assignments
from .availability import Availability
from .capacity import Capacity
from .content_check import ContentCheck
from .device_waits import LOADING
from .exit_cause import Fault, Verdict
from .exits import Exits
from .health import Health
from .known_contents import KnownContents
from .launcher import Launcher
from .load_tries import LoadTries
from .planned_replacement import Replacer
from .planned_replacement_queue import Replacement, ReplacementQueue
from .process_watcher import InputFailed, MessageReceived, ProcessEvent, ProcessExited, ProcessWatcher, SocketClosed
from .reports import Reports
from .restart_after_death import RestartAfterDeath
from .restart_budget import RestartBudget
from .settings import WorkerSettings
from .slot import Slot, WorkerProcess
from .slots import Slots
from .slow_loads import SlowLoads
from .spares import Spares

log = logging.getLogger("multitower.manager")

SPARES_WAIT_S = 60.0
"""Seconds for which a slot that loads one model keeps spares from being started."""


class WorkerManager:
    """The worker processes of a daemon.

    Args:
        placements: one for each slot.
        settings: see `WorkerSettings`.
        router: sends batches to the workers that serve.
        launcher: starts processes.
        watcher: reports what happens to them.
        capacity: knows what is measured of the slots.
        history: gets what happens to workers; a new one by default.

    Attributes:
        history: as given.
        settings: as given, or as applied last.
        known_contents: what is known of the contents of models.
    """

    def __init__(
        self,
        *,
        placements: Sequence[Placement],
        settings: WorkerSettings,
        router: Router,
        launcher: Launcher,
        watcher: ProcessWatcher,
        capacity: Capacity,
        history: EventHistory | None = None,
    ) -> None:
        self.history = history or EventHistory()
        rng = random.Random()
        self.settings = settings
        self._errors = ErrorLog(log)
        self._router = router
        self._scheduler = router.scheduler
        self._launcher = launcher
        self._watcher = watcher
        self._exits = Exits(self._scheduler, watcher)
        self._spares = Spares(launcher, RestartBudget(settings.policy, rng), self.history)
        self.known_contents = KnownContents()
        assignments = Assignments(self._scheduler, launcher, self._spares, self._exits, rng, self.known_contents)
        self._slots = Slots(self._scheduler, assignments, self._spares, self._exits, rng, settings.policy, self.history)
        self._restart_after_death = RestartAfterDeath(self._slots, assignments)
        self._capacity = capacity
        self._health = Health(capacity, settings)
        self._replacements = ReplacementQueue()
        self._availability = Availability(self._slots, self._replacements, router)
        self._content_check = ContentCheck(
            self._slots, assignments, self._replacements, self._scheduler, self.known_contents
        )
        self._reports = Reports(self._slots, self._spares, self._replacements, router, self._content_check)
        self._load_tries = LoadTries(self._slots, self._replacements, capacity)
        self._slow_loads = SlowLoads(self._slots, self._replacements, capacity, settings)
        self._replacer = Replacer(self._slots, self._replacements, router, capacity)
        self.apply_settings(settings)
        for placement in placements:
            self.add_slot(placement)

    # What happens.

    def tick(self, now: float) -> None:
        """Handles what has happened to processes, and does what is due.

        Args:
            now: monotonic seconds.
        """
        self._handle_events(now)
        for process in tuple(self._exits.processes):
            with self._contain("ending a worker", process, now):
                self._exits.kill_if_due(process, now)
                if process.exit_cause is not None:
                    self._release(process, now)
        # First what goes back to its former models: it must not start with the new ones again.
        self._advance_replacements(now)
        for slot in tuple(self._slots):
            with self._contain("starting a worker", slot.process, now):
                self._slots.advance(slot, now)
        if now >= self._health.next_check:
            self._check_health(now)
        if self._slots.changed and not self._slots.stopping:
            with self._contain("looking for workers that wait for files", None, now):
                self._content_check.retry_waiting_slots(now)
        # Again: what has been found since then must not wait for the next tick, which may be a heartbeat away.
        self._advance_replacements(now)
        # Not while a slot needs the machine in order to load; but a load that hangs keeps no slot without a spare.
        if not any(slot.state in LOADING and not _loads_slowly(slot, now) for slot in self._slots):
            with self._contain("starting a spare", None, now):
                self._spares.replenish(now)
        self._update_availability_if_changed(now)

    def next_wake(self, now: float) -> float:
        """When `tick` must be called at the latest, in monotonic seconds."""
        times = [self._health.next_check, *self._slots.next_wakes(), *self._exits.next_wakes()]
        spare = self._spares.next_wake(now)
        if spare is not None:
            times.append(spare)
        return min(times)

    def handle_event(self, process_event: ProcessEvent, now: float) -> None:
        """Handles what has happened to a process."""
        process = process_event.process
        match process_event:
            case MessageReceived(message=message):
                with self._contain("handling a worker's message", process, now):
                    self._reports.handle_message(process, message, now)
            case InputFailed(error=error):
                with self._contain("handling a worker's message", process, now):
                    raise error
            case SocketClosed():
                with self._contain("stopping the batches of a worker", process, now):
                    self._exits.notice_closed_socket(process)
            case ProcessExited():
                with self._contain("reaping a worker", process, now):
                    self._exits.handle_death(process, now)

    def _handle_events(self, now: float) -> None:
        events = self._watcher.events
        while events:
            self.handle_event(events.popleft(), now)

    def _check_health(self, now: float) -> None:
        for process, verdict in self._health.check(self.processes(), now):
            with self._contain("killing a worker", process, now):
                self._exits.condemn_process(process, verdict, now)
        for process in self.processes():
            if process.hang_detector.dumping and process.usable:
                with self._contain("stopping the batches of a worker", process, now):
                    self._exits.notice_dump(process, now)
        with self._contain("looking for models that take long to load", None, now):
            self._slow_loads.check(now)
        with self._contain("trying models again that were left out", None, now):
            self._load_tries.begin_due(now)
        with self._contain("looking for workers over their limits", None, now):
            for slot, why in self._health.find_over_limits(self._slots):
                self._replacements.add_automatic(slot, why, now)

    def _advance_replacements(self, now: float) -> None:
        try:
            self._replacer.advance(now)
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("replacing a worker", error)
            with self._contain("giving up a replacement", None, now):
                self._replacer.abort(f"internal error: {error}", now)

    def _release(self, process: WorkerProcess, now: float) -> None:
        """Handles the last messages of a process that has ended, releases it, and decides what comes next."""
        with self._contain("reading a worker's last messages", process, now):
            while self._router.receive_from_worker(process.child.connection):
                pass
        self._handle_events(now)
        self._exits.release_process(process)
        suspect_to_blame = self._remove_route(process, now)
        if process.slot is not None:
            self._restart_after_death.handle_death(process, now, suspect_to_blame=suspect_to_blame)
            self._router.batching.retain_generations(self._slots.retain_generations(self.settings.models))
        elif process in self._spares.processes:
            self._spares.handle_death(process, now)

    def _remove_route(self, process: WorkerProcess, now: float) -> bool:
        """Gives the requests of a process to others; returns whether a suspect request is to blame for its end."""
        if process.route is None:
            return False
        assert process.exit_cause is not None  # it has ended
        overrun = process.verdict is not None and process.verdict.fault is Fault.OVERRUN
        before = self._scheduler.quarantined_models
        crashed = process.exit_cause.crash or overrun
        try:
            suspect_to_blame = self._router.remove_worker(
                process.route, now, crashed=crashed, begun=process.child.begun, death=process.death
            )
        except Exception as error:
            raise StateError("the requests of a worker that has ended") from error  # some would never be answered
        for model, cause in self._scheduler.quarantined_models.items():
            if model not in before:
                fields = {"model": model, "cause": cause}
                self.history.note(log, logging.ERROR, EventKind.QUARANTINE, "model quarantined", **fields)
        return suspect_to_blame

    @contextlib.contextmanager
    def _contain(self, doing: str, process: WorkerProcess | None, now: float) -> Iterator[None]:
        """Contains an error of one event or step: it is logged, and the process that it concerns is killed."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add(doing, error, process.child.fields if process is not None else {})
            if process is not None:
                cause = "it broke the protocol" if isinstance(error, WorkerProtocolError) else "of an internal error"
                self._exits.condemn_process(process, Verdict(Fault.DEFECT, f"{cause}: {error}"), now)

    # Orders.

    def stop(self, now: float) -> None:
        """Ends all workers, the slots in reverse order. Nothing is started any more."""
        self._slots.stopping = True
        self._spares.set_target(0)
        self._replacements.clear()
        for process in tuple(self.processes()):
            if process.slot is None or process not in (process.slot.process, process.slot.next_process):
                with self._contain("stopping a worker", process, now):
                    self._slots.end_process(process, now)
        for slot in reversed(tuple(self._slots)):
            with self._contain("stopping a worker", slot.process, now):
                self._slots.stop_slot(slot, now)

    def restart_slot(
        self, slot: Slot, done: Callable[[str | None], None], wanted: Callable[[], bool] | None = None
    ) -> None:
        """Gives a slot a new process, for an operator who is expected to have removed the cause of earlier failures.

        Models in quarantine are tried again, and spares are started again if they had died too often.

        Args:
            slot: the slot.
            done: called at the end with None, or with the reason why it failed.
            wanted: see `Replacement`.
        """
        slot.safe_rows.clear()
        slot.load_deaths.forget()
        self._scheduler.reset_crash_count()
        self._spares.resume(self.settings.spares)

        def end(error: str | None) -> None:
            slot.operator_restarts -= 1
            done(error)

        self._replacements.add(Replacement(slot, "multitower restart", done=end, wanted=wanted))
        slot.operator_restarts += 1  # only now: where something raises, `end` is never called

    def request_replacement(self, replacement: Replacement) -> None:
        """Replaces the process of a slot when its turn comes: replacements are carried out one after the other."""
        self._replacements.add(replacement)

    def withdraw_replacements(self, replacements: Collection[Replacement]) -> Replacement | None:
        """Withdraws those of the replacements that are not in progress; their `done` is not called.

        Returns:
            The one of them that is in progress, or None.
        """
        self._replacements.withdraw(replacements)
        current = self._replacements.current
        return current if current in replacements else None

    def apply_settings(self, settings: WorkerSettings) -> None:
        """Applies new settings from now on; to workers that run already, as far as they concern limits and times."""
        former = self.settings
        # A call of a model that is being removed may hang, and the removal waits for the end of that call.
        served = [spec for process in self.processes() for spec in process.specs]
        planned = [*settings.models, *(spec for slot in self._slots for spec in slot.specs)]
        settings = self.settings = settings.keeping_limits(former, {spec.name for spec in (*served, *planned)})
        for model, seconds in settings.load_s.items():
            if seconds > former.load_s.get(model, seconds):
                for slot in self._slots:
                    slot.load_deaths.allow_more_time(model)
        self._launcher.apply_settings(settings)
        self._spares.set_target(settings.spares)
        self._spares.set_policy(settings.policy)
        self._health.apply_settings(settings)
        self._slow_loads.apply_settings(settings)
        self._slots.set_policy(settings.policy)

    def add_slot(self, placement: Placement) -> None:
        """Adds a slot; `tick` starts its process, if it has a model to load."""
        self._slots.add_slot(placement, placement.select_models(self.settings.models))

    def update_availability(self) -> None:
        """Lets the router refuse requests for models and versions that nothing serves or will serve."""
        self._slots.changed = False
        self._availability.update(self.settings.models)

    def _update_availability_if_changed(self, now: float) -> None:
        if self._slots.changed and not self._slots.stopping:
            with self._contain("finding which models are available", None, now):
                self.update_availability()

    def kill_all(self) -> None:
        """Kills every process at once."""
        for process in self.processes():
            if process.exit_cause is None:
                try:
                    process.child.kill()
                except Exception:
                    log.exception("worker could not be killed", extra={"fields": dict(process.child.fields)})

    def reap_all(self) -> None:
        """Waits for the end of all processes, which must have been killed, and releases them."""
        for process in self.processes():
            try:
                if process.exit_cause is None:
                    process.child.reap()
                process.child.close()
            except Exception:
                log.exception("worker could not be released", extra={"fields": dict(process.child.fields)})

    # What there is.

    @property
    def slots(self) -> Sequence[Slot]:
        """The slots, in the order of their numbers."""
        return self._slots.slots

    @property
    def spares(self) -> Sequence[WorkerProcess]:
        """The spares."""
        return self._spares.processes

    @property
    def available_bytes(self) -> int:
        """Bytes of host memory that processes could still take within the narrowest limit."""
        return self._capacity.available_bytes

    @property
    def replacing(self) -> bool:
        """Whether a replacement is in progress or waits for its turn."""
        return self._replacements.active

    @property
    def unavailable(self) -> bool:
        """Whether no slot serves or will serve, although some have a model to load."""
        return not self._availability.any_slot

    def processes(self) -> Iterator[WorkerProcess]:
        """Every process that has not been released."""
        return self._slots.processes()


def _loads_slowly(slot: Slot, now: float) -> bool:
    since = slot.process.load_timer.since if slot.process is not None else None
    return since is not None and now - since > SPARES_WAIT_S
