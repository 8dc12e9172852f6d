"""The bytes of ZMTP: messages arrive as they were sent, wherever the bytes are cut; what is no ZMTP is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multitower import zmtp
from multitower.tensors import BULKY_BYTES
from multitower.zmtp import Decoder, ZmtpError

HELLO = zmtp.GREETING + zmtp.ready("DEALER")


def opened(socket_type: str = "ROUTER") -> Decoder:
    """The decoder of a socket to which nothing has come yet."""
    return Decoder(socket_type, lambda size: memoryview(bytearray(size)))


def joined(message: Any) -> bytes:
    """A message as it is sent."""
    return b"".join(bytes(part) for part in zmtp.encode(message))


def decode(data: bytes, cuts: list[int], decoder: Decoder) -> list[list[bytes]]:
    """Feeds the data in pieces of these sizes, in turn; returns the messages."""
    messages: list[list[bytes]] = []
    position, turn = 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        turn += 1
        rest = decoder.rest_of_frame()
        if rest is None:
            decoder.feed(data[position : position + size])
            position += size
        else:
            piece = data[position : position + min(size, len(rest))]
            rest[: len(piece)] = piece
            decoder.filled(len(piece))
            position += len(piece)
        while (message := decoder.next_message()) is not None:
            assert all((type(frame) is bytes) == (len(frame) < BULKY_BYTES) for frame in message)
            messages.append([bytes(frame) for frame in message])
    return messages


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ([b""], "00 00"),
        ([b"abc"], "00 03 61 62 63"),
        ([b"a", b""], "01 01 61 00 00"),
        ([memoryview(b"abc")[1:], bytearray(b"d")], "01 02 62 63 00 01 64"),
    ],
)
def test_short_frames_have_flags_and_one_byte_of_length(message: Any, sent: str) -> None:
    assert joined(message) == bytes.fromhex(sent)


def test_frames_of_over_255_bytes_have_eight_bytes_of_length() -> None:
    assert joined([bytes(255)]) == b"\0\xff" + bytes(255)
    assert joined([bytes(256), b""]) == b"\3" + (256).to_bytes(8, "big") + bytes(256) + b"\0\0"


def test_large_frames_are_not_copied() -> None:
    large = np.zeros(BULKY_BYTES, np.uint8)
    buffers = zmtp.encode([b"head", large, b"end"])
    assert [len(part) for part in buffers] == [6 + 9, BULKY_BYTES, 5]
    large[0] = 7
    assert buffers[1][0] == 7


@pytest.mark.parametrize("message", [[], ["text"], [b"", np.zeros((4, 4), np.uint8)[:, 1]], [None]])
def test_what_cannot_be_sent_raises(message: Any) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        zmtp.encode(message)


def test_the_greeting_has_64_bytes_and_is_the_same_on_both_sides() -> None:
    assert len(zmtp.GREETING) == 64
    decoder = opened()
    assert not decoder.shake_hands()
    decoder.feed(HELLO)
    assert decoder.shake_hands()
    assert decoder.peer_type == "DEALER"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "does not speak ZMTP 3"),
        (b"\xff" + bytes(9), "does not speak ZMTP 3"),
        (zmtp.GREETING[:10] + b"\1", "speaks ZMTP 1"),
        (zmtp.GREETING[:12] + b"CURVE" + bytes(15), "mechanism b'CURVE'"),
        (zmtp.GREETING + b"\0\5hello", "is not READY"),
        (zmtp.GREETING + zmtp.command(b"ERROR", b"\3no!"), "refuses the connection"),
        (zmtp.GREETING + zmtp.command(b"READY", b""), "names no socket type"),
        (zmtp.GREETING + zmtp.command(b"READY", b"\x0bSocket-Type\0\0"), "READY is cut off"),
        (zmtp.GREETING + b"\4\x0a\5READY\3ABC", "READY is cut off"),
        (zmtp.GREETING + zmtp.command(b"READY", b"\x0bSocket-Type\0\0\0\7DEALER"), "READY is cut off"),
        (zmtp.GREETING + b"\6" + (1 << 20).to_bytes(8, "big"), "has 1048576 bytes, and is not READY"),
        (zmtp.GREETING + b"\4\0", "refuses the connection"),
        (zmtp.GREETING + zmtp.command(b"READY", b"\x0bSocket-Type\0\0\0\3PUB"), "a PUB socket cannot"),
        (HELLO + b"\x08\0", "flags 0x08"),
        (HELLO + b"\2" + b"\xff" * 8, "a frame of 18446744073709551615 bytes"),
        (HELLO + b"\5\0", "a command of 0 bytes"),
        (HELLO + b"\4\0", "a command without a name"),
        (HELLO + b"\4\2\5PI", "a command without a name"),
        (HELLO + zmtp.command(b"ERROR", b"\3no!"), "refuses the connection"),
    ],
)
@pytest.mark.parametrize("cut", [1, 1000])
def test_what_is_no_zmtp_is_refused(data: bytes, why: str, cut: int) -> None:
    with pytest.raises(ZmtpError, match=why):
        decode(data, [cut], opened())


@pytest.mark.parametrize(("mine", "theirs", "allowed"), [
    ("ROUTER", "DEALER", True), ("ROUTER", "REQ", True), ("ROUTER", "ROUTER", True), ("ROUTER", "REP", False),
    ("DEALER", "ROUTER", True), ("DEALER", "REP", True), ("DEALER", "REQ", False), ("DEALER", "PAIR", False),
])  # fmt: skip
def test_socket_types_are_connected_as_zeromq_allows(mine: str, theirs: str, allowed: bool) -> None:
    decoder = opened(mine)
    decoder.feed(zmtp.GREETING + zmtp.ready(theirs))
    if allowed:
        assert decoder.shake_hands()
    else:
        with pytest.raises(ZmtpError, match=f"a {theirs} socket cannot be connected with a {mine}"):
            decoder.shake_hands()


@pytest.mark.parametrize("cut", [1, 70, 1000])
def test_ready_may_have_many_properties_whose_names_have_any_case(cut: int) -> None:
    properties = b"\1X" + (400).to_bytes(4, "big") + bytes(400) + b"\x0bSOCKET-type\0\0\0\3REQ"
    decoder = opened()
    assert decode(zmtp.GREETING + zmtp.command(b"READY", properties) + b"\0\1a", [cut], decoder) == [[b"a"]]
    assert decoder.peer_type == "REQ"


def test_large_frames_are_received_into_memory_of_their_own() -> None:
    decoder = opened()
    decoder.feed(HELLO + joined([b"head", b"x" * BULKY_BYTES]))
    message = decoder.next_message()
    assert message is not None
    assert message[0] == b"head"
    assert (len(message[1]), message[1].readonly) == (BULKY_BYTES, False)


def test_a_ping_between_two_frames_is_answered_with_its_context() -> None:
    """libzmq sends its heartbeats there as well."""
    decoder = opened()
    ping = zmtp.command(b"PING", b"\0\x0aabc")
    assert decode(HELLO + b"\1\1a" + ping + b"\0\1b", [3], decoder) == [[b"a", b"b"]]
    assert decoder.pongs == [zmtp.command(b"PONG", b"abc")]


def test_unknown_commands_are_ignored() -> None:
    decoder = opened()
    data = HELLO + zmtp.command(b"PONG", b"") + zmtp.command(b"WHAT", bytes(300)) + b"\0\1a"
    assert decode(data, [7], decoder) == [[b"a"]]
    assert decoder.pongs == []


FRAMES = st.one_of(
    st.binary(max_size=20),
    st.integers(0, 600).map(lambda size: bytes(size)),
    st.integers(BULKY_BYTES - 3, BULKY_BYTES + 3).map(lambda size: b"x" * size),
)


@settings(max_examples=150, deadline=None)
@given(
    messages=st.lists(st.lists(FRAMES, min_size=1, max_size=4), max_size=4),
    cuts=st.lists(st.one_of(st.integers(1, 40), st.integers(300, 90000)), min_size=1, max_size=20),
)
def test_messages_are_found_however_they_are_cut(messages: list[list[bytes]], cuts: list[int]) -> None:
    if min(cuts) < 300 and sum(len(frame) for message in messages for frame in message) > 20000:
        cuts = [*cuts, 50000]  # or it takes too long
    data = HELLO + b"".join(map(joined, messages))
    assert decode(data, cuts, opened()) == messages


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_messages_or_refused(data: bytes, cut: int) -> None:
    with contextlib.suppress(ZmtpError, MemoryError):
        decode(HELLO + data, [cut], opened())
