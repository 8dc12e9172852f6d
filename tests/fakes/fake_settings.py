"""Settings as a configuration would make them, for a fleet without processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import cast

from fake_workers import Scene, placement, spec

from multitower.supervisor.config.config import Config
from multitower.supervisor.operations.reload import Reload
from multitower.supervisor.operations.status import StatusReporter
from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.settings import Settings
from multitower.supervisor.workers.restart_budget import RestartPolicy
from multitower.supervisor.workers.settings import WorkerSettings

Slots = Sequence[tuple[str, ...]]


def made(slots: Slots, versions: Mapping[str, int] | None = None) -> Settings:
    """Of slots with models of these names, on CPU devices; every version of a model is an edition of its own."""
    names = sorted({name for slot in slots for name in slot})
    models = tuple(spec((versions or {}).get(name, 1), name) for name in names)
    policy = RestartPolicy(max_restarts=100, first_s=1.0, max_s=1.0)
    return Settings(
        config=cast(Config, SimpleNamespace(models=())),
        devices=(),
        placements=tuple(placement(number, models) for number, models in enumerate(slots)),
        worker_settings=WorkerSettings(models, dict.fromkeys(names, 30.0), policy),
        limits=dict.fromkeys(names, QueueLimits(1000, 1 << 20)),
        timeouts=dict.fromkeys(names, 1e6),
        labels={},
        dispatch=Rule.EARLIEST_FINISH,
    )


def reload(scene: Scene, old: Settings, new: Settings) -> list[str | None]:
    """Begins a reload; its error, or None, comes into the list that is returned."""
    told: list[str | None] = []
    reporter = StatusReporter(scene.router, scene.manager, old.worker_settings.models, 1 << 20, scene.now)
    Reload(scene.manager, scene.router, reporter, old, new, lambda _, error: told.append(error)).start()
    scene.tick()
    return told
