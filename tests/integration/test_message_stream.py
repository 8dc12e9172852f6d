"""Messages on real stream sockets: partial writes, the end of a peer, and memory."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from multitower.buffers import Buffers
from multitower.message_stream import READ_BYTES, MessageStream
from multitower.tensors import BULKY_BYTES
from multitower.zmtp import ZmtpError

Pair = tuple[MessageStream, MessageStream]

LARGE = bytes(range(256)) * (BULKY_BYTES // 256)
MUCH = np.arange(8 << 20, dtype=np.uint32).view(np.uint8)
"""More than any socket's buffer holds."""

STEP_S = 30.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one.setblocking(False)
    with (
        closing(MessageStream(one, "DEALER", Buffers(1 << 20).allocate)) as dealer,
        closing(MessageStream(other, "ROUTER", Buffers(1 << 20).allocate)) as router,
    ):
        yield dealer, router


def receive(stream: MessageStream, writer: MessageStream | None = None) -> list[bytes]:
    """Waits for the next message, while another stream writes what it has kept."""
    while (message := stream.next_message()) is None:
        writing = [writer] if writer is not None and writer.unsent else []
        readable, writable, _ = select.select([stream], writing, [], STEP_S)
        assert readable or writable, "nothing happens"
        if readable:
            assert stream.read(), "it has ended"
        if writable:
            writable[0].flush()
    return [bytes(frame) for frame in message]


@pytest.mark.parametrize(
    "message",
    [
        [b"one"],
        [b"", b"", b""],
        [b"a", bytearray(b"array"), memoryview(b"a view")[2:], np.zeros(3, np.uint8)],
        [LARGE[1:], LARGE, b"small", LARGE + b"1", memoryview(LARGE)],
        [str(number).encode() for number in range(3000)],
        [LARGE] * 700,
    ],
    ids=["one", "empty", "buffers", "large", "many", "many large"],
)
def test_messages_arrive_as_they_were_sent(pair: Pair, message: list[bytes]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        for _ in range(2):
            sender.send(message)
        for _ in range(2):
            assert receive(receiver, sender) == [bytes(frame) for frame in message]
        assert receiver.next_message() is None


def test_what_the_kernel_does_not_take_is_kept_in_order(pair: Pair) -> None:
    sender, receiver = pair
    sender.send([b"first", MUCH])
    assert sender.unsent
    sender.send([b"second"])
    sender.send([b"third", LARGE])
    first = receive(receiver, sender)
    assert first[0] == b"first"
    assert first[1] == MUCH.tobytes()
    assert receive(receiver, sender) == [b"second"]
    assert receive(receiver, sender) == [b"third", LARGE]
    assert not sender.unsent


def test_held_messages_are_written_with_the_next_one_or_by_flush(pair: Pair) -> None:
    sender, receiver = pair
    while not receiver.shake_hands():
        receiver.read()
    sender.hold([b"1"])
    sender.hold([b"2", b""])
    assert not receiver.read()
    assert (sender.kept, sender.unsent) == (2, False)
    sender.send([b"3"])
    assert [receive(receiver) for _ in range(3)] == [[b"1"], [b"2", b""], [b"3"]]
    sender.hold([b"4"])
    sender.flush()
    assert receive(receiver) == [b"4"]
    assert sender.kept == 0


def test_it_is_drained_when_a_read_has_taken_all_that_had_arrived(pair: Pair) -> None:
    sender, receiver = pair
    sender.send([b"small"])
    assert receiver.read()
    assert receiver.drained
    assert receive(receiver) == [b"small"]
    sender.send([bytes(READ_BYTES - 1)] * 3)
    assert receiver.read()
    assert not receiver.drained
    while receiver.next_message() is None:
        assert receiver.read()
    assert not receiver.read()
    assert receiver.drained


def test_large_frames_are_writable_memory_of_their_own(pair: Pair) -> None:
    sender, receiver = pair
    sender.send([LARGE, LARGE])
    receiver.read()
    while (message := receiver.next_message()) is None:
        receiver.read()
    first, second = message
    first[0] = 99
    assert (first[0], second[0]) == (99, 0)


@pytest.mark.parametrize("unread", [False, True], ids=["in peace", "with something unread"])
def test_all_that_a_peer_sent_is_read_before_its_end_is_noticed(pair: Pair, unread: bool) -> None:
    """The kernel reports a reset where the peer had something unread; what it had sent comes first all the same."""
    peer, stream = pair
    while not peer.shake_hands():
        peer.read()
    messages = [[str(number).encode(), bytes(number)] for number in range(500)]
    for message in messages:
        peer.send(message)
    if unread:
        stream.send([b"never read"])
    peer.close()
    assert [receive(stream) for _ in messages] == messages
    assert not stream.ended
    assert not stream.read()
    assert stream.ended
    with pytest.raises(BrokenPipeError):
        stream.send([b"nobody"])


def test_half_a_message_of_a_peer_that_has_ended_is_no_message(pair: Pair) -> None:
    peer, stream = pair
    peer.send([b"whole"])
    peer.send([b"half", MUCH])
    peer.close()
    assert receive(stream) == [b"whole"]
    while stream.read():
        assert stream.next_message() is None
    assert stream.ended


def test_pings_are_answered_only_when_the_owner_wants(pair: Pair) -> None:
    stream, peer = pair
    while not peer.shake_hands():
        peer.read()
    peer.socket.sendall(b"\4\x09\4PING\0\0hi")
    assert not stream.pinged
    while not stream.pinged:
        assert stream.read()
        assert stream.next_message() is None
    stream.answer_pings()
    assert not stream.pinged
    assert peer.socket.recv(100) == b"\4\7\4PONGhi"


def test_a_peer_that_is_none_raises() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with other, closing(MessageStream(one, "ROUTER", Buffers(1 << 20).allocate)) as stream:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stream.read()
        with pytest.raises(ZmtpError, match="does not speak ZMTP"):
            stream.next_message()
