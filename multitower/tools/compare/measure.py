"""The ways that the daemon goes: the same model, by daemons of our own, one after the other, under the same load."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from multitower.client.threads import Client
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.client_pool import BenchError
from multitower.tools.bench.session import Options, Session
from multitower.tools.compare.crash import kill_one, survivors
from multitower.tools.compare.results import Figures, Way
from multitower.tools.daemon import OwnDaemon

MODEL: Final = "model"
_HALF: Final = 50.0
_NEARLY_ALL: Final = 99.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        path: of the model, absolute.
        devices: names, of one kind.
        outstanding: requests at a time.
        most_s: how long a killed process may take to come back.
        options: of the load.
        model: further keys of the model in a configuration.
    """

    path: Path
    devices: tuple[str, ...]
    outstanding: int
    most_s: float
    options: Options
    model: Mapping[str, Any] = field(default_factory=dict)


def processes(plan: Plan) -> Way:
    """Way 1: as `multitower serve` does it without being told otherwise."""
    return Way(number=1, figures=_served(plan, list(plan.devices)))


def towers(plan: Plan) -> Way:
    """Way 4: all devices in one group."""
    return Way(number=4, figures=_served(plan, [list(plan.devices)]))


def _served(plan: Plan, devices: Sequence[Any]) -> Figures:
    with tempfile.TemporaryDirectory(prefix="mt-compare-") as folder:
        config = Path(folder, "config.yaml")
        model = {"name": MODEL, "path": str(plan.path), **plan.model}
        # JSON is YAML.
        config.write_text(json.dumps({"devices": devices, "models": [model]}))
        begun = time.monotonic()
        with OwnDaemon(config, []) as daemon:
            ready = time.monotonic() - begun
            with Session(daemon.endpoint, plan.options, plan.outstanding) as session:
                alone = session.measure(Load("closed", 1))
                full = session.measure(Load("closed", plan.outstanding))
                requests = session.requests
            with Client(daemon.endpoint, retries=0) as client:
                slots = client.status()["slots"]
            memory = _memory(survivors(slots))
            crash = kill_one(
                daemon.endpoint,
                MODEL,
                requests,
                outstanding=plan.outstanding,
                devices=len(plan.devices),
                most_s=plan.most_s,
            )
    on_devices = [slot["device_memory_bytes"] for slot in slots]
    return Figures(
        requests_per_s=full.requests_per_s,
        outstanding=plan.outstanding,
        rows=full.rows,
        p50_s=full.latency_s(_HALF),
        p99_s=full.latency_s(_NEARLY_ALL),
        alone_s=alone.latency_s(_HALF),
        failed=sum(step.tally.errors.total() for step in (alone, full)),
        processes=len(slots),
        memory_bytes=memory,
        device_memory_bytes=None if None in on_devices else sum(on_devices),
        ready_s=ready,
        fallbacks=_fallbacks(slots),
        crash=crash,
    )


def _memory(pids: Sequence[int]) -> int:
    try:
        return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)
    except psutil.Error as error:
        raise BenchError(f"the memory of a process cannot be read: {error}") from error


def _fallbacks(slots: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Over all towers, by operation; None where there is none that has been looked at."""
    models = [model for slot in slots for tower in slot["towers"] for model in tower["models"]]
    if not models or any(model["nodes"] is None for model in models):
        return None
    counts: dict[str, int] = {}
    for model in models:
        for operation, count in model["fallbacks"].items():
            counts[operation] = counts.get(operation, 0) + count
    return dict(sorted(counts.items()))
