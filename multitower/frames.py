"""Messages of ZeroMQ sockets, frame by frame: small frames as `bytes`, large ones where libzmq received them.

The daemon uses it for the front sockets and the workers', a worker for its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

BULKY_BYTES = 64 << 10
"""From this size on a frame is not copied; below it, a copy is cheaper than libzmq's bookkeeping for sharing."""


def receive(socket: zmq.Socket[bytes], limit: int | None = None, *, wait: bool = False) -> list[Any] | None:
    """The next message, or None when none has come.

    Args:
        socket: to read from.
        limit: frames to keep at the most; the others of a longer message are read and dropped.
        wait: for a message, for as long as it takes.
    """
    try:
        frame = socket.recv(0 if wait else zmq.NOBLOCK, False)
    except zmq.Again:
        return None
    message: list[Any] = [frame.bytes if len(frame) < BULKY_BYTES else frame]
    # The rest of a message has arrived when its first frame has. `more` costs less than asking the socket.
    while frame.more:
        frame = socket.recv(zmq.NOBLOCK, False)
        if limit is None or len(message) < limit:
            message.append(frame.bytes if len(frame) < BULKY_BYTES else frame)
    return message


def send(socket: zmq.Socket[bytes], message: Sequence[Any], *, wait: bool = False) -> None:
    """Sends a message, at once unless `wait` lets it take its time.

    Raises:
        zmq.ZMQError: EAGAIN when the peer's queue is full, EHOSTUNREACH when a ROUTER has no such peer.
    """
    flags = 0 if wait else zmq.NOBLOCK
    for frame in message[:-1]:
        socket.send(frame, flags | zmq.SNDMORE, len(frame) < BULKY_BYTES)
    frame = message[-1]
    socket.send(frame, flags, len(frame) < BULKY_BYTES)
