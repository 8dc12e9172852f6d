"""The two ways that the daemon offers: the same model served by processes, then by towers, under the same load."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.temporary_folder import temporary_folder
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.session import Options, Session
from multitower.tools.compare.crash import kill_one, original_pids, request_timeout_s
from multitower.tools.compare.results import Figures, Way
from multitower.tools.daemon import OwnDaemon
from multitower.tools.errors import ToolError

MODEL: Final = "model"
_P50: Final = 50.0
_P99: Final = 99.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compare, and under which load.

    Attributes:
        path: the absolute path of the model.
        devices: names of devices, all of one kind.
        outstanding: requests outstanding.
        most_s: seconds that a killed process may take to come back.
        options: of the load.
        model: further keys of the model in the configuration.
    """

    path: Path
    devices: tuple[str, ...]
    outstanding: int
    most_s: float
    options: Options
    model: Mapping[str, Any] = field(default_factory=dict)


def try_way(number: int, measure: Callable[[], Way]) -> Way:
    """Measures a way; where that fails, the result says why."""
    try:
        return measure()
    except (ToolError, MultitowerError, OSError) as error:
        return Way(number=number, not_run=" ".join(str(error).split()))


def measure_processes(plan: Plan) -> Way:
    """Way 1: a process for each device, the default of `multitower serve`."""
    return Way(number=1, figures=_measure(plan, list(plan.devices)))


def measure_towers(plan: Plan) -> Way:
    """Way 4: one process with a tower on each device."""
    return Way(number=4, figures=_measure(plan, [list(plan.devices)]))


def make_config(plan: Plan, devices: Sequence[Any]) -> dict[str, Any]:
    """The configuration of a daemon; `devices` is the value of that key."""
    # By default, requests would fail after 30 s; a killed process may take longer to come back.
    queue = {"timeout": f"{request_timeout_s(plan.most_s):g}s"}
    model = {"name": MODEL, "path": str(plan.path), "queue": queue, **plan.model}
    return {"devices": devices, "spares": 0, "models": [model]}


def _measure(plan: Plan, devices: Sequence[Any]) -> Figures:
    with tempfile.TemporaryDirectory(prefix="mt-compare-", dir=temporary_folder()) as folder:
        config = Path(folder, "config.yaml")
        config.write_text(json.dumps(make_config(plan, devices)))  # JSON is YAML
        started = time.monotonic()
        with OwnDaemon(config) as daemon:
            ready_s = time.monotonic() - started
            with Session(daemon.endpoint, plan.options, plan.outstanding) as session:
                one_at_a_time = session.measure(Load("closed", 1))
                full = session.measure(Load("closed", plan.outstanding))
                requests = session.requests
            with Client(daemon.endpoint, retries=0) as client:
                slots = client.status()["slots"]
            memory_bytes = _memory_bytes(original_pids(slots))
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
        p50_s=full.latency_s(_P50),
        p99_s=full.latency_s(_P99),
        single_request_s=one_at_a_time.latency_s(_P50),
        failed=sum(step.tally.errors.total() for step in (one_at_a_time, full)),
        processes=len(slots),
        memory_bytes=memory_bytes,
        device_memory_bytes=None if None in on_devices else sum(on_devices),
        ready_s=ready_s,
        fallbacks=_fallbacks(slots),
        crash=crash,
    )


def _memory_bytes(pids: Sequence[int]) -> int:
    """Host memory of the processes; pages that they share count once."""
    try:
        return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)
    except psutil.Error as error:
        raise ToolError(f"the memory of a process cannot be read: {error}") from error


def _fallbacks(slots: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Nodes outside their tower's device, by operation, over all towers; None where no tower's nodes are known."""
    models = [model for slot in slots for tower in slot["towers"] for model in tower["models"]]
    if not models or any(model["nodes"] is None for model in models):
        return None
    counts: Counter[str] = Counter()
    for model in models:
        counts.update(model["fallbacks"])
    return dict(sorted(counts.items()))
