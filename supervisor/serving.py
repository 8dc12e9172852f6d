"""Workers as the balancer sees them, and which of them gets the next batch. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from multitower.supervisor.batching import Batch
from multitower.supervisor.request import Request


class Served(NamedTuple):
    """What a worker serves of a model.

    Attributes:
        version: the model's.
        contract: a number for its inputs, outputs and batching, equal where these are equal.
        edition: a number for what was loaded: its version, and how it was configured.
    """

    version: str = "1"
    contract: int = 0
    edition: int = 0


class Worker:
    """A worker that serves, as the balancer sees it.

    Attributes:
        slot: its slot's number.
        device: its device's name.
        serves: the models it serves, by name.
        batch: what it is executing, or None when it is free.
        idle_since: monotonic seconds since when it has been free.
        completed: rows answered.
        requests: requests answered.
        safe_rows: rows that a batch may have, by model, where device memory did not suffice for more.
        retiring: it gets nothing new.
    """

    def __init__(self, slot: int, device: str, serves: Mapping[str, Served], now: float) -> None:
        self.slot = slot
        self.device = device
        self.serves = dict(serves)
        self.batch: Batch | None = None
        self.idle_since = now
        self.completed = 0
        self.requests = 0
        self.safe_rows: dict[str, int] = {}
        self.retiring = False

    @property
    def depth(self) -> int:
        """Rows sent and not yet answered."""
        return self.batch.rows if self.batch is not None else 0

    @property
    def free(self) -> bool:
        """It can get a batch now."""
        return self.batch is None and not self.retiring

    def can_run(self, request: Request) -> bool:
        """It serves what the request was checked against."""
        key = request.plan.key
        served = self.serves.get(key.spec.model)
        if served is None or served.contract != key.contract:
            return False
        if key.version and key.version != served.version:
            return False
        # All parts of a request run on one edition.
        join = request.join if request.parent is None else request.parent.join
        return join is None or join.edition == served.edition


def choose_worker(free: Iterable[Worker]) -> Worker | None:
    """Which of the workers with a free place gets the next batch: the least depth, then the longest idle."""
    return min(free, key=lambda worker: (worker.depth, worker.idle_since), default=None)
