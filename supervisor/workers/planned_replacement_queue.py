"""Which slots are to get new processes on purpose, and in which order; `planned_replacement.py` carries it out.

Reloads, `multitower restart SLOT`, and limits of a worker's requests or memory request replacements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from multitower.spec import ModelSpec

from ..machine.placement import Placement
from .slot import Slot, WorkerProcess

RETRY_S = 60.0
"""Seconds from one automatic replacement of a worker to the next try, if the replacement worker could not load."""


class Step(Enum):
    """How far a replacement is."""

    BEGIN = auto()
    LOADING = auto()  # the new process loads while the old one serves
    DRAINING = auto()  # the old process answers what only it can answer, then finishes its batches
    STOPPING = auto()  # the old process was told to end
    STARTING = auto()  # the new process loads, and the slot does not serve meanwhile


@dataclass(slots=True, eq=False)
class Replacement:
    """The replacement of one slot's process.

    Attributes:
        slot: the slot.
        why: the reason, for the log.
        specs: the models of the new process; None for those of the slot. If empty, there is no new process.
        placement: the share of the machine of the new process; None for that of the slot.
        remove: the slot is removed; there is no new process.
        beside_only: it takes place only while the old process serves, and the old process stays if the new one fails.
        may_fail: the new process need not load a model: there is nothing that the slot could go back to.
        done: called at the end with None, or with the reason why it failed.
        wanted: called when its turn has come: whether it is still to take place; None if it always is.
        step: how far it is.
        old: the process that is replaced, once it is known.
        draining_since: when `old` began to drain, in monotonic seconds: of the requests that only it can answer, it
            answers those that were received before.
        overlap: the new process loads while the old one serves.
        no_overlap_because: why the old process ends before the new one starts, whatever memory there is; or None.
        start_at: when its start is tried again that failed because a resource was short, in monotonic seconds.
        start_by: when it is given up instead; None while none has failed.
        new: the process that loads meanwhile.
        changed: model versions that it loads with another configuration than the slot had.
        former: models and placement that the slot served with, and goes back to if the new ones do not load.
        rollback_cause: why it goes back to them.
    """

    slot: Slot
    why: str
    specs: tuple[ModelSpec, ...] | None = None
    placement: Placement | None = None
    remove: bool = False
    beside_only: bool = False
    may_fail: bool = False
    done: Callable[[str | None], None] | None = None
    wanted: Callable[[], bool] | None = None
    step: Step = Step.BEGIN
    old: WorkerProcess | None = None
    draining_since: float | None = None
    overlap: bool = False
    no_overlap_because: str | None = None
    start_at: float = 0.0
    start_by: float | None = None
    new: WorkerProcess | None = None
    changed: frozenset[tuple[str, str]] = frozenset()
    former: tuple[tuple[ModelSpec, ...], Placement] | None = None
    rollback_cause: str | None = None

    @property
    def target_specs(self) -> tuple[ModelSpec, ...]:
        """The models that the new process loads."""
        return self.specs if self.specs is not None else self.slot.specs

    @property
    def has_new_process(self) -> bool:
        """Whether the slot gets a new process."""
        return not self.remove and bool(self.target_specs)

    def reset(self) -> None:
        """Begins from the start, since the slot has got another process in the meantime."""
        self.step, self.old, self.new, self.overlap = Step.BEGIN, None, None, False
        self.draining_since = None

    def apply(self) -> None:
        """Gives the slot the models and the placement of its new process."""
        slot = self.slot
        if self.specs is not None:
            if self.old is not None and self.rollback_cause is None and not self.may_fail:
                self.former = slot.specs, slot.placement
            self.changed = frozenset(spec.key for spec in self.specs if spec not in slot.specs)
            slot.specs = self.specs
        if self.placement is not None:
            slot.placement = self.placement


class ReplacementQueue:
    """The replacements that wait, and the one that is in progress.

    Attributes:
        waiting: in the order of their turns.
        current: the one in progress, or None.
    """

    def __init__(self) -> None:
        self.waiting: deque[Replacement] = deque()
        self.current: Replacement | None = None

    @property
    def active(self) -> bool:
        """Whether a replacement is in progress or waits."""
        return self.current is not None or bool(self.waiting)

    def add(self, replacement: Replacement) -> None:
        """Adds a replacement at the end."""
        self.waiting.append(replacement)

    def add_automatic(self, slot: Slot, why: str, now: float) -> None:
        """Adds a replacement that the supervisor itself wants.

        No-op if the slot has no process, is being or will be replaced, or was to be within the last `RETRY_S`.
        """
        process = slot.process
        if process is None or now < process.replace_after or self.includes(slot):
            return
        process.replace_after = now + RETRY_S
        self.add(Replacement(slot, why))

    def add_drain(self, slot: Slot, old: WorkerProcess, why: str) -> None:
        """Lets a process that has been replaced finish its batches and end, before anything else happens to its slot.

        Args:
            slot: another process serves it.
            old: the process.
            why: it has been replaced, for the log.
        """
        self.waiting.appendleft(Replacement(slot, why, step=Step.DRAINING, old=old, overlap=True))

    def of_slot(self, slot: Slot) -> Iterator[Replacement]:
        """The slot's replacements, the one in progress first."""
        if self.current is not None and self.current.slot is slot:
            yield self.current
        yield from (each for each in self.waiting if each.slot is slot)

    def includes(self, slot: Slot) -> bool:
        """Whether the slot is being replaced, or will be."""
        return any(True for _ in self.of_slot(slot))

    def will_start_process(self, slot: Slot) -> bool:
        """Whether the slot will get a new process, whatever its state is now."""
        return any(each.has_new_process for each in self.of_slot(slot))

    def planned_specs(self, slot: Slot) -> tuple[ModelSpec, ...]:
        """The models that the slot will load after its replacements; the slot's own if it has none."""
        replacements = [replacement for replacement in self.of_slot(slot) if not replacement.remove]
        return replacements[-1].target_specs if replacements else slot.specs

    def added_versions(self) -> set[tuple[str, str]]:
        """Model versions that waiting replacements add to their slots."""
        return {
            spec.key
            for each in self.waiting
            if not each.remove
            for spec in each.target_specs
            if spec.key not in {known.key for known in each.slot.specs}
        }

    def withdraw(self, replacements: Collection[Replacement]) -> None:
        """Removes those of the replacements that are not in progress."""
        self.waiting = deque(each for each in self.waiting if each not in replacements)

    def clear(self) -> None:
        """Removes all replacements, also the one in progress, without a call of `done`: the daemon ends."""
        self.waiting.clear()
        self.current = None

    def record_takeover(self, slot: Slot, old: WorkerProcess) -> None:
        """Records that the new process of a slot serves now; the old one has to drain and to end."""
        current = self.current
        if current is not None and current.slot is slot:
            current.old, current.step = old, Step.DRAINING
            # From now on, the slot's next process is like this one.
            current.apply()
