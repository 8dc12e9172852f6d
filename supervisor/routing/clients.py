"""The clients' side of the router: reads requests, admits or refuses them, and sends replies.

`Router` creates a `Clients` and calls it. Requests for inference go to the scheduler if `admission` accepts them; all
other kinds are answered at once. Nothing here blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.containment import ErrorLog
from ..scheduling.open_requests import Answer
from ..scheduling.request import Plan, Request, SharedRequest
from ..scheduling.scheduler import Scheduler
from . import regions
from .admission import Admission
from .front_socket import FrontSocket, Incoming, internal_error
from .request_checks import check_frames
from .statistics import ModelStatistics
from .unread import REFRESH_S, UnreadReplies

BURST = 256
"""Messages read from one front socket before other sockets and timers get their turn."""

BURST_S = 0.005
"""The same in seconds: reading a large header that is not cached takes milliseconds."""


MAX_LOOK_INTERVAL_S = 0.1
"""Seconds between looks at the waiting requests while too much is unread, if none of them is to be refused."""

QueryAnswerer = Callable[[bytes, dict[str, Any], float], dict[str, Any]]
"""Takes the kind of a query, its header and monotonic seconds; returns the reply's header, or raises a refusal."""


def _no_answer(_kind: bytes, _header: dict[str, Any], _now: float) -> dict[str, Any]:
    raise RuntimeError("the router has not been opened")


class Clients:
    """Reads requests and sends replies.

    Args:
        scheduler: gets the admitted requests, and has the replies.
        admission: makes the plans of requests.
        statistics: by model name and version.
        max_message_size: bytes that all frames of a request may have.
        unread: counts what clients leave unread.
        errors: gets what defects of multitower raise.

    Attributes:
        answer_query: answers the kinds other than `infer` and `cancel`; set before the first request is read.
        draining: whether new requests for inference are refused, since the daemon is stopping.
        rejected: requests that got an error without having been queued.
        regions: the open shared memory of local clients.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        admission: Admission,
        statistics: Mapping[str, dict[str, ModelStatistics]],
        max_message_size: int,
        unread: UnreadReplies,
        errors: ErrorLog,
    ) -> None:
        self.answer_query: QueryAnswerer = _no_answer
        self.draining = False
        self.rejected = 0
        self.regions = regions.Regions()
        self._scheduler = scheduler
        self._admission = admission
        self._statistics = statistics
        self._max_message_size = max_message_size
        self._unread = unread
        self._errors = errors
        self._large_models: set[str] = set()  # those that have returned large frames
        self._look_at = 0.0  # when `refuse_waiting` looks at the queues next
        self._look_interval_s = REFRESH_S

    # Requests.

    def receive(self, front: FrontSocket) -> None:
        """Reads a burst of requests from a front socket."""
        until = time.monotonic() + BURST_S
        for count in range(BURST):
            incoming = front.receive()
            if incoming is None:
                return
            self._handle(front, incoming)
            if count % 8 == 0:
                if not front.readable:
                    return
                if time.monotonic() > until:
                    break
        front.recheck()  # there may be more

    def _handle(self, front: FrontSocket, incoming: Incoming) -> None:
        address, body = incoming
        id = b""
        try:
            if body is None:
                raise make(Reason.MALFORMED, "no empty delimiter frame before the request", field="envelope")
            if len(body) < 2:
                raise make(Reason.MALFORMED, "a request has at least a kind and an id", field="id")
            kind = body[0]
            id = _checked_id(body[1])
            if kind == wire.INFER:
                self._admit(front, address, id, body)
            else:
                self._answer_other(front, address, id, body)
        except MultitowerError as error:
            self._reject(front, address, id, error)
        except Exception as error:  # noqa: BLE001  it is logged
            # A defect of multitower. Only this request fails.
            self._errors.add("handling a request", error, {"endpoint": front.endpoint})
            self._reject(front, address, id, internal_error())

    def _reject(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, error: MultitowerError) -> None:
        self.rejected += 1
        front.answer(address, id, error)

    def _admit(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, body: list[Any]) -> None:
        """Gives a request for inference to the scheduler."""
        if self.draining:
            raise make(Reason.DRAINING, "the daemon is stopping")
        if len(body) < 3:
            raise make(Reason.MALFORMED, "a request has a header frame behind its id", field="header")
        header = body[2]
        sizes = [len(frame) for frame in body[3:]]
        size = sum(sizes)
        self._check_size(size + len(header))
        plan = self._admission.plan(header if type(header) is bytes else bytes(header))
        if self._unread.total >= self._unread.half:
            self._check_unread(front, address, plan.model in self._large_models)
        if plan.shared is not None:
            self._admit_shared(front, address, id, plan, body)
            return
        check_frames(plan, sizes)
        frames = [body[3 + index] for index in plan.order]
        self._scheduler.submit(Request((front, address), id, plan, frames, size, time.monotonic()))

    def _admit_shared(
        self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, plan: Plan, body: list[Any]
    ) -> None:
        now = time.monotonic()
        if not front.local:
            raise regions.refusal(plan, "this endpoint is not ipc")
        tensors, output_areas = self.regions.resolve(plan, body[3:], now)
        sizes = [len(tensor) for tensor in tensors]
        self._check_size(sum(sizes) + len(body[2]))
        check_frames(plan, sizes)
        in_order = [tensors[index] for index in plan.order]
        self._scheduler.submit(SharedRequest((front, address), id, plan, in_order, sum(sizes), now, output_areas))

    def _answer_other(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, body: list[Any]) -> None:
        """Answers a request of any kind but `infer`."""
        kind = bytes(body[0])
        if kind not in wire.KINDS:
            shown = kind[: wire.MAX_KIND_BYTES].decode("ascii", "backslashreplace")
            raise make(Reason.KIND_UNKNOWN, f"unknown kind {shown!r}; this daemon speaks {wire.VERSION}", field="kind")
        self._check_size(sum(map(len, body)))
        if len(body) > 3:
            raise make(Reason.MALFORMED, f"{len(body) - 3} frames too many behind the header", field="frames")
        header = wire.load_header(bytes(body[2])) if len(body) == 3 else {}
        if kind != wire.CANCEL:
            self._check_unread(front, address, large=False)
        if kind == wire.CANCEL:
            cancelled = self._scheduler.cancel((front, address), id)
            # The replies to the cancelled requests go first, then the reply to the order to cancel them.
            self.send_replies()
            front.answer(address, id, {"cancelled": cancelled})
        else:
            front.answer(address, id, self.answer_query(kind, header, time.monotonic()))

    def _check_unread(self, front: FrontSocket, address: tuple[bytes, ...], large: bool) -> None:
        if self._unread.total >= self._unread.half:
            refusal = front.refusal(address, large)
            if refusal is not None:
                raise refusal

    def _check_size(self, size: int) -> None:
        if size > self._max_message_size:
            raise make(
                Reason.TOO_LARGE,
                f"the message has {size} bytes; max_message_size is {self._max_message_size}",
                field="frames",
            )

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
        refusal: MultitowerError | None = front.refusal(address, request.plan.model in self._large_models)
        return refusal

    # Replies.

    def send_replies(self) -> None:
        """Sends the replies that the scheduler has."""
        replies = self._scheduler.pop_replies()
        if not replies:
            return
        now = time.monotonic()
        for request, answer in replies:
            try:
                self._send_reply(request, answer, now)
            except Exception as error:  # noqa: BLE001  it is logged
                # A defect of multitower. Only this request fails.
                self._errors.add("sending a reply", error, {"model": request.plan.model})
                front, address = request.sender
                front.answer(address, request.id, internal_error())

    def _send_reply(self, request: Request, answer: Answer, now: float) -> None:
        front, address = request.sender
        statistics = self._statistics[request.plan.model][request.version or self._unrun_version(request)]
        if isinstance(answer, MultitowerError):
            statistics.count_failure(now - request.received)
            front.reply(address, wire.ERROR, request.id, (wire.dump_json(answer.to_wire()),))
        else:
            statistics.count_success(request.rows, request.sent - request.received, now - request.received)
            if front.reply(address, wire.OK, request.id, answer):
                self._large_models.add(request.plan.model)

    def _unrun_version(self, request: Request) -> str:
        """The version whose statistics count a request that no worker has got."""
        report = self._admission.catalog.newest.get(request.plan.model)
        return request.plan.key.version or (report.version if report is not None else "")


def _checked_id(frame: Any) -> bytes:
    if not 0 < len(frame) <= wire.MAX_ID_BYTES:
        raise make(Reason.MALFORMED, f"the id has {len(frame)} bytes; 1 to {wire.MAX_ID_BYTES} are allowed", field="id")
    return bytes(frame)
