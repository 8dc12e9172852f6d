"""The operator's endpoint, `control.sock` in the runtime folder: reload, restart, load, unload.

Who may open it may use it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from multitower import wire
from multitower.errors import MultitowerError, Reason, make

from ..routing.front_socket import FrontSocket, internal_error

log = logging.getLogger("multitower.control")

Done = Callable[[dict[str, Any] | MultitowerError], None]
"""Takes the answer to an order, when it has been carried out."""


class ControlSocket:
    """Reads orders and gives their answers, which may take as long as a model loads.

    Args:
        front: the endpoint.
        answer: answers the kinds that every endpoint has.
        reload: begins a reload, and answers through `Done`.
        restart: begins to restart a slot, of the number given, and answers through `Done`.
        load: begins to load the model of that name, and answers through `Done`.
        unload: the same the other way round.
    """

    def __init__(
        self,
        front: FrontSocket,
        answer: Callable[[bytes, dict[str, Any]], dict[str, Any]],
        reload: Callable[[Done], None],
        restart: Callable[[int, Done], None],
        load: Callable[[str, Done], None],
        unload: Callable[[str, Done], None],
    ) -> None:
        self.front = front
        self._answer = answer
        self._reload = reload
        self._restart = restart
        self._of_models = {wire.LOAD: load, wire.UNLOAD: unload}

    def receive(self) -> None:
        """Reads what has come."""
        while (incoming := self.front.receive()) is not None:
            address, body = incoming
            if body is None or len(body) < 2:
                continue  # no request, and nobody to tell
            id = bytes(body[1])[: wire.MAX_ID_BYTES]

            def done(
                answer: dict[str, Any] | MultitowerError, address: tuple[bytes, ...] = address, id: bytes = id
            ) -> None:
                self.front.answer(address, id, answer)

            try:
                self._carry_out(bytes(body[0]), wire.load_header(bytes(body[2])) if len(body) > 2 else {}, done)
            except MultitowerError as error:
                done(error)
            except Exception:
                # A defect of multitower. Only this order fails.
                log.exception("order cannot be handled")
                done(internal_error())

    def _carry_out(self, kind: bytes, header: dict[str, Any], done: Done) -> None:
        if kind == wire.RELOAD:
            self._reload(done)
        elif kind == wire.RESTART:
            slot = header.get("slot")
            if type(slot) is not int:
                raise make(Reason.MALFORMED, "slot is missing or not an integer", field="slot")
            self._restart(slot, done)
        elif kind in self._of_models:
            name = header.get("model_name")
            if not isinstance(name, str) or not name:
                raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
            self._of_models[kind](name, done)
        elif kind in (wire.SERVER_LIVE, wire.SERVER_READY, wire.SERVER_METADATA, wire.STATUS):
            done(self._answer(kind, header))
        else:
            shown = kind[: wire.MAX_KIND_BYTES].decode("ascii", "backslashreplace")
            raise make(Reason.KIND_UNKNOWN, f"{shown!r} is not for the operator's endpoint", field="kind")
