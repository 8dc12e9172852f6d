"""How many connections the daemon has room for: by its limit of file descriptors, and as configured."""

from __future__ import annotations

import logging

from ..loop.log import event
from ..machine.descriptors import DescriptorPlan, plan_descriptors, raise_limit
from ..routing.binding import IPC
from ..routing.connections import BACKLOG, SMALL_BACKLOG, Connections
from ..routing.endpoints import Endpoints
from ..routing.router import Router
from ..settings import ActiveSettings, Settings

log = logging.getLogger("multitower.daemon")


def apply_descriptor_limit(settings: Settings, applied: DescriptorPlan | None = None) -> DescriptorPlan:
    """Raises the daemon's limit of descriptors, as far as it is allowed to, and divides what there is.

    What is too little is logged, unless it is what has been applied before.

    Args:
        settings: what the plan is for.
        applied: the plan that has been in force; None at the start.
    """
    config = settings.config
    maximum = None if config.max_connections == "auto" else config.max_connections
    processes = len(settings.placements) + config.spares
    plan = plan_descriptors(
        raise_limit(processes, maximum),
        processes,
        maximum,
        shares_memory=config.gateway is not None or any(endpoint.startswith(IPC) for endpoint in config.listen),
    )
    if plan == applied:
        return plan
    if maximum is not None and plan.connections < maximum:
        event(
            log,
            logging.WARNING,
            "the limit of file descriptors allows fewer connections than max_connections",
            max_connections=maximum,
            allowed=plan.connections,
            descriptors=plan.limit,
            check="raise the hard limit: LimitNOFILE= in the systemd unit, or ulimit -Hn",
        )
    elif not plan.survives_bursts:
        event(
            log,
            logging.WARNING,
            "few file descriptors: many clients that connect at one time could exhaust them",
            allowed=plan.connections,
            descriptors=plan.limit,
            check="raise the hard limit: LimitNOFILE= in the systemd unit, or ulimit -Hn",
        )
    return plan


def accept_within(plan: DescriptorPlan) -> Connections:
    """Returns what accepts the clients of the front sockets."""
    return Connections(plan.connections, _backlog(plan))


class ConnectionLimits:
    """Keeps the number of connections within the limits of the settings in force.

    Args:
        settings: the settings in force.
        endpoints: the daemon's.
        router: keeps regions of shared memory, which take descriptors too.
        plan: of the settings that the daemon starts with.
    """

    def __init__(self, settings: ActiveSettings, endpoints: Endpoints, router: Router, plan: DescriptorPlan) -> None:
        self._settings = settings
        self._endpoints = endpoints
        self._router = router
        self._applied = settings.current
        self._plan = plan
        router.set_max_regions(plan.regions)

    def tick(self, _now: float) -> None:
        """Notices closed connections and new settings; call it a few times a second."""
        settings = self._settings.current
        if settings is not self._applied:
            self._applied = settings
            plan = self._plan = apply_descriptor_limit(settings, self._plan)
            self._router.set_max_regions(plan.regions)
            self._endpoints.connections.set_limits(plan.connections, _backlog(plan))
        self._endpoints.connections.tick()
        self._endpoints.control_connections.tick()


def _backlog(plan: DescriptorPlan) -> int:
    return BACKLOG if plan.survives_bursts else SMALL_BACKLOG
