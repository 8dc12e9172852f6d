"""Serves a TensorFlow model on each device, and compares its answers with the right ones."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from multitower.client.threads import Client
from multitower.cuda_environment import no_gpu_environment
from multitower.import_path import module_command, module_environment
from multitower.supervisor.config.units import format_size
from multitower.tools.daemon import OwnDaemon
from multitower.tools.errors import ToolError
from multitower.tools.selftest.results import CheckFailed, Outcome, Report, Result
from multitower.tools.selftest.session import REQUEST_S, device_lists
from multitower.tools.selftest.targets import Target

CHECK: Final = "tensorflow"
COLUMNS: Final = 16
READY_S: Final = 180.0
"""Seconds that the workers may take to import TensorFlow and load the model."""

_WRITE_S: Final = 120.0
_ROWS: Final = 8
_SHOWN: Final = 1000


def check_tensorflow(
    targets: Sequence[Target], memory: int, folder: Path, environment: Mapping[str, str], report: Report
) -> None:
    """Records a result for each worker, or one for all if TensorFlow is missing or the daemon does not start.

    Args:
        targets: the workers.
        memory: TensorFlow's limit on each device in bytes; its context comes on top.
        folder: for the model and the configuration.
        environment: the daemon's.
        report: gets the results.
    """
    if importlib.util.find_spec("tensorflow") is None:
        report.add(Result(CHECK, None, Outcome.SKIPPED, 0.0, "TensorFlow is not installed"))
        return
    started = time.monotonic()
    try:
        model = _write_model(folder)
        config = folder / "tensorflow.yaml"
        config.write_text(_make_config(targets, memory, model))
        with (
            OwnDaemon(config, log=folder / "tensorflow.log", ready_s=READY_S, environment=environment) as daemon,
            Client(daemon.endpoint, retries=0) as client,
        ):
            for target in targets:
                report.run(CHECK, target, lambda target=target: _check_answers(client, target))  # type: ignore[misc]
    except ToolError as error:
        report.add(Result(CHECK, None, Outcome.FAILED, time.monotonic() - started, str(error)))


def _write_model(folder: Path) -> Path:
    """Writes the model in a process of its own, and returns its folder.

    Raises:
        ToolError: TensorFlow fails, or takes longer than `_WRITE_S`.
    """
    model = folder / "model"
    command = [*module_command("multitower.tools.selftest.tensorflow_model"), str(model)]
    environment = {**module_environment(), **no_gpu_environment(), "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=_WRITE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"TensorFlow did not write a model within {_WRITE_S:g} s") from None
    if done.returncode:
        raise ToolError(f"TensorFlow could not write a model: {done.stderr[-_SHOWN:]}")
    return model


def _make_config(targets: Sequence[Target], memory: int, model: Path) -> str:
    devices = device_lists(targets)
    models: list[dict[str, Any]] = [
        {"name": _model_of(target), "path": str(model), "devices": [where]}
        for target, where in zip(targets, devices, strict=True)
    ]
    limit = {} if targets[0].on_cpu else {"memory": format_size(memory)}
    return json.dumps({"devices": devices, "cores": "shared", "spares": 0, "models": models, **limit})


def _model_of(target: Target) -> str:
    return f"tensorflow-{target.number}"


def _check_answers(client: Client, target: Target) -> str:
    """A model on a GPU fails to load where TensorFlow sees none: an answer shows that the GPU computed it."""
    x = np.arange(_ROWS * COLUMNS, dtype=np.float32).reshape(_ROWS, COLUMNS) % COLUMNS
    wanted = 3 * x.sum(axis=1, keepdims=True) + 1
    started = time.monotonic()
    answer = client.infer(_model_of(target), {"x": x}, timeout=REQUEST_S)["y"]
    milliseconds = 1000 * (time.monotonic() - started)
    if not np.array_equal(answer, wanted):
        raise CheckFailed(f"TensorFlow computed {answer.ravel().tolist()} instead of {wanted.ravel().tolist()}")
    slot = next(slot for slot in client.status()["slots"] if slot["slot"] == target.number)
    if not target.on_cpu and slot["visible_devices"] != ",".join(target.names):
        raise CheckFailed(f"the worker sees {slot['visible_devices']}, not {', '.join(target.names)}")
    return f"the right answer after {milliseconds:.1f} ms"
