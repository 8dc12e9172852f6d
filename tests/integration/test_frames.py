"""Whole messages through real sockets: in C where the installation is compiled, else through pyzmq."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from multitower import frames
from multitower.tensors import BULKY_BYTES

Pair = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]

ID = b"client"


class Sockets:
    """Makes pairs of connected sockets, and closes all of them."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def pair(self, bound: int = zmq.PAIR, connected: int = zmq.PAIR, most: int = 1000) -> Pair:
        one, other = self._context.socket(bound), self._context.socket(connected)
        self._made += [one, other]
        for each in (one, other):
            each.set(zmq.LINGER, 0)
            each.set(zmq.SNDHWM, most)
            each.set(zmq.RCVHWM, most)
        if bound == zmq.ROUTER:
            one.set(zmq.ROUTER_MANDATORY, 1)
            other.set(zmq.IDENTITY, ID)
        endpoint = f"inproc://{len(self._made)}"
        one.bind(endpoint)
        other.connect(endpoint)
        return one, other

    def close(self) -> None:
        for made in self._made:
            made.close()
        self._context.term()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()


@pytest.fixture
def pair(sockets: Sockets) -> Pair:
    return sockets.pair()


LARGE = bytes(range(256)) * (BULKY_BYTES // 256)


@pytest.mark.parametrize(
    "message",
    [
        [b"one"],
        [b""],
        [b"", b"", b""],
        (b"a tuple", b"of frames"),
        [memoryview(b"a view"), b"", bytearray(b"an array of bytes"), memoryview(b"half of it")[:4]],
        [LARGE],
        [LARGE[1:], LARGE, b"small", LARGE + b"1", memoryview(LARGE), np.zeros(BULKY_BYTES, np.uint8)],
        [str(number).encode() for number in range(2000)],
    ],
)
def test_messages_arrive_as_they_were_sent(pair: Pair, message: Any) -> None:
    sender, receiver = pair
    for _ in range(3):
        frames.send(sender, message)
        assert frames.readable(receiver)
        received = frames.receive(receiver)
        assert received is not None
        assert [bytes(memoryview(frame)) for frame in received] == [bytes(memoryview(frame)) for frame in message]
        assert [type(frame) is bytes for frame in received] == [len(frame) < BULKY_BYTES for frame in message]
    assert not frames.readable(receiver)
    assert frames.receive(receiver) is None


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_frames_over_the_limit_are_dropped_and_the_next_message_is_whole(pair: Pair, limit: int) -> None:
    sender, receiver = pair
    frames.send(sender, [b"1", LARGE, b"3"])
    frames.send(sender, [b"next"])
    received = frames.receive(receiver, limit)
    assert received is not None
    assert [bytes(memoryview(frame)) for frame in received] == [b"1", LARGE, b"3"][:limit]
    assert frames.receive(receiver, limit) == [b"next"]


def test_a_router_gets_the_address_and_reports_an_unknown_peer(sockets: Sockets) -> None:
    router, dealer = sockets.pair(zmq.ROUTER, zmq.DEALER)
    frames.send(dealer, [b"", b"kind", LARGE])
    received = frames.receive(router, 10, routed=True)
    assert received is not None
    assert received[:3] == [ID, b"", b"kind"]
    frames.send(router, received)
    answer = frames.receive(dealer)
    assert answer is not None
    assert bytes(memoryview(answer[2])) == LARGE
    with pytest.raises(zmq.ZMQError) as raised:
        frames.send(router, [b"nobody", b"", b"reply"])
    assert raised.value.errno == zmq.EHOSTUNREACH


def test_a_message_comes_with_a_property_of_its_connection(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    try:
        endpoint = f"ipc://{tmp_path}/s"
        router.bind(endpoint)
        dealer.connect(endpoint)
        for body in ([b"", b"kind", LARGE], [b""], [b"1", b"2", b"3", b"4"]):
            frames.send(dealer, body)
            assert router.poll(60_000)
            found = frames.receive_from(router, 3, "Peer-Address")
            assert found is not None
            message, sender, descriptor = found
            assert [bytes(memoryview(frame)) for frame in message[1:]] == body[:2]
            assert sender is not None
            assert sender.endswith(f":{os.geteuid()}:{os.getegid()}:{os.getpid()}")
            with socket.socket(fileno=os.dup(descriptor)) as accepted:
                assert accepted.getsockname() == endpoint.removeprefix("ipc://")
        assert frames.receive_from(router, 3, "Peer-Address") is None
        frames.send(dealer, [b"", b"kind"])
        assert router.poll(60_000)
        found = frames.receive_from(router, 10, "User-Id")
        assert found is not None
        assert found[0][1:] == [b"", b"kind"]
        assert found[1] is None
    finally:
        context.destroy(linger=0)
    with pytest.raises(zmq.ZMQError):
        frames.receive_from(router, 3, "Peer-Address")


def test_a_full_queue_is_an_error_at_once_and_leaves_no_partial_message(sockets: Sockets) -> None:
    sender, receiver = sockets.pair(most=2)
    sent = 0
    while not (full := _is_full(sender)):
        sent += 1
    assert full.errno == zmq.EAGAIN
    assert 2 <= sent <= 4
    for _ in range(sent):
        assert frames.receive(receiver) == [b"1", b"2"]
    assert frames.receive(receiver) is None


def _is_full(sender: zmq.Socket[bytes]) -> zmq.Again | None:
    try:
        frames.send(sender, [b"1", b"2"])
    except zmq.Again as error:
        return error
    return None


def test_a_large_frame_is_forwarded_without_a_copy_and_released(sockets: Sockets) -> None:
    (first, middle), (onward, last) = sockets.pair(), sockets.pair()
    data = np.full(BULKY_BYTES, 7, np.uint8)
    tracker = first.send(data, copy=False, track=True)
    received = frames.receive(middle)
    assert received is not None
    frames.send(onward, received)
    arrived = frames.receive(last)
    assert arrived is not None
    data[5] = 8
    assert memoryview(arrived[0])[5] == 8
    view = np.frombuffer(memoryview(arrived[0]), np.uint8)
    del received, arrived
    assert not tracker.done
    assert view[5] == 8
    del view
    tracker.wait(60)  # or it raises


def test_a_closed_socket_is_an_error(pair: Pair) -> None:
    for closed in pair:
        closed.close()
        with pytest.raises(zmq.ZMQError) as raised:
            frames.receive(closed)
        assert raised.value.errno == zmq.ENOTSOCK
        with pytest.raises(zmq.ZMQError):
            frames.send(closed, [b"1"])
        with pytest.raises(zmq.ZMQError):
            frames.readable(closed)


def released() -> memoryview:
    view = memoryview(b"released")
    view.release()
    return view


BAD = [
    ["a text"],
    [b"1", 2],
    [memoryview(bytes(8))[::2]],
    [b"1", released()],
    [b"1", LARGE, None, b"4"],
    [b"1"] * 20 + [""],
]


@pytest.mark.parametrize("message", BAD, ids=lambda message: type(message[-1]).__name__)
def test_an_object_that_cannot_be_sent_leaves_nothing_of_its_message_behind(pair: Pair, message: Any) -> None:
    sender, receiver = pair
    with pytest.raises((TypeError, ValueError, BufferError)):
        frames.send(sender, message)
    frames.send(sender, [b"next"])
    assert frames.receive(receiver) == [b"next"]


def test_messages_that_fail_to_be_sent_leave_no_memory_behind(sockets: Sockets) -> None:
    sender, _ = sockets.pair(most=2)
    while _is_full(sender) is None:
        pass
    message = [bytes(BULKY_BYTES - 1)] * 20
    process = psutil.Process()
    for attempts in (20, 200):  # the first ones may need memory of their own
        before = process.memory_info().rss
        for _ in range(attempts):
            with pytest.raises(zmq.Again):
                frames.send(sender, message)
            with pytest.raises(ValueError, match="released"):
                frames.send(sender, [*message, released()])
    assert process.memory_info().rss - before < 20 * BULKY_BYTES * 20


# What frames may be made of: objects that can be sent, and objects that cannot.
SENDABLE = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(bytearray),
    st.binary(max_size=40).map(memoryview),
    st.integers(0, 3).map(lambda more: LARGE + bytes(more)),
    st.integers(1, 3).map(lambda less: memoryview(LARGE)[less:]),
)
NOT_SENDABLE = st.one_of(
    st.none(), st.integers(), st.text(max_size=3), st.builds(released), st.just(memoryview(bytes(9))[::2])
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(SENDABLE, min_size=1, max_size=20)),
        st.tuples(st.just("fail"), st.lists(st.one_of(SENDABLE, NOT_SENDABLE), max_size=20)),
        st.tuples(st.just("receive"), st.one_of(st.none(), st.integers(1, 20))),
        st.tuples(st.just("forward"), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=int(os.environ.get("MULTITOWER_FUZZ", "60")), deadline=None)
@given(steps=STEPS)
def test_any_mix_of_good_and_bad_messages_arrives_as_it_was_sent(steps: list[tuple[str, Any]]) -> None:
    sockets = Sockets()
    try:
        sender, receiver = sockets.pair()
        sent: list[list[bytes]] = []
        for step, argument in steps:
            if step in ("send", "fail"):
                try:
                    frames.send(sender, argument)
                except (TypeError, ValueError, BufferError, IndexError):
                    assert step == "fail"
                else:
                    sent.append([bytes(memoryview(frame)) for frame in argument])
                continue
            received = frames.receive(receiver, argument)
            assert (received is None) == (not sent)
            if received is not None:
                assert [bytes(memoryview(frame)) for frame in received] == sent.pop(0)[:argument]
                if step == "forward":
                    frames.send(sender, received)
                    sent.append([bytes(memoryview(frame)) for frame in received])
        while sent:
            received = frames.receive(receiver)
            assert received is not None
            assert [bytes(memoryview(frame)) for frame in received] == sent.pop(0)
        assert frames.receive(receiver) is None
    finally:
        sockets.close()
