"""A model's central queue, and the forming of batches from it. Pure: times come in, batches come out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.request import BatchKey, Phase, Request
from multitower.supervisor.split import Join


@dataclass(slots=True, eq=False)
class Batch:
    """What a worker gets in one message.

    Attributes:
        id: never used twice.
        key: what its requests have in common.
        requests: its entries; a part of a split request is one too.
        rows: over all entries.
        worker: who runs it; set when it is given out.
        sent: when, in monotonic seconds.
    """

    id: int
    key: BatchKey
    requests: list[Request]
    rows: int
    worker: Any = None
    sent: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The settings of one model that the queue needs: requests, bytes, seconds and deaths."""

    max_size: int
    max_bytes: int
    max_delay_s: float = 0.0
    retry: int = 1


class _KeyQueue:
    """Waiting requests of one batch key, oldest first, and their rows in all."""

    __slots__ = ("requests", "rows")

    def __init__(self) -> None:
        self.requests: OrderedDict[Request, None] = OrderedDict()
        self.rows = 0


class ModelQueue:
    """The requests of one model that no worker has yet, in the order of their arrival.

    Requests of different batch keys do not wait for each other: whenever a worker is free, the oldest request
    decides which key is next. Suspects (requests whose worker died with them) come before all others, and each
    runs alone.

    Attributes:
        model: its name.
        limits: see `QueueLimits`.
        bytes: of all requests in here.
        size: how many they are.
    """

    def __init__(self, model: str, limits: QueueLimits) -> None:
        self.model = model
        self.limits = limits
        self.bytes = 0
        self.size = 0
        self.suspects: OrderedDict[Request, None] = OrderedDict()
        self._order: OrderedDict[Request, None] = OrderedDict()
        self._keys: dict[BatchKey, _KeyQueue] = {}

    def __iter__(self) -> Iterator[Request]:
        yield from self.suspects
        yield from self._order

    def __bool__(self) -> bool:
        return bool(self._order or self.suspects)

    def full(self, request: Request) -> bool:
        """There is no room for another request of this size."""
        return self.size >= self.limits.max_size or self.bytes + request.size > self.limits.max_bytes

    def push(self, request: Request) -> None:
        """Takes a new request at the end."""
        key = request.plan.key
        self._order[request] = None
        queue = self._keys.get(key)
        if queue is None:
            queue = self._keys[key] = _KeyQueue()
        queue.requests[request] = None
        queue.rows += request.rows
        self.size += 1
        self.bytes += request.size

    def push_suspect(self, request: Request) -> None:
        """Takes a request back whose worker died with it; it comes before all that wait."""
        request.phase = Phase.WAITING
        self.suspects[request] = None
        self.suspects.move_to_end(request, last=False)
        self.size += 1
        self.bytes += request.size

    def remove(self, request: Request) -> None:
        """Takes out a waiting request, wherever it stands; one that is not in here is let be."""
        if request in self.suspects:
            del self.suspects[request]
        elif request in self._order:
            self._leave(request, self._keys[request.plan.key])
            return
        else:
            return
        self.size -= 1
        self.bytes -= request.size

    def _leave(self, request: Request, queue: _KeyQueue) -> None:
        del self._order[request]
        del queue.requests[request]
        queue.rows -= request.rows if request.join is None else request.join.rows_left
        if not queue.requests:
            del self._keys[request.plan.key]
        self.size -= 1
        self.bytes -= request.size

    def due(self, now: float) -> BatchKey | None:
        """The key whose batch may go now, the one of the oldest request where there are several."""
        oldest = next(iter(self._order), None)
        if oldest is None:
            return None
        key, delay = oldest.plan.key, self.limits.max_delay_s
        if not delay or now - oldest.received >= delay:
            return key
        for key, queue in self._keys.items():
            if queue.rows >= key.max_batch_size:
                return key
        return None

    def next_due(self) -> float | None:
        """When the oldest request has waited for `max_delay_s`, in monotonic seconds; None when nothing waits."""
        oldest = next(iter(self._order), None)
        return None if oldest is None else oldest.received + self.limits.max_delay_s

    def take(
        self, key: BatchKey, now: float, fail: Callable[[Request, MultitowerError], None], free: int = 1
    ) -> list[Request]:
        """Takes the next batch of a key: from the oldest on, as many whole requests as fit.

        The rows that wait are shared out evenly among the workers that are free. A request larger than a batch gives
        as many rows as there is room for, and stays at the head with the rest.

        Args:
            key: as `due` told.
            now: monotonic seconds.
            fail: is told of requests that left the queue otherwise: expired, or impossible to split.
            free: workers that could take a batch now, the one that this batch is for among them.

        Returns:
            The batch's entries; none when all that waited had expired.
        """
        queue = self._keys[key]
        room = max(1, min(key.max_batch_size, -(-queue.rows // free)))
        taken: list[Request] = []
        # A batch has at most as many requests as rows.
        for request in list(islice(queue.requests, room)):
            if request.deadline <= now:
                self._leave(request, queue)
                fail(request, make(Reason.DEADLINE, "the request's time was over before a worker was free"))
            elif key.max_batch_size and request.rows > key.max_batch_size:
                room -= self._peel(request, queue, room, taken, fail)
            elif request.rows <= room or not taken:
                self._leave(request, queue)
                taken.append(request)
                room -= request.rows
            else:
                break
            if room <= 0:
                break
        return taken

    def _peel(
        self,
        request: Request,
        queue: _KeyQueue,
        room: int,
        taken: list[Request],
        fail: Callable[[Request, MultitowerError], None],
    ) -> int:
        """Moves rows of a large request into a batch; returns how many."""
        if request.join is None:
            request.join = Join(request)
        rows = min(room, request.join.rows_left)
        try:
            part = request.join.peel(rows)
        except MultitowerError as error:
            self._leave(request, queue)
            fail(request, error)
            return 0
        queue.rows -= rows
        if not request.join.rows_left:
            self._leave(request, queue)
            request.phase = Phase.RUNNING
        taken.append(part)
        return rows
