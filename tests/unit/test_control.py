"""The control endpoint reads a bounded burst of orders for each event."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
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

    def __init__(self, arrived: int, body: list[bytes] | None = None, connection: str | None = None) -> None:
        self.arrived = arrived
        self._body = body or [wire.STATUS, b"id"]
        self._connection = connection
        self.answers: list[Any] = []
        self.rechecks = 0

    def receive(self) -> Incoming | None:
        if not self.arrived:
            return None
        self.arrived -= 1
        return Incoming((b"client",), list(self._body), self._connection)

    def answer(self, _address: tuple[bytes, ...], _id: bytes, answer: Any) -> None:
        self.answers.append(answer)

    def recheck(self) -> None:
        self.rechecks += 1


def make_control(folder: Path, front: FakeFront, history: EventHistory) -> ControlSocket:
    operations = DaemonScene(folder, [("m",)]).operations
    return ControlSocket(
        cast(FrontSocket, front),
        operations.queries,
        operations.orders,
        operations.model_orders,
        operations.metrics,
        Recorder(operations.context.router),
        Audit(history),
        lambda: (77,),
    )


def test_a_flood_of_queries_is_read_in_bursts(tmp_path: Path) -> None:
    front = FakeFront(2 * BURST + 1)
    history = EventHistory()
    control = make_control(tmp_path, front, history)
    for number in (1, 2, 3):
        control.receive()
        assert len(front.answers) == min(number * BURST, 2 * BURST + 1)
        assert front.rechecks == min(number, 2), "there is nothing left to read after the last burst"
    assert not history.events(), "a query changes nothing"


@pytest.mark.parametrize(
    ("kind", "header", "connection", "expected"),
    [
        (wire.RESTART, b'{"slot": 9}', ":1000:5:42", ("restart", "local:1000", "pid 42", "slot_unknown", 9, None)),
        (wire.RESTART, b"{}", ":0:0:42", ("restart", "local:0", "pid 42", "malformed", None, None)),
        (wire.UNLOAD, b'{"model_name": "x"}', ":0:0:42", ("unload", "local:0", "pid 42", "model_unknown", None, "x")),
        (wire.LOAD, b'{"model_name": "x"', ":0:0:42", ("load", "local:0", "pid 42", "malformed", None, None)),
        (wire.RESTART, b"{}", ":0:0:77", ("restart", "gateway", "a client of the gateway", "malformed", None, None)),
        (wire.RESTART, b"{}", None, ("restart", "anonymous", None, "malformed", None, None)),
    ],
)
def test_every_order_is_written_with_who_gave_it(
    tmp_path: Path, kind: bytes, header: bytes, connection: str | None, expected: tuple[Any, ...]
) -> None:
    front, history = FakeFront(1, [kind, b"id", header], connection), EventHistory()
    make_control(tmp_path, front, history).receive()
    assert [answer.reason for answer in front.answers] == [expected[3]]
    (event,) = (past.to_json(0.0) for past in history.events())
    assert event["kind"] == "audit"
    fields = ("operation", "principal", "from", "outcome", "slot", "model")
    assert tuple(event.get(field) for field in fields) == expected
