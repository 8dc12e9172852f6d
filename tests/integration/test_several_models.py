"""Models of which each has devices of its own: served, unloaded and loaded beside others under load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Running

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - {name: m, handler: "handlers:Versioned", parameters: {version: 1}, devices: [cpu:0]}
  - {name: n, handler: "handlers:Versioned", parameters: {version: 2}, devices: [cpu:1]}
"""


def test_each_device_serves_its_own_models(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        for name, version in (("m", 1), ("n", 2)):
            assert client.infer(name, {"x": np.ones((1, 1))})["version"].tolist() == [version]
        state = client.status()
        assert [[model["name"] for model in slot["models"]] for slot in state["slots"]] == [["m"], ["n"]]
        assert [(model["slots_ready"], model["slots_total"]) for model in state["models"]] == [(1, 1), (1, 1)]
        assert state["daemon"]["ready"]
