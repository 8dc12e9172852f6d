"""`multitower demo`, as `make demo` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil


def test_the_demo_loses_nothing_equals_tensorflow_and_leaves_nothing_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "multitower", "demo", "--folder", tmp_path / "demo", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.search(
        r"accuracy ([\d.]+)%; TensorFlow called directly: ([\d.]+)%; every answer is the same", done.stdout
    )
    assert said is not None, done.stdout
    assert said[1] == said[2]
    assert float(said[1]) > 90
    assert re.search(r"\b0 of [\d,]+ requests lost", done.stdout)
    assert re.search(r"slot served again after [\d.]+ s", done.stdout)
    assert "processes left: 0" in done.stdout
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert left == []
    assert (tmp_path / "demo" / "models" / "digits" / "1" / "saved_model.pb").exists()
