"""The listening sockets of the gateway. The daemon binds and keeps them, so that they outlive each gateway process.

Clients that connect while no gateway process runs wait in the backlog until the next one accepts them. Where none is to
come, they are refused. What prevents listening is found and reported as for the endpoints of `listen`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Mapping
from math import inf
from typing import Any, Final

import zmq

from multitower.durations import exact_duration

from ..config.gateway import GatewayConfig, address_of, endpoint_of
from ..loop.background import BackgroundJobs
from ..loop.bounded_call import call_within
from ..loop.log import event
from ..loop.runtime_dir import HeldError, NotBindableYetError
from ..loop.socket_path import SocketPath
from ..routing.awaited_addresses import AwaitedAddresses
from ..routing.binding import IPC, bind, listen_on_path, listening_error, take_path
from ..routing.endpoints import TOUCH_S
from ..routing.name_resolution import RESOLVE_S, find_addresses, has_name
from ..routing.tcp_listener import take_listening_socket

log = logging.getLogger("multitower.daemon")

BACKLOG: Final = 1024
"""Clients that may wait to be accepted at each address, also while no gateway process runs."""


_HTTP_SETTING: Final = "gateway.http (model-server: --rest_api_port)"
_GRPC_SETTING: Final = "gateway.grpc (model-server: --port)"

_WAITING: Final = "waiting for an address of the gateway"


class GatewayListener:
    """One listening socket.

    Args:
        context: the router's ZeroMQ context: libzmq reads addresses, so that they mean the same as in `listen`.
        address: as configured.
        endpoint: the same in the form of `listen`, with its name resolved.
        setting: what the user changes to get another address.

    Attributes:
        address: as bound, with the real port.
        refusing: whether clients are refused.

    Raises:
        HeldError: another process listens there.
        NotBindableYetError: it cannot be bound now, but perhaps later.
        OSError: it cannot be bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, endpoint: str, setting: str) -> None:
        self._configured, self._setting = address, setting
        self._path: SocketPath | None = None
        self.refusing = False
        try:
            if endpoint.startswith(IPC):
                self._path = take_path(endpoint, address, setting=setting)
                self.address = address
                self._socket = self._listen_on(self._path)
            else:
                self._socket, bound = take_listening_socket(context, functools.partial(bind, endpoint), BACKLOG)
                self.address = address_of(bound)
            self._socket.setblocking(False)
        except BaseException as error:
            if self._path is not None:
                self._path.release()
            translated = listening_error(address, error, setting=setting)
            if translated is error or isinstance(error, NotBindableYetError):
                raise
            raise translated from None

    def _listen_on(self, path: SocketPath) -> socket.socket:
        listening = listen_on_path(path.path, BACKLOG)
        try:
            path.bound()
        except OSError:
            listening.close()
            raise
        return listening

    @property
    def descriptor(self) -> int:
        """The descriptor of the listening socket."""
        return self._socket.fileno()

    def refuse(self) -> None:
        """Refuses clients, also those that wait to be accepted, until `restore`. The port or path stays bound."""
        self.refusing = True
        with contextlib.suppress(OSError):  # the socket listens no more
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._path is not None:
            self._socket.close()  # a Unix socket that was shut down cannot listen again

    def restore(self) -> bool:
        """Listens again after `refuse`, or if the path of a Unix socket was removed; returns whether it had to.

        If that raises, everything is as before.

        Raises:
            HeldError: another process has taken the path.
            OSError: the port or path cannot be used.
        """
        if self._path is None:
            return self.refusing and self._listen_again()
        removed = not self._path.intact and self._path.retake()
        if not (removed or self.refusing):
            return False
        listening = self._listen_on(self._path)
        listening.setblocking(False)
        self._socket.close()
        self._socket, self.refusing = listening, False
        return True

    def _listen_again(self) -> bool:
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            # Another process that sets SO_REUSEADDR, too, can take a port at which nobody listens.
            translated = listening_error(self._configured, error, setting=self._setting)
            raise translated from None
        # Where the system chose the port, it may be another one now.
        self.address = f"{self.address.rpartition(':')[0]}:{self._socket.getsockname()[1]}"
        self.refusing = False
        return True

    def touch(self) -> None:
        """Keeps the files of a Unix socket from looking old."""
        if self._path is not None:
            self._path.touch()

    def close(self) -> None:
        """Stops listening, also where a gateway process still has the socket: clients are refused from now on."""
        with contextlib.suppress(OSError):  # the socket listens no more
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._path is not None:
            self._path.release()
            self._path = None


class GatewayListeners:
    """The listening sockets of all addresses.

    Args:
        context: the router's ZeroMQ context.
        config: the section `gateway` of the configuration that the daemon starts with.
        background: resolves the names in addresses that are waited for; None if all must be bound at once.

    Attributes:
        changes: how often a socket has been bound since the start.

    Raises:
        HeldError: another process listens at an address.
        OSError: an address cannot be bound, not even later.
            After either of them nothing stays open.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        config: GatewayConfig,
        background: BackgroundJobs | None,
    ) -> None:
        self.changes = 0
        self._may_wait = background is not None
        self._context = context
        self._config = config
        self._bound: dict[str, GatewayListener] = {}
        self._awaited = AwaitedAddresses(background, _WAITING, "address", endpoint_of)
        self._lost: dict[str, str] = {}  # why an address cannot be bound again
        self._touch_at = -inf
        self._refusing = False
        self._closed = False
        try:
            resolved = self._resolve_at_start()
            for address in config.addresses:
                endpoint = endpoint_of(address)
                self._bind_at_start(address, resolved.get(endpoint, endpoint))
        except BaseException:
            self.close()
            raise

    def _resolve_at_start(self) -> Mapping[str, str | OSError]:
        """Resolves the names in endpoints of addresses; waits for at most `RESOLVE_S`."""
        named = [endpoint for endpoint in map(endpoint_of, self._config.addresses) if has_name(endpoint)]
        if not named:
            return {}
        try:
            return call_within(RESOLVE_S, functools.partial(find_addresses, named))
        except TimeoutError:
            cause = NotBindableYetError(
                f"its name was not resolved within {exact_duration(RESOLVE_S)}; does DNS answer?"
            )
            return dict.fromkeys(named, cause)

    def _bind_at_start(self, address: str, endpoint: str | OSError) -> None:
        try:
            if isinstance(endpoint, OSError):
                raise NotBindableYetError(f"cannot listen on {address}: {endpoint}")
            self._bound[address] = self._listen(address, endpoint)
        except NotBindableYetError as error:
            if not self._may_wait:
                raise
            self._awaited.add(address, str(error))

    def _listen(self, address: str, endpoint: str) -> GatewayListener:
        # Of one address for both, one of the two has to change.
        setting = _HTTP_SETTING if address in self._config.http else _GRPC_SETTING
        return GatewayListener(self._context, address, endpoint, setting)

    @property
    def missing(self) -> Mapping[str, str]:
        """Why addresses could not be bound yet, or not again, by address."""
        return {**self._awaited.causes, **self._lost}

    @property
    def complete(self) -> bool:
        """Whether a process can be started: clients can connect to all addresses.

        One whose path was removed counts: until it can be bound again, a process serves the others.
        """
        bound = self._bound.keys() >= set(self._config.addresses)
        return bound and not any(listener.refusing for listener in self._bound.values())

    @property
    def http(self) -> list[str]:
        """The addresses of HTTP, those that are bound with their real ports."""
        return [self._shown(address) for address in self._config.http]

    @property
    def grpc(self) -> list[str]:
        """The addresses of gRPC, likewise."""
        return [self._shown(address) for address in self._config.grpc]

    def _shown(self, address: str) -> str:
        listener = self._bound.get(address)
        return listener.address if listener is not None else address

    def to_json(self) -> list[dict[str, Any]]:
        """The bound sockets, as the gateway gets them: descriptor, address, and what is served there."""
        return [
            {
                "fd": listener.descriptor,
                "address": listener.address,
                "http": address in self._config.http,
                "grpc": address in self._config.grpc,
            }
            for address, listener in self._bound.items()
        ]

    def refuse(self) -> None:
        """Refuses clients until `accept`: no process will come to accept them."""
        self._refusing = True
        for listener in self._bound.values():
            listener.refuse()

    def accept(self) -> None:
        """Lets clients connect again, from the next `tick` on."""
        self._refusing = False

    def tick(self, now: float) -> None:
        """Binds what is missing, and what was removed; call it a few times a second.

        Args:
            now: monotonic seconds.
        """
        if self._closed:
            return
        if not self._refusing:
            self._restore()
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            for listener in self._bound.values():
                listener.touch()
        self._awaited.retry(now, self._bind_later)

    def _restore(self) -> None:
        for address, listener in self._bound.items():
            refusing = listener.refusing
            try:
                if listener.restore():
                    self.changes += 1
                    if not refusing:
                        message = "the socket of the gateway was removed: it is bound again"
                        event(log, logging.WARNING, message, path=address)
                self._lost.pop(address, None)
            except (HeldError, OSError) as error:
                before = "" if refusing else "its path was removed, and "
                cause = f"{before}it cannot be bound again: {error}"
                if self._lost.get(address) != cause:
                    event(log, logging.WARNING, _WAITING, address=address, cause=cause)
                self._lost[address] = cause

    def _bind_later(self, address: str, endpoint: str) -> None:
        if self._closed:
            return
        self._bound[address] = self._listen(address, endpoint)
        self.changes += 1

    def close(self) -> None:
        """Stops listening: clients that connect, or wait to be accepted, are refused. No-op if it has been called."""
        self._closed = True
        for listener in self._bound.values():
            listener.close()
        self._bound.clear()
