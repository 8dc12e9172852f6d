"""The router with `security`: the gateway gets handles for its clients, and limits of principals hold."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from multitower import wire
from multitower.bearer_tokens import new_token
from multitower.errors import MultitowerError
from multitower.spec import ModelReport
from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.routing.front_socket import Incoming
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.security.access_control import AccessControl
from multitower.supervisor.security.entrance import GatewayEntrance
from multitower.supervisor.security.operation_table import OPERATIONS, Scope

ROLES = frozenset(Role)
TOKEN, HASH = new_token("service")
GATEWAY_PROCESS = f":{os.geteuid()}:{os.getegid()}:4711"
STRANGER = f":{os.geteuid() + 1}:5:4712"
HEADER = wire.infer_header("m", [wire.Tensor("x", "UINT8", (1, 1))], timeout_us=50_000_000)


class Inline(BackgroundJobs):
    """Runs each job at once."""

    def run(self, job: Any, then: Any) -> None:
        then(job())


class Front:
    """The gateway's endpoint: messages in, answers out."""

    endpoint = "ipc:///gateway.sock"
    interface = "gateway"
    local = True
    takes_orders = False

    def __init__(self, access: AccessControl) -> None:
        self.entrance = GatewayEntrance(access)
        self.incoming: list[Incoming] = []
        self.answers: list[tuple[tuple[bytes, ...], Any]] = []

    def note_stranger(self, client: bytes) -> None:
        """Does nothing: the gateway stays connected, whatever its clients ask."""

    @property
    def readable(self) -> bool:
        return bool(self.incoming)

    def receive(self) -> Incoming | None:
        return self.incoming.pop(0) if self.incoming else None

    def answer(
        self, address: tuple[bytes, ...], id: bytes, answer: Mapping[str, Any] | Sequence[bytes] | MultitowerError
    ) -> None:
        self.answers.append((address, answer))

    def reply(self, address: tuple[bytes, ...], kind: bytes, id: bytes, body: Sequence[Any]) -> bool:
        self.answers.append((address, json.loads(body[0])["error"]))
        return False

    def recheck(self) -> None:
        """Nothing looks at this socket."""


class Scene:
    """A router whose model `m` has a worker that never answers, and the gateway's endpoint."""

    def __init__(self, jobs: BackgroundJobs) -> None:
        self.now = 100.0
        self.access = AccessControl(Principals(), jobs, lambda: self.now)
        self.know(Principal("service", ROLES, token_hashes=(HASH,)))
        self.front = Front(self.access)
        self.router = Router({"m": QueueLimits(1000, 1 << 20)}, {"m": 60.0}, 1 << 20)
        worker = cast(Any, type("Connection", (), {"send": lambda *_: None})())
        self.router.add_worker(0, "cpu:0", worker, [ModelReport(name="m", max_batch_size=1)], {("m", "1"): 1}, 1.0)
        self.orders: list[Any] = []
        self.refusals: list[str | None] = []
        self.router.open(
            [],
            lambda kind, header, now: {"kind": kind.decode()},
            lambda header, done: done((b"{}", b"")),
            self._take_order,
        )

    def _take_order(
        self, front: Any, incoming: Incoming, body: list[Any], refusal: MultitowerError | None
    ) -> MultitowerError | None:
        self.orders.append((front, incoming.address, body[0]))
        self.refusals.append(refusal.reason if refusal is not None else None)
        return refusal

    def know(self, *principals: Principal) -> None:
        self.access.apply(Principals(principals))

    def send(
        self, kind: bytes, header: bytes = b"{}", *frames: bytes, handle: bytes | None = None,
        process: str = GATEWAY_PROCESS,
    ) -> Any:  # fmt: skip
        """Sends a message; returns the last answer, or the reason of the error; None without an answer yet."""
        address = (b"gateway",) if handle is None else (b"gateway", handle)
        self.front.incoming.append(Incoming(address, [kind, b"id", header, *frames], process))
        self.router.receive(cast(Any, self.front))
        if not self.front.answers:
            return None
        answers, self.front.answers = self.front.answers, []
        assert {to for to, _ in answers} == {address}, "the answer must have the handle in front"
        _, answer = answers[-1]
        return answer.reason if isinstance(answer, MultitowerError) else answer

    def authenticate(self, process: str = GATEWAY_PROCESS, handle: bytes | None = None, **header: str) -> Any:
        header = {"token": TOKEN, "from": "10.0.0.1:5", **header}
        return self.send(wire.AUTHENTICATE, wire.dump_json(header), handle=handle, process=process)

    def handle(self) -> bytes:
        handle: str = self.authenticate()["handle"]
        return handle.encode()

    def infer(self, handle: bytes) -> Any:
        return self.send(wire.INFER, HEADER, b"x", handle=handle)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with contextlib.closing(Inline()) as jobs:
        yield Scene(jobs)


def test_a_handle_admits_what_its_principal_may(scene: Scene) -> None:
    handle = scene.handle()
    assert scene.send(wire.STATUS, handle=handle) == {"kind": "MT1:status"}
    assert scene.infer(handle) is None
    assert scene.access.report()[0]["outstanding"] == 1
    scene.router.scheduler.abandon("the daemon ends")
    scene.router.flush(1.0)
    assert scene.front.answers.pop()[0] == (b"gateway", handle)
    assert scene.access.report()[0]["outstanding"] == 0


def test_without_a_valid_handle_only_liveness_and_readiness_are_answered(scene: Scene) -> None:
    handle = scene.handle()
    for wrong in (b"anonymous", b"0123456789abcdef", b"service", handle[:-1], None):
        assert scene.send(wire.SERVER_LIVE, handle=wrong) == {"kind": "MT1:server_live"}
        assert scene.send(wire.SERVER_READY, handle=wrong) == {"kind": "MT1:server_ready"}
        for kind in wire.KINDS - {wire.SERVER_LIVE, wire.SERVER_READY}:
            assert scene.send(kind, handle=wrong) == "unauthenticated", (kind, wrong)
    assert scene.send(wire.STATUS, handle=handle, process=STRANGER) == "unauthenticated"
    # Void handles are no failures.
    assert scene.access.failures.counts == {("gateway", "no_credentials"): len(wire.KINDS) - 2}


def test_only_the_gateway_gets_handles(scene: Scene) -> None:
    assert scene.authenticate(process=STRANGER) == "unauthenticated"
    assert scene.authenticate(handle=b"anonymous") == "unauthenticated"
    assert scene.authenticate(handle=scene.handle()) == "unauthenticated"
    assert scene.send(wire.AUTHENTICATE, b"{") == "malformed"
    assert scene.send(wire.AUTHENTICATE, b'{"token": "a.b"}', b"more") == "malformed"
    assert scene.authenticate(token="nobody.x") == "unauthenticated"
    assert scene.authenticate()["principal"] == "service"


def test_a_handle_is_void_from_the_next_message_on(scene: Scene) -> None:
    handle = scene.handle()
    assert scene.infer(handle) is None
    scene.know(Principal("service", frozenset({Role.OBSERVE}), token_hashes=(HASH,)))
    assert scene.infer(handle) == "unauthenticated"
    observing = scene.handle()
    assert scene.infer(observing) == "forbidden"
    scene.know()
    assert scene.send(wire.STATUS, handle=observing) == "unauthenticated"
    assert scene.authenticate() == "unauthenticated"
    # What was accepted before is still answered, to the handle that it came with.
    scene.router.scheduler.abandon("the daemon ends")
    scene.router.flush(1.0)
    assert [address for address, _ in scene.front.answers] == [(b"gateway", handle)]


def test_requests_are_cancelled_also_after_their_handle_has_become_void(scene: Scene) -> None:
    handle = scene.handle()
    changed = Principal("service", ROLES, token_hashes=(HASH,), max_outstanding=9)
    for principals in ((changed,), ()):
        assert scene.infer(handle) is None
        scene.know(*principals)
        stranger = scene.send(wire.CANCEL, handle=handle, process=STRANGER)
        assert stranger == scene.send(wire.CANCEL, handle=b"0123456789abcdef") == "unauthenticated"
        assert scene.send(wire.CANCEL, handle=handle) == {"cancelled": 1}
        assert scene.send(wire.CANCEL, handle=handle) == "unauthenticated", "it has no requests any more"
        if principals:
            assert scene.access.report()[0]["outstanding"] == 0
            handle = scene.handle()


def test_limits_hold_for_all_that_a_principal_asks_and_not_for_others(scene: Scene) -> None:
    other_token, other_hash = new_token("other")
    limited = Principal("service", ROLES, token_hashes=(HASH,), max_outstanding=2)
    scene.know(limited, Principal("other", ROLES, token_hashes=(other_hash,)))
    handle = scene.handle()
    other = scene.authenticate(token=other_token)["handle"].encode()
    assert [scene.infer(handle) for _ in range(3)] == [None, None, "queue_full"]
    assert [scene.infer(other) for _ in range(3)] == [None, None, None]
    assert scene.send(wire.STATUS, handle=handle) == {"kind": "MT1:status"}
    # Cancelling makes room, and is never refused.
    assert scene.send(wire.CANCEL, handle=handle) == {"cancelled": 2}
    assert scene.infer(handle) is None
    assert scene.send(wire.CANCEL, handle=handle) == {"cancelled": 1}
    rows = {row["name"]: row for row in scene.access.report()}
    assert [rows["service"][key] for key in ("requests", "refused", "outstanding")] == [5, 1, 0]
    assert [rows["other"][key] for key in ("requests", "refused", "outstanding")] == [3, 0, 3]


def test_a_rate_counts_queries_too_but_neither_health_nor_cancelling(scene: Scene) -> None:
    scene.know(Principal("service", ROLES, token_hashes=(HASH,), rate=0.001))
    handle = scene.handle()
    for kind in (wire.SERVER_LIVE, wire.SERVER_READY):
        assert scene.send(kind, handle=handle) == {"kind": kind.decode()}
    assert scene.send(wire.CANCEL, handle=handle) == {"cancelled": 0}
    assert scene.send(wire.MODEL_READY, b'{"model_name":"m"}', handle=handle) == {"kind": "MT1:model_ready"}
    assert scene.send(wire.MODEL_READY, b'{"model_name":"m"}', handle=handle) == "queue_full"
    assert scene.infer(handle) == "queue_full"
    assert scene.send(wire.CANCEL, handle=handle) == {"cancelled": 0}


def test_what_roles_refuse_is_counted_and_limited(scene: Scene) -> None:
    scene.know(Principal("service", frozenset({Role.OBSERVE}), token_hashes=(HASH,), rate=2.0))
    handle = scene.handle()
    assert [scene.infer(handle) for _ in range(4)] == ["forbidden", "forbidden", "queue_full", "queue_full"]
    (row,) = scene.access.report()
    assert (row["requests"], row["refused"]) == (4, 4)


def test_orders_are_passed_on_also_those_that_will_be_refused(scene: Scene) -> None:
    handle = scene.handle()
    for kind, sender in itertools.product((wire.LOAD, wire.RELOAD), (handle, b"anonymous")):
        assert scene.send(kind, handle=sender) is None
        assert scene.orders.pop() == (scene.front, (b"gateway", sender), kind)


@pytest.mark.parametrize(
    ("roles", "rate", "large", "reason"),
    [
        (ROLES, 0.001, False, "queue_full"),
        ({Role.INFER}, 0.001, False, "queue_full"),
        (ROLES, None, True, "too_large"),
        ({Role.INFER}, None, False, "forbidden"),
        ({Role.INFER}, None, True, "forbidden"),
        (ROLES, None, False, None),
    ],
)
def test_an_order_that_is_refused_is_passed_on_with_the_refusal_and_counted_once(
    scene: Scene, roles: set[Role], rate: float | None, large: bool, reason: str | None
) -> None:
    scene.know(Principal("service", frozenset(roles), token_hashes=(HASH,), rate=rate))
    scene.front.takes_orders = True
    handle = scene.handle()
    if rate is not None:
        assert scene.send(wire.SERVER_METADATA, handle=handle) == {"kind": "MT1:server_metadata"}
    header = b" " * (1 << 20) + b"{}" if large else b"{}"
    assert scene.send(wire.RELOAD, header, handle=handle) is None
    assert scene.orders == [(scene.front, (b"gateway", handle), wire.RELOAD)]
    assert scene.refusals == [reason]
    assert scene.router.refused.by_reason.total == ({} if reason is None else {reason: 1})
    (row,) = scene.access.report()
    assert row["refused"] == (reason in ("queue_full", "forbidden"))


def calls_of(ask: Callable[[], Any]) -> tuple[list[str], Any]:
    """Asks; returns every function that was called, in order, and the answer."""
    calls: list[str] = []
    gc.disable()  # what a collection calls, such as finalizers of other tests' objects, is no work of the request

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            calls.append(frame.f_code.co_qualname if event == "call" else argument.__qualname__)

    sys.setprofile(note)
    try:
        answer = ask()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls, answer


NAMING = sorted(kind for kind in wire.KINDS if OPERATIONS[kind].scope in (Scope.MODEL, Scope.MODEL_OR_DAEMON))


@pytest.mark.parametrize("kind", NAMING, ids=bytes.decode)
@pytest.mark.parametrize(
    "restricted",
    [{"models": ("other",)}, {"roles": frozenset()}, {"roles": frozenset({Role.OPERATE}), "models": ("other",)}],
    ids=["models", "roles", "both"],
)
def test_the_same_work_refuses_a_model_that_exists_and_one_that_does_not(
    scene: Scene, kind: bytes, restricted: dict[str, Any]
) -> None:
    """So the time of the answer does not tell. Compiled code would show no calls: these tests run on the checkout."""
    scene.know(replace(Principal("service", ROLES, token_hashes=(HASH,)), **restricted))
    handle = scene.handle()
    frames = [b"x"] if kind == wire.INFER else []
    headers = [HEADER.replace(b'"m"', name) for name in (b'"m"', b'"n"')]

    def ask(header: bytes) -> tuple[list[str], Any]:
        return calls_of(lambda: scene.send(kind, header, *frames, handle=handle))

    for header in headers:  # what is remembered, is
        assert ask(header)[1] == "forbidden"
    for _ in range(2):
        there, not_there = map(ask, headers)
        assert there == not_there
    calls, _ = there
    assert len(calls) > 10
    assert calls != calls_of(lambda: scene.send(wire.SERVER_LIVE, handle=handle))[0]


def test_the_report_has_no_secrets(scene: Scene) -> None:
    assert scene.access.report() == [
        {
            "name": "service",
            "roles": ["infer", "observe", "operate"],
            "models": None,
            "max_outstanding": None,
            "rate": None,
            "requests": 0,
            "refused": 0,
            "outstanding": 0,
        }
    ]
