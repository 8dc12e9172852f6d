"""ZMTP 3.1, the wire protocol of ZeroMQ, with the NULL mechanism: what two sockets write to each other, as bytes.

Each side sends a greeting of 64 bytes and the command READY, which names its socket type, and then messages. A message
is one or more frames; a frame has flags, a length and data. Nothing here reads or writes a socket; `message_stream`
does. The daemon and its workers use it for the sockets between them, and the Python clients over ipc. The peer may be
any libzmq socket of a matching type (https://rfc.zeromq.org/spec/37).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from multitower.tensors import BULKY_BYTES

GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
"""Signature, version, mechanism, not a server, filler."""

PEERS: Final = {
    "DEALER": ("DEALER", "REP", "ROUTER"),
    "ROUTER": ("DEALER", "REQ", "ROUTER"),
}
"""The socket types that a type may be connected with."""

MAX_FRAME_BYTES: Final = 1 << 40


class Limits(NamedTuple):
    """What a peer may send.

    Attributes:
        frame_bytes: of one frame; the connection of a peer that sends a larger one must be closed.
        frames: of a message; further ones are read and dropped.
        message_bytes: of a message, after which its further frames are read and dropped.
    """

    frame_bytes: int
    frames: int
    message_bytes: int


NO_LIMITS: Final = Limits(MAX_FRAME_BYTES, 1 << 62, 1 << 62)
"""For a peer that is trusted."""

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_KNOWN_FLAGS: Final = _MORE | _LONG | _COMMAND

_SHORT_BYTES: Final = 255
"""The largest frame whose length takes one byte."""

_LONG_HEAD: Final = struct.Struct(">BQ")
_SIZE: Final = struct.Struct(">I")
_PING_TTL_BYTES: Final = 2

_LAST_HEADS: Final = tuple(bytes((0, size)) for size in range(_SHORT_BYTES + 1))
_MORE_HEADS: Final = tuple(bytes((_MORE, size)) for size in range(_SHORT_BYTES + 1))
"""What precedes a short frame of each size."""


class ZmtpError(Exception):
    """The peer does not follow the protocol, or is no peer for this socket; the connection must be closed."""


def command(name: bytes, data: bytes) -> bytes:
    """A command as it is sent.

    Args:
        name: its name.
        data: what belongs to it.
    """
    body = bytes((len(name),)) + name + data
    if len(body) <= _SHORT_BYTES:
        return bytes((_COMMAND, len(body))) + body
    return _LONG_HEAD.pack(_COMMAND | _LONG, len(body)) + body


def ready(socket_type: str) -> bytes:
    """The command READY of a socket of this type, without an identity."""
    data = b"".join(
        bytes((len(name),)) + name + _SIZE.pack(len(value)) + value
        for name, value in ((b"Socket-Type", socket_type.encode()), (b"Identity", b""))
    )
    return command(b"READY", data)


def ping() -> bytes:
    """The command PING, without a context and a time to live, which the peer must answer."""
    return command(b"PING", bytes(_PING_TTL_BYTES))


def encode(message: Sequence[Any]) -> list[Any]:
    """The bytes of a message, as buffers that must be written one after the other.

    Small frames are copied into one buffer. Large ones are views of their objects, which must not change before they
    are written.

    Args:
        message: one frame or more: `bytes` or other objects with the buffer protocol, contiguous in memory.

    Raises:
        TypeError, ValueError, BufferError: an object cannot be sent, or there is none.
    """
    if not message:
        raise ValueError("a message has at least one frame")
    buffers: list[Any] = []
    parts: list[bytes] = []
    last = len(message) - 1
    for index, frame in enumerate(message):
        data: Any = frame
        if type(frame) is not bytes:
            view = memoryview(frame)
            if not view.contiguous:
                raise BufferError("a frame must be contiguous in memory")
            data = view.cast("B") if view.nbytes >= BULKY_BYTES else view.tobytes()
        size = len(data)
        if size <= _SHORT_BYTES:
            parts.append(_MORE_HEADS[size] if index < last else _LAST_HEADS[size])
            parts.append(data)
        else:
            parts.append(_LONG_HEAD.pack(_LONG | _MORE if index < last else _LONG, size))
            if size < BULKY_BYTES:
                parts.append(data)
            else:
                buffers.append(b"".join(parts))
                buffers.append(data)
                parts = []
    if parts:
        buffers.append(b"".join(parts))
    return buffers


def _check_greeting(begun: bytes) -> None:
    """Refuses what cannot become a greeting as soon as that shows: older peers send less and wait for an answer.

    Args:
        begun: what has come of it.
    """
    if begun[:1] not in (b"", b"\xff") or (len(begun) > 9 and not begun[9] & 1):
        raise ZmtpError("the peer does not speak ZMTP 3")
    if len(begun) > 10 and begun[10] < 3:
        raise ZmtpError(f"the peer speaks ZMTP {begun[10]}, not 3")
    mechanism = begun[12:32].rstrip(b"\0")
    if len(begun) >= 32 and mechanism != b"NULL":
        raise ZmtpError(f"the peer wants the mechanism {mechanism!r}, not NULL")


class Decoder:
    """Finds messages in what a peer has sent, however it was cut.

    The owner of the socket reads into `rest_of_frame()` where there is one, and then calls `filled`. Otherwise it reads
    any number of bytes, and passes them to `feed`. After either it calls `next_message` until there is none.

    Args:
        socket_type: the type of this side's socket.
        allocate: makes writable memory for a large frame.
        limits: of what the peer may send.

    Attributes:
        peer_type: the type of the peer's socket; "" until its READY has been read.
        knows_pings: whether the peer speaks ZMTP 3.1, which has heartbeats; False until its READY has been read.
        pongs: commands that must be sent to the peer: the answers to its pings. The owner removes them.
    """

    def __init__(self, socket_type: str, allocate: Callable[[int], memoryview], limits: Limits = NO_LIMITS) -> None:
        self._max_frame_bytes, self._max_frames, self._max_message_bytes = limits
        self.peer_type = ""
        self.knows_pings = False
        self.pongs: list[bytes] = []
        self._socket_type = socket_type
        self._allocate = allocate
        self._greeted = False
        self._version = (0, 0)
        self._data = b""
        self._position = 0
        self._frames: list[Any] = []
        self._bytes = 0  # of an incomplete message, as far as it has come
        # A frame that is dropped, of which the beginning has come.
        self._drops_rest = False
        self._to_drop = 0
        self._drop_more = False
        # A large frame of which the beginning has come.
        self._large: memoryview | None = None
        self._large_filled = 0
        self._large_more = False

    def feed(self, data: bytes) -> None:
        """Takes what has been read."""
        if self._to_drop:
            dropped = min(self._to_drop, len(data))
            self._to_drop -= dropped
            data = data[dropped:]
        rest = len(self._data) - self._position
        self._data = self._data[self._position :] + data if rest else data
        self._position = 0

    @property
    def undecoded(self) -> bool:
        """Whether there may be another message in what has been read."""
        return self._position < len(self._data)

    def rest_of_frame(self) -> memoryview | None:
        """The memory for the rest of a large frame of which the beginning has come; None where there is none."""
        if self._large is None:
            return None
        return self._large[self._large_filled :]

    def filled(self, count: int) -> None:
        """Takes note that so many bytes have been read into `rest_of_frame()`."""
        self._large_filled += count

    def next_message(self) -> list[Any] | None:
        """The next whole message, or None until more has been read.

        Returns:
            The frames: those under `BULKY_BYTES` as `bytes`, others as writable views of memory of their own.

        Raises:
            ZmtpError: the peer does not follow the protocol.
            MemoryError: there is no memory for a frame.
        """
        if self._large is not None:
            if self._large_filled < len(self._large):
                return None
            self._frames.append(self._large)
            self._large = None
            if not self._large_more:
                return self._take()
        if self._drops_rest:
            if self._to_drop:
                return None
            self._drops_rest = False
            if not self._drop_more:
                return self._take()
        if not self.peer_type and not self.shake_hands():
            return None
        data, position = self._data, self._position
        end = len(data)
        while position + 2 <= end:
            flags = data[position]
            if flags & _LONG:
                if position + _LONG_HEAD.size > end:
                    break
                length = int.from_bytes(data[position + 1 : position + 9], "big")
                start = position + 9
            else:
                length = data[position + 1]
                start = position + 2
            if flags & ~_KNOWN_FLAGS or length > self._max_frame_bytes:
                raise ZmtpError(f"a frame of {length} bytes with the flags {flags:#04x}")
            if flags & _COMMAND:
                # It may stand between two frames of a message: libzmq sends its heartbeats there.
                if flags & _MORE or length >= BULKY_BYTES:
                    raise ZmtpError(f"a command of {length} bytes with the flags {flags:#04x}")
                if start + length > end:
                    break
                self._execute(data[start : start + length])
                position = start + length
                continue
            if len(self._frames) >= self._max_frames or self._bytes > self._max_message_bytes:
                there = min(length, end - start)
                position = start + there
                if there < length:
                    self._drops_rest, self._to_drop, self._drop_more = True, length - there, bool(flags & _MORE)
                    break
            elif length >= BULKY_BYTES:
                self._bytes += length
                there = min(length, end - start)
                large = self._allocate(length)
                large[:there] = data[start : start + there]
                position = start + there
                if there < length:
                    self._large, self._large_filled, self._large_more = large, there, bool(flags & _MORE)
                    break
                self._frames.append(large)
            elif start + length > end:
                break
            else:
                self._frames.append(data[start : start + length])
                self._bytes += length
                position = start + length
            if not flags & _MORE:
                self._position = position
                return self._take()
        self._position = position
        return None

    def _take(self) -> list[Any]:
        message, self._frames = self._frames, []
        self._bytes = 0
        return message

    def shake_hands(self) -> bool:
        """Reads the peer's greeting and READY; returns whether both have come.

        Raises:
            ZmtpError: the peer does not follow the protocol, or is no peer for this socket.
        """
        if self.peer_type:
            return True
        if not self._greeted:
            greeting = self._data[self._position : self._position + len(GREETING)]
            _check_greeting(greeting)
            if len(greeting) < len(GREETING):
                return False
            self._position += len(GREETING)
            self._greeted = True
            self._version = (greeting[10], greeting[11])
        data, start = self._data, self._position
        if len(data) < start + 2:
            return False
        flags = data[start]
        if flags & ~_LONG != _COMMAND:
            raise ZmtpError(f"the peer's first frame has the flags {flags:#04x}, and is not READY")
        if flags & _LONG:
            if len(data) < start + _LONG_HEAD.size:
                return False
            length = int.from_bytes(data[start + 1 : start + _LONG_HEAD.size], "big")
            start += _LONG_HEAD.size
        else:
            length = data[start + 1]
            start += 2
        if length >= BULKY_BYTES:
            raise ZmtpError(f"the peer's first frame has {length} bytes, and is not READY")
        if len(data) < start + length:
            return False
        self._position = start + length
        self.peer_type = self._read_ready(data[start : start + length])
        self.knows_pings = self._version >= (3, 1)
        return True

    def _read_ready(self, body: bytes) -> str:
        """The socket type in the body of a READY."""
        if not body.startswith(b"\x05READY"):
            raise ZmtpError(f"the peer refuses the connection: {body[:80]!r}")
        position = 6
        while position < len(body):
            start = position + 1 + body[position]
            name = body[position + 1 : start].lower()
            if start + _SIZE.size > len(body):
                raise ZmtpError("a property of the peer's READY is cut off")
            position = start + _SIZE.size + int(_SIZE.unpack_from(body, start)[0])
            if position > len(body):
                raise ZmtpError("a property of the peer's READY is cut off")
            if name == b"socket-type":
                found = body[start + _SIZE.size : position].decode("ascii", "replace")
                if found not in PEERS[self._socket_type]:
                    raise ZmtpError(f"a {found} socket cannot be connected with a {self._socket_type}")
                return found
        raise ZmtpError("the peer's READY names no socket type")

    def _execute(self, body: bytes) -> None:
        """Reads a command: answers PING, and ignores what is not known."""
        if not body or len(body) < 1 + body[0]:
            raise ZmtpError("a command without a name")
        name, data = body[1 : 1 + body[0]], body[1 + body[0] :]
        if name == b"PING":
            self.pongs.append(command(b"PONG", data[_PING_TTL_BYTES:]))
        elif name == b"ERROR":
            raise ZmtpError(f"the peer refuses the connection: {data[1:80]!r}")
