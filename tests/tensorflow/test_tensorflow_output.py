"""What TensorFlow writes while it starts does not bury the daemon's own log."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from running import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import keras

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "first_use:FirstUse"}
"""

HANDLER = """
import tensorflow as tf


class FirstUse:
    def load(self, devices, parameters):
        tf.config.list_physical_devices()
        tf.ones(1)

    def infer(self, inputs):
        return inputs
"""


def test_what_tensorflow_logs_at_its_start_is_shown_at_the_level_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    (tmp_path / "first_use.py").write_text(HANDLER)
    with Running(tmp_path, CONFIG) as daemon:
        with daemon.wait_ready().client() as client:
            client.infer("m", {"x": np.zeros(1)})
        lines = [line for line in daemon.lines if line["logger"] == "multitower.worker"]
    from_tensorflow = [line for line in lines if ".cc:" in line["message"] or "absl" in line["message"]]
    assert {line["level"] for line in from_tensorflow} == {"debug"}


TWO_WORKERS = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - {name: net, path: net.keras}
  - {name: saved, path: dense}
"""


def test_a_start_with_two_workers_logs_under_ten_lines_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    net = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(4)])
    net.save(tmp_path / "net.keras")
    net.export(str(tmp_path / "dense" / "1"), verbose=False)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with Running(tmp_path, TWO_WORKERS, arguments=("--log-level", "info")) as daemon:
        daemon.wait_ready()
        daemon.wait_line("daemon ready")
        assert [line["message"] for line in daemon.lines if line["logger"] == "multitower.worker"] == []
        assert len(daemon.lines) < 10
        pids = [slot["pid"] for slot in daemon.status()["slots"]]
        generated = {path.parent for path in temporary.glob("**/__autograph_generated_file*.py")}
        assert len(generated) == len(pids), "each worker has its own folder"
        os.kill(pids[0], signal.SIGKILL)
        daemon.wait(lambda: sum(folder.exists() for folder in generated) == 1)
        assert daemon.end() == 0
    assert list(temporary.iterdir()) == []
