"""Calls that may block for ever, such as a look at a file of a network file system whose server does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from multitower.durations import exact_duration

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
    (outcome,) = call_all_within(seconds, [function])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def call_all_within(seconds: float, functions: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Calls functions at the same time, and waits for a limited time, however many of them block.

    Args:
        seconds: for which it is waited for the next one of them to return.
        functions: called without arguments, each in a thread of its own, which runs on if it blocks.

    Returns:
        For each function, in their order, what it returned or raised; a `TimeoutError` if it has not returned.
    """
    ended: SimpleQueue[tuple[int, T | Exception]] = SimpleQueue()

    def run(number: int, function: Callable[[], T]) -> None:
        try:
            ended.put((number, function()))
        except Exception as error:  # noqa: BLE001  it is an outcome for the caller
            ended.put((number, error))

    outcomes: list[T | Exception] = [TimeoutError(f"no answer within {exact_duration(seconds)}") for _ in functions]
    for number, function in enumerate(functions):
        threading.Thread(target=run, args=(number, function), name="bounded call", daemon=True).start()
    for _ in functions:
        try:
            number, outcome = ended.get(timeout=seconds)
        except Empty:
            break
        outcomes[number] = outcome
    return outcomes
