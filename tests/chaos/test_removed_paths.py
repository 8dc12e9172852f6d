"""The folders of sockets are removed while the daemon serves, as by a program that removes old files."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from running import STEP_S, Running, multitower

from multitower import Client

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 1
restart: {max_restarts: 5, backoff: {first: 10ms, max: 50ms}}
models:
  - {name: m, handler: "handlers:Echo"}
"""
ROUNDS = 4
KILLS = 2
"""Workers killed in each round: eight in all, of which no slot may fail."""


def infer(client: Client, times: int = 20) -> None:
    for future in [client.submit("m", {"x": np.array([[number]])}) for number in range(times)]:
        future.result(STEP_S)


def test_removed_folders_of_sockets_cost_no_request_and_no_slot(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as connected:
        front = Path(daemon.endpoint.removeprefix("ipc://"))
        for number in range(ROUNDS):
            lines = len(daemon.lines)
            if number % 2:
                shutil.rmtree(front.parent)  # the runtime folder lies in it
            else:
                shutil.rmtree(daemon.runtime_dir)
                front.unlink()
            for _ in range(KILLS):
                slot = connected.status()["slots"][number % 2]
                os.kill(slot["pid"], signal.SIGKILL)
                daemon.wait_line("worker ready", STEP_S, 0, slot=slot["slot"], incarnation=slot["incarnation"] + 1)
                infer(connected)
            daemon.wait_line("endpoint was removed: it is bound again", STEP_S, lines, endpoint=daemon.endpoint)
            daemon.wait(lambda: daemon.runtime_dir.joinpath("control.sock").is_socket())
            with daemon.client() as new:
                infer(new)
                assert [slot["state"] for slot in new.status()["slots"]] == ["ready", "ready"]
                assert new.status()["daemon"]["waiting"] == []
        # A spare may be starting while its folder is removed; it is started again, and no slot waits for it.
        died = [line for line in daemon.lines if "could not make its socket" in str(line.get("cause"))]
        assert [line for line in died if line["message"] != "spare died"] == []
        restarted = multitower("restart", "0", daemon=daemon)
        assert (restarted.returncode, restarted.stderr) == (0, "")
        reloaded = multitower("reload", daemon=daemon)
        assert (reloaded.returncode, reloaded.stderr) == (0, "")
        infer(connected)
        assert daemon.end() == 0
        assert not front.exists()
        assert list(daemon.runtime_dir.iterdir()) == []
