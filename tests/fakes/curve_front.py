"""What a front socket with CURVE needs of a daemon: keys, a principal, and the ZAP handler."""

from __future__ import annotations

from typing import Any

import zmq
from made_security import make_keys

from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.config.secret_files import CurveKeys
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.router_front import RouterFront
from multitower.supervisor.routing.unread import UnreadReplies
from multitower.supervisor.security.access_control import AccessControl
from multitower.supervisor.security.entrance import CurveEntrance
from multitower.supervisor.security.zap import ZapHandler

SERVER = make_keys()
CLIENT = make_keys()


class CurveLocks:
    """Opens front sockets that let clients with the keys of `encrypt` in.

    Args:
        context: of the front sockets.

    Attributes:
        zap: the handler. Somebody must call its `receive` while clients connect.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._background = BackgroundJobs()
        client = Principal("client", frozenset(Role), public_keys=(CLIENT.public,))
        self._access = AccessControl(Principals([client]), self._background)
        self.zap = ZapHandler(context, self._access)

    def open(
        self,
        connections: Connections,
        *,
        endpoint: str = "tcp://127.0.0.1:*",
        max_message_size: int = 1 << 20,
        unread: UnreadReplies | None = None,
        peer_timeout_s: float = 0.0,
    ) -> RouterFront:
        return RouterFront(
            self._context,
            endpoint,
            max_message_size,
            unread or UnreadReplies(),
            peer_timeout_s,
            connections,
            CurveEntrance(self._access),
            CurveKeys(SERVER.public, SERVER.secret),
        )

    def close(self) -> None:
        """Closes what the front sockets need; close them before."""
        self.zap.close()
        self._background.close()


def encrypt(client: zmq.Socket[Any]) -> None:
    """Gives a socket of libzmq, before it connects, the keys with which it is let in."""
    client.set(zmq.CURVE_SERVERKEY, SERVER.public.encode())
    client.set(zmq.CURVE_PUBLICKEY, CLIENT.public.encode())
    client.set(zmq.CURVE_SECRETKEY, CLIENT.secret.encode())
