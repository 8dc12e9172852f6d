"""Way 2: a TensorFlow session for each GPU in one process, each with its own `visible_device_list`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from multitower.cuda_visible_devices import cuda_environment
from multitower.durations import exact_duration
from multitower.import_path import module_command, module_environment
from multitower.tools.compare.results import Way

NO_GPU = "there is no GPU here; on logical CPU devices the option has no effect"


def try_sessions(gpus: Sequence[str], timeout_s: float) -> Way:
    """Opens a session for each GPU in a process that sees all GPUs, and reports which GPU each session used.

    Args:
        gpus: the UUIDs of the GPUs; empty where the devices are CPUs.
        timeout_s: seconds for all sessions together.
    """
    if not gpus:
        return Way(number=2, not_run=NO_GPU)
    command = [*module_command("multitower.worker.formats.visible_sessions"), str(len(gpus))]
    environment = {**module_environment(), **cuda_environment(gpus), "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Way(number=2, not_run=f"TensorFlow did not answer within {exact_duration(timeout_s)}")
    if done.returncode:
        last_line = next(iter(done.stderr.strip().splitlines()[-1:]), "")
        return Way(number=2, not_run=f"its process ended with exit code {done.returncode}: {last_line}")
    return Way(number=2, found=tuple(map(describe_session, json.loads(done.stdout))))


def describe_session(session: dict[str, Any]) -> str:
    """One session's report from `worker.formats.visible_sessions`, as a sentence."""
    asked = f"the session with visible_device_list {session['asked']!r}"
    if session["error"] is not None:
        return f"{asked} failed: {session['error']}"
    return f"{asked} computed on {session['device']}, which is {session['physical'] or 'an unknown GPU'}"
