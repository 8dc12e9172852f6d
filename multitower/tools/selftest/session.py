"""The private daemon that is checked: its configuration, requests to one of its workers, and waiting for its status."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from multitower.client.threads import Client
from multitower.durations import exact_duration
from multitower.tools.selftest.results import CheckFailed, Interrupted
from multitower.tools.selftest.targets import Target

IDLE_MODEL: Final = "idle"
AT_ONCE: Final = 4
"""How many workers are checked at the same time. As many spares are kept, so that each death finds one."""

HANG_LIMIT_S: Final = 2.0
"""`max_execution_time` of the model that hangs."""

REQUEST_S: Final = 30.0
SERVING_S: Final = 60.0
"""Seconds that a slot may take to serve again."""

_HANDLERS: Final = "multitower.tools.selftest.probe"
_POLL_S: Final = 0.02


def probe_model(target: Target) -> str:
    """The name of the model that only this worker loads and that answers at once."""
    return f"probe-{target.number}"


def hanging_model(target: Target) -> str:
    """The name of the model that only this worker loads and that hangs."""
    return f"hang-{target.number}"


def make_config(targets: Sequence[Target]) -> str:
    """The configuration as JSON, which is YAML. Each worker has models of its own, so that requests can address it."""
    devices = device_lists(targets)
    # Requests are not retried and models never quarantined: each check crashes a worker once, and expects the error.
    own: dict[str, Any] = {"retry": 0, "quarantine": 0}
    models: list[dict[str, Any]] = [
        {"name": IDLE_MODEL, "handler": f"{_HANDLERS}:Idle", "batching": {"max_batch_size": 32, "trust": True}}
    ]
    for target, where in zip(targets, devices, strict=True):
        shared = {"devices": [where], **own}
        limit = f"{HANG_LIMIT_S:g}s"
        models += [
            {"name": probe_model(target), "handler": f"{_HANDLERS}:Probe", **shared},
            {"name": hanging_model(target), "handler": f"{_HANDLERS}:Hanging", "max_execution_time": limit, **shared},
        ]
    config = {
        "devices": devices,
        "cores": "shared",  # claims no cores that another daemon could use
        "spares": min(len(targets), AT_ONCE),
        # Deaths are on purpose: none may use up the restart budget.
        "restart": {"max_restarts": 1000, "backoff": {"first": "50ms", "max": "500ms"}},
        "drain_timeout": "5s",
        "models": models,
    }
    return json.dumps(config)


def device_lists(targets: Sequence[Target]) -> list[Any]:
    """The value of the key `devices` for these workers: names, and a list of names for each group."""
    return [target.names[0] if len(target.names) == 1 else list(target.names) for target in targets]


class Session:
    """A connection to the private daemon, for any number of threads.

    Args:
        client: the connection.
        stop: when it is set, every method that waits raises `Interrupted`.

    Attributes:
        client: the connection.
    """

    def __init__(self, client: Client, stop: threading.Event) -> None:
        self.client = client
        self._stop = stop

    def ask(self, target: Target, action: str, size: int = 0) -> dict[str, Any]:
        """Lets the probe of a worker carry out an action, and returns its report.

        Args:
            target: the worker.
            action: see `multitower.tools.selftest`.
            size: bytes of memory to take on each device.

        Raises:
            MultitowerError: the request failed.
        """
        return self._ask(probe_model(target), action, size)

    def hang(self, target: Target) -> None:
        """Sends the request that a worker does not return from.

        Raises:
            MultitowerError: as expected, once the daemon has found that the worker hangs.
        """
        self._ask(hanging_model(target), "hang", 0)

    def _ask(self, model: str, action: str, size: int) -> dict[str, Any]:
        if self._stop.is_set():
            raise Interrupted
        inputs = {"action": [action], "bytes": np.array([size], np.int64)}
        answer = self.client.infer(model, inputs, timeout=REQUEST_S)
        report: dict[str, Any] = json.loads(answer["report"][0])
        return report

    def slot(self, target: Target) -> dict[str, Any]:
        """The slot of a worker, as `status` shows it."""
        return next(slot for slot in self.client.status()["slots"] if slot["slot"] == target.number)

    def wait_serving(self, target: Target, former: int) -> dict[str, Any]:
        """Waits until another process than `former` serves in a worker's slot, and returns the slot.

        Raises:
            CheckFailed: it does not within `SERVING_S`.
        """
        slot: dict[str, Any] = {}

        def serves() -> bool:
            slot.update(self.slot(target))
            return bool(slot["state"] == "ready" and slot["pid"] != former)

        if not self.wait(serves, SERVING_S):
            state, cause = slot["state"], slot["last_error"]
            raise CheckFailed(
                f"slot {target.number} is {state} {exact_duration(SERVING_S)} after its worker died: {cause}"
            )
        return slot

    def wait_for_spares(self) -> set[int]:
        """Waits until every spare is idle, and returns their pids.

        Raises:
            CheckFailed: they are not within `SERVING_S`.
        """
        wanted: set[int] = set()

        def all_idle() -> bool:
            spares = self.client.status()["daemon"]["spares"]
            wanted.clear()
            wanted.update(spare["pid"] for spare in spares if spare["state"] == "idle")
            return bool(wanted) and len(wanted) == len(spares)

        if not self.wait(all_idle, SERVING_S):
            raise CheckFailed(f"no spare was ready within {exact_duration(SERVING_S)}")
        return wanted

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits until a condition holds; returns whether it did in time.

        Raises:
            Interrupted: the selftest ends early.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            if self._stop.wait(_POLL_S):
                raise Interrupted
        return True
