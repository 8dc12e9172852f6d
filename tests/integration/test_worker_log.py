"""What models log and print, in the log of a real daemon: levels, models, and the last words before a death."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Running

from multitower import Poisoned

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: one, handler: "talks:Talks"}
  - {name: two, handler: "talks:Talks"}
"""

HANDLER = """
import logging
import os
import warnings


class Talks:
    def load(self, devices, parameters):
        print("printed while it loads")

    def infer(self, inputs):
        if "die" in inputs:
            os.write(2, b"native last words\\n")
            os.abort()
        print("printed by a call")
        logging.getLogger("talks").error("logged by a call")
        warnings.warn("warned by a call")
        return inputs
"""


def test_output_has_its_model_and_level_and_that_before_a_death_is_never_hidden(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(HANDLER)
    with (
        Running(tmp_path, CONFIG, arguments=("--log-level", "warning")) as daemon,
        daemon.wait_ready().client() as client,
    ):
        for name in ("two", "one"):
            client.infer(name, {"x": np.ones(1)})
            fields = {"slot": 0, "model": name, "version": "1", "logger": "multitower.worker"}
            daemon.wait_line("logged by a call", level="error", **fields)
        daemon.wait(lambda: any("warned by a call" in line["message"] for line in daemon.lines))
        assert [line for line in daemon.lines if "printed" in line["message"]] == []
        with pytest.raises(Poisoned):
            client.infer("two", {"die": np.ones(1)})
        daemon.wait_line("worker died", slot=0, incarnation=1, model="two", version="1")
        line = daemon.wait_line("last output of a worker that died", slot=0, incarnation=1)
        assert line["level"] == "warning"
        assert line["output"].split("\n")[-1] == "native last words"
        assert line["output"].count("printed") == 4
