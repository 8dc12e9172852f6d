"""The part of a configuration that concerns worker processes; a reload may change all of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from multitower.spec import ModelSpec

from .restart_budget import RestartPolicy


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of worker processes.

    Attributes:
        models: every model version to be loaded; each slot loads those that its placement names.
        execution_s: by model name, the seconds that one call of the model may take.
        policy: limits restarts.
        spares: the number of spares to keep.
        heartbeat_s: seconds from one heartbeat of a worker to the next.
        spare_environment: variables that a spare has from its start.
        max_requests: requests after which a worker is replaced, give or take 10 %; None for no limit.
        max_rss: bytes of resident memory at which a worker is replaced, or up to 10 % before; None for no limit.
        load_s: by model name, the seconds that a worker may take to load one version of it, with its warm-up.
        start_s: the seconds that a worker may take to start, before it loads its first model.
        slow_load_s: seconds of loading one model after which a second worker of the slot serves the others meanwhile.
    """

    models: tuple[ModelSpec, ...]
    execution_s: Mapping[str, float]
    policy: RestartPolicy
    spares: int = 0
    heartbeat_s: float = 1.0
    spare_environment: Mapping[str, str] = field(default_factory=dict)
    max_requests: int | None = None
    max_rss: int | None = None
    load_s: Mapping[str, float] = field(default_factory=dict)
    start_s: float = math.inf
    slow_load_s: float = math.inf

    def keeping_limits(self, former: Self, models: Collection[str]) -> Self:
        """Returns these settings with the limits of models that are not configured any more, but still served.

        Args:
            former: the settings before these.
            models: the models that processes have, or may yet load.
        """
        execution_s = {model: seconds for model, seconds in former.execution_s.items() if model in models}
        load_s = {model: seconds for model, seconds in former.load_s.items() if model in models}
        return replace(self, execution_s={**execution_s, **self.execution_s}, load_s={**load_s, **self.load_s})
