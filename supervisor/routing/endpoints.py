"""What the daemon takes of the system before it serves: its runtime folder, and its bound sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import zmq

from ..loop.runtime_dir import RuntimeDir
from .front_socket import FrontSocket
from .unread import UnreadReplies

CONTROL_LINGER_MS = 200
"""Milliseconds that the last answers to orders get to leave."""


class Endpoints:
    """The runtime folder, the front sockets and the control socket.

    Args:
        listen: the endpoints of the front sockets.
        runtime_dir: the configured runtime folder, or None.
        max_message_size: bytes that a request may have.
        unread: counts what clients leave unread.
        peer_timeout_s: seconds after which a client over tcp that is silent counts as gone; 0 for never.

    Attributes:
        runtime: the runtime folder.
        context: the ZeroMQ context of all sockets.
        fronts: a bound socket for each endpoint.
        control: the bound socket of the control endpoint.

    Raises:
        HeldError: another process uses the runtime folder or an endpoint.
        OSError: the folder cannot be made, or an endpoint cannot be bound.
            After either of them nothing stays open.
    """

    def __init__(
        self,
        listen: Sequence[str],
        runtime_dir: Path | None,
        max_message_size: int,
        unread: UnreadReplies,
        peer_timeout_s: float,
    ) -> None:
        with contextlib.ExitStack() as stack:
            self.runtime = RuntimeDir(runtime_dir)
            stack.callback(self.runtime.close)
            self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(self.context.destroy, linger=0)
            self.fronts: list[FrontSocket] = []
            for endpoint in listen:
                front = FrontSocket(self.context, endpoint, max_message_size, unread, peer_timeout_s)
                stack.callback(front.close)
                self.fronts.append(front)
            control = f"ipc://{self.runtime.control_socket}"
            self.control = FrontSocket(self.context, control, max_message_size, unread, peer_timeout_s)
            stack.pop_all()

    def close(self, linger_ms: int = 0) -> None:
        """Closes all sockets and removes the runtime folder; close the workers' sockets before.

        Args:
            linger_ms: milliseconds that the last replies get to leave.
        """
        self.control.close(CONTROL_LINGER_MS if linger_ms else 0)
        for front in self.fronts:
            front.close(linger_ms)
        self.context.term()
        self.runtime.close()
