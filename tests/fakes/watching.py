"""Watches ZeroMQ sockets with a reactor, as the daemon does with those of its front sockets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import zmq

from multitower import frames
from multitower.supervisor.loop.reactor import Reactor


def add_socket(
    reactor: Reactor,
    socket: zmq.Socket[Any],
    callback: Callable[[], object],
    on_error: Callable[[Exception], object] | None = None,
) -> Callable[[], None]:
    """The socket's `recheck`; see `Reactor.add_source`."""
    return reactor.add_source(frames.descriptor(socket), functools.partial(frames.readable, socket), callback, on_error)


def remove_socket(reactor: Reactor, socket: zmq.Socket[Any]) -> None:
    reactor.remove_source(frames.descriptor(socket))
