"""The JSON report of a bench: results, settings, versions and machine."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import zmq

import multitower
from multitower.errors import MultitowerError
from multitower.tensors import datatype_of
from multitower.tools.bench.inputs import Request
from multitower.tools.bench.rate_search import Objective
from multitower.tools.bench.results import Result, finite
from multitower.tools.bench.scaling import efficiency

FORMAT: Final = 1
"""The version of the report's format; raised when a key changes its meaning or is removed."""


def describe_machine() -> dict[str, Any]:
    """The machine that the client processes ran on."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def package_versions() -> dict[str, str]:
    """The versions of the packages that the client processes use."""
    return {
        "multitower": multitower.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
    }


def build_report(
    settings: Mapping[str, Any],
    *,
    daemon: Mapping[str, Any] | None,
    requests: Sequence[Request],
    steps: Sequence[Result],
    objective: Objective | None = None,
    tried: Sequence[Result] = (),
    scaling: Mapping[int, Result] | None = None,
    complete: bool,
) -> dict[str, Any]:
    """Builds the report.

    Args:
        settings: the command's options.
        daemon: `status`, `metadata` and `config` before the load.
        requests: the requests that were sent in turn.
        steps: all steps in order.
        objective: the objective of `--slo`.
        tried: the steps of the search for it.
        scaling: the best step of each number of workers of `--scaling`.
        complete: False if the bench was interrupted.
    """
    return {
        "format": FORMAT,
        # A date to read, not a duration.
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "complete": complete,
        "command": sys.argv[1:],
        "settings": dict(settings),
        "machine": describe_machine(),
        "versions": package_versions(),
        "daemon": daemon,
        "inputs": _inputs(requests),
        "steps": [step.to_json() for step in steps],
        "objective": _objective(objective, tried),
        "scaling": _scaling(scaling) if scaling is not None else None,
    }


def _inputs(requests: Sequence[Request]) -> dict[str, Any]:
    first = requests[0] if requests else {}
    described = {}
    for name, array in first.items():
        try:
            datatype: str | None = datatype_of(array)
        except MultitowerError:
            datatype = None
        described[name] = {"datatype": datatype, "shape": list(array.shape)}
    return {"variants": len(requests), "first": described}


def _objective(objective: Objective | None, tried: Sequence[Result]) -> dict[str, Any] | None:
    if objective is None:
        return None
    reached = [(result.load.amount, result.tally.percentile_s(objective.percent)) for result in tried]
    outcomes = [
        {"rate": rate, "percentile_s": finite(seconds), "held": objective.holds(seconds)} for rate, seconds in reached
    ]
    return {
        "percent": objective.percent,
        "seconds": objective.seconds,
        "highest_rate": max((rate for rate, seconds in reached if objective.holds(seconds)), default=None),
        "tried": outcomes,
    }


def _scaling(results: Mapping[int, Result]) -> list[dict[str, Any]]:
    shares = efficiency({workers: result.requests_per_s for workers, result in results.items()})
    return [
        {
            "workers": workers,
            "requests_per_s": result.requests_per_s,
            "rows_per_s": result.rows_per_s,
            "outstanding": result.load.amount,
            "efficiency": shares[workers],
            "bottleneck": result.verdict.part,
        }
        for workers, result in sorted(results.items())
    ]
