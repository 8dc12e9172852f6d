"""Calls that may block for ever, such as a look at a file of a network file system whose server does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call_within(seconds: float, function: Callable[[], T]) -> T:
    """Calls a function, and waits for it for a limited time.

    Args:
        seconds: for which it is waited for. Afterwards its thread runs on, and its outcome is dropped.
        function: called without arguments in a thread.

    Returns:
        What it returned.

    Raises:
        TimeoutError: it has not returned by then.
        Exception: whatever it raised.
    """
    outcome: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:  # noqa: BLE001  it is raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="bounded call", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]
