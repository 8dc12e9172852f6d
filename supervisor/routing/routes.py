"""Routes to workers: what the router keeps about each worker that serves, and what each tower of a process serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from multitower import worker_wire
from multitower.spec import ModelReport

from ..scheduling.pool_worker import Served, Worker
from .statistics import BatchTimes
from .worker_connection import WorkerConnection
from .worker_totals import WorkerTotals


@dataclass(slots=True, eq=False)
class Route:
    """The way to one worker: a worker process, or one tower of a process with several.

    Attributes:
        worker: the scheduler's record of it.
        connection: to the process.
        reports: what the process has loaded, by model name; of each model the newest version last.
        batch_times: the latest batches of all towers of the process.
        totals: counts the batches of its slot.
        head: frames in front of each batch: the tower's number, where the process has several towers; else none.
        known_keys: the batch keys that the worker knows, each with whether its inputs travel joined.
        batches: answered by this worker.
        towers: the routes to all towers of the process, this one among them, in the order of their numbers.
    """

    worker: Worker
    connection: WorkerConnection
    reports: dict[str, list[ModelReport]]
    batch_times: BatchTimes
    totals: WorkerTotals
    head: list[bytes]
    known_keys: worker_wire.KeyMemory = field(default_factory=worker_wire.KeyMemory)
    batches: int = 0
    towers: list[Route] = field(default_factory=list)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers of the process, in the order of their towers."""
        return self.worker.towers

    def executes(self, batch_id: int) -> bool:
        """Whether the worker is executing this batch."""
        return self.worker.batch is not None and self.worker.batch.id == batch_id

    @property
    def depth(self) -> int:
        """Rows that the process has got and not answered."""
        return sum(worker.depth for worker in self.workers)

    def running_s(self, now: float) -> list[float]:
        """For how long each batch has been running that a tower of the process executes, in seconds.

        Args:
            now: monotonic seconds.
        """
        return [max(0.0, now - worker.batch.started) for worker in self.workers if worker.batch is not None]

    def busy_ratio(self, now: float) -> float:
        """The share of the last two seconds in which the process was executing batches, from 0 to 1.

        Args:
            now: monotonic seconds.
        """
        return self.totals.busy_ratio(now, sum(self.running_s(now)), len(self.towers))

    @property
    def completed(self) -> int:
        """Rows that the process has answered."""
        return sum(worker.completed for worker in self.workers)

    @property
    def requests(self) -> int:
        """Requests that the process has answered."""
        return sum(worker.requests for worker in self.workers)


TowerModels = tuple[dict[str, Served], dict[tuple[str, str], Served]]
"""What a tower serves: of each model the newest version, by name; and all versions, by name and version."""


def models_of_towers(
    towers: int, reports: Mapping[str, Sequence[ModelReport]], served: Mapping[tuple[str, str], Served]
) -> list[TowerModels]:
    """What each tower of a process serves.

    A model with fewer replicas than the process has towers is on the first ones.

    Args:
        towers: of the process.
        reports: what the process has loaded, by model name; of each model the newest version last.
        served: each version, by the model's name and the version.

    Returns:
        One item for each tower; the first tower has all models.
    """
    found: list[TowerModels] = []
    for tower in range(towers):
        on_tower = {
            report.key
            for of_model in reports.values()
            for report in of_model
            if not tower or tower < len(report.towers)
        }
        newest = {name: served[of_model[-1].key] for name, of_model in reports.items() if of_model[-1].key in on_tower}
        found.append((newest, {key: version for key, version in served.items() if key in on_tower}))
    return found
