"""The rule that names the bottleneck of a step. Pure.

Each part has one figure that can hardly exceed 1: the CPU share of the busiest client process (Python runs on one
core), that of the busiest thread of the daemon's process, and the shares of time in which the workers computed or
handled batches. The highest figure of at least `LIMIT` is the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from multitower.tools.bench.evidence import Evidence

LIMIT: Final = 0.8
"""A part with this figure is at its limit: work arrives in bursts, so nothing is busy all of the time."""

MACHINE_LIMIT: Final = 0.9
"""With this share of its cores in use, the machine slows every part down."""

IDLE_DEVICE: Final = 0.2
"""Workers that compute for a smaller share of the time, but use a core, spend it on handling requests."""


class Part(StrEnum):
    """The part at its limit."""

    CLIENT = "client"
    ROUTER = "router"
    WORKER = "worker"
    DEVICE = "device"
    MACHINE = "machine"
    NONE = "none"


MEANING: Final = {
    Part.CLIENT: "the client processes are at their limit, so the figures are theirs; use more --processes",
    Part.ROUTER: "the daemon's own process is at its limit; larger requests or batches make it do more with less",
    Part.WORKER: "the workers are at their limit, but with handling batches rather than computing; add workers",
    Part.DEVICE: "the workers compute nearly all of the time: more devices, faster devices or larger batches help",
    Part.MACHINE: "no part is at its own limit, but all cores of this machine are in use, and the parts share them",
    Part.NONE: "nothing is at its limit: the daemon can take more load",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The bottleneck of a step.

    Attributes:
        part: the part at its limit.
        shares: the figure of each part, 1.0 being its limit; only figures that are known.
        near: other parts of at least `LIMIT`.
    """

    part: Part
    shares: dict[Part, float]
    near: tuple[Part, ...] = ()


def find_bottleneck(evidence: Evidence) -> Verdict:
    """Applies the rule to the evidence of a step."""
    shares = {}
    if evidence.clients:
        shares[Part.CLIENT] = max(evidence.clients)
    if evidence.router_thread is not None:
        shares[Part.ROUTER] = evidence.router_thread
    if evidence.compute is not None:
        shares[Part.DEVICE] = evidence.compute
        shares[Part.WORKER] = _handling_share(evidence, evidence.compute)
    if evidence.machine is not None:
        shares[Part.MACHINE] = evidence.machine
    over = [part for part in shares if part is not Part.MACHINE and shares[part] >= LIMIT]
    over.sort(key=lambda part: -shares[part])
    if over:
        return Verdict(over[0], shares, tuple(over[1:]))
    full = shares.get(Part.MACHINE, 0.0) >= MACHINE_LIMIT
    return Verdict(Part.MACHINE if full else Part.NONE, shares)


def _handling_share(evidence: Evidence, compute: float) -> float:
    """The share of time in which the workers handle batches rather than compute, where that is their limit."""
    handling = evidence.handling or 0.0
    if handling > compute:
        handling += compute  # both fill a worker's time, and handling is the larger part
    cpus = [worker.cpu for worker in evidence.workers if worker.cpu is not None and worker.rows]
    if cpus and compute < IDLE_DEVICE:
        handling = max(handling, min(sum(cpus) / len(cpus), 1.0))
    return handling
