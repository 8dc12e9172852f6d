"""Models with devices of their own: served, unloaded and loaded while others are under load."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flow import flow
from running import STEP_S, Running, multitower

from multitower import MultitowerError, Unavailable

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 3}
spares: 0
models:
  - {name: m, handler: "handlers:Versioned", parameters: {version: 1}, devices: [cpu:0, cpu:1]}
  - {name: n, handler: "handlers:Versioned", parameters: {version: 2}, devices: [cpu:1]}
  - {name: o, handler: "handlers:Heavy", parameters: {mib: 256}, devices: [cpu:2]}
"""


def run(*arguments: str, daemon: Running) -> tuple[int, str]:
    """Returns the exit code and the output of a command."""
    done = multitower(*arguments, daemon=daemon)
    return done.returncode, done.stdout + done.stderr


def answered(number: int, future: Future[Any], version: int) -> bool:
    """Whether the request was answered, by that version; False if it was refused because the model is not loaded."""
    error = future.exception(STEP_S)
    # The client sends again what was refused: the last refusal may be of the time while the model loads.
    if isinstance(error, MultitowerError) and error.message.partition(";")[0].endswith(("unloaded", "still loading")):
        return False
    answer = future.result()
    assert (answer["x"].tolist(), answer["version"].tolist()) == ([[number]], [version])
    return True


def test_unloading_and_loading_a_model_does_not_disturb_the_others(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        state = client.status()
        assert [[model["name"] for model in slot["models"]] for slot in state["slots"]] == [["m"], ["m", "n"], ["o"]]
        assert [(model["slots_ready"], model["slots_total"]) for model in state["models"]] == [(2, 2), (1, 1), (1, 1)]
        assert "o ready" in (status := " ".join(run("status", daemon=daemon)[1].split()))
        assert "+256 MiB" in status.replace("+257", "+256"), "by how much the memory of its worker grew"
        (heavy,) = state["slots"][2]["models"]
        assert 256 << 20 <= heavy["host_memory_bytes"] < 300 << 20
        grown = [model["host_memory_bytes"] for model in state["models"]]
        assert grown[2] == heavy["host_memory_bytes"]
        assert max(grown[:2]) < 64 << 20
        assert {model["device_memory_bytes"] for model in state["models"]} == {None}
        before = [slot["pid"] for slot in state["slots"]]
        with flow(client, "m", outstanding=16) as of_m, flow(client, "n", outstanding=16) as of_n:
            daemon.wait(lambda: min(len(of_m), len(of_n)) > 50)
            assert run("unload", "n", daemon=daemon) == (0, "n is unloaded; workers replaced in slots 1\n")
            assert run("unload", "n", daemon=daemon) == (0, "n was already unloaded\n")
            assert run("status", daemon=daemon)[0] == 0, "an unloaded model is not a failure"
            unloaded = client.status()
            assert [model["state"] for model in unloaded["models"]] == ["ready", "unloaded", "ready"]
            assert unloaded["models"][1]["host_memory_bytes"] is None
            assert [model["name"] for model in unloaded["slots"][1]["models"]] == ["m"]
            assert not client.model_ready("n")
            seen = len(of_m)
            daemon.wait(lambda: len(of_m) > seen + 50)
            assert run("load", "n", daemon=daemon) == (0, "n is loaded; workers replaced in slots 1\n")
            seen = len(of_n)
            daemon.wait(lambda: len(of_n) > seen + 50)
        assert all(answered(number, future, version=1) for number, future in of_m)
        served = [answered(number, future, version=2) for number, future in of_n]
        assert served[:10] + served[-10:] == [True] * 20
        assert False in served
        after = client.status()["slots"]
        assert [slot["pid"] == pid for slot, pid in zip(after, before, strict=True)] == [True, False, True]
        assert [slot["restarts"] for slot in after] == [0, 0, 0]
        daemon.wait(lambda: not psutil.pid_exists(before[1]))


def test_a_device_without_models_is_idle_until_one_is_loaded(tmp_path: Path) -> None:
    text = CONFIG.replace("devices: [cpu:2]", "devices: [cpu:2], load_at_startup: false")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        slot = client.status()["slots"][2]
        assert (slot["state"], slot["pid"], slot["models"]) == ("stopped", None, [])
        assert client.server_ready() == {"ready": True, "slots_ready": 2, "slots_total": 2}
        with pytest.raises(Unavailable, match="'o' is unloaded; `multitower load o` loads it"):
            client.infer("o", {"x": np.ones(1)})
        assert run("load", "o", daemon=daemon) == (0, "o is loaded; workers replaced in slots 2\n")
        assert run("reload", daemon=daemon) == (0, "reloaded; no slot had to change\n")
        assert client.infer("o", {"x": np.ones(1)})["x"].tolist() == [1]
        assert run("unload", "o", daemon=daemon) == (0, "o is unloaded; workers replaced in slots 2\n")
        assert client.status()["slots"][2]["state"] == "stopped"
        daemon.config.write_text(
            daemon.config.read_text().replace("version: 1", "version: 3")
            + '  - {name: p, handler: "handlers:Echo", devices: [cpu:2]}\n'
        )
        assert run("load", "p", daemon=daemon) == (0, "p is loaded; workers replaced in slots 2\n")
        assert client.infer("p", {"x": np.ones(1)})["x"].tolist() == [1]
        assert client.infer("m", {"x": np.ones((1, 1))})["version"].tolist() == [1], (
            "other changes of the file are not applied"
        )
        assert "INVALID_ARGUMENT/malformed: model_name is missing" in run("unload", "", daemon=daemon)[1]
        code, output = run("load", "q", daemon=daemon)
        assert code == 1
        assert "NOT_FOUND/model_unknown" in output
        assert "names no model 'q', only m, n, o, p" in output
        assert run("reload", daemon=daemon) == (0, "reloaded; slots replaced 0, 1\n")
        assert client.infer("m", {"x": np.ones((1, 1))})["version"].tolist() == [3]
        assert [model["state"] for model in client.status()["models"]] == ["ready", "ready", "unloaded", "ready"]
        assert daemon.end() == 0
