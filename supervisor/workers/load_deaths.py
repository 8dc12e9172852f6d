"""Which models of a slot have ended its workers while they were loaded, and what the next worker does differently.

A worker records what it is about to do (`LoadStep`). The rules:

- After a death in a warm-up, the next worker stops below that number of rows, and batches stay below it, too.
- A model that has ended a worker in another way is left out of the next worker, so that the other models of the slot
  are served. SIGKILL may have come from anybody: only a second one leaves the model out.
- A model that is left out is tried again later, beside the worker that serves, if there is room for both. After
  `MAX_DEATHS`, and after a load that took longer than `load_timeout`, only an operator or other files let it be tried
  again.
- A model that takes long (`slow_load`) is left out, too, while the worker that loads it goes on beside the next one. If
  that does not end with the model being served or given up, the model is tried again like the others. If memory did not
  suffice for both workers, the model is loaded like any other, and the slot's other models wait for it.
- If nothing else is left to load, or can be loaded, models with tries left are loaded.
- The death of a replacement worker shows nothing about a model that the present worker serves.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from multitower.load_step import LoadStep

MAX_DEATHS = 3
"""Deaths of workers after which a model is not loaded any more, if the slot has others."""

MAX_KILLS_BESIDE = 2
"""Workers that may be killed (SIGKILL) beside another one of the slot until memory counts as too short for two."""

INTERRUPTED = "loading it was interrupted"
"""Why a model is not served whose worker ended without being to blame for it, for people."""


@dataclass(frozen=True, slots=True)
class LoadDeath:
    """The end of a worker that loaded a model.

    Attributes:
        step: what it was doing.
        generation: of the model.
        cause: how it ended, for people.
        timed_out: whether it was killed because the model took longer than `load_timeout`.
        to_blame: whether the worker ended itself, or was killed because it hung; SIGKILL may have come from anybody.
    """

    step: LoadStep
    generation: int
    cause: str
    timed_out: bool = False
    to_blame: bool = True


@dataclass(slots=True)
class _Model:
    """What is known of one generation of a model.

    Attributes:
        name: of the model.
        deaths: of workers that loaded it.
        left_out_because: why it is left out, for people; None if it is loaded like any other.
        try_at: when it is tried again if it is left out, in monotonic seconds; None for never.
        trying: the next process loads it beside the one that serves, although it is left out.
        timed_out: loading it took longer than `load_timeout`.
        set_aside: it took long, and a process went on loading it beside the next one.
        kills_beside: processes that were killed (SIGKILL) while they loaded it beside another one.
        only_worker: memory did not suffice for two workers: the slot's only process loads it, and the others wait.
    """

    name: str = ""
    deaths: int = 0
    left_out_because: str | None = None
    try_at: float | None = None
    trying: bool = False
    timed_out: bool = False
    set_aside: bool = False
    kills_beside: int = 0
    only_worker: bool = False

    def leave_out(self, cause: str, try_at: float | None) -> None:
        """Leaves the model out of the next worker; see the attributes."""
        self.left_out_because, self.try_at = cause, try_at


class LoadDeaths:
    """What is known of the models of one slot. Models are told apart by their generation."""

    def __init__(self) -> None:
        self._models: dict[int, _Model] = {}  # by generation; those of which nothing is known are missing

    def record(self, death: LoadDeath, *, has_others: bool, try_at: float, max_deaths: int = MAX_DEATHS) -> bool:
        """Records the death of a worker.

        Args:
            death: how it ended.
            has_others: whether it was to load other models, too.
            try_at: when a model that is left out is tried again, in monotonic seconds.
            max_deaths: deaths that a model may cause.

        Returns:
            Whether the next worker will do less, so that its fate need not be the same.
        """
        model = self._models.setdefault(death.generation, _Model())
        model.name = death.step.model
        model.deaths += 1
        count = model.deaths
        if death.timed_out:
            model.timed_out = True
            model.leave_out(f"it was not loaded in time: {death.cause}; its stacks are in the log", None)
            return True
        smaller = death.step.fewer_rows > 0
        patience = 1 if death.to_blame else 2
        if has_others and (count >= max_deaths or (count >= patience and not smaller)):
            workers = "a worker" if count == 1 else f"{count} workers"
            cause = f"it has ended {workers} of the slot: {death.cause}"
            if count < max_deaths:
                model.leave_out(f"{cause}; it will be tried again beside the others", try_at)
            else:
                model.leave_out(cause, None)
            return True
        return smaller and count <= max_deaths

    def set_aside(self, generation: int, name: str) -> None:
        """Leaves out a model that takes long: a process goes on loading it beside the next one.

        Args:
            generation: of the model.
            name: its name.
        """
        model = self._models.setdefault(generation, _Model())
        model.name, model.set_aside = name, True
        # It is tried again as soon as no process is loading it.
        model.leave_out(f"{INTERRUPTED}; it will be tried again beside the others", 0.0)

    def may_set_aside(self, generation: int) -> bool:
        """Whether other models need not wait for this one."""
        model = self._models.get(generation)
        return model is None or not model.only_worker

    def record_kill_beside(self, loaded: Collection[int]) -> bool:
        """Records that a process was killed (SIGKILL) while it loaded beside the one that serves.

        Args:
            loaded: the models that it was to load. Of those that take long, this may have ended the load.

        Returns:
            Whether such a model will be loaded by the slot's only process: memory may not suffice for two.
        """
        short: list[int] = []
        for generation in loaded:
            model = self._models.get(generation)
            if model is not None and model.set_aside and model.left_out_because is not None:
                model.kills_beside += 1
                if model.kills_beside >= MAX_KILLS_BESIDE:
                    short.append(generation)
        self.load_in_only_worker(short)
        return bool(short)

    def load_in_only_worker(self, generations: Collection[int]) -> None:
        """Lets the next process load those of the models that are left out: memory did not suffice for two workers."""
        for generation in generations:
            model = self._models.get(generation)
            if model is not None and model.left_out_because is not None:
                model.left_out_because = model.try_at = None
                model.trying = False
                model.only_worker = True

    def needs_reload(self, left_out: Collection[int]) -> str:
        """Names of models that a process has left out and that are to be loaded by the next one, for people."""
        models = (self._models.get(generation) for generation in left_out)
        names = (each.name for each in models if each is not None and each.only_worker and not each.left_out_because)
        return ", ".join(dict.fromkeys(names))

    def why_left_out(self, generation: int) -> str | None:
        """Why a model is left out, for people; None if it is loaded like any other."""
        model = self._models.get(generation)
        return None if model is None else model.left_out_because

    def will_try(self, generation: int) -> bool:
        """Whether a model that is left out is tried again later."""
        model = self._models.get(generation)
        return model is not None and model.try_at is not None

    def due(self, generations: Collection[int], now: float) -> list[int]:
        """The models among those of a slot whose time to be tried again has come."""
        return [
            generation
            for generation in generations
            if (model := self._models.get(generation)) is not None and model.try_at is not None and now >= model.try_at
        ]

    def begin_tries(self, due: Collection[int], retry_at: float) -> str:
        """Lets the next process load models that are left out.

        Args:
            due: their generations.
            retry_at: when they are tried again if this try does not take place, in monotonic seconds.

        Returns:
            Their names, for people.
        """
        models = [self._models[generation] for generation in due]
        for model in models:
            model.try_at, model.trying = retry_at, True
        return ", ".join(dict.fromkeys(model.name for model in models))

    def allow_more_time(self, name: str) -> None:
        """Lets a model whose `load_timeout` has become longer be tried again as soon as possible."""
        for model in self._models.values():
            if model.timed_out and model.name == name:
                model.try_at = 0.0

    def end_leaving_out(self, left_out: Collection[int]) -> bool:
        """Lets the next process load models that are left out, where nothing else can be loaded.

        Args:
            left_out: the models that a process has left out, which could load none of its others.

        Returns:
            Whether some of them have tries left.
        """
        again = [self._models[generation] for generation in left_out if self.will_try(generation)]
        for model in again:
            model.left_out_because = model.try_at = None
        return bool(again)

    def end_tries(self) -> None:
        """The process that was to try has taken over, has ended, or was not started."""
        for model in self._models.values():
            model.trying = False

    def is_left_out(self, generation: int, loaded: Collection[int], *, takes_over: bool) -> bool:
        """Whether a process must not load the model.

        Args:
            generation: of the model.
            loaded: the generations of all models that the process is to load.
            takes_over: it loads beside the process that serves.
        """
        model = self._models.get(generation)
        if model is None or model.left_out_because is None or (takes_over and model.trying):
            return False
        nothing_else = all(self.why_left_out(each) is not None for each in loaded)
        return not (nothing_else and model.try_at is not None)

    def all_given_up(self, loaded: Collection[int]) -> str | None:
        """Why none of these models is loaded any more, for people; None if one is."""
        if not loaded or any(self.why_left_out(each) is None or self.will_try(each) for each in loaded):
            return None
        return "; ".join(f"{self._models[each].name}: {self._models[each].left_out_because}" for each in loaded)

    def record_loaded(self, loaded: Collection[int]) -> None:
        """Forgets models that a worker was to load: it did not end meanwhile."""
        for generation in loaded:
            model = self._models.pop(generation, None)
            if model is not None and model.only_worker:
                self._models[generation] = _Model(only_worker=True)  # memory will not suffice the next time, either

    def forget(self, name: str | None = None) -> None:
        """Forgets a model, or all of them: an operator asks for another try."""
        self._models = {
            generation: model for generation, model in self._models.items() if name is not None and model.name != name
        }

    def retain(self, generations: Collection[int]) -> None:
        """Forgets all models but these."""
        self._models = {generation: model for generation, model in self._models.items() if generation in generations}
