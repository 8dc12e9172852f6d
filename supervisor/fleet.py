"""All worker processes: the slots' and the spares'. Carries out what the slots' state machines ask for.

The daemon's loop tells the fleet of reports, deaths and the time; the fleet starts and ends processes, and tells
the router which workers serve. A spare is a process that has imported what takes long and waits without a device;
a slot that needs a process takes one where there is one.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq

from multitower import worker_wire
from multitower.spec import Assignment, ModelReport, ModelSpec, WorkerReport
from multitower.supervisor.launcher import Launcher
from multitower.supervisor.log import event
from multitower.supervisor.member import Member, Place
from multitower.supervisor.placement import Placement
from multitower.supervisor.restart import RestartBudget, RestartPolicy
from multitower.supervisor.router import Router
from multitower.supervisor.runtime import RuntimeDir
from multitower.supervisor.slot import LIVE, Action, Event, Slot, State
from multitower.supervisor.spares import Spares

log = logging.getLogger("multitower.fleet")

STOP_S = 5.0
"""Seconds that a worker has to end after it was told to; then it is killed."""

LAST_WORDS_S = 0.25
"""Seconds to wait for a dead worker's channel to close; longer only if a child of it holds the channel open."""


class Fleet:
    """The processes of a daemon.

    Args:
        placements: one for each slot.
        models: what every worker loads, with their versions resolved.
        policy: when slots are started again.
        spares: how many processes wait.
        import_path: folders for handlers.
        runtime: where sockets are made.
        context: the router's ZeroMQ context.
        router: is told of workers that serve and that are gone.
        watch: is told of each new process, before anything can happen to it.
        unwatch: is told of each dead one, before its sockets are closed.

    Attributes:
        places: the slots, by number.
        spares: the spare processes.
    """

    def __init__(
        self,
        *,
        placements: Sequence[Placement],
        models: Sequence[ModelSpec],
        policy: RestartPolicy,
        spares: int,
        import_path: Sequence[str],
        runtime: RuntimeDir,
        context: zmq.Context[zmq.Socket[bytes]],
        router: Router,
        watch: Callable[[Member], None],
        unwatch: Callable[[Member], None],
    ) -> None:
        rng = random.Random()
        self.places = [Place(Slot(p.slot, RestartBudget(policy, rng)), p) for p in placements]
        self._models = tuple(models)
        self._router = router
        self._unwatch = unwatch
        self._launcher = Launcher(
            context,
            runtime,
            import_tensorflow=any(model.path is not None for model in models),
            import_path=import_path,
            watch=watch,
        )
        self._spares = Spares(self._launcher, spares, RestartBudget(policy, rng))
        self._ending: list[Member] = []  # told to end, or dead and not yet buried

    # What happens.

    def start(self, now: float) -> None:
        """Starts every slot."""
        for place in self.places:
            self._start(place, now)

    def message(self, member: Member, message: list[Any], now: float) -> None:
        """A process has sent something."""
        if bytes(message[0])[:1] == worker_wire.REPORT:
            self._report(member, WorkerReport.from_json(bytes(message[1])), now)
        elif member.place is not None:
            self._router.result(member.place.slot.number, message)

    def _report(self, member: Member, report: WorkerReport, now: float) -> None:
        member.state = report.state
        place = member.place
        if place is None:
            if report.state == "failed":
                self._spares.failed(member, report.cause)
                self._end(member, now)
            return
        place.visible_devices = report.visible_devices
        if report.state == "loading":
            self._act(place, place.slot.handle(Event.LOADING, now), now)
        elif report.state == "ready":
            self._ready(place, member, report, now)
        elif report.state == "failed":
            place.models = report.models
            for model in report.models:
                self._log_failed_model(place, model)
            cause = report.cause or "; ".join(f"{model.name}: {model.cause}" for model in report.models)
            event(log, logging.ERROR, "slot failed", **member.process.fields, cause=cause)
            self._act(place, place.slot.handle(Event.UNLOADABLE, now, cause), now)
            self._judge_models()

    def died(self, member: Member, now: float) -> None:
        """The process has ended; its answers may still lie in its channel."""
        member.cause = member.process.reap()
        member.bury_at = now + LAST_WORDS_S
        if member not in self._ending:
            self._ending.append(member)

    def tick(self, now: float) -> None:
        """Does what is due: burials, kills, starts after a back-off, new spares."""
        for member in list(self._ending):
            if member.cause is not None:
                if member.process.disconnected or now >= member.bury_at:
                    self._bury(member, now)
            elif member.kill_at is not None and now >= member.kill_at:
                member.kill_at = None
                event(log, logging.WARNING, "worker does not end: killed", **member.process.fields)
                member.process.kill()
        for place in self.places:
            if place.due is not None and now >= place.due:
                place.due = None
                self._act(place, place.slot.handle(Event.DUE, now), now)
        # Never while a slot needs the machine to come up.
        if not any(place.slot.state in (State.STARTING, State.LOADING) for place in self.places):
            self._spares.replenish(now)

    def next_wake(self, now: float) -> float | None:
        """When `tick` must be called at the latest, in monotonic seconds."""
        times = [place.due for place in self.places if place.due is not None]
        for member in self._ending:
            if member.cause is not None:
                times.append(member.bury_at)
            elif member.kill_at is not None:
                times.append(member.kill_at)
        spare = self._spares.next_wake(now)
        if spare is not None:
            times.append(spare)
        return min(times, default=None)

    # Orders.

    def stop(self, now: float) -> None:
        """Ends all workers, the slots in reverse order; nothing is started any more."""
        self._spares.stop()
        for member in list(self.spares):
            self._end(member, now)
        for place in reversed(self.places):
            place.due = None
            if place.slot.state is State.READY:
                self._router.balancer.retire(place.slot.number)
                self._act(place, place.slot.handle(Event.DRAIN, now), now)
                self._act(place, place.slot.handle(Event.DRAINED, now), now)
            else:
                self._act(place, place.slot.handle(Event.STOP, now), now)

    def kill(self) -> None:
        """Kills every process at once."""
        for member in self.members():
            if member.cause is None:
                member.process.kill()

    def close(self) -> None:
        """Gives back what is left, after all processes have been buried."""
        self._launcher.close()

    # What there is.

    @property
    def spares(self) -> list[Member]:
        """The spare processes."""
        return self._spares.members

    def members(self) -> Iterator[Member]:
        """Every process that has not been buried."""
        seen = {id(member): member for member in self._ending}
        seen.update((id(member), member) for member in self.spares)
        seen.update((id(place.member), place.member) for place in self.places if place.member is not None)
        return iter(seen.values())

    @property
    def hopeless(self) -> bool:
        """No slot serves or is on its way to serving."""
        return not any(place.slot.state in LIVE for place in self.places)

    # How it is done.

    def _act(self, place: Place, action: Action, now: float) -> None:
        if action is Action.START:
            self._start(place, now)
        elif action is Action.WAIT:
            place.due = now + place.slot.delay_s
        elif action is Action.STOP and place.member is not None:
            self._end(place.member, now)

    def _start(self, place: Place, now: float) -> None:
        """Gives the slot its next process: the spare that is furthest, or a new one."""
        place.models, place.visible_devices = (), None
        spare = self._spares.take()
        assignment = self._assignment(place)
        if spare is not None:
            spare.place, place.member = place, spare
            spare.process.fields.clear()
            spare.process.fields.update(place.fields, pid=spare.process.pid)
            spare.process.send([worker_wire.ASSIGN, assignment.to_json()])
            event(log, logging.INFO, "spare takes over", **spare.process.fields)
            return
        place.member = self._launcher.launch(f"mt-worker-{place.slot.number}", assignment, place.fields)
        if place.member is None:
            self._act(place, place.slot.died(now, "no process could be started"), now)
            self._log_if_failed(place)
            self._judge_models()
            return
        place.member.place = place
        event(log, logging.INFO, "worker started", **place.member.process.fields)

    def _assignment(self, place: Place) -> Assignment:
        placement = place.placement
        return Assignment(
            slot=place.slot.number,
            incarnation=place.slot.incarnation,
            devices=placement.devices,
            environment=placement.environment,
            intra_op_threads=placement.intra_op_threads,
            inter_op_threads=placement.inter_op_threads,
            cores=placement.cores,
            memory_limit_bytes=placement.memory_limit_bytes,
            models=self._models,
        )

    def _ready(self, place: Place, member: Member, report: WorkerReport, now: float) -> None:
        place.models = report.models
        self._act(place, place.slot.handle(Event.LOADED, now), now)
        if place.slot.state is not State.READY:
            return
        for model in report.models:
            if model.state != "ready":
                self._log_failed_model(place, model)
        serving = [model for model in report.models if model.state == "ready"]
        self._router.worker_ready(place.slot.number, member.process, serving, now)
        away = None if place.away_since is None else round(now - place.away_since, 3)
        place.away_since = None
        event(
            log,
            logging.INFO,
            "worker ready",
            **member.process.fields,
            models=",".join(model.name for model in serving),
            away_s=away,
        )
        self._judge_models()

    def _log_if_failed(self, place: Place) -> None:
        if place.slot.state is State.FAILED:
            event(log, logging.ERROR, "slot failed", **place.fields, cause=place.slot.last_error)

    def _log_failed_model(self, place: Place, model: ModelReport) -> None:
        event(log, logging.ERROR, "model cannot load", **place.fields, model=model.name, cause=model.cause)

    def _judge_models(self) -> None:
        """Finds the models that nothing serves or will serve, so that their requests need not wait."""
        for spec in self._models:
            causes: list[str] = []
            for place in self.places:
                if place.slot.state not in LIVE:
                    causes.append(f"slot {place.slot.number}: {place.slot.last_error or place.slot.state}")
                    continue
                report = next((model for model in place.models if model.name == spec.name), None)
                if report is None or report.state == "ready":
                    break
                causes.append(f"slot {place.slot.number}: {report.cause}")
            else:
                self._router.balancer.give_up(spec.name, "; ".join(causes))

    def _end(self, member: Member, now: float) -> None:
        """Tells a process to end, and kills it when it does not, or when it has nothing to finish."""
        if member in self.spares:
            self.spares.remove(member)
        if member.cause is not None or member in self._ending:
            return
        self._ending.append(member)
        if member.state in ("ready", "failed", "idle"):
            member.process.send([worker_wire.STOP])
            member.kill_at = now + STOP_S
        else:
            member.process.kill()

    def _bury(self, member: Member, now: float) -> None:
        """The process is dead: reads its last answers, frees it, and decides what comes next."""
        assert member.cause is not None
        self._ending.remove(member)
        for message in member.process.messages():
            self.message(member, message, now)
        self._unwatch(member)
        member.process.close()
        if member in self.spares:
            self.spares.remove(member)
            self._spares.died(member, now)
        place = member.place
        if place is None or place.member is not member:
            return
        place.member = None
        channel = self._router.channels.get(place.slot.number)
        if channel is not None:
            place.completed += channel.worker.completed
        lone_suspect = self._router.worker_gone(place.slot.number)
        expected = place.slot.state not in LIVE
        place.away_since = now if not expected else None
        action = place.slot.died(now, str(member.cause), counts=not lone_suspect)
        if expected:
            event(log, logging.INFO, "worker ended", **member.process.fields, cause=member.cause)
        else:
            event(
                log,
                logging.WARNING,
                "worker died",
                **member.process.fields,
                cause=member.cause,
                check=member.cause.advice,
                next=f"restart in {place.slot.delay_s:.1f}s" if action is Action.WAIT else "slot failed",
            )
        place.models = tuple(model for model in place.models if model.state != "ready")
        place.visible_devices = None
        if not expected:
            self._log_if_failed(place)
        self._act(place, action, now)
        self._judge_models()
