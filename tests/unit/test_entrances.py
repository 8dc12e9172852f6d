"""Who sent a message at each way in, and what the ZAP handler answers."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import zmq
from fake_front import ADDRESS, FakeFront
from made_security import make_keys
from zmq.utils import z85

from multitower import wire
from multitower.bearer_tokens import new_token
from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.loop.containment import ErrorLog
from multitower.supervisor.routing.clients import Clients
from multitower.supervisor.routing.recent import RefusedRequests
from multitower.supervisor.security.access_control import AccessControl
from multitower.supervisor.security.entrance import (
    ControlEntrance,
    CurveEntrance,
    Entrance,
    GatewayEntrance,
    LocalEntrance,
)
from multitower.supervisor.security.peers import NOBODY
from multitower.supervisor.security.zap import BURST, DOMAIN, ENDPOINT, ZapHandler

KEYS = make_keys()
ONE = Principal("one", frozenset({Role.INFER}), models=("mine",), public_keys=(KEYS.public,))
USER_ID = f"{KEYS.public} 192.0.2.1"
OWN = f"localhost:{os.geteuid()}:0:4711"
OTHERS = f"localhost:{os.geteuid() + 1}:0:4712"


@pytest.fixture
def access() -> Iterator[AccessControl]:
    background = BackgroundJobs()
    yield AccessControl(Principals([ONE]), background)
    background.close()


def test_over_tcp_the_key_says_who_it_is(access: AccessControl) -> None:
    entrance = CurveEntrance(access)
    assert entrance.of_connection == "User-Id"
    assert entrance.identify(ADDRESS, USER_ID).principal is ONE
    for other in (f"{make_keys().public} 192.0.2.1", None, OWN, f" {KEYS.public}", KEYS.public[:-1], "192.0.2.1"):
        assert entrance.identify(ADDRESS, other) is NOBODY
    access.apply(Principals())
    assert entrance.identify(ADDRESS, USER_ID) is NOBODY


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", ""])
def test_over_tcp_the_address_says_where_from_and_of_nobody_the_key_too(access: AccessControl, address: str) -> None:
    entrance, connection = CurveEntrance(access), f"{KEYS.public} {address}"
    assert entrance.origin(entrance.identify(ADDRESS, connection), connection) == (address or "tcp")
    unknown = f"key {KEYS.public} at {address}" if address else f"key {KEYS.public}"
    assert entrance.origin(NOBODY, connection) == unknown
    assert entrance.origin(NOBODY, None) == ""


@pytest.mark.parametrize("name", [b"x", b"name", b"names", b"\0name.", b"\0\1\2\3\4\5"])
def test_a_peer_over_tcp_that_chose_its_name_is_nobody(access: AccessControl, name: bytes) -> None:
    # Otherwise it would get the replies of another one, whose connection has ended.
    assert CurveEntrance(access).identify((name,), KEYS.public) is NOBODY


def test_over_ipc_the_kernel_says_who_it_is(access: AccessControl) -> None:
    entrance = LocalEntrance(access)
    assert entrance.of_connection == "Peer-Address"
    assert entrance.identify(ADDRESS, OWN).roles == frozenset(Role)
    assert entrance.identify(ADDRESS, OTHERS).roles == {Role.INFER, Role.OBSERVE}
    assert entrance.identify(ADDRESS, None) is NOBODY
    assert entrance.identify(ADDRESS, KEYS.public) is NOBODY


def give(access: AccessControl) -> bytes:
    """A handle of the principal, as the gateway gets it for a certificate."""
    answers: list[Any] = []
    access.authenticator.answer({"certificate_name": "one", "from": "192.0.2.1:5"}, answers.append)
    return str(answers[0]["handle"]).encode()


@pytest.mark.parametrize("kind", [GatewayEntrance, lambda access: ControlEntrance(access, tuple)])
def test_a_handle_says_for_whom_the_gateway_asks(access: AccessControl, kind: Any) -> None:
    entrance: Entrance = kind(access)
    handle = give(access)
    peer = entrance.identify((b"r", handle), OWN)
    assert (peer.name, peer.origin) == ("one", "192.0.2.1:5")
    for address in ((b"r", b"anonymous"), (b"r", b"0" * 16), (b"r", handle, handle), (b"r", b"x", handle)):
        assert entrance.identify(address, OWN) is NOBODY
    for connection in (OTHERS, None, ""):
        assert entrance.identify((b"r", handle), connection) is NOBODY
    access.apply(Principals())
    assert entrance.identify((b"r", handle), OWN) is NOBODY


@pytest.mark.parametrize("kind", [GatewayEntrance, lambda access: ControlEntrance(access, tuple)])
def test_who_had_a_handle_is_found_again_by_the_principal(access: AccessControl, kind: Any) -> None:
    entrance: Entrance = kind(access)
    address = b"r", give(access)
    peer = entrance.identify(address, OWN)
    access.apply(Principals([replace(ONE, models=("other",))]))
    assert entrance.identify(address, OWN) is NOBODY, "the handle stands for the principal as it was"
    again = entrance.identify_again(peer, address, OWN)
    assert (again.name, again.origin, again.may_use("mine")) == ("one", "192.0.2.1:5", False)
    access.apply(Principals([replace(ONE, token_hashes=(new_token("one")[1],))]))
    added = entrance.identify_again(peer, address, OWN)
    assert added.name == "one", "another token was added"
    access.apply(Principals([ONE]))
    assert entrance.identify_again(added, address, OWN) is NOBODY, "a token was removed, maybe the one that was shown"
    access.apply(Principals())
    assert entrance.identify_again(peer, address, OWN) is NOBODY


def test_the_gateway_has_no_rights_of_its_own(access: AccessControl) -> None:
    assert GatewayEntrance(access).identify(ADDRESS, OWN) is NOBODY
    pids: set[int] = set()
    control = ControlEntrance(access, lambda: pids)
    assert control.identify(ADDRESS, OWN).roles == frozenset(Role)
    pids.add(4711)
    assert control.identify(ADDRESS, OWN) is NOBODY
    assert control.identify(ADDRESS, OWN.replace("4711", "4710")).roles == frozenset(Role)


# Nothing looks for a model before it is decided.


class Untouched:
    """Fails when anything of it is used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used for a request that is refused")


class Guarded(FakeFront):
    def __init__(self, entrance: Entrance, connection: str | None, body: list[Any]) -> None:
        super().__init__(body)
        self.entrance = entrance  # type: ignore[assignment]
        assert self._incoming is not None
        self._incoming.connection = connection
        self.strangers: list[bytes] = []

    def note_stranger(self, client: bytes) -> None:
        self.strangers.append(client)


GUARDED = sorted(wire.KINDS - {wire.SERVER_LIVE, wire.SERVER_READY})
REFUSED = [(kind, None, "unauthenticated") for kind in GUARDED]
REFUSED += [(kind, KEYS.public, "forbidden") for kind in GUARDED if kind not in (wire.CANCEL, wire.SERVER_METADATA)]


@pytest.mark.parametrize(
    ("kind", "connection", "reason"), REFUSED, ids=[f"{kind.decode()}-{why}" for kind, _, why in REFUSED]
)
def test_what_is_refused_looks_for_no_model(
    access: AccessControl, kind: bytes, connection: str | None, reason: str
) -> None:
    untouched: Any = Untouched()
    header = wire.dump_json({"model_name": "theirs", "inputs": []})
    front = Guarded(CurveEntrance(access), connection, [kind, b"id", header])
    admission: Any = type("Admission", (), {"check_size": lambda self, size: None})()
    clients = Clients(untouched, admission, untouched, {}, ErrorLog(untouched), RefusedRequests())
    clients.receive(front)  # type: ignore[arg-type]
    ((outcome, id, body),) = front.replies
    assert (outcome, id) == (wire.ERROR, b"id")
    assert wire.load_header(body[0])["error"]["reason"] == reason
    assert len(front.strangers) == (reason == "unauthenticated")


# The ZAP handler.


class Asking:
    """The handler, and a socket that asks it as libzmq does."""

    def __init__(self, access: AccessControl) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.zap = ZapHandler(self._context, access)
        self.rechecked = 0
        self.zap.recheck = self._recheck
        self.asking = self._context.socket(zmq.DEALER)
        self.asking.set(zmq.RCVTIMEO, 60_000)
        self.asking.connect(ENDPOINT)

    def _recheck(self) -> None:
        self.rechecked += 1

    def ask(self, *frames: bytes) -> list[bytes]:
        self.asking.send_multipart([b"", *frames])
        assert self.zap.socket.poll(60_000)
        self.zap.receive()
        return self.asking.recv_multipart()

    def close(self) -> None:
        self.zap.close()
        self._context.destroy(linger=0)


@pytest.fixture
def asking(access: AccessControl) -> Iterator[Asking]:
    made = Asking(access)
    yield made
    made.close()


KEY = z85.decode(KEYS.public)
GOOD = (b"1.0", b"7", DOMAIN, b"192.0.2.1", b"", b"CURVE", KEY)


def test_a_key_of_a_principal_is_admitted_under_its_name_and_address(asking: Asking) -> None:
    assert asking.ask(*GOOD) == [b"", b"1.0", b"7", b"200", b"OK", USER_ID.encode(), b""]


@pytest.mark.parametrize(
    ("place", "value"),
    [(6, bytes(32)), (6, KEY[:31]), (6, b""), (5, b"NULL"), (5, b"PLAIN"), (2, b""), (2, b"global")],
    # The key is another one in each process that collects tests.
    ids=["another key", "half a key", "no key", "NULL", "PLAIN", "no domain", "another domain"],
)
def test_anything_else_is_refused(asking: Asking, access: AccessControl, place: int, value: bytes) -> None:
    request = [*GOOD]
    request[place] = value
    answer = asking.ask(*request)
    assert answer[3] == b"400"
    assert answer[5] == b""
    assert access.failures.counts == {("mt1", "unknown_key"): 1}


def test_credentials_of_another_number_are_refused(asking: Asking) -> None:
    assert asking.ask(*GOOD[:6])[3] == b"400"
    assert asking.ask(*GOOD, KEY)[3] == b"400"


def test_a_revoked_key_is_refused(asking: Asking, access: AccessControl) -> None:
    access.apply(Principals())
    assert asking.ask(*GOOD)[3] == b"400"


@pytest.mark.parametrize("request_", [[b"1.0"], [b"2.0", *GOOD[1:]], [b""] * 9, [b"x"] * 40])
def test_what_is_no_request_is_not_answered(asking: Asking, request_: list[bytes]) -> None:
    asking.asking.send_multipart([b"", *request_])
    assert asking.zap.socket.poll(60_000)
    asking.zap.receive()
    assert asking.ask(*GOOD)[3] == b"200"


def test_many_requests_leave_turns_to_others(asking: Asking) -> None:
    for number in range(BURST + 5):
        asking.asking.send_multipart([b"", b"1.0", struct.pack(">I", number), *GOOD[2:]])
    assert asking.zap.socket.poll(60_000)
    asking.rechecked = 0
    asking.zap.receive()
    assert asking.rechecked == BURST + 1  # with each answer, and once since some are left
    asking.zap.receive()
    for number in range(BURST + 5):
        assert asking.asking.recv_multipart()[2] == struct.pack(">I", number)
