"""Serves a TensorFlow model on each device, and compares its answers with the right ones."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from multitower.client.threads import Client
from multitower.cuda_visible_devices import no_gpu_environment
from multitower.durations import exact_duration
from multitower.import_path import module_command, module_environment
from multitower.supervisor.config.units import format_size
from multitower.tools.daemon import OwnDaemon
from multitower.tools.errors import ToolError
from multitower.tools.selftest.occupancy import leave_out_occupied
from multitower.tools.selftest.results import CheckFailed, Outcome, Report, Result
from multitower.tools.selftest.session import REQUEST_S, device_lists
from multitower.tools.selftest.targets import Target

CHECK: Final = "tensorflow"
COLUMNS: Final = 16
READY_S: Final = 600.0
"""Seconds that the workers may take to import TensorFlow and load the model."""

_WRITE_S: Final = 300.0
_ROWS: Final = 8
_SHOWN: Final = 1000


class TensorFlowCheck:
    """Serves a TensorFlow model by a daemon of its own.

    Args:
        targets: the workers.
        memory: TensorFlow's limit on each device in bytes; its context comes on top.
        folder: for the model and the configuration.
        environment: the daemon's.
        log: the file to which the daemon's log is appended; None for a temporary one.
    """

    def __init__(
        self, targets: Sequence[Target], memory: int, folder: Path, environment: Mapping[str, str], log: Path | None
    ) -> None:
        self._targets = targets
        self._memory = memory
        self._folder = folder
        self._environment = environment
        self._log = log or folder / "tensorflow.log"

    def run(self, report: Report, note_processes: Callable[[], None]) -> list[OwnDaemon]:
        """Records a result for each worker, or one for all if TensorFlow is missing or the daemon does not start.

        Args:
            report: gets the results.
            note_processes: is called while the daemon's processes run.

        Returns:
            The daemon, which has ended; none if it was not started.
        """
        if importlib.util.find_spec("tensorflow") is None:
            report.add(Result(CHECK, None, Outcome.SKIPPED, 0.0, "TensorFlow is not installed"))
            return []
        # Others may have taken memory since the other checks began.
        _, occupied = leave_out_occupied(self._targets, self._memory)
        reasons = {target.names: reason for target, reason in occupied.items()}
        for target in self._targets:
            if target.names in reasons:
                report.add(Result(CHECK, target, Outcome.SKIPPED, 0.0, reasons[target.names]))
        free = [target for target in self._targets if target.names not in reasons]
        return self._check(free, report, note_processes) if free else []

    def _check(self, targets: Sequence[Target], report: Report, note_processes: Callable[[], None]) -> list[OwnDaemon]:
        started = time.monotonic()
        daemons: list[OwnDaemon] = []
        try:
            model = _write_model(self._folder)
            config = self._folder / "tensorflow.yaml"
            config.write_text(_make_config(targets, self._memory, model))
            daemon = OwnDaemon(config, log=self._log, append=True, ready_s=READY_S, environment=self._environment)
            daemons.append(daemon)
            with daemon, Client(daemon.endpoint, retries=0) as client:
                note_processes()
                for slot, target in enumerate(targets):
                    report.run(CHECK, target, partial(_check_answers, client, target, slot))
                note_processes()
        except ToolError as error:
            report.add(Result(CHECK, None, Outcome.FAILED, time.monotonic() - started, str(error)))
        return daemons


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
        raise ToolError(f"TensorFlow did not write a model within {exact_duration(_WRITE_S)}") from None
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


def _check_answers(client: Client, target: Target, number: int) -> str:
    """A model on a GPU fails to load where TensorFlow sees none: an answer shows that the GPU computed it.

    Args:
        client: of the daemon.
        target: the worker.
        number: of its slot there.
    """
    x = np.arange(_ROWS * COLUMNS, dtype=np.float32).reshape(_ROWS, COLUMNS) % COLUMNS
    wanted = 3 * x.sum(axis=1, keepdims=True) + 1
    started = time.monotonic()
    answer = client.infer(_model_of(target), {"x": x}, timeout=REQUEST_S)["y"]
    milliseconds = 1000 * (time.monotonic() - started)
    if not np.array_equal(answer, wanted):
        raise CheckFailed(f"TensorFlow computed {answer.ravel().tolist()} instead of {wanted.ravel().tolist()}")
    slot = next(slot for slot in client.status()["slots"] if slot["slot"] == number)
    if not target.on_cpu and slot["visible_devices"] != ",".join(target.names):
        raise CheckFailed(f"the worker sees {slot['visible_devices']}, not {', '.join(target.names)}")
    return f"the right answer after {milliseconds:.1f} ms"
