"""A handler whose files change while it is served: one version, one content, with real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from running import STEP_S, Running, multitower
from status_rows import model_row

from multitower import Client

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
watch: {interval: WATCH, settle: 300ms}
models: [{name: m, handler: "answer:Answer"}]
"""

SOURCE = """
import numpy as np
from constants import NUMBER

class Answer:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return {"y": np.array([NUMBER])}
"""


def write(folder: Path, text: str) -> None:
    """Replaces the module that the handler imports, as an editor or a deployment does."""
    (folder / "new.py").write_text(text)
    (folder / "new.py").rename(folder / "constants.py")


def start(folder: Path, watch: str) -> Running:
    (folder / "answer.py").write_text(SOURCE)
    write(folder, "NUMBER = 1")
    return Running(folder, CONFIG.replace("WATCH", watch))


def answers(client: Client, requests: int = 40) -> set[int]:
    sent = [client.submit("m", {"x": np.zeros(1, np.float32)}) for _ in range(requests)]
    return {int(future.result(STEP_S)["y"][0]) for future in sent}


def test_a_changed_module_is_rolled_out_and_no_request_is_lost(tmp_path: Path) -> None:
    with start(tmp_path, "100ms") as daemon, daemon.wait_ready().client() as client:
        assert answers(client) == {1}
        write(tmp_path, "NUMBER = 2")
        daemon.wait_line("changed files loaded", model="m")
        daemon.wait(lambda: answers(client) == {2})


def test_a_restarted_worker_never_serves_a_changed_module_beside_the_former(tmp_path: Path) -> None:
    with start(tmp_path, "0") as daemon, daemon.wait_ready().client() as client:
        write(tmp_path, "NUMBER = 2")
        os.kill(daemon.slot(0)["pid"], signal.SIGKILL)
        daemon.wait_line("slot failed", slot=0)
        assert answers(client) == {1}
        assert "its files have changed" in model_row(client, "m")["cause"]
        done = multitower("reload", daemon=daemon)
        assert (done.returncode, done.stderr) == (0, "")
        assert answers(client) == {2}
        assert model_row(client, "m")["cause"] is None
        assert daemon.slot(0)["state"] == "ready"


def test_workers_that_all_die_come_back_with_the_changed_module(tmp_path: Path) -> None:
    with start(tmp_path, "0") as daemon, daemon.wait_ready().client() as client:
        write(tmp_path, "NUMBER = 2")
        pids = [daemon.slot(number)["pid"] for number in (0, 1)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda: all(daemon.slot(number)["pid"] not in (*pids, None) for number in (0, 1)))
        daemon.wait_ready()
        daemon.wait_line("files of a model have changed", model="m")
        assert answers(client) == {2}


def test_a_module_with_an_error_leaves_the_former_workers_serving(tmp_path: Path) -> None:
    with start(tmp_path, "100ms") as daemon, daemon.wait_ready().client() as client:
        write(tmp_path, "NUMBER = 1 / 0")
        daemon.wait_line("changed files not loaded", model="m")
        assert answers(client) == {1}
        assert model_row(client, "m")["state"] == "ready"
        assert "ZeroDivisionError" in model_row(client, "m")["cause"]
        write(tmp_path, "NUMBER = 3")
        daemon.wait(lambda: answers(client) == {3})
        assert model_row(client, "m")["cause"] is None


def test_a_module_with_the_size_and_time_of_the_former_is_not_taken_for_its_bytecode(tmp_path: Path) -> None:
    with start(tmp_path, "0") as daemon, daemon.wait_ready().client() as client:
        times = (tmp_path / "constants.py").stat().st_mtime_ns
        write(tmp_path, "NUMBER = 2")
        os.utime(tmp_path / "constants.py", ns=(times, times))
        assert multitower("reload", daemon=daemon).returncode == 0
        assert answers(client) == {2}


def test_a_module_that_is_only_touched_restarts_no_worker(tmp_path: Path) -> None:
    with start(tmp_path, "100ms") as daemon, daemon.wait_ready().client() as client:
        before = [daemon.slot(number)["pid"] for number in (0, 1)]
        os.utime(tmp_path / "constants.py")
        daemon.wait_line("files of a model were written again with equal contents", model="m")
        assert [daemon.slot(number)["pid"] for number in (0, 1)] == before
        os.kill(before[0], signal.SIGKILL)
        daemon.wait(lambda: daemon.slot(0)["state"] == "ready" and daemon.slot(0)["pid"] != before[0])
        assert answers(client) == {1}
