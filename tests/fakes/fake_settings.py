"""Settings as a configuration would give them, for a fleet without processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn, cast

from fake_operations import Operations
from fake_workers import Scene, placement, spec

from multitower.errors import MultitowerError
from multitower.supervisor.config.config import Config
from multitower.supervisor.operations.order_queue import Order
from multitower.supervisor.operations.reload import Reload
from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.settings import Settings
from multitower.supervisor.workers.restart_budget import RestartPolicy
from multitower.supervisor.workers.settings import WorkerSettings

Slots = Sequence[tuple[str, ...]]


def made(slots: Slots, versions: Mapping[str, int] | None = None) -> Settings:
    """Settings for slots with models of these names, on CPU devices; each version of a model is a generation."""
    names = sorted({name for slot in slots for name in slot})
    models = tuple(spec((versions or {}).get(name, 1), name) for name in names)
    policy = RestartPolicy(max_restarts=100, first_s=1.0, max_s=1.0)
    return Settings(
        config=cast(
            Config,
            SimpleNamespace(models=(), principals=None, max_unread_bytes=1 << 30, unread_timeout=30.0, heartbeat=1.0),
        ),
        devices=(),
        placements=tuple(placement(number, models) for number, models in enumerate(slots)),
        worker_settings=WorkerSettings(models, dict.fromkeys(names, 30.0), policy),
        limits=dict.fromkeys(names, QueueLimits(1000, 1 << 20)),
        timeouts=dict.fromkeys(names, 1e6),
        labels={},
        dispatch=Rule.EARLIEST_FINISH,
    )


def reload(scene: Scene, old: Settings, new: Settings, *, again: bool = False) -> list[str | None]:
    """Begins a reload; its error, or None, is appended to the returned list when it ends."""
    outcomes: list[str | None] = []
    operations = Operations(scene, old, _no_config)

    def begin(order: Order) -> None:
        def ended(_: dict[str, Any], error: str | None) -> None:
            outcomes.append(error)
            order.end({})

        Reload(operations.context, order, old, new, ended, again=again).start()

    def answered(answer: dict[str, Any] | MultitowerError) -> None:
        assert not isinstance(answer, MultitowerError), answer

    operations.queue.submit(begin, answered)
    scene.tick()
    return outcomes


def _no_config(_: str | None) -> NoReturn:
    raise AssertionError("nothing reads the configuration")
