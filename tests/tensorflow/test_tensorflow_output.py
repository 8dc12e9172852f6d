"""What TensorFlow writes while it starts does not bury the daemon's own log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 1
models:
  - {name: m, handler: "first_use:FirstUse"}
  - {name: other, path: saved}
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


@pytest.mark.parametrize("level", ["info", "debug"])
def test_what_tensorflow_logs_at_its_start_is_shown_at_the_level_debug_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    (tmp_path / "first_use.py").write_text(HANDLER)
    # Makes the spare import TensorFlow; it cannot be loaded.
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    with Running(tmp_path, CONFIG, arguments=("--log-level", level)) as daemon:
        with daemon.wait_ready(110).client() as client:
            client.infer("m", {"x": np.zeros(1)})
            daemon.wait(lambda: [spare["state"] for spare in client.status()["daemon"]["spares"]] == ["idle"], 110)
        lines = [line for line in daemon.lines if line["logger"] == "multitower.worker"]
    from_tensorflow = [line for line in lines if ".cc:" in line["message"] or "absl" in line["message"]]
    assert {line["level"] for line in from_tensorflow} == ({"debug"} if level == "debug" else set())
