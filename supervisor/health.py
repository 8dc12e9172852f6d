"""Which workers hang, and which have served their time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from multitower.supervisor.fleet_settings import FleetSettings
from multitower.supervisor.log import event
from multitower.supervisor.member import Member, Place
from multitower.supervisor.renewal import Renewal
from multitower.supervisor.router import Router
from multitower.supervisor.slot import State

log = logging.getLogger("multitower.fleet")

PAUSE_S = 1.0
"""The supervisor did not run when its loop comes back this much later than it meant to; nobody else is to blame."""


class Health:
    """Looks at all processes once a heartbeat.

    Args:
        router: knows what each is executing.
        rss: bytes of resident memory of a slot's process as last measured, or None.

    Attributes:
        next_look: when `look` is to be called, in monotonic seconds.
    """

    def __init__(self, router: Router, rss: Callable[[int], int | None]) -> None:
        self._router = router
        self._rss = rss
        self._heartbeat_s = 1.0
        self._execution_s = dict[str, float]()
        self.next_look = 0.0

    def apply(self, settings: FleetSettings) -> None:
        """Takes new settings."""
        self._heartbeat_s = settings.heartbeat_s
        self._execution_s = dict(settings.execution_s)
        self.next_look = 0.0

    def look(self, members: Iterable[Member], now: float) -> list[Member]:
        """The processes that have been found to hang; each is told once, and gets no more work."""
        members = [member for member in members if member.cause is None and member.verdict is None]
        gap = now - self.next_look if self.next_look else 0.0
        if gap > PAUSE_S:
            event(log, logging.WARNING, "the supervisor itself did not run", seconds=round(gap, 1))
            for member in members:
                member.pulse.forgive(gap)
        self.next_look = now + self._heartbeat_s
        return [member for member in members if self._hangs(member, now)]

    def _hangs(self, member: Member, now: float) -> bool:
        # What lies in the pipe was sent in time.
        take_heartbeats(member, now)
        batch = member.channel.worker.batch if member.channel is not None else None
        limit = None
        if batch is not None:
            limit = self._execution_s.get(batch.key.spec.model, float("inf"))
        elif member.state in ("ready", "idle"):
            limit = float("inf")
        since = batch.sent if batch is not None else now
        member.verdict = member.pulse.judge(now, batch, since, limit, member.process.look)
        if member.verdict is None:
            return False
        event(log, logging.ERROR, "worker hangs", **member.process.fields, cause=member.verdict.cause)
        if member.channel is not None:
            self._router.balancer.retire(member.channel.worker)
        if not member.verdict.stopped:
            member.process.show_stacks()
        return True

    def recycle(self, places: Iterable[Place], settings: FleetSettings) -> Iterator[Renewal]:
        """Renewals of workers that have answered enough, or have grown too large."""
        if settings.max_requests is None and settings.max_rss is None:
            return
        for place in places:
            member = place.member
            if member is None or member.channel is None or place.slot.state is not State.READY:
                continue
            requests = member.channel.worker.requests
            rss = self._rss(place.slot.number)
            if requests >= member.request_limit:
                yield Renewal(place, f"{requests} requests (max_requests)")
            elif settings.max_rss is not None and rss is not None and rss > settings.max_rss:
                yield Renewal(place, f"{rss} bytes of memory (max_rss)")


def take_heartbeats(member: Member, now: float) -> None:
    """Reads the heartbeats of a process that have come."""
    calls = member.process.heartbeat()
    if calls is not None:
        member.pulse.beat(now, calls)
