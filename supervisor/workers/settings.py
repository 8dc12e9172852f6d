"""What the fleet is told of a configuration, and what a reload may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multitower.spec import ModelSpec

from .restart_budget import RestartPolicy


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """See the attributes; times in seconds.

    Attributes:
        models: what workers load, each version of a model by itself; each slot those that its placement names.
        execution_s: seconds that a call of each model may take, by its name.
        policy: when slots are started again.
        spares: how many processes wait.
        heartbeat_s: from one heartbeat of a worker to the next.
        max_requests: requests after which a worker is replaced, give or take a tenth; None for no limit.
        max_rss: bytes of a worker's resident memory above which it is replaced, or up to a tenth before; None for no
            limit.
    """

    models: tuple[ModelSpec, ...]
    execution_s: Mapping[str, float]
    policy: RestartPolicy
    spares: int = 0
    heartbeat_s: float = 1.0
    max_requests: int | None = None
    max_rss: int | None = None
