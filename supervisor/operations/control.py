"""The control endpoint, `control.sock` in the runtime folder: reload, restart, load, unload.

A process that may open the socket may give orders.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.containment import ErrorLog
from ..routing.front_socket import FrontSocket, internal_error
from .model_orders import ModelOrders
from .order_queue import READ_S, Done
from .orders import Orders
from .queries import Queries

log = logging.getLogger("multitower.control")

BURST: Final = 16
"""Messages read before other sockets and timers get their turn: the status of many slots takes milliseconds."""

MAX_READ_S: Final = 86_400.0
"""Seconds that an order may take to read files at most, whatever time its giver states."""

_QUERIES = (wire.SERVER_LIVE, wire.SERVER_READY, wire.SERVER_METADATA, wire.STATUS)


class ControlSocket:
    """Reads orders and sends their answers, which may take as long as a model loads.

    Args:
        front: the bound endpoint.
        queries: answers the kinds that are no orders.
        orders: carries out reloads and restarts.
        model_orders: loads and unloads models.
    """

    def __init__(self, front: FrontSocket, queries: Queries, orders: Orders, model_orders: ModelOrders) -> None:
        self.front = front
        self._errors = ErrorLog(log)
        self._queries = queries
        self._orders = orders
        self._model_orders = model_orders

    def receive(self) -> None:
        """Reads and begins a burst of the orders that have arrived."""
        for _ in range(BURST):
            incoming = self.front.receive()
            if incoming is None:
                return
            address, body = incoming
            if body is None or len(body) < 2:
                continue  # there is no id to reply to
            self._handle(address, bytes(body[0]), bytes(body[1])[: wire.MAX_ID_BYTES], body[2:])
        self.front.recheck()  # there may be more

    def _handle(self, address: tuple[bytes, ...], kind: bytes, id: bytes, frames: list[Any]) -> None:
        answered = False

        def done(answer: dict[str, Any] | MultitowerError) -> None:
            nonlocal answered
            answered = True
            self.front.answer(address, id, answer)

        try:
            self._begin(kind, wire.load_header(bytes(frames[0])) if frames else {}, done)
        except MultitowerError as error:
            done(error)
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("handling an order", error)
            if not answered:
                done(internal_error())

    def _begin(self, kind: bytes, header: dict[str, Any], done: Done) -> None:
        if kind == wire.RELOAD:
            self._orders.reload(done, _read_s(header))
        elif kind == wire.RESTART:
            slot = header.get("slot")
            if type(slot) is not int:
                raise make(Reason.MALFORMED, "slot is missing or not an integer", field="slot")
            self._orders.restart(slot, done)
        elif kind == wire.LOAD:
            self._model_orders.load(_model_name(header), done, _read_s(header))
        elif kind == wire.UNLOAD:
            self._model_orders.unload(_model_name(header), done)
        elif kind in _QUERIES:
            done(self._queries.answer(kind, header, time.monotonic()))
        else:
            shown = kind[: wire.MAX_KIND_BYTES].decode("ascii", "backslashreplace")
            raise make(Reason.KIND_UNKNOWN, f"the control endpoint has no kind {shown!r}", field="kind")


def _read_s(header: dict[str, Any]) -> float:
    """Returns the seconds that an order may take to read files: a little less than its giver waits for the answer.

    A giver who states no time gets `READ_S`.
    """
    timeout_ms = header.get("timeout_ms")
    if timeout_ms is None:
        return READ_S
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float) or not timeout_ms > 0:
        raise make(Reason.MALFORMED, "timeout_ms is not a number above 0", field="timeout_ms")
    return min(0.9 * float(timeout_ms) / 1000, MAX_READ_S)


def _model_name(header: dict[str, Any]) -> str:
    name = header.get("model_name")
    if not isinstance(name, str) or not name:
        raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
    return name
