"""A new version of a SavedModel, dropped into its folder and reloaded under load."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import NotFound

MAKE = """
import sys
import tensorflow as tf

for version in (1, 2):
    module = tf.Module()
    spec = tf.TensorSpec([None, 1], tf.float32, name="x")
    times = tf.function(lambda x: {"y": version * x}, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(module, f"{sys.argv[1]}/{version}", signatures={"serving_default": times})
"""

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 1
models:
  - {name: m, path: model, batching: {max_batch_size: 8}}
"""


def test_a_new_version_takes_over_under_load_and_no_answer_is_a_mix(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path / "made")], check=True, timeout=100, capture_output=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "made" / "1").rename(tmp_path / "model" / "1")
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready(110).client() as client:
        stop, sent = threading.Event(), list[Future[Any]]()

        def load() -> None:
            room = threading.Semaphore(8)
            while not stop.is_set():
                assert room.acquire(timeout=STEP_S)
                # Of 20 rows: split over both workers.
                sent.append(client.submit("m", {"x": np.ones((20, 1), np.float32)}))
                sent[-1].add_done_callback(lambda _: room.release())

        thread = threading.Thread(target=load)
        thread.start()
        daemon.wait(lambda: len(sent) > 50)
        (tmp_path / "made" / "2").rename(tmp_path / "model" / "2")
        command = [sys.executable, "-m", "multitower", "reload", "--endpoint", daemon.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        seen = len(sent)
        daemon.wait(lambda: len(sent) > seen + 50)
        stop.set()
        thread.join(STEP_S)
        answers = [set(future.result(STEP_S)["y"].ravel().tolist()) for future in sent]
        assert answers[0] == {1.0}
        assert answers[-1] == {2.0}
        assert all(answer in ({1.0}, {2.0}) for answer in answers), "a mix of both versions"
        assert client.metadata("m")["versions"] == ["2"]
        with pytest.raises(NotFound, match="no version '1', only 2"):
            client.infer("m", {"x": np.ones((1, 1), np.float32)}, version="1")
