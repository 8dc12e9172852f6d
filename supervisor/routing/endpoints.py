"""What the daemon takes of the system: its runtime folder and its bound sockets, which it also keeps.

An endpoint whose address, name or folder is not there yet is bound later (`awaited_addresses.py`).

Somebody may remove the folder or a socket's path while the daemon runs: a program that removes old files, or a logout.
Connections stay open then, but nobody can connect any more. `Endpoints.keep` makes again what was removed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Final

import zmq

from multitower import wire
from multitower.durations import exact_duration
from multitower.message_stream import BUFFER_BYTES

from ..config.secret_files import CurveKeys
from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..loop.runtime_dir import HeldError, NotBindableYetError, RuntimeDir
from ..security.access_control import AccessControl
from ..security.authenticator import GATEWAY
from ..security.entrance import ControlEntrance, CurveEntrance, GatewayEntrance, LocalEntrance
from ..security.zap import ZapHandler
from .awaited_addresses import AwaitedAddresses
from .binding import IPC
from .connections import Connections
from .front_socket import FrontSocket
from .name_resolution import RESOLVE_S, find_unresolved
from .router_front import RouterFront
from .stream_front import StreamFront
from .tcp_listener import TcpListener
from .unread import UnreadReplies

log = logging.getLogger("multitower.daemon")

ENDPOINT: Final = "endpoint"
RUNTIME_DIR: Final = "runtime_dir"

CONTROL_CONNECTIONS: Final = 32
"""Connections that the control endpoint may have, beside those of clients."""

CONTROL_MESSAGE_BYTES: Final = 2 * wire.MAX_HEADER_BYTES
"""What a message to the control endpoint may have, whatever requests may: an order is hardly more than a header."""

GATEWAY_CONNECTIONS: Final = 256
"""Those of the gateway in addition: at most 64 threads, with two connections each, while another process takes over."""

CONTROL_RESERVE: Final = 8
"""Descriptors that stay free when it accepts: fewer than for clients, so that an operator can still connect."""

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
        for_gateway: whether the gateway gets an endpoint of its own in the runtime folder, whatever `listen` has.
        access: the daemon's; None without `security`.
        curve: the daemon's keys, for endpoints over tcp; needed with it.
        background: resolves the names of endpoints that are waited for, as those that are not resolved within
            `RESOLVE_S`; None if all endpoints must be bound at once.

    Attributes:
        runtime: the runtime folder.
        context: the ZeroMQ context of all sockets.
        fronts: a bound socket for each endpoint that is not waited for.
        zap: answers libzmq, which asks about clients over tcp; None without keys.
        gateway_pids: returns the gateway's processes; set it once there may be some.
        control: the bound socket of the control endpoint.
        connections: as given.
        gateway: the bound socket of the gateway's endpoint; None without a gateway.
        control_connections: accepts the clients of the control endpoint and of the gateway's.
        lost: why an endpoint or the runtime folder could not be made again, by endpoint or path.
        on_bound: called with the socket of an endpoint that is bound later. If it raises, the endpoint is closed, and
            tried again later.

    Raises:
        HeldError: another process uses the runtime folder or an endpoint.
        OSError: the folder cannot be made, or an endpoint cannot be bound, not even later.
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
        background: BackgroundJobs | None = None,
        *,
        for_gateway: bool = False,
        access: AccessControl | None = None,
        curve: CurveKeys | None = None,
    ) -> None:
        self.connections = connections
        self.lost: dict[str, str] = {}
        self.on_bound: Callable[[FrontSocket], None] = _ignore
        self.gateway_pids: Callable[[], Collection[int]] = tuple
        self._background = background
        self._awaited = AwaitedAddresses(background, "waiting for endpoint", "endpoint")
        self._listen = tuple(listen)
        self._bound_as: dict[str, FrontSocket] = {}
        with contextlib.ExitStack() as stack:
            self.runtime = RuntimeDir(runtime_dir)
            stack.callback(self.runtime.close)
            self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(self.context.destroy, linger=0)
            # Before the first endpoint is bound.
            self.zap = ZapHandler(self.context, access) if access is not None and curve is not None else None
            self._open_ipc = functools.partial(
                StreamFront,
                max_message_size=max_message_size,
                unread=unread,
                connections=connections,
                entrance=LocalEntrance(access) if access is not None else None,
            )
            self._open_tcp: Callable[[str], FrontSocket] | None = None
            if access is None:
                listen_on_tcp = functools.partial(TcpListener, self.context, peer_timeout_s)
                self._open_tcp = functools.partial(self._open_ipc, listen=listen_on_tcp)
            elif curve is not None:
                self._open_tcp = functools.partial(
                    RouterFront,
                    self.context,
                    max_message_size=max_message_size,
                    unread=unread,
                    peer_timeout_s=peer_timeout_s,
                    connections=connections,
                    entrance=CurveEntrance(access),
                    curve=curve,
                )
            self._open_listed(stack)
            self._open_private(stack, access, for_gateway=for_gateway)
            stack.pop_all()
        self._touch_at = -inf

    def _open_listed(self, stack: contextlib.ExitStack) -> None:
        """Binds the endpoints of `listen`, or waits for them."""
        unresolved = set() if self._background is None else find_unresolved(self._listen)
        for endpoint in self._listen:
            if endpoint in unresolved:
                cause = f"its name was not resolved within {exact_duration(RESOLVE_S)}; does DNS answer?"
                self._awaited.add(endpoint, cause)
                continue
            try:
                front = self._open(endpoint)
            except NotBindableYetError as error:
                if self._background is None:
                    raise
                self._awaited.add(endpoint, str(error))
            else:
                stack.callback(front.close)
                self._bound_as[endpoint] = front

    def _open_private(self, stack: contextlib.ExitStack, access: AccessControl | None, *, for_gateway: bool) -> None:
        """Binds the endpoints in the runtime folder: that of operators, and the gateway's."""
        maximum = CONTROL_CONNECTIONS + (GATEWAY_CONNECTIONS if for_gateway else 0)
        self.control_connections = Connections(maximum, reserve=CONTROL_RESERVE)
        stack.callback(self.control_connections.close)
        open_private = functools.partial(self._open_ipc, connections=self.control_connections)
        entrance = ControlEntrance(access, lambda: self.gateway_pids()) if access is not None else None
        self.control = open_private(self._control_endpoint, entrance=entrance, max_message_size=CONTROL_MESSAGE_BYTES)
        stack.callback(self.control.close)
        self.gateway: FrontSocket | None = None
        if for_gateway:
            for_it = GatewayEntrance(access) if access is not None else None
            self.gateway = open_private(self._gateway_endpoint, entrance=for_it, buffer_bytes=BUFFER_BYTES)
            self.gateway.interface = GATEWAY

    @property
    def fronts(self) -> list[FrontSocket]:
        """The bound sockets, in the order of `listen`."""
        return [self._bound_as[endpoint] for endpoint in self._listen if endpoint in self._bound_as]

    @property
    def problems(self) -> Mapping[str, str]:
        """Why endpoints or the runtime folder cannot be used now, by endpoint or path."""
        return {**self.missing, **self.lost}

    def _open(self, endpoint: str) -> FrontSocket:
        """Binds an endpoint of `listen`."""
        if endpoint.startswith(IPC):
            return self._open_ipc(endpoint)
        if self._open_tcp is None:
            raise OSError(f"cannot listen on {endpoint}: with security, an endpoint over tcp needs security.curve")
        return self._open_tcp(endpoint)

    @property
    def missing(self) -> Mapping[str, str]:
        """Why endpoints could not be bound yet, by endpoint."""
        return self._awaited.causes

    @property
    def retry_at(self) -> float:
        """When `retry` must be called, in monotonic seconds."""
        return self._awaited.retry_at

    def retry(self, now: float) -> None:
        """Tries to bind the endpoints that are missing, if it is time to. Names are resolved in a thread.

        Args:
            now: monotonic seconds.
        """
        self._awaited.retry(now, self._bind_later)

    def _bind_later(self, endpoint: str, resolved: str) -> None:
        front = self._bound_as[endpoint] = self._open(resolved)
        try:
            self.on_bound(front)
        except Exception as error:
            # Nothing reads its requests: clients must not connect.
            del self._bound_as[endpoint]
            front.close()
            raise RuntimeError(f"requests at {endpoint} cannot be read: {error}") from error
        event(log, logging.INFO, "listening", endpoint=front.endpoint)

    @property
    def _control_endpoint(self) -> str:
        return f"{IPC}{self.runtime.control_socket}"

    @property
    def _gateway_endpoint(self) -> str:
        return f"{IPC}{self.runtime.gateway_socket}"

    def _private(self) -> dict[FrontSocket, str]:
        """The sockets in the runtime folder, and the endpoint that each of them is to have."""
        private: dict[FrontSocket, str] = {self.control: self._control_endpoint}
        if self.gateway is not None:
            private[self.gateway] = self._gateway_endpoint
        return private

    def keep(self, now: float) -> None:
        """Makes the runtime folder and bound paths again that were removed; call it every `KEEP_S`.

        What cannot be made again is logged once and stays in `lost`; the next call tries again.

        Args:
            now: monotonic seconds.
        """
        problems: dict[str, str] = {}
        try:
            self.runtime.restore()
        except OSError as error:
            problems[str(self.runtime.path)] = f"the runtime folder was removed, and cannot be made again: {error}"
        private = self._private()
        for front in (*self.fronts, *private):
            front.tick(now)
            endpoint = private.get(front, front.endpoint)
            try:
                if front.restore(endpoint):
                    event(log, logging.WARNING, "endpoint was removed: it is bound again", endpoint=endpoint)
            except (HeldError, OSError) as error:
                problems[endpoint] = f"its path was removed, and it cannot be bound again: {error}"
        for name, cause in problems.items():
            if self.lost.get(name) != cause:
                if problem_kind(name) == ENDPOINT:
                    event(log, logging.ERROR, "endpoint is lost", endpoint=name, cause=cause)
                else:
                    event(log, logging.ERROR, "runtime folder is lost", path=name, cause=cause)
        self.lost = problems
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
        for front in self._private():
            front.close(CONTROL_LINGER_MS if linger_ms else 0)
        self.control_connections.close()
        # With CURVE, libzmq goes on while the others are closed, one after the other.
        until = time.monotonic() + linger_ms / 1000
        for front in sorted(self.fronts, key=lambda front: isinstance(front, StreamFront)):
            front.close(max(0, int(1000 * (until - time.monotonic()))))
        if self.zap is not None:
            self.zap.close()
        self.context.term()
        self.runtime.close()


def problem_kind(name: str) -> str:
    """What a key of `Endpoints.problems` names: an endpoint or the runtime folder."""
    return ENDPOINT if "://" in name else RUNTIME_DIR


def _ignore(_: FrontSocket) -> None:
    """Does nothing, until the owner of the endpoints has set its own handler."""
