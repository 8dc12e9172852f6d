"""Versions of a SavedModel that come and go in its folder under load: good, corrupt and removed ones.

With one worker, since each imports TensorFlow; tests/integration/test_changing_versions.py has two.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import Client, NotFound

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
watch: {interval: 100ms, settle: 500ms}
models:
  - {name: m, path: model, batching: {max_batch_size: 8}, queue: {timeout: 10m}, version_labels: {next: 4}}
"""


PAUSE_S = 0.01
"""Seconds between two requests: the cores are for TensorFlow, which three workers import meanwhile."""


class Load:
    """Sends requests of 20 rows, which are split into batches, until it is stopped."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self.sent: list[Future[Any]] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        room = threading.Semaphore(8)
        while not self._stop.wait(PAUSE_S):
            assert room.acquire(timeout=STEP_S)
            self.sent.append(self._client.submit("m", {"x": np.ones((20, 1), np.float32)}))
            self.sent[-1].add_done_callback(lambda _: room.release())

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(STEP_S)

    def last(self) -> float:
        """The newest answer; all of its rows must be of one version."""
        done = next(future for future in reversed(self.sent[:-8]) if future.done())
        (value,) = set(done.result()["y"].ravel().tolist())
        return float(value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for version in (1, 4):
        save(folder / str(version), version)
    return folder


def save(folder: Path, factor: int) -> None:
    spec = tf.TensorSpec([None, 1], tf.float32, name="x")
    times = tf.function(lambda x: {"y": factor * x}, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(tf.Module(), str(folder), signatures={"serving_default": times})


def test_versions_change_under_load_without_errors_or_mixed_answers(tmp_path: Path, made: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made / "1", folder / "1")
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        with Load(client) as load:
            daemon.wait(lambda: len(load.sent) > 50)
            # A corrupt version is tried once; the former one is still served.
            shutil.copytree(made / "1", folder / "3")
            (folder / "3" / "saved_model.pb").write_bytes(b"\x0anothing")
            line = daemon.wait_line("versions not changed", versions="3")
            rows = {row["version"]: row for row in client.status()["models"]}
            assert [(version, row["state"]) for version, row in rows.items()] == [("1", "ready"), ("3", "failed")]
            assert rows["3"]["cause"] in line["cause"]
            assert "parse" in rows["3"]["cause"].lower()
            assert [row["labels_not_served"] for row in rows.values()] == [{}, {"next": "4"}]
            assert client.server_ready()["ready"]

            # The next good version is loaded, and its label is served from then on.
            with pytest.raises(NotFound, match="the label 'next' of 'm' is version 4, but served is only 1"):
                client.infer("m", {"x": np.ones((1, 1), np.float32)}, version_label="next")
            shutil.copytree(made / "4", folder / "4")
            daemon.wait_line("versions changed", versions="4")
            daemon.wait(lambda: load.last() == 4.0)
            assert client.metadata("m")["versions"] == ["4"]
            with pytest.raises(NotFound, match="no version '1', only 4"):
                client.infer("m", {"x": np.ones((1, 1), np.float32)}, version="1")
            assert client.infer("m", {"x": np.ones((1, 1), np.float32)}, version_label="next")["y"] == [[4.0]]

            # It is removed: the last good version is served again.
            shutil.rmtree(folder / "4")
            daemon.wait_line("versions changed", versions="1", before="4")
            daemon.wait(lambda: load.last() == 1.0)
        answers = [set(future.result(STEP_S)["y"].ravel().tolist()) for future in load.sent]
        assert all(answer in ({1.0}, {4.0}) for answer in answers), "a mix of versions"
        assert sum(line["message"] == "versions not changed" for line in daemon.lines) == 1, "tried again"
        assert client.metadata("m")["versions"] == ["1"]
