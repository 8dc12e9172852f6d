"""Which models of a slot have ended its workers while they were loaded, and what the next worker does differently.

A worker records what it is about to do (`LoadStep`). After a death in a warm-up, the next worker stops below that
number of rows, and batches stay below it, too. A model that goes on to end workers is not loaded any more, so that the
other models of the slot are served.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from multitower.load_step import LoadStep

MAX_DEATHS = 3
"""Deaths of workers after which a model is not loaded any more, if the slot has others."""


@dataclass(slots=True)
class LoadDeaths:
    """What is known of the models of one slot. Models are told apart by their generation.

    Attributes:
        not_loaded: by generation, why the model is not loaded any more.
    """

    not_loaded: dict[int, str] = field(default_factory=dict)
    _counts: Counter[int] = field(default_factory=Counter)
    _names: dict[int, str] = field(default_factory=dict)

    def record(self, step: LoadStep, generation: int, cause: str, *, has_others: bool, most: int = MAX_DEATHS) -> bool:
        """Records the death of a worker.

        Args:
            step: what it was doing.
            generation: of the model.
            cause: how it ended, for people.
            has_others: whether the slot has other models that are loaded.
            most: deaths that a model may cause.

        Returns:
            Whether the next worker will do less, so that its fate need not be the same.
        """
        self._names[generation] = step.model
        self._counts[generation] += 1
        count = self._counts[generation]
        if has_others and count >= most:
            workers = "a worker" if count == 1 else f"{count} workers"
            self.not_loaded[generation] = f"it has ended {workers} of the slot: {cause}"
        return generation in self.not_loaded or (step.fewer_rows > 0 and count <= most)

    def forget(self, model: str | None = None) -> None:
        """Forgets a model, or all of them: an operator asks for another try."""
        for generation, name in list(self._names.items()):
            if model in (None, name):
                del self._names[generation], self._counts[generation]
                self.not_loaded.pop(generation, None)
