"""The front socket without libzmq: how much it keeps of a message, whose turn it is, failing system calls, its end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from descriptors import leaving_no_descriptor
from stream_front_scene import ANSWERED, HELLO, MAX_MESSAGE, WAIT_S, Scene, greeted, has_ended, request

from multitower import wire, zmtp
from multitower.supervisor.config.principals import Principals, Role
from multitower.supervisor.routing import stream_front
from multitower.supervisor.routing.front_socket import MAX_FRAMES
from multitower.supervisor.routing.stream_front import MAX_LOOKS
from multitower.supervisor.security.peers import Peers
from multitower.tensors import BULKY_BYTES

SENDING = ("send", "sendmsg")
"""Methods of a socket with which streams write."""


@pytest.fixture(params=["ipc", "tcp"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with contextlib.closing(Scene(tmp_path, request.param)) as made:
        yield made


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Scene]:
    with contextlib.closing(Scene(tmp_path)) as made:
        yield made


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Scene]:
    """Over tcp; a client that is silent for `PEER_TIMEOUT_S` counts as gone."""
    with contextlib.closing(Scene(tmp_path, "tcp")) as made:
        yield made


def test_a_message_with_too_many_frames_is_cut_and_the_next_one_is_whole(scene: Scene) -> None:
    frames = [b"x"] * (MAX_FRAMES + 1000)
    scene.raw(HELLO, request(b"1", *frames), request(b"2", b"header"))
    cut = scene.receive().body
    assert cut is not None
    assert wire.MAX_INPUTS + 3 < len(cut) < MAX_FRAMES
    assert scene.receive().body == [b"kind", b"2", b"header"]


@pytest.mark.parametrize("size", [1000, BULKY_BYTES - 1, BULKY_BYTES, 2 * MAX_MESSAGE])
def test_of_a_message_that_is_too_large_only_so_much_is_kept_that_it_gets_its_error(size: int, scene: Scene) -> None:
    frames = [bytes(size)] * (10 * MAX_MESSAGE // size)
    client = scene.raw(HELLO)
    sender = threading.Thread(target=client.sendall, args=(request(b"1", *frames) + request(b"2", b"header"),))
    sender.start()
    try:
        kept = scene.receive().body
        assert kept is not None
        assert MAX_MESSAGE < sum(map(len, kept)) <= MAX_MESSAGE + size + 100
        assert scene.receive().body == [b"kind", b"2", b"header"]
    finally:
        sender.join()


def test_a_client_with_many_requests_does_not_keep_another_waiting(scene: Scene) -> None:
    scene.raw(HELLO, b"".join(request(b"%d" % number) for number in range(2000)))
    scene.raw(HELLO, request(b"other's"))
    order = [scene.receive().body for _ in range(2001)]
    assert [b"kind", b"other's"] in order[:3]
    others = [body for body in order if body != [b"kind", b"other's"]]
    assert others == [[b"kind", b"%d" % number] for number in range(2000)]


def test_a_read_with_thousands_of_messages_does_not_keep_another_client_waiting(scene: Scene) -> None:
    honest = scene.raw(HELLO, request())
    scene.receive()
    flood = scene.raw(HELLO, b"\0\0" * 30_000)  # the shortest message of all
    scene.receive()
    honest.sendall(request(b"honest"))
    for count in range(1000):
        if count % 256 == 0:
            scene.front.look()  # as the loop does after each burst
        incoming = scene.front.receive()
        assert incoming is not None
        if incoming.body is not None and incoming.body[1:2] == [b"honest"]:
            break
    else:
        pytest.fail("1000 messages of the other client came first")
    flood.close()


def test_a_connection_ends_whose_frame_could_be_written_only_in_part(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = greeted(scene.raw(HELLO, request()))
    incoming = scene.receive()

    def fail(*_: object) -> int:
        raise OSError(errno.ENOBUFS, "no buffer space")

    with monkeypatch.context() as patched:
        for name in SENDING:
            patched.setattr(socket.socket, name, fail)
        scene.front.answer(incoming.address, b"1", {})
        scene.front.flush()
    assert has_ended(client)


def test_a_defect_in_one_write_costs_no_other_client_its_reply(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (greeted(scene.raw(HELLO, request())) for _ in range(2))
    incoming = [scene.receive() for _ in range(2)]
    scene.front.recheck = lambda: None  # so replies are collected, as in a loop
    for each in incoming:
        scene.front.answer(each.address, b"1", {})
    failing = [True]

    def failing_once(name: str) -> Callable[..., int]:
        send = getattr(socket.socket, name)

        def fail(*arguments: object) -> int:
            if failing:
                failing.clear()
                raise RuntimeError("injected")
            return int(send(*arguments))

        return fail

    with monkeypatch.context() as patched:
        for name in SENDING:
            patched.setattr(socket.socket, name, failing_once(name))
        scene.front.flush()
    assert not failing
    assert has_ended(first)
    assert second.recv(len(ANSWERED)) == ANSWERED


def test_where_the_system_has_no_room_a_client_waits_until_the_next_tick(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: socket.socket) -> None:
        raise OSError(errno.ENFILE, "too many open files in system")

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "accept", fail)
        client = scene.raw(HELLO)
        scene.connections.accept()
        assert scene.connections.paused
        assert not select.select([scene.connections.descriptor], [], [], 0)[0], "the loop would be woken for ever"
    scene.connections.tick()
    assert not scene.connections.paused
    scene.until(lambda: scene.connections.open == 1)
    greeted(client)


def test_replies_are_collected_until_the_loop_waits(scene: Scene) -> None:
    asked: list[None] = []
    scene.front.recheck = lambda: asked.append(None)
    client = greeted(scene.raw(HELLO, request()))
    address = scene.receive().address
    for _ in range(3):
        scene.front.reply(address, wire.OK, b"1", (b"{}",))
    assert len(asked) == 1
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    assert not scene.front.look()
    assert client.recv(1000) == 3 * ANSWERED
    scene.front.reply(address, wire.OK, b"1", (b"{}",))
    assert len(asked) == 2


# The connection itself.


def test_the_kernel_tells_who_has_connected(local: Scene) -> None:
    local.raw(HELLO, request())
    found = Peers(Principals(()), os.getuid()).local(local.receive().connection)
    assert (found.name, found.pid) == (f"local:{os.getuid()}", os.getpid())
    assert found.roles == set(Role)


def test_what_was_sent_before_the_end_arrives(scene: Scene) -> None:
    client = greeted(scene.raw(HELLO, request()))
    address = scene.receive().address
    large = bytes(4 << 20)
    for _ in range(3):
        assert scene.front.reply(address, wire.OK, b"1", (b"{}", large))
    received: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                received.append(data)
        client.close()  # over tcp the front socket waits for it

    reader = threading.Thread(target=read)
    reader.start()
    scene.front.close(int(WAIT_S * 1000))
    reader.join()
    assert sum(map(len, received)) > 3 * len(large)


def test_the_end_waits_for_a_client_that_reads_nothing_no_longer_than_it_may(scene: Scene) -> None:
    scene.raw(HELLO, request())
    scene.front.reply(scene.receive().address, wire.OK, b"1", (b"{}", bytes(4 << 20)))
    begun = time.monotonic()
    scene.front.close(200)
    assert 0.2 <= time.monotonic() - begun < WAIT_S / 2
    assert scene.unread.total == 0


def test_connections_survive_when_the_path_is_bound_again(local: Scene) -> None:
    client = greeted(local.raw(HELLO, request()))
    address = local.receive().address
    Path(local.front.endpoint.removeprefix("ipc://")).unlink()
    assert local.front.restore(local.front.endpoint)
    local.raw(HELLO, request(b"2"))
    assert local.receive().body == [b"kind", b"2"]
    local.front.answer(address, b"1", {})
    assert client.recv(100) == ANSWERED


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_nothing_stays_open(transport: str, tmp_path: Path) -> None:
    with leaving_no_descriptor():
        for _ in range(3):
            scene = Scene(tmp_path, transport)
            scene.raw(HELLO, request())
            scene.receive()
            scene.close()
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_is_closed_gives_back_the_memory_of_its_message(remote: Scene) -> None:
    size = 2 * MAX_MESSAGE
    head = b"".join(bytes(part) for part in zmtp.encode([b"", b"kind", bytes(size)]))[:-size]
    client = remote.raw(HELLO + head + bytes(size - 1))
    remote.until(lambda: remote.front.receive() is None and remote.connections.open == 1)
    before = stream_front._buffers.free_bytes
    remote.until(lambda: remote.front.receive() is None and stream_front._buffers.free_bytes == before)
    client.close()
    remote.until(lambda: remote.front.receive() is None and not remote.connections.open)
    remote.front.tick(time.monotonic())
    assert stream_front._buffers.free_bytes >= before + size


def test_what_was_answered_arrives_although_a_request_is_unread_at_the_end(remote: Scene) -> None:
    large = bytes(400_000)
    client = greeted(remote.raw(HELLO + request()))
    asked = remote.receive()
    remote.front.reply(asked.address, wire.OK, b"1", (b"{}", large))
    remote.front.flush()
    client.sendall(request(b"2"))
    closing = threading.Thread(target=remote.front.close, args=(int(WAIT_S * 1000),))
    closing.start()
    read = 0
    while data := client.recv(1 << 16):
        read += len(data)
    client.close()
    closing.join(WAIT_S)
    assert read > len(large)
    assert not closing.is_alive(), "it does not wait for clients that have left"


def test_connections_without_a_message_keep_others_waiting_for_some_of_them(scene: Scene) -> None:
    for _ in range(MAX_LOOKS + 8):
        scene.raw(HELLO)
    asked: list[bool] = []
    scene.front.recheck = lambda: asked.append(True)
    assert scene.front.receive() is None
    assert scene.front.readable, "the loop comes back for the rest"
    assert asked
    assert scene.front.receive() is None
    assert not scene.front.readable
