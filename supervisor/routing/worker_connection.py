"""The router's end of the socket to one worker process.

`workers.child_process` creates one for each process that it spawns. The router sends batches through it and reads
results from it; every other message is passed on to `on_message`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from multitower import frames

from ..loop.reactor import unwatched

RECONNECT_MS = 10
"""Milliseconds from one attempt to the next to reach a worker that has not bound its endpoint yet."""


class WorkerProtocolError(Exception):
    """A worker process sent a message that is malformed or that it must not send now; the process must be killed."""


def _ignore(_: object) -> None:
    """Handles nothing, until the owner of a connection has set its own handlers."""


class WorkerConnection:
    """A PAIR socket to one worker process.

    Args:
        context: the router's ZeroMQ context.

    Attributes:
        socket: the router's end.
        monitor: becomes readable when the worker's end is closed.
        recheck: called after each message that was sent; see `Reactor.add_socket`.
        on_message: called with each message that is not a result.
        on_error: called with the error when a result cannot be handled, or the socket fails: the process must be
            killed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.recheck: Callable[[], None] = unwatched
        self.on_message: Callable[[list[Any]], None] = _ignore
        self.on_error: Callable[[Exception], None] = _ignore
        self._received = False
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        try:
            options = {zmq.LINGER: 0, zmq.SNDHWM: 0, zmq.RCVHWM: 0, zmq.RECONNECT_IVL: RECONNECT_MS}
            for option, value in options.items():
                self.socket.set(option, value)
            self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        except BaseException:
            self.socket.close()
            raise

    def connect(self, endpoint: str) -> None:
        """Connects to the endpoint that the worker binds, or will bind."""
        self.socket.connect(endpoint)

    def send(self, message: Sequence[Any]) -> None:
        """Sends a message; it waits when the worker has not bound its endpoint yet."""
        frames.send(self.socket, message)
        self.recheck()

    def receive(self) -> list[Any] | None:
        """The next message, or None when none has come."""
        message = frames.receive(self.socket)
        if message is not None:
            self._received = True
        return message

    @property
    def disconnected(self) -> bool:
        """Everything that the dead process sent has arrived: its end of the socket is closed."""
        return not self._received or self.monitor.poll(0) != 0

    def close(self) -> None:
        """Closes the socket and its monitor."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
