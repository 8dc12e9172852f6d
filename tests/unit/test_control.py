"""The control endpoint reads a bounded burst of orders for each event."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from daemon_scene import DaemonScene

from multitower import wire
from multitower.supervisor.loop.history import EventHistory
from multitower.supervisor.observability.recording import Recorder
from multitower.supervisor.operations.control import BURST, ControlSocket
from multitower.supervisor.routing.front_socket import FrontSocket, Incoming
from multitower.supervisor.security.audit import Audit


class FakeFront:
    """A socket with messages that have arrived.

    Attributes:
        arrived: how many have not been read.
        answers: what was answered.
        rechecks: how many rechecks were asked for.
    """

    entrance = None

    def __init__(self, arrived: int) -> None:
        self.arrived = arrived
        self.answers: list[Any] = []
        self.rechecks = 0

    def receive(self) -> Incoming | None:
        if not self.arrived:
            return None
        self.arrived -= 1
        return Incoming((b"client",), [wire.STATUS, b"id"])

    def answer(self, _address: tuple[bytes, ...], _id: bytes, answer: Any) -> None:
        self.answers.append(answer)

    def recheck(self) -> None:
        self.rechecks += 1


def test_a_flood_of_queries_is_read_in_bursts(tmp_path: Path) -> None:
    operations = DaemonScene(tmp_path, [("m",)]).operations
    front = FakeFront(2 * BURST + 1)
    control = ControlSocket(
        cast(FrontSocket, front),
        operations.queries,
        operations.orders,
        operations.model_orders,
        operations.metrics,
        Recorder(operations.context.router),
        Audit(EventHistory()),
    )
    for number in (1, 2, 3):
        control.receive()
        assert len(front.answers) == min(number * BURST, 2 * BURST + 1)
        assert front.rechecks == min(number, 2), "there is nothing left to read after the last burst"
