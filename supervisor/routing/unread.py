"""Replies that clients have not read: counts their bytes, and decides what follows from too many.

Replies are sent at once, and libzmq queues what a connection cannot take yet, without a limit of its own.
It does not say how much it holds for a connection, but it says when it has written a frame that is *tracked*. So each
large frame is tracked. Small replies are added up, and one of them is tracked, a *mark*, whenever they come to
`MARK_BYTES`: libzmq writes in order, so when it has written the mark, it has written all before. This costs a small
reply one addition. Not counted are up to `MARK_BYTES` of small replies for each connection, or `MANY_MARK_BYTES` while
there are many connections, and what the buffers of the operating system hold.

What follows depends on the bytes that all clients together leave unread:

- From half of `limit` on, new requests of the largest holders are refused with `queue_full`: of each client that holds
  its equal share of that half or more.
- From three quarters on, new requests of every client with unread replies are refused, and so are those that wait in
  queues. Only what workers are executing for it is still added. The reply to an executed request is dropped if its
  client has read nothing for `timeout_s`; in its place the client gets the small error `reply_dropped`. Answers to
  requests that were not executed are dropped without one; these also if a client that does read keeps sending, and
  leaves `MAX_REFUSALS_BYTES` of small replies unread.
- At `limit`, which many connections together can reach, this holds for all clients of models with large replies.

`stream_front` writes its connections itself, and knows exactly what the kernel has not taken: what is left of a burst
of replies is one mark. Nothing that it holds is uncounted.

So a client that reads gets every answer, of any size. The memory of a client that does not read is released when it
disconnects.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final, NamedTuple, Protocol

from multitower.errors import MultitowerError, Reason, make

from ..loop.log import event

log = logging.getLogger("multitower.router")

DEFAULT_LIMIT: Final = 2 << 30
DEFAULT_TIMEOUT_S: Final = 30.0

REPLY_OVERHEAD: Final = 400
"""Bytes that a small reply takes in libzmq beside its contents, as measured."""

MARK_BYTES: Final = 256 << 10
"""Small replies to one connection, in bytes, after which one is tracked. Tracking a frame takes 30 microseconds."""

MANY_MARK_BYTES: Final = 16 << 10
"""The same while a front socket has many connections, since all of them together count."""

MAX_REFUSALS_BYTES: Final = 1 << 20
"""Small replies, in bytes, that a connection may leave unread from `high` on before refusals are dropped."""

MIN_READ_RATE: Final = float(1 << 20)
"""Bytes a second. A large frame may take that much longer than `timeout_s`: only its end is noticed."""

REFRESH_S: Final = 0.01
"""Seconds between looks at all connections, while they hold much."""

LOG_EVERY_S: Final = 10.0

RETRY_AFTER_MS: Final = 200
"""When a refused client may send its request again."""


class Tracker(Protocol):
    """Tells whether a frame has been written: libzmq's `MessageTracker`, or `stream_peer.Written`."""

    @property
    def done(self) -> bool:
        """Whether the kernel has it, or the connection has ended."""


class Mark(NamedTuple):
    """A tracked frame.

    Attributes:
        tracker: done once the frame has been written.
        large: bytes of the frame, if it is a large one; else 0.
        small: bytes of small frames since the mark before.
    """

    tracker: Tracker
    large: int
    small: int


class Backlog:
    """The replies that are held for one connection.

    Args:
        unmarked: bytes of small frames that may have been sent to it before.

    Attributes:
        unread: bytes of the replies up to the last mark.
        small: those of them in small frames.
        unmarked: bytes of small frames sent since the last mark; not in `unread`.
        read_at: when the connection was last seen to read, or to have nothing to read; monotonic seconds.
        marks: the tracked frames that it has not read, the oldest first.
    """

    __slots__ = ("marks", "read_at", "small", "unmarked", "unread")

    def __init__(self, unmarked: int = 0) -> None:
        self.unread = 0
        self.small = 0
        self.unmarked = unmarked
        self.read_at = 0.0
        self.marks: deque[Mark] = deque()


class UnreadReplies:
    """The unread replies of all connections of all front sockets.

    Args:
        limit: bytes that all of them may leave unread.
        timeout_s: seconds after which a client that has read nothing counts as one that does not read.

    Attributes:
        limit: as given, or as set last.
        half, high: bytes from which on some requests are refused; half and three quarters of the limit.
        total: bytes unread, as far as they are counted; what has been read lately may be in it.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.total = 0
        self._holders: dict[Backlog, None] = {}
        self._refreshed = 0.0
        self._refused = 0
        self._dropped = 0
        self._logged = 0.0
        self.set_limits(limit, timeout_s)

    def set_limits(self, limit: int, timeout_s: float) -> None:
        """Changes both limits; see the class."""
        self.limit = limit
        self.half = limit // 2
        self.high = limit - limit // 4
        self._timeout_s = timeout_s

    # What happens.

    def add(self, backlog: Backlog, mark: Mark, now: float) -> None:
        """Adds a tracked frame that was sent to a connection."""
        if not backlog.marks:
            backlog.read_at = now
            self._holders[backlog] = None
        backlog.marks.append(mark)
        backlog.small += mark.small
        backlog.unread += mark.large + mark.small
        self.total += mark.large + mark.small

    def collect(self, backlog: Backlog, now: float) -> None:
        """Subtracts what the connection has read."""
        marks = backlog.marks
        while marks and marks[0].tracker.done:
            mark = marks.popleft()
            backlog.small -= mark.small
            backlog.unread -= mark.large + mark.small
            self.total -= mark.large + mark.small
            backlog.read_at = now
            if not marks:
                del self._holders[backlog]

    def tick(self, now: float) -> None:
        """Keeps the figures up to date while nothing is sent, and logs what was refused or dropped; call it often."""
        self._refresh(now)
        if (self._refused or self._dropped) and now >= self._logged + LOG_EVERY_S:
            fields = {"unread_bytes": self.total, "clients": len(self._holders), "limit": self.limit}
            counts = {"requests_refused": self._refused, "replies_dropped": self._dropped}
            event(log, logging.WARNING, "clients leave replies unread", **fields, **counts)
            self._refused = self._dropped = 0
            self._logged = now

    def _refresh(self, now: float) -> None:
        if now < self._refreshed + REFRESH_S:
            return
        self._refreshed = now
        for backlog in list(self._holders):
            self.collect(backlog, now)

    # What follows from it.

    def is_high(self, now: float) -> bool:
        """Whether all connections together leave three quarters of `limit` unread."""
        if self.total >= self.high:
            self._refresh(now)
        return self.total >= self.high

    def refusal(self, backlog: Backlog, now: float, large: bool) -> MultitowerError | None:
        """The error for a request of this connection while too much is unread, or None. Counts what it refuses.

        Args:
            backlog: of the connection.
            now: monotonic seconds.
            large: whether the reply may have large frames.
        """
        if self.total < self.half:
            return None
        self._refresh(now)
        self.collect(backlog, now)
        if not self._must_refuse(backlog, large):
            return None
        self._refused += 1
        return make(
            Reason.QUEUE_FULL,
            f"the client has {backlog.unread} bytes of replies unread; the daemon holds {self.total} bytes for all "
            f"clients, and max_unread_bytes is {self.limit}",
            unread_bytes=backlog.unread,
            retry_after_ms=RETRY_AFTER_MS,
        )

    def _must_refuse(self, backlog: Backlog, large: bool) -> bool:
        if self.total < self.half:
            return False
        if self.total < self.high:
            return backlog.unread > 0 and backlog.unread * len(self._holders) >= self.half
        return backlog.unread > 0 or (large and self.total >= self.limit)

    def drops_reply(self, backlog: Backlog, now: float) -> bool:
        """Whether the reply to an executed request of this connection is dropped; counts it."""
        dropped = self.is_high(now) and self._is_stalled(backlog, now)
        if dropped:
            self._dropped += 1
        return dropped

    def drops_refusal(self, backlog: Backlog, now: float) -> bool:
        """Whether an answer that is none of an executed request is dropped; counts it."""
        dropped = self.is_high(now) and (
            self._is_stalled(backlog, now) or backlog.small + backlog.unmarked >= MAX_REFUSALS_BYTES
        )
        if dropped:
            self._dropped += 1
        return dropped

    def _is_stalled(self, backlog: Backlog, now: float) -> bool:
        self.collect(backlog, now)
        if not backlog.marks:
            return False
        return now > backlog.read_at + self._timeout_s + backlog.marks[0].large / MIN_READ_RATE
