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
from .assigner import Hiring
from .availability import Outlook
from .exits import Endings
from .health import Health
from .launcher import Launcher
from .replacement import Renewal, Renewals
from .reports import Reports
from .restart_budget import RestartBudget
from .settings import FleetSettings
from .slot import LIVE, Action, Event, Slot, State
from .worker_process import Member, Place

log = logging.getLogger("multitower.fleet")

_LOADING = (State.STARTING, State.LOADING)

RECYCLE_AGAIN_S = 60.0
"""Seconds from one try to replace a worker that has served its time to the next, where the new one cannot load."""


class Fleet:
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
        places: the slots, in the order of their numbers.
        spares: the spare processes.
        renewals: slots that are given new processes on purpose.
        settings: as given, or as last applied.
    """

    def __init__(
        self,
        *,
        placements: Sequence[Placement],
        settings: FleetSettings,
        import_path: Sequence[str],
        runtime: RuntimeDir,
        context: zmq.Context[zmq.Socket[bytes]],
        router: Router,
        watch: Callable[[Member], None],
        unwatch: Callable[[Member], None],
        fits: Callable[[Place], bool] = lambda _: True,
        rss: Callable[[Place], int | None] = lambda _: None,
        present: Callable[[int], bool | None] = lambda _: None,
    ) -> None:
        self._rng = random.Random()
        self.settings = settings
        self._router = router
        self._health = Health(router, rss, present)
        launcher = Launcher(context, runtime, import_path=import_path, watch=watch)
        self._hiring = Hiring(launcher, settings, self._rng)
        self._spares = self._hiring.spares
        self._endings = Endings(unwatch)
        self._reports = Reports(self, router, self._spares.failed)
        self.renewals = Renewals(self, router, fits)
        self.places: list[Place] = []
        self._outlook = Outlook(self.places, self.renewals, router.balancer)
        self.apply(settings)
        for placement in placements:
            self.add(placement)
        self._stopping = False
        self._leaving: list[Member] = []  # their slots have others, and they finish what they have

    # What happens.

    def message(self, member: Member, message: list[Any], now: float) -> bool:
        """A process has sent something; True when `tick` is to be called for it."""
        return self._reports.read(member, message, now)

    def died(self, member: Member, now: float) -> None:
        """The process has ended; its answers may still lie in its channel."""
        self._endings.died(member, now)
        if member.channel is not None:
            # What it is given until it is buried would count as having died with it.
            self._router.balancer.hold(member.channel.worker)

    def tick(self, now: float) -> None:
        """Does what is due: burials, kills, starts after a back-off, new spares."""
        for member in self._endings.due(now):
            self._bury(member, now)
        for place in self.places:
            if place.slot.state is State.STARTING and place.member is None and not self._stopping:
                self._start(place, now)
            if place.due is not None and now >= place.due:
                place.due = None
                self.tell(place, Event.DUE, now)
        if now >= self._health.next_look:
            self._see_to_health(now)
        self.renewals.advance(now)
        # Never while a slot needs the machine to come up.
        if not any(place.slot.state in _LOADING for place in self.places):
            self._spares.replenish(now)

    def _see_to_health(self, now: float) -> None:
        for member in self._health.look(self.members(), now):
            self._endings.condemn(member, now)
        for place, why in self._health.recycle(self.places, self.settings):
            self.recycle(place, why, now)

    def recycle(self, place: Place, why: str, now: float) -> None:
        """Replaces a worker that has served its time, unless that is under way, or has just been tried in vain."""
        member = place.member
        if member is None or now < member.recycle_at or self.renewals.includes(place):
            return
        member.recycle_at = now + RECYCLE_AGAIN_S
        self.renewals.ask(Renewal(place, why))

    def next_wake(self, now: float) -> float | None:
        """When `tick` must be called at the latest, in monotonic seconds."""
        times = [place.due for place in self.places if place.due is not None]
        times.append(self._health.next_look)
        times += self._endings.times()
        spare = self._spares.next_wake(now)
        if spare is not None:
            times.append(spare)
        return min(times, default=None)

    # Orders.

    def stop(self, now: float) -> None:
        """Ends all workers, the slots in reverse order; nothing is started any more."""
        self._stopping = True
        self._spares.want(0)
        self.renewals.clear()
        for member in (*self.spares, *self._leaving):
            self.end(member, now)
        for place in reversed(self.places):
            place.due = None
            successor, place.successor = place.successor, None
            if successor is not None:
                self.end(successor, now)
            if place.channel is not None and place.slot.state is State.READY:
                self._router.balancer.retire(place.channel.worker)
                self.tell(place, Event.DRAIN, now)
                self.tell(place, Event.DRAINED, now)
            else:
                self.tell(place, Event.STOP, now)

    def restart(self, place: Place, done: Callable[[str | None], None]) -> None:
        """Gives a slot a new process, as an operator who has seen to the cause wants it.

        Spares may come again, too, and models that were kept away are tried again.

        Args:
            place: the slot.
            done: is told of the end: None, or why it failed.
        """
        place.safe_rows.clear()
        self._router.balancer.refusals.forgive()
        self._spares.hope(self.settings.spares)
        place.mended = True

        def ended(error: str | None) -> None:
            place.mended = False
            done(error)

        self.renewals.ask(Renewal(place, "multitower restart", done=ended))

    def kill(self) -> None:
        """Kills every process at once."""
        for member in self.members():
            if member.cause is None:
                member.process.kill()

    def close(self) -> None:
        """Gives back what is left, after all processes have been buried."""
        self._hiring.close()

    # What there is.

    @property
    def spares(self) -> list[Member]:
        """The spare processes."""
        return self._spares.members

    def members(self) -> Iterator[Member]:
        """Every process that has not been buried."""
        seen = {id(member): member for member in self._endings.members}
        seen.update((id(member), member) for member in self.spares)
        for place in self.places:
            held = (place.member, place.successor)
            seen.update((id(member), member) for member in held if member is not None)
        seen.update((id(member), member) for member in self._leaving)
        return iter(seen.values())

    @property
    def hopeless(self) -> bool:
        """No slot serves or is on its way to serving."""
        return self._outlook.hopeless

    def judge_models(self) -> None:
        """Finds the models and versions that nothing serves or will serve, so that their requests need not wait."""
        self._outlook.judge(self.settings.models)
        if not self.renewals.active:  # one may go back to what was before
            self._router.keep_versions(self._outlook.versions())

    # How it is done.

    def _act(self, place: Place, action: Action, now: float) -> None:
        if action is Action.START:
            self._start(place, now)
        elif action is Action.WAIT:
            place.due = now + place.slot.delay_s
        elif action is Action.STOP and place.member is not None:
            self.end(place.member, now)
        elif action is Action.STOP:
            place.slot.handle(Event.DIED, now)  # it was held back, and has no process to end

    def _start(self, place: Place, now: float) -> None:
        """Gives the slot its next process: the spare that is furthest, or a new one. One held back waits for `tick`."""
        if any(self._holds_back(other, place) for other in self.places):
            return
        place.models, place.visible_devices = (), None
        place.member = self._hiring.give_work(place, place.specs, place.placement, place.slot.incarnation)
        if place.member is None:
            self._act(place, place.slot.died(now, "no process could be started"), now)
            self._log_if_failed(place)
            self.judge_models()

    def start_successor(self, place: Place, specs: tuple[ModelSpec, ...], placement: Placement) -> Member | None:
        """Starts a process that is to take over a slot which serves; None when there is no room for one."""
        place.refused = ()
        place.successor = self._hiring.give_work(place, specs, placement, place.slot.incarnation + 1)
        return place.successor

    def take_over(self, place: Place, member: Member, serve: Callable[[], None], now: float) -> None:
        """A process takes the place of the one that serves; `serve` lets it."""
        old = place.member
        assert old is not None  # it serves
        place.member, place.successor = member, None
        self._leaving.append(old)
        self.tell(place, Event.REPLACED, now)
        serve()
        self.renewals.took_over(place, old)

    def _log_if_failed(self, place: Place) -> None:
        if place.slot.state is State.FAILED:
            event(log, logging.ERROR, "slot failed", **place.fields, cause=place.slot.last_error)

    def tell(self, place: Place, event: Event, now: float, cause: str | None = None) -> None:
        """Tells the slot of an event, and does what follows from it."""
        self._act(place, place.slot.handle(event, now, cause), now)

    def end(self, member: Member, now: float) -> None:
        """Tells a process to end, and kills it when it does not, or when it has nothing to finish."""
        if member in self.spares:
            self.spares.remove(member)
        self._endings.tell(member, now)

    def _bury(self, member: Member, now: float) -> None:
        """The process is dead: reads its last answers, frees it, and decides what comes next."""
        assert member.cause is not None
        if member in self._leaving:
            self._leaving.remove(member)
        self._endings.bury(member, lambda message: self.message(member, message, now))
        if member in self.spares:
            self.spares.remove(member)
            self._spares.died(member, now)
        lone_suspect = False
        if member.channel is not None:
            crashed = member.cause.crash or (member.verdict is not None and member.verdict.overrun)
            kept_away = set(self._router.balancer.refusals.crashing.until)
            lone_suspect = self._router.worker_gone(member.channel, now, crashed=crashed)
            for model in set(self._router.balancer.refusals.crashing.until) - kept_away:
                cause = self._router.balancer.refusals.crashing.why(model)
                event(log, logging.ERROR, "model is kept away", model=model, cause=cause)
        place = member.place
        if place is None:
            return
        if member.channel is not None:
            place.completed += member.channel.completed
        if place.successor is member:
            place.successor = None
            event(log, logging.ERROR, "the new worker died", **member.process.fields, cause=member.told_cause)
            place.slot.last_error = member.told_cause
        if place.member is not member:
            return
        place.member = None
        if place.successor is not None and place.slot.state is State.READY:
            self._succeed(place, member, now)
            return
        expected = place.slot.state not in LIVE
        place.away_since = now if not expected else None
        action = place.slot.died(now, member.told_cause, counts=not lone_suspect)
        if expected:
            event(log, logging.INFO, "worker ended", **member.process.fields, cause=member.cause)
        else:
            event(
                log,
                logging.WARNING,
                "worker died",
                **member.process.fields,
                cause=member.told_cause,
                check=member.advice,
                next=f"restart in {place.slot.delay_s:.1f}s" if action is Action.WAIT else "slot failed",
            )
        place.models = tuple(model for model in place.models if model.state != "ready")
        place.visible_devices = None
        if not expected:
            self._log_if_failed(place)
        self._act(place, action, now)
        self.judge_models()

    def _succeed(self, place: Place, member: Member, now: float) -> None:
        """The slot's process died while another one was loading to take over."""
        place.away_since = now
        place.slot.last_error = member.told_cause
        place.member, place.successor = place.successor, None
        place.models, place.visible_devices = (), None
        event(log, logging.WARNING, "worker died", **member.process.fields, cause=member.told_cause, next="is loading")
        self.tell(place, Event.SUCCEEDED, now)

    # What a reload changes.

    def apply(self, settings: FleetSettings) -> None:
        """Takes new settings for whatever happens from now on; of those that serve, limits and times change."""
        self.settings = settings
        self._hiring.apply(settings)
        self._health.apply(settings)
        for place in self.places:
            place.slot.set_policy(settings.policy)

    def add(self, placement: Placement) -> None:
        """A new slot; `tick` starts it, if it has a model."""
        specs = placement.specs(self.settings.models)
        state = State.STARTING if specs else State.STOPPED
        place = Place(Slot(placement.slot, RestartBudget(self.settings.policy, self._rng), state), placement, specs)
        self.places.append(place)
        self.places.sort(key=lambda place: place.slot.number)

    def _holds_back(self, leaving: Place, place: Place) -> bool:
        """The slot waits for the end of the other's process, which has some of its devices."""
        return leaving.member is not None and place.placement.crowds(leaving.placement)

    def promised(self, place: Place) -> set[tuple[str, str]]:
        """Models and versions that nothing brings but slots which this one holds back: what waits for them waits on."""
        held = {spec.key for each in self.places if self._holds_back(place, each) for spec in each.specs}
        return held - self._loading()

    def relieved(self, place: Place) -> bool:
        """A slot that loads is to serve what nothing but this one serves."""
        ready = (each for each in self.places if each is not place and each.slot.state is State.READY)
        missing = self._loading() - {spec.key for each in ready for spec in each.specs}
        return any(spec.key in missing for spec in place.specs)

    def _loading(self) -> set[tuple[str, str]]:
        """Models and versions of slots whose process is to serve soon."""
        loading = (each for each in self.places if each.member is not None and each.slot.state in _LOADING)
        return {spec.key for each in loading for spec in each.specs}

    def drop(self, place: Place) -> None:
        """The slot is no more; its process has ended."""
        self.places.remove(place)
