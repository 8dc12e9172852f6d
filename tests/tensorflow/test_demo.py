"""`multitower demo`, as `make demo` runs it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from multitower import Client

DEMO_S = 900.0
"""Far more than it takes alone: it starts TensorFlow five times, and other tests may use the cores."""

STEP_S = 240.0


@pytest.mark.usefixtures("all_packages")  # the digits are scikit-learn's
@pytest.mark.timeout(DEMO_S + 4 * STEP_S)
def test_the_demo_loses_nothing_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "multitower", "demo", "--folder", tmp_path / "demo", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEMO_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.search(
        r"accuracy ([\d.]+)%; TensorFlow called directly: ([\d.]+)%; every answer is the same", done.stdout
    )
    assert shown is not None, done.stdout
    assert shown[1] == shown[2]
    assert float(shown[1]) > 90
    assert re.search(r"\b0 of [\d,]+ requests lost", done.stdout)
    assert re.search(r"slot served again after [\d.]+ s", done.stdout)
    assert "processes left: 0" in done.stdout
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert left == []

    # As `make serve` does, with the model from above, which the worker need not have loaded.
    endpoint = f"ipc://{tmp_path}/front.sock"
    command = [sys.executable, "-m", "multitower", "demo", "--folder", tmp_path / "demo", "--serve"]
    # One worker: each imports TensorFlow.
    few = {"MULTITOWER_SPARES": "0", "MULTITOWER_DEVICES": "{cpu: 1}"}
    environment = {**os.environ, "MULTITOWER_LISTEN": f"[{endpoint}]", **few}
    serving = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with Client(endpoint, connect_timeout=STEP_S) as client:
            assert [model["name"] for model in client.status()["models"]] == ["digits"]
            daemon = client.status()["daemon"]["pid"]
        os.kill(serving.pid, signal.SIGTERM)  # only the demo, which ends its daemon first
        assert serving.wait(STEP_S) == 128 + signal.SIGTERM
        assert not psutil.pid_exists(daemon)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()

    serving = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with Client(endpoint, connect_timeout=STEP_S) as client:
            client.server_ready()
        os.killpg(serving.pid, signal.SIGINT)  # like Ctrl-C
        assert serving.wait(STEP_S) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()
