"""The queue of one model, and how batches are formed from it."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from multitower.errors import MultitowerError

from .deadlines import deadline_error
from .request import BatchKey, Phase, Request, Split
from .split_requests import cut_part


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The settings of one model that the scheduler needs.

    Attributes:
        max_size: requests that may wait.
        max_bytes: bytes that these may have.
        max_delay_s: seconds that a request may wait for its batch to fill.
        retry: how many deaths of workers a request may survive; at the next one it is not run again.
        quarantine_s: seconds that requests and models which crash workers are refused; 0 for never.
        sizes: rows that the workers pad batches to, ascending; empty for no padding.
    """

    max_size: int
    max_bytes: int
    max_delay_s: float = 0.0
    retry: int = 1
    quarantine_s: float = 0.0
    sizes: tuple[int, ...] = ()

    def padded(self, rows: int) -> int:
        """The rows that a batch of so many rows is executed with."""
        index = bisect.bisect_left(self.sizes, rows)
        return self.sizes[index] if index < len(self.sizes) else rows


class _KeyQueue:
    """Waiting requests of one priority and batch key, the next one first, and the sum of their rows."""

    __slots__ = ("requests", "rows")

    def __init__(self) -> None:
        self.requests: OrderedDict[Request, None] = OrderedDict()
        self.rows = 0


class _Level:
    """Waiting requests of one priority: all, the next one first, by batch key, and those of which parts have run."""

    __slots__ = ("keys", "order", "started")

    def __init__(self) -> None:
        self.order: OrderedDict[Request, None] = OrderedDict()
        self.keys: dict[BatchKey, _KeyQueue] = {}
        self.started: dict[Request, None] = {}


class ModelQueue:
    """The requests of one model that no worker has yet: the most urgent first, and of these the oldest.

    Requests of different batch keys do not wait for each other: when a worker is free, the first request that it can
    run decides which key is next. A request larger than a batch takes turns with the others: each time that it has
    filled a batch, it goes behind those that wait. Suspects, requests that a worker died with, come before all others,
    and each runs alone. They wait apart, in `suspects`.

    Iterating over it yields all its requests.

    Args:
        model: the model's name.
        limits: see `QueueLimits`.

    Attributes:
        model: as given.
        limits: the limits in force.
        suspects: the suspects, in the order in which they run.
        size: number of requests.
        bytes: of these.
        rows: of these, without the suspects.
        retried: how many requests were put back because the worker that was executing them died.
    """

    def __init__(self, model: str, limits: QueueLimits) -> None:
        self.model = model
        self.limits = limits
        self.suspects: OrderedDict[Request, None] = OrderedDict()
        self.size = 0
        self.bytes = 0
        self.rows = 0
        self.retried = 0
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

    # Requests come and go.

    def has_room_for(self, request: Request) -> bool:
        """Whether the request can be added without exceeding a limit."""
        return self.size < self.limits.max_size and self.bytes + request.size <= self.limits.max_bytes

    def limit_reached(self) -> tuple[str, int]:
        """The limit that a request would exceed which has no room, and its value."""
        if self.size >= self.limits.max_size:
            return "queue.max_size", self.limits.max_size
        return "queue.max_bytes", self.limits.max_bytes

    def push(self, request: Request, *, first: bool = False) -> None:
        """Adds a request.

        Args:
            request: the request.
            first: whether it goes before all others of its priority, rather than behind them.
        """
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
        # Where only requests wait of which a part has just run, it is the turn of another one.
        if first or (level.started and len(level.started) == len(level.order) - 1):
            level.order.move_to_end(request, last=False)
            queue.requests.move_to_end(request, last=False)
        queue.rows += request.rows
        self.rows += request.rows
        self.size += 1
        self.bytes += request.size

    def push_suspect(self, request: Request) -> None:
        """Adds a request that a worker died with, before all others."""
        request.phase = Phase.WAITING
        self.suspects[request] = None
        self.suspects.move_to_end(request, last=False)
        self.size += 1
        self.bytes += request.size

    def remove(self, request: Request) -> None:
        """Removes a request; no-op if it is not in the queue."""
        if request in self.suspects:
            del self.suspects[request]
            self.size -= 1
            self.bytes -= request.size
            return
        level = self._levels.get(request.plan.priority)
        if level is not None and request in level.order:
            self._remove_from_level(request)

    def _remove_from_level(self, request: Request) -> None:
        priority, key = request.plan.priority, request.plan.key
        level = self._levels[priority]
        queue = level.keys[key]
        del level.order[request]
        del queue.requests[request]
        if level.started:
            level.started.pop(request, None)
        rows = request.rows if request.split is None else request.split.rows_left
        queue.rows -= rows
        self.rows -= rows
        if not queue.requests:
            del level.keys[key]
        if not level.order:
            del self._levels[priority]
            self._priorities.remove(priority)
        self.size -= 1
        self.bytes -= request.size

    # What is next.

    def next_key(self, now: float, can_run: Callable[[Request], bool] | None = None) -> BatchKey | None:
        """The batch key that is next: the key of the first request, or a later one with enough rows for a full batch.

        Args:
            now: monotonic seconds.
            can_run: whether the free worker can run a request; None if it can run all of them.

        Returns:
            The key; None if no batch is due yet.
        """
        delay = self.limits.max_delay_s
        for priority in self._priorities:
            level = self._levels[priority]
            first = next(iter(level.order))
            if can_run is not None and not can_run(first):
                # Rare: only while another version of the model takes over.
                heads = (next(filter(can_run, queue.requests), None) for queue in level.keys.values())
                found = min((head for head in heads if head is not None), key=_received, default=None)
                if found is None:
                    continue
                first = found
            if not delay or now - first.received >= delay:
                return first.plan.key
            # The rest of a request does not wait again, although newer ones are before it.
            for request in level.started:
                if can_run is None or can_run(request):
                    return request.plan.key
            for key, queue in level.keys.items():
                if queue.rows >= key.max_batch_size and (can_run is None or any(map(can_run, queue.requests))):
                    return key
        return None

    def first_of(self, key: BatchKey) -> tuple[Request, int]:
        """The first waiting request of a key that `next_key` returned, and the rows of all requests of that key."""
        first: Request | None = None
        rows = 0
        for priority in self._priorities:
            queue = self._levels[priority].keys.get(key)
            if queue is not None:
                rows += queue.rows
                if first is None:
                    first = next(iter(queue.requests))
        assert first is not None  # by contract
        return first, rows

    def min_batches(self) -> int:
        """How many batches all waiting requests make at least; 0 if none wait."""
        if not self.size:
            return 0
        # The keys of one model nearly always have the same maximum.
        first = next(iter(self.suspects or self._levels[self._priorities[0]].order))
        keys = sum([len(self._levels[priority].keys) for priority in self._priorities])
        return max(keys, -(-self.rows // max(first.plan.key.max_batch_size, 1)))

    def oldest(self) -> float | None:
        """When the oldest waiting request was received, in monotonic seconds; None if none wait."""
        oldest: float | None = None
        for request in self.suspects:
            if oldest is None or request.received < oldest:
                oldest = request.received
        for level in self._in_order():
            # Requests of which a part has run are behind the others, which are in the order of their arrival.
            for request in (next(iter(level.order)), *level.started):
                if oldest is None or request.received < oldest:
                    oldest = request.received
        return oldest

    def next_due(self) -> float | None:
        """When the first request has waited for `max_delay_s`, in monotonic seconds; None if none wait."""
        firsts = [next(iter(level.order)).received for level in self._in_order()]
        return min(firsts) + self.limits.max_delay_s if firsts else None

    def pop_batch(
        self,
        key: BatchKey,
        now: float,
        fail: Callable[[Request, MultitowerError], None],
        sharing: int = 1,
        generation: int = 0,
        max_rows: int = 0,
        max_unbatched: int = 1,
        late_error: Callable[[Request, int, float], MultitowerError | None] | None = None,
    ) -> list[Request]:
        """Removes and returns the requests of the next batch: of the oldest of a key, as many as fit.

        The waiting rows are divided evenly among the workers that are free. Of a request larger than a batch, a part
        is returned that fills the batch; with the rows that are left the request goes behind those that wait.

        Args:
            key: as returned by `next_key`.
            now: monotonic seconds.
            fail: called with each request that is removed for another reason, and its error: it has expired, is
                too late, or cannot be split.
            sharing: number of workers among which the rows are divided, the one that gets this batch included.
            generation: of the model on that worker; all parts of a request run on one.
            max_rows: rows that fit into its memory; 0 for as many as the key allows.
            max_unbatched: how many unbatched requests may travel in one message.
            late_error: returns the error for a request larger than a batch that cannot be done in its time, given its
                rows that have not run and `now`, or None; called before each of its parts.

        Returns:
            The entries of the batch; empty if all requests of the key had expired.
        """
        queues = [level.keys[key] for level in self._in_order() if key in level.keys]
        largest = min(key.max_batch_size, max_rows or key.max_batch_size) if key.max_batch_size else max_unbatched
        room = max(1, min(largest, -(-sum(queue.rows for queue in queues) // sharing)))
        taken: list[Request] = []
        for queue in queues:
            for request in _first_of(queue, room, generation):
                if request.phase is not Phase.WAITING:
                    continue  # a part of a request that has just failed
                if request.deadline <= now:
                    self._remove_from_level(request)
                    error = deadline_error(request.plan, "before a worker was free")
                    fail(request.whole, error)
                elif key.max_batch_size and request.rows > key.max_batch_size:
                    if request.deaths and taken:
                        return taken
                    rows_left = request.rows if request.split is None else request.split.rows_left
                    late = late_error(request, rows_left, now) if late_error is not None else None
                    if late is not None:
                        self._remove_from_level(request)
                        fail(request, late)
                        continue
                    room -= self._pop_part(request, queue, room, taken, fail, generation)
                    if request.deaths and taken:
                        return taken  # a suspect runs alone, and so do its parts
                elif request.rows <= room or not taken:
                    self._remove_from_level(request)
                    taken.append(request)
                    room -= request.rows
                else:
                    return taken
                if room <= 0:
                    return taken
        return taken

    def _pop_part(
        self,
        request: Request,
        queue: _KeyQueue,
        room: int,
        taken: list[Request],
        fail: Callable[[Request, MultitowerError], None],
        generation: int,
    ) -> int:
        """Moves rows of a large request into a batch; returns how many."""
        split = request.split
        if split is None:
            split = request.split = Split(request, generation)
        rows = min(room, split.rows_left)
        try:
            part = cut_part(request, split, rows)
        except MultitowerError as error:
            self._remove_from_level(request)
            fail(request, error)
            return 0
        queue.rows -= rows
        self.rows -= rows
        if not split.rows_left:
            self._remove_from_level(request)
            request.phase = Phase.RUNNING
        else:
            level = self._levels[request.plan.priority]
            level.order.move_to_end(request)
            queue.requests.move_to_end(request)
            level.started[request] = None
        taken.append(part)
        return rows


def _first_of(queue: _KeyQueue, count: int, generation: int) -> list[Request]:
    """The first `count` requests that may run on this generation."""
    found: list[Request] = []
    # A loop, because a compiled generator expression would visit all requests.
    for request in queue.requests:
        if _generation_of(request) in (None, generation):
            found.append(request)
            if len(found) == count:
                break
    return found


def _generation_of(request: Request) -> int | None:
    """The only generation that may run a request of which a part has been given to a worker; None for any."""
    split = request.whole.split
    return split.generation if split is not None else None


def _received(request: Request) -> float:
    return request.received
