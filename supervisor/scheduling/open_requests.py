"""Every request that has no answer yet, and the answers to send.

`settle` is the only place that answers a request, and it does so once: when its batch ends, at its deadline, when its
worker dies, or when its sender cancels it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from multitower.errors import MultitowerError, Reason, make

from .deadlines import Deadlines, deadline_error
from .queue import ModelQueue
from .request import Frame, Phase, Request, Sender
from .split_requests import add_answer, join_answers

log = logging.getLogger("multitower.scheduling")

Answer = Sequence[Frame] | MultitowerError
"""The frames of an `MT1:ok` reply, from its header on, or an error."""

ErrorLogger = Callable[[str, Exception], None]
"""Logs an error, given what was being done, as in "joining the answers of a split request"."""


def log_each_error(doing: str, error: Exception) -> None:
    """Logs an error with its traceback."""
    log.error("internal error while %s", doing, exc_info=error)


class Reply:
    """An answer to send."""

    __slots__ = ("answer", "request")

    def __init__(self, request: Request, answer: Answer) -> None:
        self.request = request
        self.answer = answer


class OpenRequests:
    """The requests that have no answer yet.

    Args:
        queues: the queues, by model; a waiting request is removed from its queue when it is answered.
        log_error: gets what joining answers raises.

    Attributes:
        split: requests of which workers have parts.
    """

    def __init__(self, queues: Mapping[str, ModelQueue], log_error: ErrorLogger = log_each_error) -> None:
        self._log_error = log_error
        self.split: dict[Request, None] = {}
        self._queues = queues
        self._deadlines = Deadlines()
        self._by_id: dict[tuple[Sender, bytes], list[Request]] = {}
        self._replies: list[Reply] = []

    def add(self, request: Request) -> None:
        """Adds a new request, which will get one answer."""
        self._deadlines.add(request)
        key = (request.sender, request.id)
        same_id = self._by_id.get(key)
        if same_id is None:
            self._by_id[key] = [request]
        else:
            same_id.append(request)

    def settle(self, request: Request, answer: Answer, *, expired: bool = False) -> None:
        """Answers a request and removes it; no-op if it has an answer already.

        Args:
            request: a whole request, not a part.
            answer: its answer.
            expired: whether it has been removed from the deadlines already.
        """
        if request.phase is Phase.DONE:
            return
        queue = self._queues[request.plan.model]
        if request.phase is Phase.WAITING:
            queue.remove(request)
        # A running one keeps its frames until its batch ends: if it kills the worker, its frames identify it.
        if request.phase is not Phase.RUNNING:
            request.frames = ()
        request.phase = Phase.DONE
        if request.split is not None:
            self._drop_parts(request)
            request.split = None
        if not expired:
            self._deadlines.remove(request)
        key = (request.sender, request.id)
        same_id = self._by_id.pop(key)
        if len(same_id) > 1:
            same_id.remove(request)
            self._by_id[key] = same_id
        self._replies.append(Reply(request, answer))

    def settle_part(self, whole: Request, part: Request, answer: Answer) -> None:
        """Stores the answer of a part; answers the whole request with the last part, or with the first error."""
        part.phase = Phase.DONE
        part.frames = ()
        if isinstance(answer, MultitowerError):
            self.settle(whole, answer)
            return
        split = whole.split
        assert split is not None  # it has a part
        try:
            if not add_answer(whole, split, part, answer):
                return
            answer = join_answers(whole, split)
        except MultitowerError as error:
            answer = error
        except Exception as error:  # noqa: BLE001  it is logged
            # The worker has sent something that is no answer. That costs this request, not the daemon.
            self._log_error("joining the answers of a split request", error)
            answer = make(Reason.INTERNAL_ERROR, "a defect of the daemon, whose log has the traceback")
        self.settle(whole, answer)

    def join_again(self, whole: Request) -> None:
        """Makes a split request a whole one that has not run; it is in no queue then."""
        split = whole.split
        assert split is not None
        self._drop_parts(whole)
        if whole.phase is Phase.WAITING:
            self._queues[whole.plan.model].remove(whole)
        # The deaths of its parts count, or it would crash one worker after another.
        for part in split.parts:
            if part.deaths > whole.deaths:
                whole.deaths, whole.avoid = part.deaths, part.avoid
        whole.split = None

    def _drop_parts(self, whole: Request) -> None:
        """Marks the parts of a split request as done, and removes those that are waiting."""
        split = whole.split
        assert split is not None
        self.split.pop(whole, None)
        queue = self._queues[whole.plan.model]
        for part in split.parts:
            if part.phase is Phase.WAITING:
                queue.remove(part)
            if part.phase is not Phase.DONE:
                part.phase = Phase.DONE

    def find(self, sender: Sender, request_id: bytes) -> list[Request]:
        """The requests of a sender with this id."""
        return list(self._by_id.get((sender, request_id), ()))

    def all(self) -> list[Request]:
        """All open requests."""
        return [request for same_id in self._by_id.values() for request in same_id]

    def expire(self, now: float) -> None:
        """Answers all requests whose deadline has passed."""
        for request in self._deadlines.expire(now):
            where = "while it was being executed" if request.phase is Phase.RUNNING else "before a worker was free"
            self.settle(request, deadline_error(request.plan, where), expired=True)

    def pop_replies(self) -> list[Reply]:
        """Removes and returns the answers that are to be sent."""
        replies, self._replies = self._replies, []
        return replies

    @property
    def outstanding(self) -> int:
        """The number of requests that have no answer yet."""
        return sum(map(len, self._by_id.values()))

    @property
    def busy(self) -> bool:
        """Whether some request has no answer yet."""
        return bool(self._by_id)

    def next_deadline(self) -> float | None:
        """When to call `expire` at the latest, in monotonic seconds; None if there are no requests."""
        return self._deadlines.next_expiry()
