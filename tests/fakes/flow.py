"""Requests without a break from a client of the test's own process, while it does something to the daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
from running import STEP_S

from multitower import Client

Sent = list[tuple[int, Future[Any]]]
"""The number that each request asked for, and its outcome to come."""


@contextmanager
def flow(client: Client, model: str, *, rows: int = 1, outstanding: int) -> Iterator[Sent]:
    """Asks a `handlers.Versioned` until the end, each time for a number of its own; what was sent grows meanwhile."""
    stop = threading.Event()
    sent: Sent = []

    def run() -> None:
        room = threading.Semaphore(outstanding)
        while not stop.is_set():
            assert room.acquire(timeout=STEP_S)
            number = len(sent)
            future = client.submit(model, {"x": np.full((rows, 1), number, np.int64)})
            future.add_done_callback(lambda _: room.release())
            sent.append((number, future))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join(STEP_S)
