"""Versions of a model that come and go in its folder, while two workers serve it under load: no answer is a mix."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
from flow import Sent, paced_flow
from light_models import make_package, write_model
from running import STEP_S, Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
watch: {interval: 100ms, settle: 200ms}
models:
  - {name: m, path: model, batching: {max_batch_size: 8}, queue: {timeout: 10m}}
"""


def factor(number: int, future: Any) -> int:
    """By what the rows of an answer were multiplied: all by the same."""
    (value,) = set((future.result(STEP_S)["x"] // number).ravel().tolist())
    return int(value)


def last(sent: Sent) -> int:
    """The factor of the newest answer."""
    number, future = next(each for each in reversed(sent[1:-8]) if each[1].done())
    return factor(number, future)


def test_versions_change_on_two_workers_without_errors_or_mixed_answers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder / "1", 1)
    environment = make_package(tmp_path / "package")
    with (
        Running(tmp_path, CONFIG, environment=environment) as daemon,
        daemon.wait_ready().client() as client,
    ):
        # Requests of 20 rows are split over both workers.
        with paced_flow(client, "m", rows=20, pause_s=0.005) as sent:
            daemon.wait(lambda: len(sent) > 50)
            # A corrupt version is tried once, by one worker; the former one is still served.
            write_model(folder / "3", "nothing")
            assert "is no number" in daemon.wait_line("versions not changed", versions="3")["cause"]
            assert client.server_ready()["ready"]

            write_model(folder / "4", 4)
            daemon.wait_line("versions changed", versions="4")
            daemon.wait(lambda: last(sent) == 4)

            # It is removed: the last good version is served again, also by a restarted worker.
            shutil.rmtree(folder / "4")
            daemon.wait_line("versions changed", versions="1", before="4")
            daemon.wait(lambda: last(sent) == 1)
        pid = daemon.slot(0)["pid"]
        os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda: daemon.slot(0)["pid"] not in (pid, None))
        daemon.wait_ready()
        assert {factor(number, future) for number, future in sent if number} == {1, 4}
        answers = [client.submit("m", {"x": np.ones((20, 1), np.int64)}) for _ in range(20)]
        assert {factor(1, future) for future in answers} == {1}
        assert sum(line["message"] == "versions not changed" for line in daemon.lines) == 1, "tried again"
        assert client.metadata("m")["versions"] == ["1"]
        for slot in daemon.status()["slots"]:
            assert "libtensorflow" not in Path(f"/proc/{slot['pid']}/maps").read_text()
