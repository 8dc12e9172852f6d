"""Handlers whose rows influence each other, in a real daemon: each request gets what it would get without others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from running import STEP_S, Running
from status_rows import model_row

from multitower import Client

HANDLERS = """
class Share:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        x = inputs["x"]
        return {"y": x / x.max()}


class Mean(Share):
    def infer(self, inputs):
        return {"y": inputs["x"].mean(axis=1)}


class Double(Share):
    def infer(self, inputs):
        return {"y": 2 * inputs["x"]}
"""
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - {name: share, handler: "batching_handlers:Share", batching: {max_batch_size: 8}}
  - {name: double, handler: "batching_handlers:Double", batching: {max_batch_size: 8}}
  - {name: trusted, handler: "batching_handlers:Share", batching: {max_batch_size: 8, trust: true}}
  - {name: recorded, handler: "batching_handlers:Share", batching: {max_batch_size: 8}, warmup: rows.npz}
"""


def ask(client: Client, model: str, rows: list[int]) -> None:
    """Sends requests all at once, of so many rows each, and compares their answers with those of single calls."""
    rng = np.random.default_rng(len(rows))
    inputs = [rng.uniform(1, 9, count).astype(np.float32) for count in rows]
    futures = [client.submit(model, {"x": x}) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        wanted = 2 * x if model == "double" else x / x.max()
        np.testing.assert_array_equal(future.result(STEP_S)["y"], wanted)


def test_a_handler_whose_rows_influence_each_other_runs_unbatched(tmp_path: Path) -> None:
    (tmp_path / "batching_handlers.py").write_text(HANDLERS)
    np.savez(tmp_path / "rows.npz", x=np.float32([1, 2, 3, 4]))
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        found = "the values of output 'y' in a row depend on the other rows of the batch"
        assert model_row(client, "recorded")["unbatched_because"] == found
        ask(client, "recorded", [1, 20, 3] * 10)
        assert "first batches of requests" in str(model_row(client, "share")["unverified_because"])
        # The first is larger than a batch: it is split, and then starts again as a whole.
        ask(client, "share", [20, 1, 2, 1, 3, 1] * 20)
        assert (model_row(client, "share")["unbatched_because"], model_row(client, "share")["max_batch_size"]) == (
            found,
            0,
        )
        assert model_row(client, "share")["unverified_because"] is None
        ask(client, "double", [1, 2, 20] * 20)
        assert model_row(client, "double")["unbatched_because"] is None
        assert model_row(client, "double")["unverified_because"] is None
        assert "trust" in str(model_row(client, "trusted")["unverified_because"])
        assert client.infer("trusted", {"x": np.float32([1, 2])})["y"].tolist() == [0.5, 1.0]
        # The next workers know it from their start.
        pids = [slot["pid"] for slot in client.status()["slots"]]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda: not {slot["pid"] for slot in client.status()["slots"]} & {*pids, None})
        daemon.wait_ready()
        assert model_row(client, "share")["unbatched_because"] == found
        assert model_row(client, "double")["unverified_because"] is None
        ask(client, "share", [1, 20, 3] * 10)
        lines = [line for line in daemon.lines if line["message"] == "model runs unbatched"]
        assert sorted(line["model"] for line in lines) == ["recorded", "share"]


PADDED = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - name: padded
    handler: "batching_handlers:Mean"
    batching: {max_batch_size: 8, pad_variable_length_inputs: true}
    warmup: rows.npz
"""


def test_a_recorded_request_that_padding_changes_is_logged(tmp_path: Path) -> None:
    (tmp_path / "batching_handlers.py").write_text(HANDLERS)
    np.savez(tmp_path / "rows.npz", x=np.float32([[1, 2, 3], [5, 6, 9]]))
    with Running(tmp_path, PADDED) as daemon, daemon.wait_ready().client() as client:
        daemon.wait(lambda: "changes the values of output 'y'" in daemon.text())
        assert model_row(client, "padded")["unbatched_because"] is None
