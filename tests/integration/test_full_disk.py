"""The disk under `runtime_dir` is full, out of inodes or read-only while the daemon runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Running
from small_disk import SmallDisk, why_not

from multitower import Client
from multitower.supervisor.loop.runtime_dir import LOCK_NAME

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
restart: {max_restarts: 3, backoff: {first: 10ms, max: 50ms}}
models:
  - {name: m, handler: "handlers:Echo"}
"""
CAUSE = "exited with code 73: it could not make its socket in runtime_dir"


@pytest.fixture
def disk(short_folder: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(short_folder)
    yield disk
    disk.close()


def running(tmp_path: Path, disk: SmallDisk, config: str = CONFIG) -> Running:
    return Running(tmp_path, config, inside=disk.command, runtime_dir=disk.folder / "run")


def multitower(daemon: Running, disk: SmallDisk, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command where the disk, and so `control.sock`, is seen."""
    command = [*disk.inside(daemon.process.pid), sys.executable, "-m", "multitower", *arguments]
    return subprocess.run(
        [*command, "--endpoint", daemon.endpoint], capture_output=True, text=True, timeout=60, check=False
    )


def kill(client: Client, slot: int) -> int:
    pid: int = client.status()["slots"][slot]["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def infer(client: Client, times: int = 20) -> None:
    for future in [client.submit("m", {"x": np.array([[number]])}) for number in range(times)]:
        future.result(60)


def idle_spares(client: Client) -> list[Any]:
    return [spare for spare in client.status()["daemon"]["spares"] if spare["state"] == "idle"]


def test_a_full_disk_does_no_harm(tmp_path: Path, disk: SmallDisk) -> None:
    with running(tmp_path, disk) as daemon, daemon.wait_ready().client() as client:
        disk.fill(daemon.process.pid)
        killed = kill(client, 0)
        daemon.wait_line("worker ready", slot=0, incarnation=2)
        infer(client)
        assert client.status()["slots"][0]["pid"] != killed
        assert daemon.end() == 0


def test_without_inodes_no_worker_starts_until_there_are_some_again(tmp_path: Path, disk: SmallDisk) -> None:
    with (
        running(tmp_path, disk, CONFIG.replace("spares: 0", "spares: 1")) as daemon,
        daemon.wait_ready().client() as client,
    ):
        daemon.wait(lambda: bool(idle_spares(client)))
        spare = idle_spares(client)[0]["pid"]
        disk.use_up_inodes(daemon.process.pid)
        kill(client, 0)
        # What has its socket already serves on.
        daemon.wait_line("worker ready", slot=0, pid=spare)
        assert CAUSE in daemon.wait_line("spare died too often: no more spares")["cause"]

        kill(client, 0)
        line = daemon.wait_line("worker died", slot=0, next="slot failed")
        assert line["cause"] == CAUSE
        assert "out of inodes" in line["check"]
        assert "No space left on device" in daemon.wait_line("the worker's socket cannot be made")["cause"]
        infer(client)
        ready = client.server_ready()
        assert (ready["ready"], ready["slots_ready"], ready["slots_total"]) == (True, 1, 2)
        failed, serving = client.status()["slots"]
        assert failed["state"] == "failed"
        assert failed["last_error"].startswith(f"{CAUSE}; too many restarts (restart.max_restarts is ")
        assert (failed["pid"], serving["state"]) == (None, "ready")
        assert multitower(daemon, disk, "status").returncode == 1
        still = multitower(daemon, disk, "restart", "0")
        assert still.returncode != 0
        assert CAUSE in still.stderr

        disk.free(daemon.process.pid)
        done = multitower(daemon, disk, "restart", "0")
        assert (done.returncode, done.stderr) == (0, "")
        infer(client)
        assert [slot["state"] for slot in client.status()["slots"]] == ["ready", "ready"]
        daemon.wait(lambda: bool(idle_spares(client)))
        assert multitower(daemon, disk, "status").returncode == 0
        assert daemon.end() == 0


def test_a_slot_comes_back_by_itself_after_its_back_off(tmp_path: Path, disk: SmallDisk) -> None:
    text = CONFIG.replace("max_restarts: 3", "max_restarts: 1000")
    with running(tmp_path, disk, text) as daemon, daemon.wait_ready().client() as client:
        disk.use_up_inodes(daemon.process.pid)
        kill(client, 1)
        daemon.wait_line("worker died", slot=1, cause=CAUSE)
        infer(client)
        disk.free(daemon.process.pid)
        daemon.wait_ready()
        assert [slot["state"] for slot in client.status()["slots"]] == ["ready", "ready"]
        assert daemon.end() == 0


def test_a_removed_runtime_folder_costs_no_worker(tmp_path: Path, disk: SmallDisk) -> None:
    with running(tmp_path, disk) as daemon, daemon.wait_ready().client() as client:
        folder = disk.path(daemon.process.pid) / "run"
        for incarnation in (2, 3):
            shutil.rmtree(folder)
            kill(client, 0)
            daemon.wait_line("worker ready", slot=0, incarnation=incarnation)
            infer(client)
        daemon.wait_line("runtime folder was removed: it is made again", path=str(daemon.runtime_dir))
        assert [line for line in daemon.lines if line.get("cause") == CAUSE] == []
        assert multitower(daemon, disk, "restart", "1").returncode == 0
        assert daemon.end() == 0


def test_a_socket_that_cannot_be_removed_does_not_end_the_daemon(tmp_path: Path, disk: SmallDisk) -> None:
    with running(tmp_path, disk) as daemon, daemon.wait_ready().client() as client:
        # The lock comes last: when it changes, the daemon makes its sockets again.
        held = (daemon.runtime_dir / file for file in ("control.sock", "w1.sock", LOCK_NAME))
        disk.hold(daemon.process.pid, *held)
        kill(client, 0)
        daemon.wait_line("worker ready", slot=0, incarnation=2)
        infer(client)
        assert daemon.end() == 0
        daemon.wait_line("daemon ended", code=0)


def test_a_full_disk_costs_lines_of_the_request_log_and_no_request(tmp_path: Path, disk: SmallDisk) -> None:
    config = CONFIG.replace("cpu: 2", "cpu: 1") + f"request_log: {{path: {disk.folder}/requests.log}}\n"
    with running(tmp_path, disk, config) as daemon, daemon.wait_ready().client() as client:
        pid = daemon.process.pid

        def told(message: str) -> bool:
            client.infer("m", {"x": np.ones((1, 2))})
            return any(line["message"] == message for line in daemon.lines)

        disk.fill(pid)
        daemon.wait(lambda: told("request log cannot be written"))
        (dropped,) = re.findall(r"^multitower_request_log_dropped_lines_total (\d+)", client.metrics(), re.MULTILINE)
        assert int(dropped) >= 1
        disk.free(pid)
        daemon.wait(lambda: told("request log can be written again"))
        lines = (disk.path(pid) / "requests.log").read_text().splitlines()
        assert all(json.loads(line)["outcome"] == "ok" for line in lines), "each line is whole"
        assert daemon.end() == 0
