"""The daemon's account of itself: to the log, to the service manager, and to the sampler of whom to measure."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..loop.log import event
from ..machine.resources import Sampler
from .service_manager import ServiceManager
from .status import StatusReporter

log = logging.getLogger("multitower.daemon")

TELL_S = 0.25
"""Seconds from one account of how things stand to the next."""

EXTENSION_S = 30.0
"""Seconds that a service manager is asked to wait for models that load; asked again while they do."""


class Account:
    """Tells how things stand.

    Args:
        reporter: knows it.
        service_manager: the service manager's ear.
        sampler: is told whom to measure.
        reloading: whether a reload is under way.

    Attributes:
        due: when `tell` is to be called, in monotonic seconds.
    """

    def __init__(
        self, reporter: StatusReporter, service_manager: ServiceManager, sampler: Sampler, reloading: Callable[[], bool]
    ) -> None:
        self._reporter = reporter
        self._service_manager = service_manager
        self._sampler = sampler
        self._reloading = reloading
        self._ready_once = self._told_ready = False
        self.due = 0.0

    def tell(self, now: float) -> None:
        """Tells the log and the service manager how things stand, and the sampler whom to measure."""
        self.due = now + TELL_S
        reporter, service_manager = self._reporter, self._service_manager
        self._sampler.watch(
            {
                slot.number: (
                    slot.process.child.pid if slot.process is not None else None,
                    slot.placement.devices,
                )
                for slot in reporter.manager.slots
            }
        )
        if not self._ready_once and reporter.readiness()["ready"]:
            self._ready_once = True
            event(log, logging.INFO, "daemon ready", after_s=round(now - reporter.started, 3))
        line = reporter.line()
        if not self._told_ready and reporter.settled:
            # Also when something failed: what works is served, and the status tells the rest.
            self._told_ready = True
            service_manager.ready(line)
        service_manager.status(line)
        if not self._told_ready or self._reloading() or reporter.state != "running":
            service_manager.extend(EXTENSION_S)

    def reload_ended(self) -> None:
        """A reload has ended, whatever came of it."""
        if self._told_ready and self._reporter.state == "running":
            self._service_manager.ready(self._reporter.line())
