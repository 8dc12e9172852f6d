"""Sends and receives messages of libzmq's sockets: small frames as `bytes`, large ones without a copy.

The daemon's front sockets and the clients over tcp use it; `message_stream.py` does without libzmq. A compiled
installation has a C module (`_frames.c`) that handles a whole message per call; otherwise pyzmq does so frame by frame.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import zmq

from multitower.tensors import BULKY_BYTES

try:
    _native: Any = importlib.import_module("multitower._frames")
except ImportError:  # not compiled, or pyzmq does not expose its libzmq
    _native = None

_get_option = zmq.backend.Socket.get
_send_frame = zmq.backend.Socket.send
"""`zmq.Socket.send` without the options that are not used here, which take half the time of a small frame."""

_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)
_EAGAIN = int(zmq.EAGAIN)
_UNLIMITED: Final = 1 << 30
_NOT_SUPPORTED: Final = -2  # returned by the C module's `send` for a message that pyzmq has to send


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """The descriptor of libzmq, which reports that something has happened: every call on the socket may clear it."""
    found = socket.get(zmq.FD)
    assert isinstance(found, int)  # other options are bytes
    return found


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message has arrived. Takes half the time of `receive` when there is none."""
    if _native is not None:
        found: int = _native.events(socket)
        if found < 0:
            _fail(-found)
        return bool(found & _POLLIN)
    events = _get_option(socket, zmq.EVENTS)
    return isinstance(events, int) and bool(events & _POLLIN)


def receive(socket: zmq.Socket[bytes], limit: int | None = None, *, routed: bool = False) -> list[Any] | None:
    """The next message, or None when none has arrived.

    Args:
        socket: the socket to read from.
        limit: how many frames to keep at most; further frames of the message are read and dropped.
        routed: whether the socket is a ROUTER, whose messages begin with a small frame that is never the last.

    Returns:
        The frames: those under `BULKY_BYTES` as `bytes`, others as `zmq.Frame`.
    """
    if _native is not None:
        found = _native.receive(socket, _UNLIMITED if limit is None else limit, BULKY_BYTES)
        if isinstance(found, list):
            return found
        if found == _EAGAIN:
            return None
        _fail(found)
    message: list[Any] = []
    try:
        if routed:
            # A copy takes a quarter of the time of a frame object, whose `more` is not needed here.
            message.append(socket.recv(_LAST))
        frame = socket.recv(_LAST, False)
    except zmq.Again:
        return None
    # A message arrives as a whole. `more` takes less time than the socket's option.
    while True:
        if limit is None or len(message) < limit:
            message.append(frame.bytes if len(frame) < BULKY_BYTES else frame)
        if not frame.more:
            return message
        frame = socket.recv(_LAST, False)


def receive_from(socket: zmq.Socket[bytes], limit: int, name: str) -> tuple[list[Any], str | None, int] | None:
    """The next message of a ROUTER, and about the connection that it came by; None when none has arrived.

    Args:
        socket: the ROUTER.
        limit: see `receive`.
        name: of the property. `Peer-Address` is the address, which for a local socket has the user and the process; a
            peer cannot choose it. `User-Id` is what the ZAP handler called the peer. Where no handler is asked, as
            without CURVE, a peer can choose it.

    Returns:
        The frames, as `receive` returns them; the property, None for a connection without it; and the descriptor by
        which libzmq has read the message, which may be closed or another connection's by now.
    """
    if _native is not None:
        found = _native.receive(socket, limit, BULKY_BYTES, name)
        if isinstance(found, tuple):
            return found
        if found == _EAGAIN:
            return None
        _fail(found)
    message: list[Any] = []
    try:
        frame = socket.recv(_LAST, False)
    except zmq.Again:
        return None
    try:
        sender = str(frame.get(name))
    except zmq.ZMQError:
        sender = None
    descriptor = int(frame.get(zmq.SRCFD))
    while True:
        if len(message) < limit:
            message.append(frame.bytes if len(frame) < BULKY_BYTES else frame)
        if not frame.more:
            return message, sender, descriptor
        frame = socket.recv(_LAST, False)


def send(socket: zmq.Socket[bytes], message: Sequence[Any]) -> None:
    """Sends a message, without waiting.

    Args:
        socket: the socket to send from.
        message: one frame or more: `bytes` or other objects with the buffer protocol, contiguous in memory.

    Raises:
        zmq.ZMQError: EAGAIN when the peer's queue is full, EHOSTUNREACH when a ROUTER has no such peer.
        TypeError, ValueError, BufferError: an object cannot be sent; nothing of the message has been sent.
    """
    if _native is not None:
        outcome = _native.send(socket, message, BULKY_BYTES)
        if outcome == 0:
            return
        if outcome != _NOT_SUPPORTED:
            _fail(outcome)
    for frame in message:
        # Before the first frame is sent: half a message would be taken for the beginning of the next one.
        if type(frame) is not bytes and not memoryview(frame).contiguous:
            raise BufferError("a frame must be contiguous in memory")
    for frame in message[:-1]:
        _send_frame(socket, frame, _MORE, len(frame) < BULKY_BYTES)
    frame = message[-1]
    _send_frame(socket, frame, _LAST, len(frame) < BULKY_BYTES)


def _fail(number: int) -> NoReturn:
    """Raises what pyzmq raises for an errno of libzmq."""
    if number == zmq.EAGAIN:
        raise zmq.Again(number)
    if number == zmq.ETERM:
        raise zmq.ContextTerminated(number)
    raise zmq.ZMQError(number)
