"""Requests without a break from a client of the test's own process, while the test does something to the daemon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from multitower import Client
from multitower.tools.load_generator import LoadGenerator

Sent = list[tuple[int, Future[Any]]]
"""The number in each request, and the request's future."""


@contextmanager
def flow(client: Client, model: str, *, rows: int = 1, outstanding: int) -> Iterator[Sent]:
    """Keeps requests to a `handlers.Versioned` outstanding, each with its own number; yields what was sent so far."""
    sent: Sent = []
    with LoadGenerator(_sender(client, model, rows, sent), lambda outcome: None) as load:
        load.keep_outstanding(outstanding)
        yield sent


@contextmanager
def paced_flow(client: Client, model: str, *, rows: int = 1, pause_s: float) -> Iterator[Sent]:
    """Like `flow`, but sends a request every `pause_s` seconds, which leaves the cores to workers that load."""
    sent: Sent = []
    over = threading.Event()

    def send_until_over() -> None:
        while not over.wait(pause_s):
            load.send(time.monotonic_ns())

    with LoadGenerator(_sender(client, model, rows, sent), lambda outcome: None) as load:
        thread = threading.Thread(target=send_until_over)
        thread.start()
        try:
            yield sent
        finally:
            over.set()
            thread.join()


def _sender(client: Client, model: str, rows: int, sent: Sent) -> Callable[[int], Future[Any]]:
    def submit(number: int) -> Future[Any]:
        future = client.submit(model, {"x": np.full((rows, 1), number, np.int64)})
        sent.append((number, future))
        return future

    return submit
