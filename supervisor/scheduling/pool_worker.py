"""Workers as the scheduler sees them, and the batches that they get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from .estimate import Estimates
from .request import BatchKey, Request


class Served(NamedTuple):
    """A version of a model that a worker serves.

    Attributes:
        version: of the model.
        interface: a number for its inputs, outputs and batching; equal if these are equal.
        generation: a number for the version together with the configuration that it was loaded with.
    """

    version: str = "1"
    interface: int = 0
    generation: int = 0


@dataclass(slots=True, eq=False)
class Batch:
    """The requests that a worker gets in one message.

    Attributes:
        id: unique.
        key: what its requests have in common.
        requests: its entries; some may be parts of split requests.
        rows: of all entries.
        size: rows that are executed, padding included.
        worker: it is sent to this one.
        sent: when, in monotonic seconds.
        started: when the worker could start it: when it was sent, or when the batch before it was answered. Monotonic
            seconds.
        queued: it was sent while the worker was executing another one.
    """

    id: int
    key: BatchKey
    requests: list[Request]
    rows: int
    size: int
    worker: Worker
    sent: float
    started: float = 0.0
    queued: bool = False


class Worker:
    """A worker that serves. A process with several towers has one `Worker` for each of them.

    Args:
        slot: number of its slot.
        device: name of its device.
        serves: by model, the version that runs requests which name none: the newest.
        versions: by model and version, all versions that it serves.
        now: monotonic seconds.

    Attributes:
        slot, device, serves, versions: as given.
        batch: the batch that it is executing; None while it is free.
        next_batch: the batch that it executes after that one, if it has one already.
        idle_since: since when it has been free, in monotonic seconds.
        completed: rows answered.
        requests: requests answered.
        safe_rows: by model, how many rows a batch may have; set once more have not fit into device memory.
        retiring: it gets no more batches.
        paused: it gets no batches for now, because a suspect runs, or is to run, in its process without any other.
        estimates: how long it takes for batches.
        overhead_s: seconds that pass besides the execution until a batch is answered, as measured; 0.0 at first.
        finish_at: when it is expected to have answered all its batches, in monotonic seconds; infinite if unknown.
        prefetch_at: from when on it may get a second batch, in monotonic seconds; infinite for never.
        last_given: value of `Pool.batches_given` when it got its last batch.
        last_measured: value of `Pool.batches_given` when one of its batches was last measured.
        probed: it is executing a batch that it got to find out whether it is still slow.
        towers: all workers of its process, in the order of the towers. They get batches independently and die together.
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
        self.next_batch: Batch | None = None
        self.idle_since = now
        self.completed = 0
        self.requests = 0
        self.safe_rows: dict[str, int] = {}
        self.retiring = False
        self.paused = False
        self.estimates = Estimates()
        self.overhead_s = 0.0
        self.finish_at = self.prefetch_at = inf
        self.last_given = self.last_measured = 0
        self.probed = False
        self.towers: tuple[Worker, ...] = (self,)

    @property
    def batches(self) -> list[Batch]:
        """The batches that it has not answered yet, in order: two at most."""
        return [batch for batch in (self.batch, self.next_batch) if batch is not None]

    @property
    def depth(self) -> int:
        """Rows sent to it and not yet answered."""
        return sum(batch.rows for batch in self.batches)

    @property
    def process_idle(self) -> bool:
        """Whether no tower of its process is executing anything."""
        return all(tower.batch is None for tower in self.towers)

    @property
    def process_runs_suspect(self) -> bool:
        """Whether a tower of its process is executing a suspect."""
        return any(tower.batch is not None and tower.batch.requests[0].deaths for tower in self.towers)

    def served_for(self, key: BatchKey) -> Served | None:
        """The version that it would run batches of this key on; None if it serves none."""
        if key.version:
            return self.versions.get((key.spec.model, key.version))
        return self.serves.get(key.spec.model)

    def can_run(self, request: Request) -> bool:
        """Whether it serves the interface that the request was checked against, and the request's version."""
        key = request.plan.key
        # Does not call `served_for`: this is asked for each candidate and batch.
        version = key.version
        served = self.versions.get((key.spec.model, version)) if version else self.serves.get(key.spec.model)
        if served is None or served.interface != key.interface:
            return False
        # All parts of a request run on one generation.
        split = request.split if request.parent is None else request.parent.split
        return split is None or split.generation == served.generation
