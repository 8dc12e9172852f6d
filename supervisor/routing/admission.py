"""Admission: accepts requests for inference and submits them to the scheduler, or refuses them with an error.

A request is checked against the plan for its header (`request_plans`), the limits on sizes, its shared memory
(`shared_memory_regions`), and what its client leaves unread (`unread`). The scheduler then checks the queue's limits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.containment import ErrorLog
from ..scheduling.request import Plan, Request, SharedRequest
from ..scheduling.scheduler import Scheduler
from ..security.principal_limits import Use
from .front_socket import FrontSocket
from .observers import RequestObserver
from .recent import RefusedRequests
from .request_checks import check_frames
from .request_plans import RequestPlanner
from .shared_memory_regions import Regions, refusal
from .unread import REFRESH_S, UnreadReplies

MAX_LOOK_INTERVAL_S = 0.1
"""Seconds between looks at the waiting requests while too much is unread, if none of them is to be refused."""


class Admission:
    """Accepts or refuses requests for inference.

    Args:
        scheduler: gets the accepted requests.
        planner: makes the plans of requests.
        max_message_size: bytes that all frames of a request may have.
        unread: counts what clients leave unread.
        refused: counts refused requests by their model.
        errors: gets what observers raise.
        observers: choose among the requests that the scheduler has accepted.

    Attributes:
        draining: whether new requests are refused, since the daemon is stopping.
        drained_last: while draining, the socket whose requests are still accepted; None for none.
        regions: the open shared memory of local clients.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        planner: RequestPlanner,
        max_message_size: int,
        unread: UnreadReplies,
        refused: RefusedRequests,
        errors: ErrorLog,
        observers: Sequence[RequestObserver] = (),
    ) -> None:
        self.draining = False
        self.drained_last: FrontSocket | None = None
        self.regions = Regions()
        self._scheduler = scheduler
        self._planner = planner
        self._max_message_size = max_message_size
        self._unread = unread
        self._refused = refused
        self._errors = errors
        self._observers = observers
        self._large_models: set[str] = set()  # those that have returned large frames
        self._look_at = 0.0  # when `refuse_waiting` looks at the queues next
        self._look_interval_s = REFRESH_S

    def admit(
        self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, body: list[Any], use: Use | None = None
    ) -> None:
        """Submits a request for inference to the scheduler.

        Args:
            front: the socket that it came from.
            address: of its client.
            id: of the request.
            body: the frames of the request, its kind and id included.
            use: counts what the principal has outstanding that sent it; None without one.

        Raises:
            MultitowerError: it is refused.
        """
        if self.draining and front is not self.drained_last:
            raise make(Reason.DRAINING, "the daemon is stopping")
        if len(body) < 3:
            raise make(Reason.MALFORMED, "a request has a header frame behind its id", field="header")
        header = body[2]
        sizes: list[int] = []
        size = 0
        for frame in body[3:]:
            frame_size = len(frame)
            sizes.append(frame_size)
            size += frame_size
        if len(address) > 1:
            size += sum(map(len, address))  # the queue holds them as well
        self.check_size(size + len(header))
        if type(header) is not bytes:  # it is large
            wire.check_header(len(header))
            header = bytes(header)
        plan = self._planner.plan(header)
        try:
            if self._unread.total >= self._unread.half:
                self.check_unread(front, address, plan.model)
            if plan.shared is not None:
                request = self._make_shared(front, address, id, plan, body)
            else:
                check_frames(plan, sizes)
                frames = [body[3 + index] for index in plan.order]
                request = Request((front, address), id, plan, frames, size, time.monotonic())
            self._scheduler.submit(request)
        except MultitowerError as error:
            self._refused.add_of_model(plan.model, error.reason)
            raise
        if use is not None:
            request.owner = use
            use.outstanding += 1
        if self._observers:
            self._observe(request)

    def _make_shared(
        self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, plan: Plan, body: list[Any]
    ) -> Request:
        now = time.monotonic()
        if not front.local:
            raise refusal(plan, "this endpoint is not ipc")
        tensors, output_areas = self.regions.resolve(plan, body[3:], now)
        sizes = [len(tensor) for tensor in tensors]
        self.check_size(sum(sizes) + len(body[2]))
        check_frames(plan, sizes)
        in_order = [tensors[index] for index in plan.order]
        return SharedRequest((front, address), id, plan, in_order, sum(sizes), now, output_areas)

    def _observe(self, request: Request) -> None:
        """Lets observers choose a request that the scheduler has accepted."""
        for observer in tuple(self._observers):  # one of them may end itself
            if observer.sampler.chooses(request.plan.trace, request.received):
                try:
                    if observer.observe_acceptance(request):
                        request.observers = (*request.observers, observer)
                except Exception as error:  # noqa: BLE001  it is logged; the request is accepted
                    self._errors.add("observing a request", error, {"model": request.plan.model})

    def check_size(self, size: int) -> None:
        """Checks the size of a request of any kind.

        Raises:
            InvalidRequest: `too_large`.
        """
        if size > self._max_message_size:
            raise make(
                Reason.TOO_LARGE,
                f"the message has {size} bytes; max_message_size is {self._max_message_size}",
                field="frames",
            )

    def check_unread(self, front: FrontSocket, address: tuple[bytes, ...], model: str = "") -> None:
        """Refuses a request while its client, or all clients together, leave too many replies unread.

        Args:
            front: the socket that it came from.
            address: of its client.
            model: that it names; "" for a request of another kind than inference.

        Raises:
            MultitowerError: `queue_full`.
        """
        if self._unread.total >= self._unread.half:
            refused = front.refusal(address, model in self._large_models)
            if refused is not None:
                raise refused

    def note_large_reply(self, model: str) -> None:
        """Remembers that replies of this model have large frames."""
        self._large_models.add(model)

    def refuse_waiting(self, now: float) -> None:
        """Refuses what waits in queues for clients with unread replies, while there are too many of these.

        It looks at every waiting request, so it looks less often while it finds none to refuse.
        """
        if self._unread.total < self._unread.high:
            self._look_interval_s = REFRESH_S
            return
        if now < self._look_at or not self._unread.is_high(now):
            return
        refused = self._scheduler.refuse_waiting(self._refusal_of)
        self._look_interval_s = REFRESH_S if refused else min(2 * self._look_interval_s, MAX_LOOK_INTERVAL_S)
        self._look_at = now + self._look_interval_s

    def _refusal_of(self, request: Request) -> MultitowerError | None:
        front, address = request.sender
        refused: MultitowerError | None = front.refusal(address, request.plan.model in self._large_models)
        return refused
