"""A worker ends when it is told to, whatever the threads of its models do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from running import Running

HANDLER = """
import threading
import time


class Lingering:
    def load(self, devices, parameters):
        threading.Thread(target=time.sleep, args=(600,)).start()

    def infer(self, inputs):
        threading.Thread(target=time.sleep, args=(600,)).start()
        return inputs
"""

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "lingering:Lingering"}
"""


def test_threads_of_a_model_do_not_keep_its_worker_from_ending(tmp_path: Path) -> None:
    (tmp_path / "lingering.py").write_text(HANDLER)
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        assert client.infer("m", {"x": np.ones(1)})["x"].tolist() == [1]
        assert daemon.end() == 0
        messages = [line["message"] for line in daemon.lines]
        assert any(message.startswith("worker ended") for message in messages)
        assert not any(message.startswith("worker does not end") for message in messages), "it had to be killed"
