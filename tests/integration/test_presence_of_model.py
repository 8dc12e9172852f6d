"""A SavedModel that comes after the daemon has started, and vanishes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from light_models import make_package, write_model
from running import STEP_S, Running
from status_rows import model_row

from multitower import Client, MultitowerError

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
watch: {interval: 100ms, settle: 200ms}
restart: {backoff: {first: 100ms, max: 200ms}}
models:
  - {name: here, handler: "handlers:Echo"}
  - {name: m, path: model}
"""


def serves(client: Client) -> bool:
    try:
        return bool(client.infer("m", {"x": np.ones((1, 1), np.int64)}, timeout=STEP_S)["x"].tolist() == [[2]])
    except MultitowerError:
        return False


def test_a_saved_model_comes_and_vanishes(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_model(made / "1", 2)
    environment = make_package(tmp_path / "package")
    with Running(tmp_path, CONFIG, environment=environment) as daemon, daemon.wait_ready().client() as client:
        assert model_row(client, "m")["state"] == "waiting"
        os.rename(made, tmp_path / "model")
        daemon.wait(lambda: serves(client))
        assert (model_row(client, "m")["state"], model_row(client, "m")["version"]) == ("ready", "1")
        assert client.status()["daemon"]["waiting"] == []

        os.rename(tmp_path / "model", made)
        daemon.wait_line("model versions cannot be followed")
        assert serves(client), "the worker has it loaded"
        lines = len(daemon.lines)
        os.kill(client.status()["slots"][0]["pid"], signal.SIGKILL)
        daemon.wait_line("worker ready", after=lines, models="here")
        assert not serves(client)
        assert client.infer("here", {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
        assert daemon.end() == 0
