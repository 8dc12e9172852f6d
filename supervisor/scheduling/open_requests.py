"""Every request that has no answer yet, and the answers to give. Pure.

The balancer (`balancer.py`) puts each request that it takes in here. `settle` is the only place that gives an answer,
and it gives one: at the end of a batch, of a request's time, of a worker, or at its sender's wish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from multitower.errors import MultitowerError, Reason, make

from .deadlines import Deadlines
from .queue import ModelQueue
from .request import Frame, Phase, Request

Answer = Sequence[Frame] | MultitowerError
"""What a request gets: the frames of an `MT1:ok` reply from its header on, or an error."""


class Reply(NamedTuple):
    """An answer to give."""

    request: Request
    answer: Answer


class OpenRequests:
    """The requests that have no answer yet.

    Args:
        queues: of the models, by name; those that wait in one leave it when they are answered.

    Attributes:
        split: requests of which parts have been given to workers.
    """

    def __init__(self, queues: Mapping[str, ModelQueue]) -> None:
        self.split: dict[Request, None] = {}
        self._queues = queues
        self._deadlines: Deadlines[Request] = Deadlines()
        self._by_sender: dict[tuple[object, ...], list[Request]] = {}
        self._replies: list[Reply] = []

    def add(self, request: Request) -> None:
        """Takes a new request; it will get one answer."""
        self._deadlines.add(request)
        self._by_sender.setdefault((request.sender, request.id), []).append(request)

    def settle(self, request: Request, answer: Answer, *, expired: bool = False) -> None:
        """Gives a request its one answer, and forgets it. A request that has one already is let be."""
        if request.phase is Phase.DONE:
            return
        queue = self._queues[request.plan.model]
        if request.phase is Phase.WAITING:
            queue.remove(request)
        # Until its batch is back: should it kill its worker yet, it is to be known again.
        if request.phase is not Phase.RUNNING:
            request.frames = ()
        request.phase = Phase.DONE
        if request.join is not None:
            self.drop_parts(request)
            request.join = None
        if not expired:
            self._deadlines.remove(request)
        key = (request.sender, request.id)
        twins = self._by_sender[key]
        twins.remove(request)
        if not twins:
            del self._by_sender[key]
        self._replies.append(Reply(request, answer))

    def part_done(self, whole: Request, part: Request, answer: Answer) -> None:
        """A part of a request has been answered."""
        part.phase = Phase.DONE
        part.frames = ()
        if isinstance(answer, MultitowerError):
            self.settle(whole, answer)
            return
        assert whole.join is not None  # a part is only ever made by its request's join
        if whole.join.add(part, answer):
            try:
                self.settle(whole, whole.join.joined())
            except MultitowerError as error:
                self.settle(whole, error)

    def drop_parts(self, whole: Request) -> None:
        """Nobody waits for the parts of this request any more."""
        assert whole.join is not None  # it was split
        self.split.pop(whole, None)
        queue = self._queues[whole.plan.model]
        for part in whole.join.parts:
            if part.phase is Phase.WAITING:
                queue.remove(part)
            if part.phase is not Phase.DONE:
                part.phase = Phase.DONE

    def of(self, sender: tuple[object, ...], request_id: bytes) -> list[Request]:
        """The requests of a sender with this id."""
        return list(self._by_sender.get((sender, request_id), ()))

    def all(self) -> list[Request]:
        """All of them."""
        return [request for twins in self._by_sender.values() for request in twins]

    def expire(self, now: float) -> None:
        """Answers all requests whose time is over."""
        for request in self._deadlines.expire(now):
            where = "while it was executed" if request.phase is Phase.RUNNING else "before a worker was free"
            self.settle(request, make(Reason.DEADLINE, f"the request's time was over {where}"), expired=True)

    def replies(self) -> list[Reply]:
        """The answers that have come up since the last call; give each of them."""
        replies, self._replies = self._replies, []
        return replies

    @property
    def outstanding(self) -> int:
        """Requests that have no answer yet."""
        return sum(map(len, self._by_sender.values()))

    @property
    def busy(self) -> bool:
        """Some request has no answer yet."""
        return bool(self._by_sender)

    def next_deadline(self) -> float | None:
        """When to call `expire` at the latest, in monotonic seconds; None when nothing is outstanding."""
        return self._deadlines.next()


def let_go(request: Request) -> None:
    """The batch of a request or part is back, and nobody needs its tensors any more if it has its answer."""
    for each in (request, request.parent):
        if each is not None and each.phase is Phase.DONE:
            each.frames = ()
