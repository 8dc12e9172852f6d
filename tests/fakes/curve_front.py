"""A front socket with CURVE and what it needs of a daemon: keys, a principal, and the ZAP handler."""

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


class CurveFront(RouterFront):
    """A front socket that lets clients with the keys of `encrypt` in.

    Attributes:
        zap: the handler. Somebody must call its `receive` while clients connect.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        connections: Connections,
        *,
        endpoint: str = "tcp://127.0.0.1:*",
        max_message_size: int = 1 << 20,
        unread: UnreadReplies | None = None,
        peer_timeout_s: float = 0.0,
    ) -> None:
        self._background = BackgroundJobs()
        client = Principal("client", frozenset(Role), public_keys=(CLIENT.public,))
        access = AccessControl(Principals([client]), self._background)
        try:
            self.zap = ZapHandler(context, access)
        except BaseException:
            self._background.close()
            raise
        try:
            super().__init__(
                context,
                endpoint,
                max_message_size,
                unread or UnreadReplies(),
                peer_timeout_s,
                connections,
                CurveEntrance(access),
                CurveKeys(SERVER.public, SERVER.secret),
            )
        except BaseException:
            self._close_handler()
            raise

    def _close_handler(self) -> None:
        self.zap.close()
        self._background.close()

    def close(self, linger_ms: int = 0) -> None:
        super().close(linger_ms)
        self._close_handler()


def encrypt(client: zmq.Socket[Any]) -> None:
    """Gives a socket of libzmq, before it connects, the keys with which it is let in."""
    client.set(zmq.CURVE_SERVERKEY, SERVER.public.encode())
    client.set(zmq.CURVE_PUBLICKEY, CLIENT.public.encode())
    client.set(zmq.CURVE_SECRETKEY, CLIENT.secret.encode())
