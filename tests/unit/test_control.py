"""The control endpoint reads a bounded burst of orders for each event."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from daemon_scene import DaemonScene
from made_security import make_keys

from multitower import wire
from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.loop.history import EventHistory
from multitower.supervisor.observability.recording import Recorder
from multitower.supervisor.operations.control import BURST, ControlSocket
from multitower.supervisor.operations.order_queue import Order
from multitower.supervisor.routing.front_socket import FrontSocket, Incoming
from multitower.supervisor.routing.router import Router
from multitower.supervisor.security.access_control import AccessControl
from multitower.supervisor.security.audit import Audit
from multitower.supervisor.security.entrance import CurveEntrance, Entrance


class FakeFront:
    """A socket with messages that have arrived.

    Attributes:
        arrived: how many have not been read.
        answers: what was answered.
        rechecks: how many rechecks were asked for.
    """

    endpoint = "tcp://127.0.0.1:5555"

    def __init__(
        self,
        arrived: int,
        body: list[bytes] | None = None,
        connection: str | None = None,
        entrance: Entrance | None = None,
    ) -> None:
        self.entrance = entrance
        self.takes_orders = entrance is not None
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


def make_control(
    folder: Path,
    front: FakeFront,
    history: EventHistory,
    make_recorder: Callable[[Router], Recorder] = Recorder,
    daemon: DaemonScene | None = None,
) -> ControlSocket:
    operations = (daemon or DaemonScene(folder, [("m",)])).operations
    return ControlSocket(
        cast(FrontSocket, front),
        operations.queries,
        operations.orders,
        operations.model_orders,
        operations.metrics,
        make_recorder(operations.context.router),
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


CURVE_ADDRESS = "192.0.2.1"
TCP_ADDRESS = "192.0.2.1:51234"
KEYS = {name: make_keys().public for name in ("operates", "operates-mine", "observes", "revoked")}
PRINCIPALS = Principals(
    [
        Principal("operates", frozenset({Role.OPERATE}), public_keys=(KEYS["operates"],)),
        Principal("operates-mine", frozenset({Role.OPERATE}), ("mine",), public_keys=(KEYS["operates-mine"],)),
        Principal("observes", frozenset({Role.OBSERVE}), public_keys=(KEYS["observes"],)),
    ]
)


def order(
    folder: Path, kind: bytes, header: bytes, who: str | None, refusal: MultitowerError | None = None
) -> tuple[Any, dict[str, Any]]:
    """Sends an order to a socket for clients; returns the answer, and the event of the audit.

    The caller that passed the order on learns of a refusal, and only then.

    Args:
        folder: for the daemon's files.
        kind: of the order.
        header: likewise.
        who: whose key the sender has; None for a daemon without `security`.
        refusal: why it is refused, if that is known before.
    """
    with contextlib.closing(BackgroundJobs()) as jobs:
        entrance = None if who is None else CurveEntrance(AccessControl(PRINCIPALS, jobs))
        history, body = EventHistory(), [kind, b"id", header]
        front = FakeFront(0, body, entrance=entrance)
        control = make_control(folder, FakeFront(0), history)
        connection = TCP_ADDRESS if who is None else f"{KEYS[who]} {CURVE_ADDRESS}"
        incoming = Incoming((b"\0name",), list(body), connection)
        refused = control.take(cast(FrontSocket, front), incoming, list(body), refusal)
    (answer,) = front.answers
    assert getattr(answer, "reason", None) == getattr(refused, "reason", None)
    (event,) = (past.to_json(0.0) for past in history.events())
    return answer, event


def test_an_operator_gives_orders_over_tcp(tmp_path: Path) -> None:
    answer, event = order(tmp_path, wire.RELOAD, b'{"dry_run": true}', "operates")
    assert answer == {"dry_run": True}
    assert (event["message"], event["from"]) == ("audit: reload by operates: ok", CURVE_ADDRESS)
    answer, event = order(tmp_path, wire.RESTART, b'{"slot": 99}', "operates")
    assert (answer.reason, event["slot"]) == ("slot_unknown", 99)


@pytest.mark.parametrize(
    ("kind", "who", "reason", "origin"),
    [
        (wire.RELOAD, "observes", "forbidden", CURVE_ADDRESS),
        (wire.RELOAD, "operates-mine", "forbidden", CURVE_ADDRESS),
        (wire.LOAD, "operates-mine", "forbidden", CURVE_ADDRESS),
        (wire.RECORD, "revoked", "unauthenticated", "key"),
        (wire.UNLOAD, None, "kind_unknown", TCP_ADDRESS),
    ],
)
def test_what_is_refused_over_tcp_is_written_with_who_asked(
    tmp_path: Path, kind: bytes, who: str | None, reason: str, origin: str
) -> None:
    answer, event = order(tmp_path, kind, b'{"model_name": "m", "dry_run": true}', who)
    assert answer.reason == reason
    origin = f"key {KEYS['revoked']} at {CURVE_ADDRESS}" if origin == "key" else origin
    assert (event["kind"], event["outcome"], event["from"]) == ("audit", reason, origin)
    assert event["principal"] == ("anonymous" if who in (None, "revoked") else who)
    if reason == "kind_unknown":
        assert "is taken at the daemon's control socket, on its machine" in answer.message


@pytest.mark.parametrize("reason", [Reason.QUEUE_FULL, Reason.TOO_LARGE])
def test_what_was_refused_before_it_was_taken_is_written_too(tmp_path: Path, reason: Reason) -> None:
    answer, event = order(tmp_path, wire.RELOAD, b"{}", "operates", make(reason, "no"))
    assert answer.reason == reason
    assert (event["operation"], event["principal"], event["outcome"]) == ("reload", "operates", reason)


def test_a_restricted_operator_is_told_no_names_of_other_models(tmp_path: Path) -> None:
    answer, _ = order(tmp_path, wire.LOAD, b'{"model_name": "mine"}', "operates-mine")
    assert (answer.reason, answer.message) == ("model_unknown", "there is no such model")
    answer, _ = order(tmp_path, wire.LOAD, b'{"model_name": "mine"}', "operates")
    assert "only m" in answer.message, "the one without a list is told"


class Recording:
    """A recording that a principal has begun over tcp, and its daemon's principals.

    Attributes:
        access: has the principals.
        recorder: ends the recording.
        front: has the answer, once the recording has ended.
        history: has the audit.
        body: what the message had from the kind on.
    """

    def __init__(self, folder: Path, jobs: BackgroundJobs, who: str, body: list[Any]) -> None:
        def make_recorder(router: Router) -> Recorder:
            self.recorder = Recorder(router)
            return self.recorder

        self.access = AccessControl(PRINCIPALS, jobs)
        self.history = EventHistory()
        self.front = FakeFront(0, entrance=CurveEntrance(self.access))
        self._control = make_control(folder, FakeFront(0), self.history, make_recorder)
        self._control.take(cast(FrontSocket, self.front), Incoming((b"\0name",), body, KEYS[who]), body)


RECORD_M = [wire.RECORD, b"id", b'{"model_name": "m"}']


CHANGES = pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (None, None),
        (Principals(), "unauthenticated"),
        (Principals([Principal("operates", frozenset({Role.INFER}), public_keys=(KEYS["operates"],))]), "forbidden"),
        (
            Principals([Principal("operates", frozenset({Role.OPERATE}), ("x",), public_keys=(KEYS["operates"],))]),
            "forbidden",
        ),
    ],
    ids=["still there", "removed", "without the role", "without the model"],
)


@CHANGES
def test_a_recording_goes_to_nobody_who_was_revoked_meanwhile(
    tmp_path: Path, changed: Principals | None, reason: str | None
) -> None:
    with contextlib.closing(BackgroundJobs()) as jobs:
        recording = Recording(tmp_path, jobs, "operates", list(RECORD_M))
        assert not recording.front.answers
        if changed is not None:
            recording.access.apply(changed)
        recording.recorder.end_all()
    (answer,) = recording.front.answers
    assert getattr(answer, "reason", None) == reason
    (event,) = (past.to_json(0.0) for past in recording.history.events())
    assert (event["principal"], event["outcome"]) == ("operates", reason or "ok")


@CHANGES
@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (wire.RELOAD, b"{}"),
        (wire.LOAD, b'{"model_name": "m"}'),
        (wire.UNLOAD, b'{"model_name": "m"}'),
        (wire.RESTART, b'{"slot": 0}'),
    ],
    ids=["reload", "load", "unload", "restart"],
)
def test_an_order_that_waits_is_allowed_or_refused_when_its_turn_comes(
    tmp_path: Path, kind: bytes, header: bytes, changed: Principals | None, reason: str | None
) -> None:
    daemon, history = DaemonScene(tmp_path, [("m",), ("m",)]), EventHistory()
    scene, operations = daemon.scene, daemon.operations
    orders: list[Order] = []
    restarted: list[str | None] = []
    with contextlib.closing(BackgroundJobs()) as jobs:
        access = AccessControl(PRINCIPALS, jobs)
        front = FakeFront(0, entrance=CurveEntrance(access))
        control = make_control(tmp_path, FakeFront(0), history, daemon=daemon)
        operations.queue.submit(orders.append, lambda _: None)
        scene.manager.restart_slot(scene.slot(1), restarted.append)
        scene.tick()
        before = scene.slot(0).process
        daemon.configure(m=2)
        body = [kind, b"id", header]
        control.take(cast(FrontSocket, front), Incoming((b"\0name",), body, KEYS["operates"]), body)
        scene.tick()
        assert not front.answers, "it waits"
        if changed is not None:
            access.apply(changed)
        orders[0].end({})
        scene.settle()
    assert restarted == [None]
    (answer,) = front.answers
    assert getattr(answer, "reason", None) == reason
    assert (scene.slot(0).process is before) == (reason is not None), "what is refused is not done"
    assert not operations.queue.busy
    (event,) = (past.to_json(0.0) for past in history.events())
    fields = ("operation", "principal", "from", "outcome")
    assert tuple(event[field] for field in fields) == (kind[4:].decode(), "operates", "tcp", reason or "ok")


class Frames(list[bytes]):
    """Frames of a message that can be referred to weakly."""


def test_an_order_that_waits_holds_no_frame_of_its_message(tmp_path: Path) -> None:
    frames = Frames(RECORD_M)
    message = weakref.ref(frames)
    with contextlib.closing(BackgroundJobs()) as jobs:
        recording = Recording(tmp_path, jobs, "operates", frames)
        del frames
        assert not recording.front.answers
        assert message() is None


def test_frames_behind_the_header_of_an_order_are_refused(tmp_path: Path) -> None:
    with contextlib.closing(BackgroundJobs()) as jobs:
        (answer,) = Recording(tmp_path, jobs, "operates", [*RECORD_M, b"junk"]).front.answers
        assert (answer.reason, answer.details["field"]) == ("malformed", "frames")
        (answer,) = Recording(tmp_path, jobs, "observes", [*RECORD_M, b"junk"]).front.answers
        assert answer.reason == "forbidden"
    front = FakeFront(1, [wire.RELOAD, b"id", b"{}", b"junk"])
    make_control(tmp_path, front, EventHistory()).receive()
    assert [answer.reason for answer in front.answers] == ["malformed"]


@pytest.mark.parametrize(
    ("body", "answer"),
    [([wire.RELOAD, b"id", b'{"dry_run": true}'], "{'dry_run': True}"), ([wire.RESTART, b"id", b"{}"], "malformed")],
    ids=["carried out", "refused"],
)
def test_an_order_is_answered_once_also_where_its_audit_line_cannot_be_written(
    tmp_path: Path, body: list[bytes], answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: logging.LogRecord) -> bool:
        raise OSError("no line can be written")

    front = FakeFront(1, body)
    control = make_control(tmp_path, front, EventHistory())
    audit_log = logging.getLogger("multitower.audit")
    with caplog.at_level(logging.INFO, "multitower.audit"):
        audit_log.addFilter(fail)
        try:
            control.receive()
        finally:
            audit_log.removeFilter(fail)
    assert [str(getattr(each, "reason", each)) for each in front.answers] == [answer]
    assert any("writing an audit line" in record.getMessage() for record in caplog.records)
