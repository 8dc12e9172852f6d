"""The clients' side of the router: reads requests and sends replies.

`Router` creates a `Clients` and calls it. Requests for inference go to `admission`; all other kinds are answered at
once. Nothing here blocks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.containment import ErrorLog
from ..scheduling.open_requests import Answer, Reply
from ..scheduling.request import Request
from ..scheduling.scheduler import Scheduler
from ..security.authenticator import GATEWAY
from ..security.authorisation import Authorisation, without_names
from ..security.credential_handles import ANONYMOUS_HANDLE
from ..security.entrance import Entrance, GatewayEntrance
from ..security.operation_table import OPERATIONS, ORDERS
from ..security.peers import NOBODY, Peer
from .admission import Admission
from .front_socket import MAX_HOP_BYTES, MAX_HOPS, FrontSocket, Incoming, internal_error
from .observers import MAX_READ_BYTES, RequestObserver
from .recent import RefusedRequests
from .request_plans import RequestPlanner
from .statistics import ModelStatistics

BURST = 256
"""Messages read from one front socket before other sockets and timers get their turn."""

BURST_S = 0.005
"""The same in seconds: reading a large header that is not cached takes milliseconds."""

_NO_DELIMITER: Final = (
    f"no empty delimiter frame before the request, behind at most {MAX_HOPS - 1} address frames of at most "
    f"{MAX_HOP_BYTES} bytes"
)

QueryAnswerer = Callable[[bytes, dict[str, Any], float], dict[str, Any]]
"""Takes the kind of a query, its header and monotonic seconds; returns the reply's header, or raises a refusal."""

MetricsAnswer = Sequence[bytes] | MultitowerError
"""The frames of the reply to `MT1:metrics`, from its header on, or an error."""

MetricsAnswerer = Callable[[dict[str, Any], Callable[[MetricsAnswer], None]], None]
"""Takes the header of an `MT1:metrics` request, and a function that it calls with the answer, now or later."""


OrderTaker = Callable[[FrontSocket, Incoming, list[Any], MultitowerError | None], MultitowerError | None]
"""Takes an order that has arrived at a socket for clients, its frames from the kind on, and why it is refused or None.

It answers the order, maybe later. It returns the error that it has answered with at once; None if there is none.
"""


def _no_orders(
    _front: FrontSocket, _incoming: Incoming, _body: list[Any], _refusal: MultitowerError | None
) -> MultitowerError | None:
    raise RuntimeError("the router has not been opened")


def _no_answer(_kind: bytes, _header: dict[str, Any], _now: float) -> dict[str, Any]:
    raise RuntimeError("the router has not been opened")


def _no_metrics(_header: dict[str, Any], _done: Callable[[MetricsAnswer], None]) -> None:
    raise RuntimeError("the router has not been opened")


class Clients:
    """Reads requests and sends replies.

    Args:
        scheduler: has the replies.
        admission: gets the requests for inference.
        planner: has the versions of the models.
        statistics: by model name and version.
        errors: gets what defects of multitower raise.
        refused: counts the requests that get an error without having been queued.
        observers: get the requests for inference that they have chosen, once these have their answers.

    Attributes:
        answer_query: answers the kinds other than `infer`, `cancel` and `metrics`; set before the first request is
            read, as `answer_metrics` is.
        answer_metrics: answers `metrics`.
        take_order: gets the kinds that change something; likewise.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        admission: Admission,
        planner: RequestPlanner,
        statistics: Mapping[str, dict[str, ModelStatistics]],
        errors: ErrorLog,
        refused: RefusedRequests,
        observers: Sequence[RequestObserver] = (),
    ) -> None:
        self.answer_query: QueryAnswerer = _no_answer
        self.answer_metrics: MetricsAnswerer = _no_metrics
        self.take_order: OrderTaker = _no_orders
        self._scheduler = scheduler
        self._admission = admission
        self._planner = planner
        self._statistics = statistics
        self._errors = errors
        self._refused = refused
        self._observers = observers

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
        address, body, entrance = incoming.address, incoming.body, front.entrance
        id, peer = b"", NOBODY
        try:
            if entrance is not None:
                peer = entrance.identify(address, incoming.connection)
                if not peer.authenticated:
                    front.note_stranger(address[0])  # whatever it asks for
            if body is None:
                raise make(Reason.MALFORMED, _NO_DELIMITER, field="envelope")
            if len(body) < 2:
                raise make(Reason.MALFORMED, "a request has at least a kind and an id", field="id")
            kind = body[0]
            id = _checked_id(body[1])
            if kind != wire.INFER:  # which most are, and `wire` is not compiled
                wire.check_kind(len(kind))
            if entrance is not None:
                self._handle_guarded(front, entrance, incoming, peer, id, body)
            elif kind == wire.INFER:
                self._admission.admit(front, address, id, body)
            elif bytes(kind) in ORDERS:
                self._pass_order(front, incoming, body)
            else:
                self._answer_other(front, address, id, body)
        except MultitowerError as error:
            self._reject(front, address, id, body, error)
        except Exception as error:  # noqa: BLE001  it is logged
            # A defect of multitower. Only this request fails.
            self._errors.add("handling a request", error, {"endpoint": front.endpoint})
            self._reject(front, address, id, body, internal_error())

    def _handle_guarded(
        self, front: FrontSocket, entrance: Entrance, incoming: Incoming, peer: Peer, id: bytes, body: list[Any]
    ) -> None:
        """Handles a request with `security`: decides first, before anything looks for the model."""
        address, kind = incoming.address, bytes(body[0])
        if kind == wire.AUTHENTICATE and isinstance(entrance, GatewayEntrance):
            self._authenticate(front, entrance, incoming, id, body)
            return
        if kind == wire.CANCEL and not peer.authenticated and isinstance(entrance, GatewayEntrance):
            # The handle may have become void since the requests came with it: their client has left all the same.
            cancelled = self._cancel(front, address, id) if entrance.is_gateway(incoming.connection) else 0
            if cancelled:
                front.answer(address, id, {"cancelled": cancelled})
                return
        access = entrance.access
        authorisation = access.authorisation
        operation, now = OPERATIONS.get(kind), time.monotonic()
        use = access.uses.of(peer.name) if peer.principal is not None else None
        if kind == wire.CANCEL or (operation is not None and operation.open):
            use = None
        refusal = authorisation.check_role(peer, operation)
        # The gateway asks for a model's metadata by itself, to understand the first of a second's requests. It counts
        # only if it fails: the gateway keeps no failures, so a client could have it ask again and again.
        counts_late = refusal is None and front.interface == GATEWAY and kind == wire.MODEL_METADATA
        if use is not None and not counts_late:
            # Also what is refused for lack of a role: it costs as much as a query.
            refusal = use.charge(kind == wire.INFER, now, refusal)
        # A handle that has become void is no failure: the gateway asks for another one.
        if (
            refusal is not None
            and not peer.authenticated
            and (front.interface != GATEWAY or address[-1] == ANONYMOUS_HANDLE)
        ):
            origin = entrance.origin(peer, incoming.connection)
            access.failures.add(front.interface, entrance.failure, origin, now)
        if kind in ORDERS:
            self._pass_order(front, incoming, body, refusal)
            return
        if refusal is not None:
            raise refusal
        try:
            if kind != wire.INFER:
                self._answer_other(front, address, id, body, peer, authorisation)
                return
            if len(body) > 2:  # otherwise it is malformed
                wire.check_header(len(body[2]))
                refusal = authorisation.check_infer(peer, bytes(body[2]))
                if refusal is not None:
                    raise refusal
            self._admission.admit(front, address, id, body, use)
        except MultitowerError as error:
            limited = use.charge(False, time.monotonic()) if use is not None and counts_late else None
            raise limited or without_names(peer, error) from None

    def _pass_order(
        self, front: FrontSocket, incoming: Incoming, body: list[Any], refusal: MultitowerError | None = None
    ) -> None:
        """Passes an order on, also one that is refused, since the taker of orders writes an audit line for it."""
        if refusal is None and front.takes_orders:  # elsewhere none is taken, whatever its size
            try:
                self._admission.check_size(sum(map(len, body)))
                self._admission.check_unread(front, incoming.address)
            except MultitowerError as error:
                refusal = error
        refusal = self.take_order(front, incoming, body, refusal)
        if refusal is not None:
            self._refused.add(refusal.reason)

    def _authenticate(
        self, front: FrontSocket, entrance: GatewayEntrance, incoming: Incoming, id: bytes, body: list[Any]
    ) -> None:
        """Has a credential verified that a client has shown to the gateway.

        Raises:
            MultitowerError: the message is malformed, or is not the gateway's own.
        """
        if len(incoming.address) != 1 or not entrance.is_gateway(incoming.connection):
            raise make(Reason.UNAUTHENTICATED, "only the gateway may ask for handles")
        self._admission.check_size(sum(map(len, body)))
        if len(body) != 3:
            raise make(Reason.MALFORMED, "the request has a header frame behind its id, and no other", field="header")
        header = wire.load_header(body[2])
        entrance.access.authenticator.answer(header, functools.partial(front.answer, incoming.address, id))

    def _reject(
        self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, body: list[Any] | None, error: MultitowerError
    ) -> None:
        self._refused.add(error.reason)
        front.answer(address, id, error)
        if self._observers and body is not None and len(body) > 2 and body[0] == wire.INFER:
            now = time.monotonic()
            header = bytes(body[2]) if len(body[2]) <= MAX_READ_BYTES else b""
            for observer in self._observers:
                try:
                    observer.observe_refusal(front, id, header, error, now)
                except Exception as defect:  # noqa: BLE001  it is logged
                    self._errors.add("observing a refused request", defect)

    def _answer_other(
        self,
        front: FrontSocket,
        address: tuple[bytes, ...],
        id: bytes,
        body: list[Any],
        peer: Peer | None = None,
        authorisation: Authorisation | None = None,
    ) -> None:
        """Answers a request of any kind but `infer`.

        Args:
            front: the socket that it came from.
            address: of its client.
            id: of the request.
            body: the frames of the request.
            peer: who sent it; None without `security`.
            authorisation: decides whether the peer may; likewise.
        """
        kind = bytes(body[0])
        if kind not in wire.KINDS:
            shown = kind[: wire.MAX_KIND_BYTES].decode("ascii", "backslashreplace")
            raise make(Reason.KIND_UNKNOWN, f"unknown kind {shown!r}; this daemon speaks {wire.VERSION}", field="kind")
        self._admission.check_size(sum(map(len, body)))
        if len(body) > 3:
            raise make(Reason.MALFORMED, f"{len(body) - 3} frames too many behind the header", field="frames")
        header = wire.load_header(body[2]) if len(body) == 3 else {}
        if peer is not None and authorisation is not None:
            operation = OPERATIONS[kind]
            refusal = authorisation.check(peer, operation, operation.model_in(header))
            if refusal is not None:
                raise refusal
        if kind != wire.CANCEL:
            self._admission.check_unread(front, address)
        if kind == wire.CANCEL:
            front.answer(address, id, {"cancelled": self._cancel(front, address, id)})
        elif kind == wire.METRICS:
            self.answer_metrics(header, functools.partial(front.answer, address, id))
        else:
            front.answer(address, id, self.answer_query(kind, header, time.monotonic()))

    def _cancel(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes) -> int:
        """Cancels the sender's requests with this id, answers them, and returns their number."""
        cancelled = self._scheduler.cancel((front, address), id)
        self.send_replies()  # before the reply to the order to cancel them
        return cancelled

    # Replies.

    def send_replies(self) -> None:
        """Sends the replies that the scheduler has."""
        replies = self._scheduler.pop_replies()
        if not replies:
            return
        now = time.monotonic()
        for reply in replies:
            request = reply.request
            if request.owner is not None:
                request.owner.outstanding -= 1
            try:
                self._send_reply(request, reply.answer, now)
            except Exception as error:  # noqa: BLE001  it is logged
                # A defect of multitower. Only this request fails.
                self._errors.add("sending a reply", error, {"model": request.plan.model})
                front, address = request.sender
                front.answer(address, request.id, internal_error())
        if self._observers:
            self._observe(replies, now)

    def _observe(self, replies: Sequence[Reply], now: float) -> None:
        observed = [reply for reply in replies if reply.request.observers]
        if not observed:
            return
        for observer in tuple(self._observers):  # one of them may end itself
            wanted = [reply for reply in observed if observer in reply.request.observers]
            if not wanted:
                continue
            try:
                observer.observe_replies(wanted, now)
            except Exception as error:  # noqa: BLE001  it is logged; the clients have their replies
                self._errors.add("observing requests", error)

    def _send_reply(self, request: Request, answer: Answer, now: float) -> None:
        front, address = request.sender
        statistics = self._statistics[request.plan.model][request.version or self._unrun_version(request)]
        if isinstance(answer, MultitowerError):
            statistics.count_failure(answer.reason, now - request.received, now)
            front.reply(address, wire.ERROR, request.id, (wire.dump_json(answer.to_wire()),))
        else:
            statistics.count_success(request.rows, request.sent - request.received, now - request.received)
            if front.reply(address, wire.OK, request.id, answer):
                self._admission.note_large_reply(request.plan.model)

    def _unrun_version(self, request: Request) -> str:
        """The version whose statistics count a request that no worker has got."""
        report = self._planner.catalog.newest.get(request.plan.model)
        return request.plan.key.version or (report.version if report is not None else "")


def _checked_id(frame: Any) -> bytes:
    if not 0 < len(frame) <= wire.MAX_ID_BYTES:
        raise make(Reason.MALFORMED, f"the id has {len(frame)} bytes; 1 to {wire.MAX_ID_BYTES} are allowed", field="id")
    return bytes(frame)
