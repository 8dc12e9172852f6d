"""How the two ends of a TCP connection notice that the other one is gone without a word.

A packet filter that drops a connection silently, a cable, or a machine without power ends no connection: neither side
receives anything. Both ends therefore send ZMTP heartbeats, and let the kernel probe the connection (TCP keepalive).
Connections over ipc need neither: the kernel ends them with the process.
"""

from __future__ import annotations

import socket
from typing import Final

import zmq

PEER_TIMEOUT_S: Final = 30.0
"""The default of the clients' `peer_timeout`; the daemon's is in its configuration."""

MIN_PEER_TIMEOUT_S: Final = 0.2
MAX_PEER_TIMEOUT_S: Final = 86_400.0

_PROBES: Final = 3
"""TCP keepalive probes without an answer after which the kernel ends the connection."""


def check_peer_timeout(seconds: float) -> None:
    """Checks the time after which a silent peer counts as gone.

    Raises:
        ValueError: it is neither 0 (never) nor from `MIN_PEER_TIMEOUT_S` to `MAX_PEER_TIMEOUT_S`.
    """
    if seconds != 0 and not MIN_PEER_TIMEOUT_S <= seconds <= MAX_PEER_TIMEOUT_S:
        raise ValueError(
            f"peer_timeout must be {MIN_PEER_TIMEOUT_S:g} to {MAX_PEER_TIMEOUT_S:g} seconds, or 0 for never, "
            f"not {seconds:g}"
        )


def socket_options(endpoint: str, peer_timeout_s: float) -> dict[int, int]:
    """The options with which a ZeroMQ socket ends a TCP connection whose peer is silent.

    A heartbeat is sent every quarter of the time, and its answer must arrive within the other three quarters. The
    time to live of ZMTP heartbeats is not used: it overflows at 65 s, and each end sends heartbeats of its own.

    Args:
        endpoint: of the socket.
        peer_timeout_s: seconds after which a peer that sends nothing counts as gone; 0 for never.
    """
    if not endpoint.startswith("tcp://") or peer_timeout_s == 0:
        return {}
    quarter_ms = max(1, int(peer_timeout_s * 250))
    quarter_s = max(1, round(peer_timeout_s / 4))
    return {
        zmq.HEARTBEAT_IVL: quarter_ms,
        zmq.HEARTBEAT_TIMEOUT: 3 * quarter_ms,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: quarter_s,
        zmq.TCP_KEEPALIVE_INTVL: quarter_s,
        zmq.TCP_KEEPALIVE_CNT: _PROBES,
        # While a large frame waits to be written, libzmq sends no heartbeat, and the kernel no probe.
        zmq.TCP_MAXRT: 4 * quarter_ms,
    }


def watch_connection(connection: socket.socket, peer_timeout_s: float) -> None:
    """Has the kernel end a TCP connection whose peer is silent; see `socket_options`.

    Args:
        connection: an open one.
        peer_timeout_s: seconds after which a peer that sends nothing counts as gone; 0 for never.

    Raises:
        OSError: it has ended.
    """
    if peer_timeout_s == 0:
        return
    quarter_s = max(1, round(peer_timeout_s / 4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, quarter_s),
        (socket.TCP_KEEPINTVL, quarter_s),
        (socket.TCP_KEEPCNT, _PROBES),
        (socket.TCP_USER_TIMEOUT, 4 * max(1, int(peer_timeout_s * 250))),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
