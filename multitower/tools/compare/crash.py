"""What the death of one process takes down: it is killed under load, and every answer is timed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

from multitower.client.threads import Client
from multitower.tools.compare.results import Crash
from multitower.tools.errors import ToolError
from multitower.tools.load_generator import LoadGenerator, Outcome

STEADY_S: Final = 0.5
"""Seconds of load before the process is killed, and after all devices work again."""

_POLL_S: Final = 0.1


def request_timeout_s(most_s: float) -> float:
    """Seconds for a request that may have to wait until a killed process is back, which takes up to `most_s`."""
    return most_s + 30.0


def kill_one(
    endpoint: str, model: str, requests: Sequence[dict[str, Any]], *, outstanding: int, devices: int, most_s: float
) -> Crash:
    """Kills the process of the first slot under load.

    Args:
        endpoint: the address of a daemon without other clients.
        model: the model's name.
        requests: inputs, sent in turn.
        outstanding: requests outstanding.
        devices: the daemon's devices.
        most_s: seconds to wait until all devices work again.

    Raises:
        ToolError: a process had died before.
    """
    ends: list[tuple[float, bool]] = []  # of each request: monotonic seconds, and whether it was answered
    with (
        Client(endpoint, timeout=request_timeout_s(most_s), retries=0) as client,
        Client(endpoint, retries=0) as observer,
    ):

        def submit(number: int) -> Future[Any]:
            return client.submit(model, requests[number % len(requests)])

        def record(outcome: Outcome) -> None:
            ends.append((outcome.ended_ns / 1e9, outcome.error is None))

        with LoadGenerator(submit, record) as load:
            load.keep_outstanding(outstanding)
            time.sleep(STEADY_S)
            slots = observer.status()["slots"]
            victim, lost = original_pids(slots)[0], len(slots[0]["device"].split(","))
            os.kill(victim, signal.SIGKILL)
            killed_s = time.monotonic()
            back_s = _wait_for_recovery(observer, victim, most_s)
            if back_s is not None:
                time.sleep(STEADY_S)
            end_s = time.monotonic()
    ends = [(moment, answered) for moment, answered in ends if moment <= end_s]
    answers = [moment for moment, answered in ends if answered and moment >= killed_s]
    return Crash(
        devices=devices,
        lost=lost,
        answered=len(answers),
        failed=sum(not answered for _, answered in ends),
        silent_s=longest_gap([killed_s, *answers, end_s]),
        back_s=back_s,
    )


def _wait_for_recovery(observer: Client, victim: int, most_s: float) -> float | None:
    """The seconds until every slot is ready again without the killed process; None if that took too long."""
    started = time.monotonic()
    while (waited_s := time.monotonic() - started) < most_s:
        slots = observer.status()["slots"]
        if all(slot["state"] == "ready" and slot["pid"] != victim for slot in slots):
            return waited_s
        time.sleep(_POLL_S)
    return None


def original_pids(slots: Sequence[dict[str, Any]]) -> list[int]:
    """The pids of the slots' processes, if these have served since the start.

    Raises:
        ToolError: a process died before, so its restart would be measured as well.
    """
    for slot in slots:
        if slot["state"] != "ready" or slot["restarts"]:
            raise ToolError(f"the process of slot {slot['slot']} died before it was killed: {slot['last_error']}")
    return [slot["pid"] for slot in slots]


def longest_gap(moments: Sequence[float]) -> float:
    """The longest time between two successive moments; 0 for fewer than two."""
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)
