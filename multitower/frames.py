"""Messages of ZeroMQ sockets: small frames as `bytes`, large ones where libzmq received them.

The daemon uses it for the front sockets and the workers', a worker for its end. A compiled installation has a module in
C (`_frames.c`) that takes a whole message in one call; elsewhere pyzmq does it frame by frame.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import zmq

from multitower.tensors import BULKY_BYTES

try:
    _at_once: Any = importlib.import_module("multitower._frames")
except ImportError:  # not compiled, or a pyzmq that hides its libzmq
    _at_once = None

_get_option = zmq.backend.Socket.get
_send_frame = zmq.backend.Socket.send
"""What `zmq.Socket.send` calls, having looked at options that are of no use here: half the time of a small frame."""

_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_EAGAIN = int(zmq.EAGAIN)
_UNLIMITED: Final = 1 << 30
_NOT_OURS: Final = -2  # what `send` in C says of a message that pyzmq is to send


def readable(socket: zmq.Socket[bytes]) -> bool:
    """A message has come. Asking costs half of what it costs to receive none, which raises."""
    if _at_once is not None:
        found: int = _at_once.events(socket)
        if found < 0:
            _fail(-found)
        return bool(found & _POLLIN)
    events = _get_option(socket, zmq.EVENTS)
    return isinstance(events, int) and bool(events & _POLLIN)


def receive(
    socket: zmq.Socket[bytes], limit: int | None = None, *, wait: bool = False, routed: bool = False
) -> list[Any] | None:
    """The next message, or None when none has come.

    Args:
        socket: to read from.
        limit: frames to keep at the most; the others of a longer message are read and dropped.
        wait: for a message, for as long as the socket's option says: any time, unless it is set.
        routed: the socket is a ROUTER: its messages begin with a small frame, and do not end with it.
    """
    if _at_once is not None:
        found = _at_once.receive(socket, _UNLIMITED if limit is None else limit, BULKY_BYTES, 0 if wait else _LAST)
        if isinstance(found, list):
            return found
        if found == _EAGAIN:
            return None
        _fail(found)
    message: list[Any] = []
    try:
        if routed:
            # A plain copy costs a quarter of a frame object, which only tells beside it whether more follows.
            message.append(socket.recv(_LAST))
        frame = socket.recv(0 if wait else _LAST, False)
    except zmq.Again:
        return None
    # The rest of a message has arrived when its first frame has. `more` costs less than asking the socket.
    while True:
        if limit is None or len(message) < limit:
            message.append(frame.bytes if len(frame) < BULKY_BYTES else frame)
        if not frame.more:
            return message
        frame = socket.recv(_LAST, False)


def send(socket: zmq.Socket[bytes], message: Sequence[Any], *, wait: bool = False) -> None:
    """Sends a message, at once unless `wait` lets it take its time.

    Raises:
        zmq.ZMQError: EAGAIN when the peer's queue is full, EHOSTUNREACH when a ROUTER has no such peer.
    """
    if _at_once is not None:
        outcome = _at_once.send(socket, message, BULKY_BYTES, 0 if wait else _LAST)
        if outcome == 0:
            return
        if outcome != _NOT_OURS:
            _fail(outcome)
    more, last = (_SNDMORE, 0) if wait else (_MORE, _LAST)
    for frame in message[:-1]:
        _send_frame(socket, frame, more, len(frame) < BULKY_BYTES)
    frame = message[-1]
    _send_frame(socket, frame, last, len(frame) < BULKY_BYTES)


def _fail(number: int) -> NoReturn:
    """Raises what pyzmq raises for an error of libzmq's."""
    if number == zmq.EAGAIN:
        raise zmq.Again(number)
    if number == zmq.ETERM:
        raise zmq.ContextTerminated(number)
    raise zmq.ZMQError(number)
