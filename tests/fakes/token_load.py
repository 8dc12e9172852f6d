"""Clients of the gateway with a token: some ask again and again over one connection, one asks no more."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable

from gateway_grpc import Services
from locked_gateway import (
    CLOSED,
    FREE,
    INFER_ROW,
    METHODS,
    REFUSED,
    call,
)
from running import STEP_S


class Load:
    """Asks again and again, until it is stopped; in a thread.

    Args:
        ask: sends a request with a token, over a connection that it keeps; returns what the answer means.
        token: the first one; it may be replaced.

    Attributes:
        outcomes: of each request, when it was sent, when its answer came, in monotonic seconds, and what that meant.
    """

    def __init__(self, ask: Callable[[str], str], token: str) -> None:
        self.token = token
        self.outcomes: list[tuple[float, float, str]] = []
        self._ask = ask
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.01):
            sent = time.monotonic()
            try:
                outcome = self._ask(self.token)
            except (OSError, http.client.HTTPException):
                outcome = CLOSED
            self.outcomes.append((sent, time.monotonic(), outcome))

    def wait_for(self, count: int) -> None:
        """Waits for so many more answers."""
        until, wanted = time.monotonic() + STEP_S, len(self.outcomes) + count
        while len(self.outcomes) < wanted:
            assert time.monotonic() < until, "no answers"
            time.sleep(0.01)

    def stop(self) -> None:
        """Waits for the last answer."""
        self._stopped.set()
        self._thread.join(STEP_S)

    def sent_since(self, when: float) -> set[str]:
        """What the answers meant to requests that were sent later."""
        return {outcome for sent, _, outcome in self.outcomes if sent > when}

    def longest_s(self, when: float) -> float:
        """The longest time from a request to its answer, of those that came since: how busy the machine was."""
        return max(received - sent for sent, received, _ in self.outcomes if received > when)

    def meanings(self) -> set[str]:
        """What all answers meant."""
        return {outcome for _, _, outcome in self.outcomes}


def over_http(stack: contextlib.ExitStack, address: str) -> Callable[[str], str]:
    """Asks for inference over one connection, which is opened again only after the gateway has closed it."""
    host, port = address.split(":")
    connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=STEP_S)))
    body = INFER_ROW.body.encode()

    def ask_it(token: str) -> str:
        try:
            connection.request("POST", "/v2/models/mine/infer", body, {"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens another one
            raise
        return {401: REFUSED, 200: FREE}.get(response.status, str(response.status))

    return ask_it


def over_grpc(stack: contextlib.ExitStack, address: str) -> Callable[[str], str]:
    """Asks for inference over one channel."""
    services = Services(address)
    stack.callback(services.channel.close)
    row = next(row for row in METHODS if row.name == "ModelInfer")
    return lambda token: call(services, row, "mine", token)


def idle_connection(address: str, token: str) -> socket.socket:
    """A connection that has had one answer, and asks no more."""
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=STEP_S)
    head = f"GET /v2/models/mine/ready HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer {token}\r\n\r\n"
    connection.sendall(head.encode())
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(4096)
    assert received.startswith(b"HTTP/1.1 200 ")
    return connection
