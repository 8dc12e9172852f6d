"""Which workers hang, which have lost their device, and which have served their time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator

from ..loop.log import event
from ..routing.router import Router
from ..scheduling.queue import Batch
from .hang_detector import Call, Verdict
from .settings import FleetSettings
from .slot import State
from .worker_process import Member, Place

log = logging.getLogger("multitower.fleet")

PAUSE_S = 1.0
"""The supervisor did not run when its loop comes back this much later than it meant to; nobody else is to blame."""


class Health:
    """Looks at all processes once a heartbeat.

    Args:
        router: knows what each is executing.
        rss: bytes of resident memory of a slot's present process as last measured, or None.
        present: whether a slot's device is there, as last seen; None when that is not known.

    Attributes:
        next_look: when `look` is to be called, in monotonic seconds.
    """

    def __init__(
        self, router: Router, rss: Callable[[Place], int | None], present: Callable[[int], bool | None]
    ) -> None:
        self._router = router
        self._rss = rss
        self._present = present
        self._heartbeat_s = 1.0
        self._execution_s = dict[str, float]()
        self.next_look = 0.0

    def apply(self, settings: FleetSettings) -> None:
        """Takes new settings."""
        self._heartbeat_s = settings.heartbeat_s
        self._execution_s = dict(settings.execution_s)
        self.next_look = 0.0

    def look(self, members: Iterable[Member], now: float) -> list[Member]:
        """The processes that have been found to hang or to be of no use; each is told once, and gets no more work."""
        members = [member for member in members if member.cause is None and member.verdict is None]
        gap = now - self.next_look if self.next_look else 0.0
        if gap > PAUSE_S:
            event(log, logging.WARNING, "the supervisor itself did not run", seconds=round(gap, 1))
            for member in members:
                member.pulse.forgive(gap)
        self.next_look = now + self._heartbeat_s
        return [member for member in members if self._condemned(member, now)]

    def _condemned(self, member: Member, now: float) -> bool:
        # What lies in the pipe was sent in time.
        take_heartbeats(member, now)
        batches = [worker.batch for worker in member.channel.workers] if member.channel is not None else []
        calls = [Call(batch, batch.begun, self._limit(batch)) if batch is not None else None for batch in batches]
        loads = member.state not in ("ready", "idle")
        verdict = self._lost(member) or member.pulse.judge(now, calls, member.process.look, loads=loads)
        if verdict is None:
            return False
        member.verdict = verdict
        message = "worker has lost its device" if verdict.lost else "worker hangs"
        event(log, logging.ERROR, message, **member.process.fields, cause=verdict.cause)
        if member.channel is not None:
            self._router.balancer.retire(member.channel.worker)
        if verdict.stacks:
            member.process.show_stacks()
        return True

    def _limit(self, batch: Batch) -> float:
        """Seconds that a call of its model may take."""
        return self._execution_s.get(batch.key.spec.model, math.inf)

    def _lost(self, member: Member) -> Verdict | None:
        """A worker whose device goes would answer everything with errors, and faster than the others can work."""
        place = member.place
        if place is None or place.member is not member or member.channel is None:
            return None
        present = self._present(place.slot.number)
        # One that began while the device was away, perhaps as it needs none, is let be: NVML may only not know yet.
        member.device_seen = member.device_seen or bool(present)
        return Verdict("its device is gone", lost=True) if present is False and member.device_seen else None

    def recycle(self, places: Iterable[Place], settings: FleetSettings) -> Iterator[tuple[Place, str]]:
        """Slots whose workers have answered enough, or have grown too large by now, and why.

        The limits are those of `settings` at this moment, also for workers that began under others.
        """
        if settings.max_requests is None and settings.max_rss is None:
            return
        for place in places:
            member = place.member
            if member is None or member.channel is None or place.slot.state is not State.READY:
                continue
            requests = member.channel.requests
            rss = self._rss(place)
            # Not all at once, where all have had the same share of the requests.
            most_requests = (settings.max_requests or math.inf) * (0.9 + 0.2 * member.luck)
            most_rss = (settings.max_rss or math.inf) * (0.9 + 0.1 * member.luck)
            if requests >= most_requests:
                yield place, f"{requests} requests (max_requests)"
            elif rss is not None and rss > most_rss:
                yield place, f"{rss} bytes of memory (max_rss)"


def take_heartbeats(member: Member, now: float) -> None:
    """Reads the heartbeats of a process that have come."""
    calls = member.process.heartbeat()
    if calls is not None:
        member.pulse.beat(now, calls)
