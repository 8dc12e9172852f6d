"""File descriptors: how many the daemon needs, and how many of them are for connections of clients.

The daemon raises its soft limit at the start, and divides what it then has: for itself and its workers, for regions of
shared memory, for connections, and for connections that arrive at one time (`BURST`), before the daemon notices that
there are too many.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

ENOUGH: Final = 65536
"""Descriptors that are enough. The soft limit is not raised further, unless `max_connections` needs more: programs that
handlers start may go through all numbers up to the limit."""

DAEMON: Final = 64
"""Descriptors of a daemon without workers and clients; about 30 were counted. The rest is a reserve."""

PER_PROCESS: Final = 12
"""Descriptors for each worker and spare; 8 were counted, and twice as many for a short time in a replacement."""

REGIONS: Final = 256
"""Regions of clients' shared memory that the daemon keeps open at one time. Each takes one descriptor."""

BURST: Final = 1024
"""Connections that libzmq accepts at most before the daemon is told; see `routing.listener`."""

FEW: Final = 256
"""Where descriptors are left for fewer connections than this, none are set aside for a burst."""

GATEWAY: Final = 64 + 48
"""Descriptors that the gateway keeps for regions of shared memory and for what all its threads need."""

GATEWAY_PER_THREAD: Final = 16
"""Descriptors that the gateway keeps for each of its threads."""


@dataclass(frozen=True, slots=True)
class DescriptorPlan:
    """What the descriptors are for.

    Attributes:
        limit: of all.
        needed: by the daemon and its workers.
        regions: of shared memory that may be open at one time.
        connections: of clients that may be open at one time.
        burst: descriptors that are left for connections that arrive at one time.
    """

    limit: int
    needed: int
    regions: int
    connections: int
    burst: int

    @property
    def survives_bursts(self) -> bool:
        """Whether descriptors are left however many connections arrive at one time."""
        return self.burst >= BURST


def plan_descriptors(limit: int, processes: int, max_connections: int | None, *, shares_memory: bool) -> DescriptorPlan:
    """Divides the descriptors that a limit allows.

    Args:
        limit: of descriptors.
        processes: workers and spares.
        max_connections: as configured; None for as many as there are descriptors for.
        shares_memory: whether clients on this machine may use shared memory.
    """
    needed = DAEMON + PER_PROCESS * processes
    regions = REGIONS if shares_memory else 0
    most = limit - needed - regions - BURST
    if most < FEW:
        # The burst gets up to half of what is left.
        regions = min(regions, limit // 16)
        free = max(limit - needed - regions, 8)
        most = free - min(free // 2, BURST)
    connections = most if max_connections is None else min(most, max_connections)
    return DescriptorPlan(limit, needed, regions, connections, limit - needed - regions - connections)


def plan_gateway_descriptors(limit: int, threads: int) -> tuple[int, int]:
    """Divides the descriptors of the gateway's process, as the gateway itself does (`descriptor_limit.rs`).

    Args:
        limit: the hard limit of descriptors, to which the gateway raises its own.
        threads: of the gateway.

    Returns:
        How many it keeps for anything but connections, and how many connections of clients may be open at one time.
    """
    needed = min(GATEWAY + GATEWAY_PER_THREAD * threads, limit // 2)
    return needed, max(limit - needed, 1)


def wanted_limit(soft: int, hard: int, processes: int, max_connections: int | None) -> int:
    """The soft limit that the daemon sets: enough for `max_connections`, as far as the hard limit allows.

    Args:
        soft: the present soft limit.
        hard: the hard limit.
        processes: workers and spares.
        max_connections: as configured, or None.
    """
    needed = DAEMON + PER_PROCESS * processes + REGIONS + BURST + (max_connections or 0)
    unlimited = hard == resource.RLIM_INFINITY
    if soft == resource.RLIM_INFINITY:
        return max(ENOUGH, needed)
    return max(soft, max(ENOUGH, needed) if unlimited else min(hard, max(ENOUGH, needed)))


def raise_limit(processes: int, max_connections: int | None) -> int:
    """Raises the soft limit of this process; see `wanted_limit`.

    Returns:
        The limit that the daemon may use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted_limit(soft, hard, processes, max_connections)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # fs.nr_open is less than the hard limit, or a sandbox forbids it
            return soft
    return wanted
