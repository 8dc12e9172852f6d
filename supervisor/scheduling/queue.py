"""A model's central queue, and the forming of batches from it. Pure: times come in, batches come out."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from multitower.errors import MultitowerError, Reason, make

from .request import BatchKey, Phase, Request
from .split_requests import Join


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
        size: rows that are executed, with those that it is padded by.
        begun: when its worker could begin with it: when it was sent, or when the one before it was answered.
        behind: it was sent while its worker was executing another one.
    """

    id: int
    key: BatchKey
    requests: list[Request]
    rows: int
    worker: Any = None
    sent: float = 0.0
    size: int = 0
    begun: float = 0.0
    behind: bool = False


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The settings of one model that the queue needs: requests, bytes, seconds, deaths and seconds.

    `sizes` are those that the model's workers pad batches to, ascending; empty for no padding.
    """

    max_size: int
    max_bytes: int
    max_delay_s: float = 0.0
    retry: int = 1
    quarantine_s: float = 0.0
    sizes: tuple[int, ...] = ()

    def padded(self, rows: int) -> int:
        """The rows that a batch of so many is executed with."""
        index = bisect.bisect_left(self.sizes, rows)
        return self.sizes[index] if index < len(self.sizes) else rows


class _KeyQueue:
    """Waiting requests of one batch key, oldest first, and their rows in all."""

    __slots__ = ("requests", "rows")

    def __init__(self) -> None:
        self.requests: OrderedDict[Request, None] = OrderedDict()
        self.rows = 0


class _Level:
    """Waiting requests of one priority: all in the order of their arrival, and by their batch keys."""

    __slots__ = ("keys", "order")

    def __init__(self) -> None:
        self.order: OrderedDict[Request, None] = OrderedDict()
        self.keys: dict[BatchKey, _KeyQueue] = {}


class ModelQueue:
    """The requests of one model that no worker has yet: the most urgent first, then in the order of their arrival.

    Requests of different batch keys do not wait for each other: whenever a worker is free, the first request that
    it can run decides which key is next. Suspects (requests whose worker died with them) come before all others, and
    each runs alone.

    Attributes:
        model: its name.
        limits: see `QueueLimits`; may be set anew.
        bytes: of all requests in here.
        size: how many they are.
        rows: of those that are no suspects.
    """

    def __init__(self, model: str, limits: QueueLimits) -> None:
        self.model = model
        self.limits = limits
        self.bytes = 0
        self.size = 0
        self.rows = 0
        self.suspects: OrderedDict[Request, None] = OrderedDict()
        self._levels: dict[int, _Level] = {}
        self._priorities: list[int] = []  # of the levels, ascending

    def __iter__(self) -> Iterator[Request]:
        yield from self.suspects
        for level in self._in_order():
            yield from level.order

    def __bool__(self) -> bool:
        return self.size > 0

    def _in_order(self) -> Iterator[_Level]:
        for priority in self._priorities:
            yield self._levels[priority]

    def full(self, request: Request) -> bool:
        """There is no room for another request of this size."""
        return self.size >= self.limits.max_size or self.bytes + request.size > self.limits.max_bytes

    def push(self, request: Request, *, first: bool = False) -> None:
        """Takes a request at the end of its priority, or at its beginning."""
        level = self._levels.get(request.plan.priority)
        if level is None:
            level = self._levels[request.plan.priority] = _Level()
            bisect.insort(self._priorities, request.plan.priority)
        key = request.plan.key
        queue = level.keys.get(key)
        if queue is None:
            queue = level.keys[key] = _KeyQueue()
        level.order[request] = None
        queue.requests[request] = None
        if first:
            level.order.move_to_end(request, last=False)
            queue.requests.move_to_end(request, last=False)
        queue.rows += request.rows
        self.rows += request.rows
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
            self.size -= 1
            self.bytes -= request.size
            return
        level = self._levels.get(request.plan.priority)
        if level is not None and request in level.order:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        priority, key = request.plan.priority, request.plan.key
        level = self._levels[priority]
        queue = level.keys[key]
        del level.order[request]
        del queue.requests[request]
        rows = request.rows if request.join is None else request.join.rows_left
        queue.rows -= rows
        self.rows -= rows
        if not queue.requests:
            del level.keys[key]
        if not level.order:
            del self._levels[priority]
            self._priorities.remove(priority)
        self.size -= 1
        self.bytes -= request.size

    def due(self, now: float, able: Callable[[Request], bool] | None = None) -> BatchKey | None:
        """The key whose batch may go now, that of the first request where there are several.

        Args:
            now: monotonic seconds.
            able: whether the worker that is free can run a request; None stands for always.
        """
        delay = self.limits.max_delay_s
        for level in self._in_order():
            first = next(iter(level.order))
            if able is not None and not able(first):
                # Rare: while another version of the model takes over.
                heads = (next(filter(able, queue.requests), None) for queue in level.keys.values())
                found = min((head for head in heads if head is not None), key=_received, default=None)
                if found is None:
                    continue
                first = found
            if not delay or now - first.received >= delay:
                return first.plan.key
            for key, queue in level.keys.items():
                if queue.rows >= key.max_batch_size and (able is None or any(map(able, queue.requests))):
                    return key
        return None

    def first(self, key: BatchKey) -> tuple[Request, int]:
        """Of a key that `due` has told: the first request that waits, and the rows of all of them."""
        queues = [level.keys[key] for level in self._in_order() if key in level.keys]
        return next(iter(queues[0].requests)), sum(queue.rows for queue in queues)

    def batches(self) -> int:
        """How many batches all that waits would make at the least; 0 for nothing."""
        if not self.size:
            return 0
        # Keys of one model nearly always allow the same.
        largest = next(iter(self)).plan.key.max_batch_size
        keys = sum(len(self._levels[priority].keys) for priority in self._priorities)
        return max(keys, -(-self.rows // max(largest, 1)))

    def next_due(self) -> float | None:
        """When the first request has waited for `max_delay_s`, in monotonic seconds; None when nothing waits."""
        firsts = [next(iter(level.order)).received for level in self._in_order()]
        return min(firsts) + self.limits.max_delay_s if firsts else None

    def take(
        self,
        key: BatchKey,
        now: float,
        fail: Callable[[Request, MultitowerError], None],
        free: int = 1,
        generation: int = 0,
        most: int = 0,
        singles: int = 1,
    ) -> list[Request]:
        """Takes the next batch of a key: from the first on, as many whole requests as fit.

        The rows that wait are shared out evenly among the workers that are free. A request larger than a batch gives
        as many rows as there is room for, and stays at the head with the rest.

        Args:
            key: as `due` told.
            now: monotonic seconds.
            fail: is told of requests that left the queue otherwise: expired, or impossible to split.
            free: workers that could take a batch now, the one that this batch is for among them.
            generation: of the model on that one; all parts of a request run on one.
            most: rows that it has memory for; 0 for as many as the key allows.
            singles: requests that may travel together where they run one by one.

        Returns:
            The batch's entries; none when all that waited had expired.
        """
        queues = [level.keys[key] for level in self._in_order() if key in level.keys]
        largest = min(key.max_batch_size, most or key.max_batch_size) if key.max_batch_size else singles
        room = max(1, min(largest, -(-sum(queue.rows for queue in queues) // free)))
        taken: list[Request] = []
        for queue in queues:
            for request in _first_of(queue, room, generation):
                if request.phase is not Phase.WAITING:
                    continue  # a part of a request that has just failed
                if request.deadline <= now:
                    self._leave(request)
                    error = make(Reason.DEADLINE, "the request's time was over before a worker was free")
                    fail(request.parent or request, error)
                elif key.max_batch_size and request.rows > key.max_batch_size:
                    if request.deaths and taken:
                        return taken
                    room -= self._peel(request, queue, room, taken, fail, generation)
                    if request.deaths and taken:
                        return taken  # a suspect runs alone, and so do its parts
                elif request.rows <= room or not taken:
                    self._leave(request)
                    taken.append(request)
                    room -= request.rows
                else:
                    return taken
                if room <= 0:
                    return taken
        return taken

    def _peel(
        self,
        request: Request,
        queue: _KeyQueue,
        room: int,
        taken: list[Request],
        fail: Callable[[Request, MultitowerError], None],
        generation: int,
    ) -> int:
        """Moves rows of a large request into a batch; returns how many."""
        if request.join is None:
            request.join = Join(request, generation)
        rows = min(room, request.join.rows_left)
        try:
            part = request.join.peel(rows)
        except MultitowerError as error:
            self._leave(request)
            fail(request, error)
            return 0
        queue.rows -= rows
        self.rows -= rows
        if not request.join.rows_left:
            self._leave(request)
            request.phase = Phase.RUNNING
        taken.append(part)
        return rows


def _first_of(queue: _KeyQueue, count: int, generation: int) -> list[Request]:
    """The first requests that this edition may run: a batch has at most as many requests as rows."""
    found: list[Request] = []
    # A loop, since a compiled generator would look at all that wait.
    for request in queue.requests:
        if _generation(request) in (None, generation):
            found.append(request)
            if len(found) == count:
                break
    return found


def _generation(request: Request) -> int | None:
    """The only edition that may run it, where some of it has been given to a worker before."""
    join = request.join if request.parent is None else request.parent.join
    return join.generation if join is not None else None


def _received(request: Request) -> float:
    return request.received
