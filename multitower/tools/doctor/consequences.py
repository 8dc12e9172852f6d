"""What the daemon would do with a model that cannot be loaded: `supervisor/workers/load_deaths.py` holds the rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from multitower.durations import exact_duration
from multitower.spec import ModelSpec
from multitower.supervisor.config.config import Config
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.workers.load_deaths import MAX_DEATHS

_OTHERS: Final = "start another worker without it, which serves the other models"


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What follows from a failure depends on this.

    Attributes:
        has_others: whether its workers load other models, or other versions of it, too.
        load_s: its `load_timeout` in seconds.
        max_restarts: `restart.max_restarts`.
        slow_load_s: `slow_load` in seconds; 0 for never.
    """

    has_others: bool
    load_s: float
    max_restarts: int
    slow_load_s: float = 0.0

    @classmethod
    def of(
        cls, name: str, config: Config, placements: Iterable[Placement], load_s: float, specs: Iterable[ModelSpec]
    ) -> Self:
        """The situation of a model.

        Args:
            name: the model's name.
            config: the configuration.
            placements: the slots; none if the devices are not there.
            load_s: its `load_timeout` in seconds.
            specs: the versions of all models that are there.
        """
        names = tuple(model.name for model in config.models)
        together = [slot.models for slot in placements if name in slot.models] or [names]
        # The model itself is loaded in the situation in question, even if only an order loads it.
        at_start = {model.name for model in config.models if model.load_at_startup} | {name}
        loaded = [spec.name for spec in specs if spec.name in at_start]
        has_others = any(sum(each in models for each in loaded) > 1 for models in together)
        return cls(
            has_others=has_others,
            load_s=load_s,
            max_restarts=config.restart.max_restarts,
            slow_load_s=config.slow_load,
        )

    def after_error(self) -> str:
        """What follows if the model raises."""
        if self.has_others:
            return "the daemon would show it as failed and serve the others"
        return "the daemon would show it as failed, and serve nothing on its slots"

    def after_death(self, *, crashed: bool) -> str:
        """What follows if the model ends the process.

        Args:
            crashed: its own code did that; SIGKILL may have come from anybody.
        """
        if not self.has_others:
            return self.after_death_at_start()
        tries = min(MAX_DEATHS, max(1, self.max_restarts))
        first = "" if crashed or tries == 1 else "load all once more, and after a second death "
        if tries - bool(first) == 1:
            return f"the daemon would {first}{_OTHERS}"
        return f"the daemon would {first}{_OTHERS}, and try it again beside that one, up to {tries} times in all"

    def after_death_at_start(self) -> str:
        """What follows if the process ends while it loads no model yet, or has only this one."""
        times = f"{self.max_restarts} times within restart.window (restart.max_restarts)"
        return f"the daemon would start its worker again, up to {times}, and then show its slot as failed"

    def after_load_timeout(self) -> str:
        """What follows if the model takes longer than `load_timeout`."""
        longer = "if it only needs longer, raise its load_timeout"
        if self._sets_aside:
            end = f"end the worker that loads it after {exact_duration(self.load_s)} (load_timeout)"
            return f"the daemon would {self._serve_others}, {end}, and not try it again by itself; {longer}"
        then = _OTHERS if self.has_others else "show its slot as failed"
        return f"the daemon would end the worker, {then}, and not try it again by itself; {longer}"

    def after_giving_up(self) -> str:
        """What follows if doctor waits no longer."""
        first = f"{self._serve_others}, and " if self._sets_aside else ""
        wait = f"wait for it for up to {exact_duration(self.load_s)} (load_timeout)"
        return f"the daemon would {first}{wait}; give doctor a longer --timeout"

    @property
    def _sets_aside(self) -> bool:
        """Whether the other models are served while the model loads."""
        return self.has_others and 0 < self.slow_load_s < self.load_s

    @property
    def _serve_others(self) -> str:
        return (
            f"start a second worker after {exact_duration(self.slow_load_s)} (slow_load) if memory suffices for two, "
            "which serves the other models"
        )


DEFAULT_SITUATION: Final = Situation(has_others=True, load_s=1800.0, max_restarts=5, slow_load_s=60.0)
"""That of one of several models with the defaults of the configuration."""
