"""Processes that end: told to, found to hang, or dead; each is seen out until nothing of it is left to read.

The fleet (`fleet.py`) says who is to end and who has died, and asks at each tick whom it can bury.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from multitower import worker_wire

from ..loop.log import event
from .worker_process import Member

log = logging.getLogger("multitower.fleet")

STOP_S = 5.0
"""Seconds that a worker has to end after it was told to; then it is killed."""

LAST_WORDS_S = 0.25
"""Seconds to wait for a dead worker's channel to close; longer only if a child of it holds the channel open."""

STACKS_S = 0.5
"""Seconds that a worker which hangs has to write its Python stacks before it is killed."""


class Endings:
    """The processes that end.

    Args:
        unwatch: is told of each dead one, before its sockets are closed.

    Attributes:
        members: those that were told to end, and the dead that are not yet buried.
    """

    def __init__(self, unwatch: Callable[[Member], None]) -> None:
        self.members: list[Member] = []
        self._unwatch = unwatch

    def tell(self, member: Member, now: float) -> None:
        """Tells a process to end, and kills it when it does not, or when it has nothing to finish."""
        if member.cause is not None or member in self.members:
            return
        self.members.append(member)
        if member.state in ("ready", "failed", "idle"):
            member.process.send([worker_wire.STOP])
            member.kill_at = now + STOP_S
        else:
            member.process.kill()

    def condemn(self, member: Member, now: float) -> None:
        """The process hangs or is of no use: it is killed, once it has had the time to write its stacks."""
        member.kill_at = now + STACKS_S if member.verdict is not None and member.verdict.stacks else now
        if member not in self.members:
            self.members.append(member)

    def died(self, member: Member, now: float) -> None:
        """The process has ended; its answers may still lie in its channel."""
        member.cause = member.process.reap()
        member.bury_at = now + LAST_WORDS_S
        if member not in self.members:
            self.members.append(member)

    def due(self, now: float) -> list[Member]:
        """Kills those whose time is over, and returns the dead that can be buried."""
        dead: list[Member] = []
        for member in self.members:
            if member.cause is not None:
                if member.process.disconnected or now >= member.bury_at:
                    dead.append(member)
            elif member.kill_at is not None and now >= member.kill_at:
                member.kill_at = None
                if member.verdict is None:
                    event(log, logging.WARNING, "worker does not end: killed", **member.process.fields)
                member.process.kill()
        return dead

    def times(self) -> list[float]:
        """When `due` must be called, in monotonic seconds."""
        moments = (member.bury_at if member.cause is not None else member.kill_at for member in self.members)
        return [moment for moment in moments if moment is not None]

    def bury(self, member: Member, take: Callable[[list[Any]], object]) -> None:
        """Frees a dead process.

        Args:
            member: it has been reaped.
            take: gets what it said last.
        """
        self.members.remove(member)
        while (message := member.process.message()) is not None:
            take(message)
        self._unwatch(member)
        member.process.close()
