"""The control endpoint, `control.sock` in the runtime folder: reload, restart, load, unload, record.

A process that may open the socket may give orders. With `security`, only the daemon's own user and root may, and
the gateway for principals who may. Sockets for clients pass on the orders of principals who may.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from multitower import wire
from multitower.errors import MultitowerError, Reason, make
from multitower.infer_header import parse_version

from ..config.principals import Principals
from ..loop.containment import ErrorLog
from ..observability.metrics_reply import Metrics
from ..observability.recording import Recorder
from ..routing.front_socket import FrontSocket, Incoming, internal_error
from ..security.audit import Audit
from ..security.authorisation import without_names
from ..security.operation_table import OPERATIONS, ORDERS, Operation
from ..security.peers import NOBODY, Peer, Peers
from .model_orders import ModelOrders
from .order_queue import READ_S, Recheck
from .orders import Orders
from .queries import Queries

log = logging.getLogger("multitower.control")

BURST: Final = 16
"""Messages read before other sockets and timers get their turn: the status of many slots takes milliseconds."""

MAX_READ_S: Final = 86_400.0
"""Seconds that an order may take to read files at most, whatever time its giver states."""

RECORD_S: Final = 60.0
"""Seconds that a recording takes at most, where its giver states no time."""

RECORD_COUNT: Final = 100
"""Requests of a recording, where its giver states no number."""

_QUERIES = (wire.SERVER_LIVE, wire.SERVER_READY, wire.SERVER_METADATA, wire.STATUS)

_TAKEN: Final = ORDERS | {wire.METRICS, *_QUERIES}

_GATEWAY: Final = Peer("gateway", origin="a client of the gateway")
"""Who gives an order that the gateway passes on without `security`: nobody knows who its clients are."""

_Answer = Callable[[dict[str, Any] | Sequence[bytes] | MultitowerError], None]
"""Takes the header of the reply, or all its frames from the header on, or an error."""


class ControlSocket:
    """Reads orders and sends their answers, which may take as long as a model loads.

    Args:
        front: the bound endpoint.
        queries: answers the kinds that are no orders.
        orders: carries out reloads and restarts.
        model_orders: loads and unloads models.
        metrics: answers requests for metrics.
        recorder: records requests.
        audit: writes who gave which order.
        gateway_pids: returns the gateway's processes, for the audit.
    """

    def __init__(
        self,
        front: FrontSocket,
        queries: Queries,
        orders: Orders,
        model_orders: ModelOrders,
        metrics: Metrics,
        recorder: Recorder,
        audit: Audit,
        gateway_pids: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self.front = front
        self._errors = ErrorLog(log)
        self._queries = queries
        self._orders = orders
        self._model_orders = model_orders
        self._metrics = metrics
        self._recorder = recorder
        self._audit = audit
        self._gateway_pids = gateway_pids
        self._users = Peers(Principals())

    def receive(self) -> None:
        """Reads and begins a burst of the orders that have arrived."""
        for _ in range(BURST):
            incoming = self.front.receive()
            if incoming is None:
                return
            if incoming.body is None or len(incoming.body) < 2:
                continue  # there is no id to reply to
            self.take(self.front, incoming, incoming.body)
        self.front.recheck()  # there may be more

    def take(
        self, front: FrontSocket, incoming: Incoming, body: list[Any], refusal: MultitowerError | None = None
    ) -> MultitowerError | None:
        """Begins an order, or refuses it, and writes its outcome.

        Args:
            front: where it has arrived, also a socket for clients.
            incoming: the message.
            body: its frames from the kind on, at least two.
            refusal: why it is refused, if that is known already.

        Returns:
            The error with which it has been answered at once; None if it is carried out, or has been.
        """
        kind, id = _cut(body[0], wire.MAX_KIND_BYTES + 1), _cut(body[1], wire.MAX_ID_BYTES)
        operation, peer = OPERATIONS.get(kind), NOBODY
        # `done` may be kept for hours, so it holds these and not the message.
        address, connection = incoming.address, incoming.connection
        header: dict[str, Any] = {}
        origin = ""
        answered = False
        failure: MultitowerError | None = None

        def done(answer: dict[str, Any] | Sequence[bytes] | MultitowerError) -> None:
            nonlocal answered, failure
            answered = True
            if kind == wire.RECORD and not isinstance(answer, MultitowerError):  # it has what others have sent
                answer = self._check_again(front, peer, address, connection, operation, header) or answer
            if isinstance(answer, MultitowerError) and front.entrance is not None:
                answer = without_names(peer, answer)
            if isinstance(answer, MultitowerError):
                failure = answer
            if operation is not None and operation.changes:
                try:
                    self._audit.note(operation.name, peer.name, origin, header, answer)
                except Exception as error:  # noqa: BLE001  it is logged; the sender still gets its answer
                    self._errors.add("writing an audit line", error)
            front.answer(address, id, answer)

        try:
            peer = self._find_sender(front, address, connection)
            origin = self._origin(front, peer, connection)
            if refusal is not None:
                raise refusal
            _check_role(front, peer, operation)
            if front is not self.front and not front.takes_orders:
                raise _taken_elsewhere(kind)
            wire.check_kind(len(body[0]))
            if len(body) > 3 and kind in _TAKEN:
                raise make(Reason.MALFORMED, f"{len(body) - 3} frames too many behind the header", field="frames")
            header = wire.load_header(body[2]) if len(body) > 2 else {}
            _check(front, peer, operation, header)
            recheck = functools.partial(self._check_again, front, peer, address, connection, operation, header)
            self._begin(kind, header, done, recheck)
        except MultitowerError as error:
            done(error)
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("handling an order", error)
            if not answered:
                done(internal_error())
        return failure

    def _find_sender(self, front: FrontSocket, address: tuple[bytes, ...], connection: str | None) -> Peer:
        entrance = front.entrance
        if entrance is not None:
            return entrance.identify(address, connection)
        peer = self._users.local(connection)
        return _GATEWAY if peer.pid is not None and peer.pid in self._gateway_pids() else peer

    def _check_again(
        self,
        front: FrontSocket,
        peer: Peer,
        address: tuple[bytes, ...],
        connection: str | None,
        operation: Operation | None,
        header: dict[str, Any],
    ) -> MultitowerError | None:
        """Returns why the giver of an order may not give it any more, after it has waited; None if they still may."""
        if front.entrance is None:
            return None
        try:
            _check(front, front.entrance.identify_again(peer, address, connection), operation, header)
        except MultitowerError as refusal:
            return refusal
        return None

    def _origin(self, front: FrontSocket, peer: Peer, connection: str | None) -> str:
        if front.entrance is not None:
            return front.entrance.origin(peer, connection)
        # Without `security`, of a client over tcp only the address is known.
        return peer.origin or ("" if front is self.front else connection or front.endpoint)

    def _begin(self, kind: bytes, header: dict[str, Any], done: _Answer, recheck: Recheck) -> None:
        if kind == wire.RELOAD and header.get("dry_run") is True:
            done({"dry_run": True})  # only whether the sender may was asked
        elif kind == wire.RELOAD:
            self._orders.reload(done, _read_s(header), recheck)
        elif kind == wire.RESTART:
            if header.get("gateway") is True:
                self._orders.restart_gateway(done, recheck)
                return
            slot = header.get("slot")
            if type(slot) is not int:
                raise make(Reason.MALFORMED, "slot is missing or not an integer", field="slot")
            self._orders.restart(slot, done, recheck)
        elif kind == wire.LOAD:
            self._model_orders.load(_model_name(header), done, _read_s(header), recheck)
        elif kind == wire.UNLOAD:
            self._model_orders.unload(_model_name(header), done, recheck)
        elif kind == wire.RECORD:
            self._record(header, done)
        elif kind == wire.METRICS:
            self._metrics.answer(header, done)
        elif kind in _QUERIES:
            done(self._queries.answer(kind, header, time.monotonic()))
        else:
            shown = kind[: wire.MAX_KIND_BYTES].decode("ascii", "backslashreplace")
            raise make(Reason.KIND_UNKNOWN, f"the control endpoint has no kind {shown!r}", field="kind")

    def _record(self, header: dict[str, Any], done: _Answer) -> None:
        """Begins to record requests of a model."""
        name = _model_name(header)
        report = self._queries.find_report(header)
        count = header.get("count", RECORD_COUNT)
        if type(count) is not int or not 1 <= count <= wire.MAX_RECORDED:
            raise make(Reason.MALFORMED, f"count is not a whole number from 1 to {wire.MAX_RECORDED}", field="count")
        seconds = _timeout_s(header)
        ends_at = time.monotonic() + min(RECORD_S if seconds is None else seconds, MAX_READ_S)

        version = report.version if report is not None and any(parse_version(header)) else ""
        self._recorder.start(name, version, count, ends_at, done)


def _cut(frame: Any, limit: int) -> bytes:
    """The beginning of a frame of any size."""
    return bytes(memoryview(frame)[:limit])


def _check_role(front: FrontSocket, peer: Peer, operation: Operation | None) -> None:
    """Decides about what does not depend on the header, with `security`.

    Raises:
        MultitowerError: the sender may not do this.
    """
    entrance = front.entrance
    refusal = entrance.access.authorisation.check_role(peer, operation) if entrance is not None else None
    if refusal is not None:
        raise refusal


def _check(front: FrontSocket, peer: Peer, operation: Operation | None, header: dict[str, Any]) -> None:
    """Decides whether the sender may, with `security`.

    Raises:
        MultitowerError: it may not.
    """
    entrance = front.entrance
    if entrance is not None:
        model = operation.model_in(header) if operation is not None else None
        refusal = entrance.access.authorisation.check(peer, operation, model)
        if refusal is not None:
            raise refusal


def _taken_elsewhere(kind: bytes) -> MultitowerError:
    message = (
        f"{kind.decode()!r} is taken at the daemon's control socket, on its machine (`control` in the status); with "
        "`security` also over ZeroMQ, from principals with the role operate"
    )
    return make(Reason.KIND_UNKNOWN, message, field="kind")


def _read_s(header: dict[str, Any]) -> float:
    """Returns the seconds that an order may take to read files: a little less than its giver waits for the answer.

    A giver who states no time gets `READ_S`.
    """
    seconds = _timeout_s(header)
    return READ_S if seconds is None else min(0.9 * seconds, MAX_READ_S)


def _timeout_s(header: dict[str, Any]) -> float | None:
    """Returns the seconds that the giver of an order states; None if it states none."""
    timeout_ms = header.get("timeout_ms")
    if timeout_ms is None:
        return None
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float) or not timeout_ms > 0:
        raise make(Reason.MALFORMED, "timeout_ms is not a number above 0", field="timeout_ms")
    return float(timeout_ms) / 1000


def _model_name(header: dict[str, Any]) -> str:
    name = header.get("model_name")
    if not isinstance(name, str) or not name:
        raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
    return name
