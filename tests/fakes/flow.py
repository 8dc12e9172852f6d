"""Requests without a break from a client of the test's own process, while the test does something to the daemon."""

from __future__ import annotations

from collections.abc import Iterator
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

    def submit(number: int) -> Future[Any]:
        future = client.submit(model, {"x": np.full((rows, 1), number, np.int64)})
        sent.append((number, future))
        return future

    with LoadGenerator(submit, lambda outcome: None) as load:
        load.keep_outstanding(outstanding)
        yield sent
