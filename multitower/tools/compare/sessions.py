"""Way 2: a session for each GPU in one process, each with its `visible_device_list`; what becomes of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from multitower.tools.compare.results import Way

NO_GPU = "there is no GPU here; on logical CPU devices the option has no effect"


def sessions(gpus: Sequence[str], timeout_s: float) -> Way:
    """Opens a session for each GPU in a process that sees all of them, and tells what each really used.

    Args:
        gpus: their UUIDs; none where the devices are CPUs.
        timeout_s: for all of it.
    """
    if not gpus:
        return Way(number=2, not_run=NO_GPU)
    command = [sys.executable, "-m", "multitower.worker.formats.visible_sessions", str(len(gpus))]
    environment = {
        **os.environ,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Way(number=2, not_run=f"TensorFlow did not answer within {timeout_s:g} s")
    if done.returncode:
        last = next(iter(done.stderr.strip().splitlines()[-1:]), "")
        return Way(number=2, not_run=f"its process ended with exit code {done.returncode}: {last}")
    return Way(number=2, found=tuple(map(sentence, json.loads(done.stdout))))


def sentence(session: dict[str, Any]) -> str:
    """What one session did, as `worker.visible_sessions` tells it."""
    asked = f"the session with visible_device_list {session['asked']!r}"
    if session["error"] is not None:
        return f"{asked} failed: {session['error']}"
    return f"{asked} computed on {session['device']}, which is {session['physical'] or 'not told'}"
