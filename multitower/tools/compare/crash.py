"""What the death of one process takes down: it is killed under load, and every answer is timed."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.tools.bench.client_pool import BenchError
from multitower.tools.compare.results import Crash

BEFORE_S: Final = 0.5
"""Under load before the death, and after all devices are there again."""

_LOOK_S: Final = 0.1


def kill_one(
    endpoint: str, model: str, requests: Sequence[dict[str, Any]], *, outstanding: int, devices: int, most_s: float
) -> Crash:
    """Kills the first slot's process of a daemon of our own while requests are under way.

    Args:
        endpoint: the daemon's.
        model: what is asked for.
        requests: inputs, sent in turn.
        outstanding: requests at a time.
        devices: how many the daemon has.
        most_s: how long to wait until all of them work again.

    Raises:
        BenchError: a process has died by itself.
    """
    load = _Load(model, requests)
    with Client(endpoint, timeout=most_s + 30.0, retries=0) as client, Client(endpoint, retries=0) as watching:
        for _ in range(outstanding):
            load.ask(client)
        load.run(client, BEFORE_S)
        slots = watching.status()["slots"]
        (victim, *_), lost = survivors(slots), len(slots[0]["device"].split(","))
        os.kill(victim, signal.SIGKILL)
        died = time.monotonic()
        back: float | None = None
        while time.monotonic() - died < most_s:
            load.run(client, _LOOK_S)
            pids = _pids(watching)
            if pids and victim not in pids:
                back = time.monotonic() - died
                load.run(client, BEFORE_S)
                break
        end = time.monotonic()
        moments = [moment for moment, error in load.ends if died <= moment <= end and error is None]
        return Crash(
            devices=devices,
            lost=lost,
            answered=len(moments),
            failed=sum(error is not None for _, error in load.ends),
            silent_s=longest_silence([died, *moments, end]),
            back_s=back,
        )


def survivors(slots: Sequence[dict[str, Any]]) -> list[int]:
    """The pids of the slots' processes, which have served from the start.

    Raises:
        BenchError: one has died, and what is measured would be its restart as well.
    """
    for slot in slots:
        if slot["state"] != "ready" or slot["restarts"]:
            raise BenchError(f"the process of slot {slot['slot']} died before it was to: {slot['last_error']}")
    return [slot["pid"] for slot in slots]


def longest_silence(moments: Sequence[float]) -> float:
    """The longest time between two neighbours."""
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)


def _pids(client: Client) -> list[int]:
    """Of the slots' processes; none while some slot does not serve."""
    slots = client.status()["slots"]
    return [slot["pid"] for slot in slots] if all(slot["state"] == "ready" for slot in slots) else []


class _Load:
    """A closed loop.

    Attributes:
        ends: when each request ended, and with which error.
    """

    def __init__(self, model: str, requests: Sequence[dict[str, Any]]) -> None:
        self._model = model
        self._requests = requests
        self._asked = 0
        self._done: queue.SimpleQueue[tuple[float, BaseException | None]] = queue.SimpleQueue()
        self.ends: list[tuple[float, MultitowerError | None]] = []

    def ask(self, client: Client) -> None:
        request = self._requests[self._asked % len(self._requests)]
        self._asked += 1
        future = client.submit(self._model, request)
        future.add_done_callback(lambda future: self._done.put((time.monotonic(), future.exception())))

    def run(self, client: Client, seconds: float) -> None:
        """Each answer is followed by the next request."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                moment, error = self._done.get(timeout=left)
            except queue.Empty:
                return
            if error is not None and not isinstance(error, MultitowerError):
                raise error
            self.ends.append((moment, error))
            self.ask(client)
