"""The front socket without libzmq: every ZeroMQ peer is served, and what is no peer costs its connection only."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from stream_front_scene import (
    ANSWERED,
    HELLO,
    MAX_MESSAGE,
    OLD_HELLO,
    PEER_TIMEOUT_S,
    QUARTER_S,
    WAIT_S,
    Scene,
    greeted,
    has_ended,
    request,
)

from multitower import wire, zmtp
from multitower.supervisor.routing.handshake_watch import CROWDED_HANDSHAKE_S
from multitower.supervisor.routing.peer_watch import HANDSHAKE_S


@pytest.fixture(params=["ipc", "tcp"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with contextlib.closing(Scene(tmp_path, request.param)) as made:
        yield made


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Scene]:
    """Over tcp; a client that is silent for `PEER_TIMEOUT_S` counts as gone."""
    with contextlib.closing(Scene(tmp_path, "tcp")) as made:
        yield made


def ask(peer: zmq.Socket[bytes], *before: bytes) -> dict[str, int]:
    peer.send_multipart([*before, b"kind", b"7", b"header"])
    *_, kind, id, header = peer.recv_multipart()
    assert (kind, id) == (wire.OK, b"7")
    return wire.load_header(header)


def test_a_dealer_is_served(scene: Scene) -> None:
    with scene.answering():
        peer = scene.peer(zmq.DEALER)
        peer.connect(scene.front.endpoint)
        assert ask(peer, b"") == {"hops": 1, "frames": 3}
        assert ask(peer, b"proxy's", b"client's", b"") == {"hops": 3, "frames": 3}


def test_a_req_is_served(scene: Scene) -> None:
    with scene.answering():
        peer = scene.peer(zmq.REQ)
        peer.connect(scene.front.endpoint)
        for _ in range(3):
            assert ask(peer) == {"hops": 1, "frames": 3}


def test_a_req_that_correlates_is_served_and_may_send_again_without_an_answer(scene: Scene) -> None:
    peer = scene.peer(zmq.REQ)
    peer.set(zmq.REQ_CORRELATE, 1)
    peer.set(zmq.REQ_RELAXED, 1)
    peer.connect(scene.front.endpoint)
    peer.send_multipart([b"kind", b"6"])
    assert len(scene.receive().address) == 2
    with scene.answering():
        assert ask(peer) == {"hops": 2, "frames": 3}


def test_a_router_is_served(scene: Scene) -> None:
    with scene.answering():
        peer = scene.peer(zmq.ROUTER)
        peer.set(zmq.ROUTER_MANDATORY, 1)
        peer.set(zmq.CONNECT_ROUTING_ID, b"daemon")
        peer.connect(scene.front.endpoint)
        assert ask(peer, b"daemon", b"") == {"hops": 1, "frames": 3}


def test_clients_behind_two_proxies_are_served(scene: Scene) -> None:
    """Each ROUTER on the way adds its name of the connection to the address, and removes it from the reply."""
    front, scene_context = scene.front.endpoint, scene.context

    def run(listen: str, connect: str) -> None:
        with scene_context.socket(zmq.ROUTER) as ours, scene_context.socket(zmq.DEALER) as theirs:
            for each in (ours, theirs):
                each.set(zmq.LINGER, 0)
            ours.bind(listen)
            theirs.connect(connect)
            control = scene_context.socket(zmq.PAIR)
            control.connect("inproc://end" + listen[-1])
            with control:
                zmq.proxy_steerable(ours, theirs, None, control)

    controls = [scene.peer(zmq.PAIR) for _ in range(2)]
    for number, control in enumerate(controls):
        control.bind(f"inproc://end{number}")
    hops = [("inproc://hop0", front), ("inproc://hop1", "inproc://hop0")]
    threads = [threading.Thread(target=run, args=hop) for hop in hops]
    for thread in threads:
        thread.start()
    try:
        with scene.answering():
            peers = [scene.peer(kind) for kind in (zmq.REQ, zmq.DEALER)]
            for peer in peers:
                peer.connect("inproc://hop1")
            assert ask(peers[0]) == {"hops": 3, "frames": 3}
            assert ask(peers[1], b"") == {"hops": 3, "frames": 3}
    finally:
        for control in controls:
            control.send(b"TERMINATE")
        for thread in threads:
            thread.join()


def test_peers_with_the_same_identity_are_both_heard(scene: Scene) -> None:
    with scene.answering():
        peers = [scene.peer(zmq.DEALER) for _ in range(2)]
        for peer in peers:
            peer.set(zmq.ROUTING_ID, b"same")
            peer.connect(scene.front.endpoint)
            peer.send_multipart([b"", b"kind", b"1"])
        for peer in peers:
            assert peer.recv_multipart()[1] == wire.OK


def test_a_peer_of_zmtp_3_0_is_served(scene: Scene) -> None:
    client = greeted(scene.raw(OLD_HELLO, request()))
    scene.front.answer(scene.receive().address, b"1", {})
    assert client.recv(100) == ANSWERED


def test_pings_are_answered(scene: Scene) -> None:
    client = greeted(scene.raw(HELLO, zmtp.command(b"PING", b"\0\0context"), request()))
    scene.receive()
    assert client.recv(100) == zmtp.command(b"PONG", b"context")


def test_pings_of_a_peer_that_reads_nothing_are_not_kept(scene: Scene) -> None:
    client = scene.raw(HELLO)
    pings = zmtp.command(b"PING", b"\0\0" + b"context of 16 b.") * 2000
    for _ in range(100):
        client.sendall(pings)
        assert scene.front.receive() is None
    (peer,) = scene.front._peers.values()
    assert peer.stream.unsent
    assert peer.stream.kept < 10


# What is no peer.


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HELLO[:64] + zmtp.ready("PUB"),
        HELLO + b"\xfd\0",
        HELLO + b"\2" + (2 * MAX_MESSAGE + 1).to_bytes(8, "big"),
    ],
)
def test_what_does_not_follow_the_protocol_costs_its_connection_only(
    data: bytes, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    other = greeted(scene.raw(HELLO, request()))
    address = scene.receive().address
    for _ in range(3):
        client = scene.raw(data)
        scene.until(lambda: scene.front.receive() is None and scene.connections.open == 1)
        assert has_ended(client)
    scene.front.answer(address, b"1", {})
    assert other.recv(100) == ANSWERED
    scene.front.tick(time.monotonic() + 60)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "a client's connection is closed",
        "connections are closed that do not follow the protocol",
    ]


def test_a_client_without_a_greeting_is_closed_after_a_while(scene: Scene) -> None:
    silent, idle = scene.raw(HELLO[:40]), scene.raw(HELLO)
    assert scene.front.receive() is None
    scene.front.tick(time.monotonic() + HANDSHAKE_S - 5)
    assert scene.connections.open == 2
    scene.front.tick(time.monotonic() + HANDSHAKE_S + 1)
    assert scene.connections.open == 1
    assert has_ended(greeted(silent))
    idle.sendall(request())
    assert scene.receive().body == [b"kind", b"1"]


def test_half_open_connections_make_room_soon_for_clients_that_wait(tmp_path: Path) -> None:
    with contextlib.closing(Scene(tmp_path, maximum=3)) as scene:
        served = greeted(scene.raw(HELLO, request()))
        address = scene.receive().address
        silent = [scene.raw(HELLO[:40]), scene.raw()]
        scene.connections.tick()
        assert scene.connections.paused
        other = scene.raw(HELLO, request(b"other's"))
        scene.front.tick(time.monotonic() + CROWDED_HANDSHAKE_S / 2)
        assert scene.connections.open == 3
        scene.front.tick(time.monotonic() + CROWDED_HANDSHAKE_S)
        assert all(map(has_ended, silent))
        scene.connections.tick()
        assert scene.receive().body == [b"kind", b"other's"]
        scene.front.answer(address, b"1", {})
        assert served.recv(100) == ANSWERED
        greeted(other)


PING = zmtp.command(b"PING", b"\0\0")


def test_a_client_over_tcp_that_does_not_answer_heartbeats_is_closed(remote: Scene) -> None:
    silent, answers = (greeted(remote.raw(HELLO, request())) for _ in range(2))
    for _ in range(2):
        remote.receive()
    now = time.monotonic()
    for quarter in range(1, 6):
        remote.front.tick(now + quarter * QUARTER_S + 1)
        assert answers.recv(100) == PING
        answers.sendall(zmtp.command(b"PONG", b""))
        select.select([remote.front.descriptor], [], [], WAIT_S)
        assert remote.front.receive() is None
        assert remote.connections.open == (2 if quarter < 4 else 1)
    assert has_ended(silent)
    answers.sendall(request(b"2"))
    assert remote.receive().body == [b"kind", b"2"]


def test_a_client_over_tcp_without_a_handshake_gets_no_heartbeat(remote: Scene) -> None:
    client = greeted(remote.raw(HELLO[:40]))
    now = time.monotonic()
    for quarter in range(1, 3):
        remote.front.tick(now + quarter * QUARTER_S + 1)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)


def test_a_peer_of_zmtp_3_0_gets_no_heartbeat(remote: Scene) -> None:
    client = greeted(remote.raw(OLD_HELLO, request()))
    address = remote.receive().address
    now = time.monotonic()
    for quarter in range(1, 10):
        remote.front.tick(now + quarter * QUARTER_S + 1)
    remote.front.answer(address, b"1", {})
    assert client.recv(100) == ANSWERED


def test_a_client_over_tcp_that_reads_slowly_is_not_taken_for_gone(remote: Scene) -> None:
    client = greeted(remote.raw(HELLO, request()))
    address = remote.receive().address
    large = bytes(16 << 20)
    remote.front.reply(address, wire.OK, b"1", (b"{}", large))
    now = time.monotonic()
    for quarter in range(1, 10):
        remote.front.tick(now + quarter * QUARTER_S + 1)
    assert remote.connections.open == 1
    left = len(large)
    while left > 0:
        assert remote.front.receive() is None
        left -= len(client.recv(1 << 20))


def test_the_kernel_watches_connections_over_tcp(remote: Scene) -> None:
    remote.raw(HELLO, request())
    remote.receive()
    (peer,) = remote.front._peers.values()
    get = peer.stream.socket.getsockopt
    assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == QUARTER_S
    assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * PEER_TIMEOUT_S


def test_a_client_that_ends_is_forgotten_and_its_replies_are_dropped(scene: Scene) -> None:
    client = scene.raw(HELLO, request(), request(b"2")[:-1])
    address = scene.receive().address
    client.close()
    scene.until(lambda: scene.front.receive() is None and scene.connections.open == 0)
    scene.front.answer(address, b"1", {})
    assert scene.front.dropped == 1
