"""Workers as the balancer sees them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from .estimate import Pace
from .queue import Batch
from .request import BatchKey, Request


class Served(NamedTuple):
    """What a worker serves of a model, or of one of its versions.

    Attributes:
        version: the model's.
        interface: a number for its inputs, outputs and batching, equal where these are equal.
        generation: a number for what was loaded: its version, and how it was configured.
    """

    version: str = "1"
    interface: int = 0
    generation: int = 0


class Worker:
    """A worker that serves, as the balancer sees it.

    Attributes:
        slot: its slot's number.
        device: its device's name.
        serves: the models it serves, by name, each in its newest version: for requests that name none.
        versions: all versions that it serves, by the model's name and theirs.
        batch: what it is executing, or None when it is free.
        next: what it has got to execute after that, or None.
        idle_since: monotonic seconds since when it has been free.
        completed: rows answered.
        requests: requests answered.
        safe_rows: rows that a batch may have, by model, where device memory did not suffice for more.
        retiring: it gets nothing new.
        pace: how long it takes for batches.
        hop_s: seconds that a batch takes to it and back, besides its execution, as measured; 0.0 before that.
        ends: when all that it has is expected to be answered, in monotonic seconds; infinite while that is not known.
        opens: from when on it may get a second batch; infinite while it may not.
        turn: the pool's count of batches when it got its last one.
        measured: the same when a batch of its was measured last.
        tried: what it is executing was given to it to see whether it is still slow.
        towers: the workers of its process, it among them: several where that has a tower on each of several devices.
            They get batches each for itself, and die together.
        barred: it gets nothing for now, since what a mate of it executes, or is to execute, has to be alone.
    """

    def __init__(
        self,
        slot: int,
        device: str,
        serves: Mapping[str, Served],
        versions: Mapping[tuple[str, str], Served],
        now: float,
    ) -> None:
        self.slot = slot
        self.device = device
        self.serves = dict(serves)
        self.versions = dict(versions)
        self.batch: Batch | None = None
        self.next: Batch | None = None
        self.idle_since = now
        self.completed = 0
        self.requests = 0
        self.safe_rows: dict[str, int] = {}
        self.retiring = False
        self.pace = Pace()
        self.hop_s = 0.0
        self.ends = self.opens = inf
        self.turn = self.measured = 0
        self.tried = False
        self.towers: tuple[Worker, ...] = (self,)
        self.barred = False

    @property
    def depth(self) -> int:
        """Rows sent and not yet answered."""
        return sum(batch.rows for batch in (self.batch, self.next) if batch is not None)

    @property
    def process_idle(self) -> bool:
        """Nothing is executed in its process."""
        return all(tower.batch is None for tower in self.towers)

    @property
    def has_suspect(self) -> bool:
        """What is executed in its process is to be alone there."""
        return any(tower.batch is not None and tower.batch.requests[0].deaths for tower in self.towers)

    def served(self, key: BatchKey) -> Served | None:
        """What it would run batches of this key on."""
        if key.version:
            return self.versions.get((key.spec.model, key.version))
        return self.serves.get(key.spec.model)

    def can_run(self, request: Request) -> bool:
        """It serves what the request was checked against."""
        key = request.plan.key
        # Not through `served`: this is asked for each open worker and batch.
        version = key.version
        served = self.versions.get((key.spec.model, version)) if version else self.serves.get(key.spec.model)
        if served is None or served.interface != key.interface:
            return False
        # All parts of a request run on one edition.
        join = request.join if request.parent is None else request.parent.join
        return join is None or join.generation == served.generation
