"""Which part of the way is at its limit: the rule of `multitower bench`, as docs/benchmarking.md tells it. Pure.

Each part has one figure that hardly exceeds 1: the CPU of the busiest client process (which runs Python, on one core),
that of the busiest thread of the daemon's process, the share of the time in which the workers computed, and that in
which they handled batches. The highest of those over `LIMIT` is the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from multitower.tools.bench.evidence import Evidence

LIMIT: Final = 0.8
"""From here on a part is at its limit: work comes in bursts, and nothing is busy all of the time."""

MACHINE_LIMIT: Final = 0.9
"""From here on the machine has no core left, and every part is slower than it would be alone."""

IDLE_DEVICE: Final = 0.2
"""Workers that compute less than this, and yet use a core, spend it on handling requests."""


class Part(StrEnum):
    """Where the limit is."""

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
    Part.DEVICE: "the workers compute nearly all of the time: only more or faster devices or larger batches give more",
    Part.MACHINE: "no part is at its own limit, but this machine's cores are all in use, and the parts share them",
    Part.NONE: "nothing is at its limit: more load would be answered as well",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the bottleneck is.

    Attributes:
        part: where it is.
        shares: how much of its limit each part used, 1.0 being all of it; only of those that are known.
        near: other parts over `LIMIT`.
    """

    part: Part
    shares: dict[Part, float]
    near: tuple[Part, ...] = ()


def judge(evidence: Evidence) -> Verdict:
    """Applies the rule."""
    shares = {}
    if evidence.clients:
        shares[Part.CLIENT] = max(evidence.clients)
    if evidence.router_thread is not None:
        shares[Part.ROUTER] = evidence.router_thread
    if evidence.compute is not None:
        shares[Part.DEVICE] = evidence.compute
        shares[Part.WORKER] = _handling(evidence, evidence.compute)
    if evidence.machine is not None:
        shares[Part.MACHINE] = evidence.machine
    over = [part for part in shares if part is not Part.MACHINE and shares[part] >= LIMIT]
    over.sort(key=lambda part: -shares[part])
    if over:
        return Verdict(over[0], shares, tuple(over[1:]))
    full = shares.get(Part.MACHINE, 0.0) >= MACHINE_LIMIT
    return Verdict(Part.MACHINE if full else Part.NONE, shares)


def _handling(evidence: Evidence, compute: float) -> float:
    """The share of their time that the workers spend on anything but computing, as far as it is their limit."""
    handling = evidence.handling or 0.0
    if handling > compute:
        handling += compute  # together they fill a worker's time, and this is the larger part
    cpus = [worker.cpu for worker in evidence.workers if worker.cpu is not None and worker.rows]
    if cpus and compute < IDLE_DEVICE:
        handling = max(handling, min(sum(cpus) / len(cpus), 1.0))
    return handling
