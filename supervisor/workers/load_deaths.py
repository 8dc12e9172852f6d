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

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

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
class LoadDeaths:
    """What is known of the models of one slot. Models are told apart by their generation.

    Attributes:
        not_loaded: by generation, why the model is left out.
        trying: generations that are left out, but not of the next process, which loads beside the one that serves.
    """

    not_loaded: dict[int, str] = field(default_factory=dict)
    trying: set[int] = field(default_factory=set)
    _counts: Counter[int] = field(default_factory=Counter)
    _names: dict[int, str] = field(default_factory=dict)
    _try_at: dict[int, float] = field(default_factory=dict)
    _timed_out: set[int] = field(default_factory=set)
    _set_aside: set[int] = field(default_factory=set)
    _kills_beside: Counter[int] = field(default_factory=Counter)
    _only_worker: set[int] = field(default_factory=set)

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
        generation = death.generation
        self._names[generation] = death.step.model
        self._counts[generation] += 1
        count = self._counts[generation]
        if death.timed_out:
            self._timed_out.add(generation)
            self._leave_out(generation, f"it was not loaded in time: {death.cause}; its stacks are in the log", None)
            return True
        smaller = death.step.fewer_rows > 0
        patience = 1 if death.to_blame else 2
        if has_others and (count >= max_deaths or (count >= patience and not smaller)):
            workers = "a worker" if count == 1 else f"{count} workers"
            cause = f"it has ended {workers} of the slot: {death.cause}"
            if count < max_deaths:
                self._leave_out(generation, f"{cause}; it will be tried again beside the others", try_at)
            else:
                self._leave_out(generation, cause, None)
            return True
        return smaller and count <= max_deaths

    def _leave_out(self, generation: int, cause: str, try_at: float | None) -> None:
        self._try_at.pop(generation, None)
        if try_at is not None:
            self._try_at[generation] = try_at
        self.not_loaded[generation] = cause

    def set_aside(self, generation: int, name: str) -> None:
        """Leaves out a model that takes long: a process goes on loading it beside the next one.

        Args:
            generation: of the model.
            name: its name.
        """
        self._names[generation] = name
        self._set_aside.add(generation)
        # As soon as no process is loading it.
        self._leave_out(generation, f"{INTERRUPTED}; it will be tried again beside the others", 0.0)

    def may_set_aside(self, generation: int) -> bool:
        """Whether other models need not wait for this one."""
        return generation not in self._only_worker

    def record_kill_beside(self, loaded: Collection[int]) -> bool:
        """Records that a process was killed (SIGKILL) while it loaded beside the one that serves.

        Args:
            loaded: the models that it was to load. Of those that take long, this may have ended the load.

        Returns:
            Whether such a model will be loaded by the slot's only process: memory may not suffice for two.
        """
        concerned = self._set_aside & self.not_loaded.keys() & set(loaded)
        self._kills_beside.update(concerned)
        short = [generation for generation in concerned if self._kills_beside[generation] >= MAX_KILLS_BESIDE]
        self.load_in_only_worker(short)
        return bool(short)

    def load_in_only_worker(self, generations: Collection[int]) -> None:
        """Lets the next process load those of the models that are left out: memory did not suffice for two workers."""
        for generation in self.not_loaded.keys() & set(generations):
            self._try_at.pop(generation, None)
            del self.not_loaded[generation]
            self.trying.discard(generation)
            self._only_worker.add(generation)

    def needs_reload(self, left_out: Collection[int]) -> str:
        """Names of models that a process has left out and that are to be loaded by the next one, for people."""
        known = self._names
        names = (known[each] for each in left_out if each in self._only_worker and each not in self.not_loaded)
        return ", ".join(dict.fromkeys(names))

    def will_try(self, generation: int) -> bool:
        """Whether a model that is left out is tried again later."""
        return generation in self._try_at

    def due(self, generations: Collection[int], now: float) -> list[int]:
        """The models among those of a slot whose time to be tried again has come."""
        return [generation for generation in generations if now >= self._try_at.get(generation, inf)]

    def begin_tries(self, due: Collection[int], retry_at: float) -> str:
        """Lets the next process load models that are left out.

        Args:
            due: their generations.
            retry_at: when they are tried again if this try does not take place, in monotonic seconds.

        Returns:
            Their names, for people.
        """
        self._try_at.update(dict.fromkeys(due, retry_at))
        self.trying.update(due)
        return ", ".join(dict.fromkeys(self._names[generation] for generation in due))

    def allow_more_time(self, model: str) -> None:
        """Lets a model whose `load_timeout` has become longer be tried again as soon as possible."""
        for generation in self._timed_out:
            if self._names[generation] == model:
                self._try_at[generation] = 0.0

    def end_leaving_out(self, left_out: Collection[int]) -> bool:
        """Lets the next process load models that are left out, where nothing else can be loaded.

        Args:
            left_out: the models that a process has left out, which could load none of its others.

        Returns:
            Whether some of them have tries left.
        """
        again = [generation for generation in left_out if self.will_try(generation)]
        for generation in again:
            del self._try_at[generation]
            del self.not_loaded[generation]
        return bool(again)

    def end_tries(self) -> None:
        """The process that was to try has taken over, has ended, or was not started."""
        self.trying.clear()

    def is_left_out(self, generation: int, loaded: Collection[int], *, takes_over: bool) -> bool:
        """Whether a process must not load the model.

        Args:
            generation: of the model.
            loaded: the generations of all models that the process is to load.
            takes_over: it loads beside the process that serves.
        """
        if generation not in self.not_loaded or (takes_over and generation in self.trying):
            return False
        nothing_else = all(each in self.not_loaded for each in loaded)
        return not (nothing_else and self.will_try(generation))

    def all_given_up(self, loaded: Collection[int]) -> str | None:
        """Why none of these models is loaded any more, for people; None if one is."""
        if not loaded or any(each not in self.not_loaded or self.will_try(each) for each in loaded):
            return None
        return "; ".join(f"{self._names[each]}: {self.not_loaded[each]}" for each in loaded)

    def record_loaded(self, loaded: Collection[int]) -> None:
        """Forgets models that a worker was to load: it did not end meanwhile."""
        for generation in loaded:
            needs_only_worker = generation in self._only_worker
            self.forget_generation(generation)
            if needs_only_worker:
                self._only_worker.add(generation)  # memory will not suffice the next time, either

    def forget(self, model: str | None = None) -> None:
        """Forgets a model, or all of them: an operator asks for another try."""
        if model is None:
            self._only_worker.clear()
        for generation, name in list(self._names.items()):
            if model in (None, name):
                self.forget_generation(generation)

    def retain(self, generations: Collection[int]) -> None:
        """Forgets all models but these."""
        for generation in (set(self._names) | self._only_worker) - set(generations):
            self.forget_generation(generation)

    def forget_generation(self, generation: int) -> None:
        """Forgets a model: it is loaded like any other."""
        self._counts.pop(generation, None)
        self._names.pop(generation, None)
        self._try_at.pop(generation, None)
        self.not_loaded.pop(generation, None)
        self.trying.discard(generation)
        self._timed_out.discard(generation)
        self._set_aside.discard(generation)
        self._kills_beside.pop(generation, None)
        self._only_worker.discard(generation)
