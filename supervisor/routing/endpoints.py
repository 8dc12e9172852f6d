"""What the daemon takes of the system: its runtime folder and its bound sockets, which it also keeps.

Somebody may remove the folder or a socket's path while the daemon runs: a program that removes old files, or a logout.
Connections stay open then, but nobody can connect any more. `Endpoints.keep` makes again what was removed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Final

import zmq

from ..loop.log import event
from ..loop.runtime_dir import HeldError, RuntimeDir
from .connections import Connections
from .front_socket import IPC, FrontSocket
from .unread import UnreadReplies

log = logging.getLogger("multitower.daemon")

CONTROL_CONNECTIONS: Final = 32
"""Connections that the control endpoint may have, beside those of clients."""

CONTROL_LINGER_MS = 200
"""Milliseconds that the last answers to orders get to leave."""

KEEP_S: Final = 0.25
"""Seconds from one check of the paths to the next: less than a new process takes until it makes its socket."""

TOUCH_S: Final = 3600.0
"""Seconds from one update of the files' times to the next; programs that remove old files count in days."""


class Endpoints:
    """The runtime folder, the front sockets and the control socket.

    Args:
        listen: the endpoints of the front sockets.
        runtime_dir: the configured runtime folder, or None.
        max_message_size: bytes that a request may have.
        unread: counts what clients leave unread.
        peer_timeout_s: seconds after which a client over tcp that is silent counts as gone; 0 for never.
        connections: accepts the clients of the front sockets; the caller closes it after `close`.

    Attributes:
        runtime: the runtime folder.
        context: the ZeroMQ context of all sockets.
        fronts: a bound socket for each endpoint.
        control: the bound socket of the control endpoint.
        connections: as given.
        control_connections: accepts the clients of the control endpoint.
        problems: why an endpoint or the runtime folder could not be made again, by endpoint or path.

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
        connections: Connections,
    ) -> None:
        self.connections = connections
        with contextlib.ExitStack() as stack:
            self.runtime = RuntimeDir(runtime_dir)
            stack.callback(self.runtime.close)
            self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(self.context.destroy, linger=0)
            self.fronts: list[FrontSocket] = []
            for endpoint in listen:
                front = FrontSocket(self.context, endpoint, max_message_size, unread, peer_timeout_s, connections)
                stack.callback(front.close)
                self.fronts.append(front)
            self.control_connections = Connections(CONTROL_CONNECTIONS)
            stack.callback(self.control_connections.close)
            control = self._control_endpoint
            self.control = FrontSocket(
                self.context, control, max_message_size, unread, peer_timeout_s, self.control_connections
            )
            stack.pop_all()
        self.problems: dict[str, str] = {}
        self._touch_at = -inf

    @property
    def _control_endpoint(self) -> str:
        return f"{IPC}{self.runtime.control_socket}"

    def keep(self, now: float) -> None:
        """Makes the runtime folder and bound paths again that were removed; call it every `KEEP_S`.

        What cannot be made again is logged once and stays in `problems`; the next call tries again.

        Args:
            now: monotonic seconds.
        """
        problems: dict[str, str] = {}
        try:
            self.runtime.restore()
        except OSError as error:
            problems[str(self.runtime.path)] = f"the runtime folder was removed, and cannot be made again: {error}"
        for front in (*self.fronts, self.control):
            endpoint = self._control_endpoint if front is self.control else front.endpoint
            try:
                if front.restore(endpoint):
                    event(log, logging.WARNING, "endpoint was removed: it is bound again", endpoint=endpoint)
            except (HeldError, OSError) as error:
                problems[endpoint] = f"its path was removed, and it cannot be bound again: {error}"
        for name, cause in problems.items():
            if self.problems.get(name) != cause:
                event(log, logging.ERROR, "endpoint is lost", endpoint=name, cause=cause)
        self.problems = problems
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            self.runtime.touch()
            for front in self.fronts:
                front.touch()

    def close(self, linger_ms: int = 0) -> None:
        """Closes all sockets and removes the runtime folder; close the workers' sockets before.

        Args:
            linger_ms: milliseconds that the last replies get to leave.
        """
        self.control.close(CONTROL_LINGER_MS if linger_ms else 0)
        self.control_connections.close()
        for front in self.fronts:
            front.close(linger_ms)
        self.context.term()
        self.runtime.close()
