"""Workers that misbehave on their own channels to the daemon: each costs itself, and the daemon serves on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from running import STEP_S, Running

from multitower import Client

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
heartbeat: 200ms
models:
  - {name: m, handler: "hostile:Hostile"}
"""

HANDLER = """
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from multitower.worker_wire import BATCHING, MEMORY, REPORT, RESULT


def of_the_worker(name):
    # A local variable of the function in which the worker's main thread lives.
    frame = sys._current_frames()[threading.main_thread().ident]
    while name not in frame.f_locals or not frame.f_code.co_filename.endswith("worker/main.py"):
        frame = frame.f_back
    return frame.f_locals[name]


def send(*frames):
    of_the_worker("socket").send(frames)


def stop_under_a_title_that_is_not_utf8():
    ctypes.CDLL(None).prctl(15, b"m\\xe2\\x82", 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


DEEDS = {
    "report": lambda: send(REPORT, b"\\xff"),
    "report of nothing": lambda: send(REPORT),
    "second ready": lambda: send(REPORT, b'{"state": "ready", "pid": 1, "cause": null, "models": []}'),
    "memory": lambda: send(MEMORY, b"{}"),
    "batching": lambda: send(BATCHING, b"0"),
    "unknown kind": lambda: send(b"??", b""),
    "result": lambda: send(RESULT + b"\\0", b""),
    "result of another batch": lambda: send(RESULT + bytes(48)),
    "heartbeats": lambda: [os.write(of_the_worker("heartbeat"), b"\\xff" * 99) for _ in range(3)],
    "closed heartbeats": lambda: os.close(of_the_worker("heartbeat")),
    "truncated memory": lambda: (os.truncate(of_the_worker("begun"), 13), os._exit(3)),
    "title": stop_under_a_title_that_is_not_utf8,
}


class Hostile:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        deed = inputs["do"].reshape(-1)[0].decode()
        if deed:
            try:
                (Path(__file__).parent / deed).touch(exist_ok=False)
            except FileExistsError:
                deed = ""  # it was done once
        if deed:
            DEEDS[deed]()
            time.sleep(0.3)  # so that the daemon reads it before the answer
        return {"pid": inputs["do"]}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One daemon that survives all deeds."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.py").write_text(HANDLER)
    with Running(folder, CONFIG + "restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms}}\n") as running:
        yield running.wait_ready()
        assert running.end() == 0


KILLED = ["report", "report of nothing", "second ready", "memory", "batching", "unknown kind", "result"]
DIES = [*KILLED, "result of another batch", "truncated memory", "title"]


@pytest.mark.parametrize("deed", [*DIES, "heartbeats", "closed heartbeats"])
def test_a_hostile_worker_costs_itself_and_every_request_is_answered(daemon: Running, deed: str) -> None:
    with daemon.client() as client:
        before, lines = restarts(client), len(daemon.lines)
        others = [client.submit("m", {"do": np.array([""])}) for _ in range(10)]
        client.infer("m", {"do": np.array([deed])})
        for future in others:
            future.result(STEP_S)
        if deed in DIES:
            line = daemon.wait_line("worker died", after=lines)
            daemon.wait_line("worker ready", after=lines, slot=line["slot"])
            if deed in KILLED:
                assert "it broke the protocol" in line["cause"] or "internal error" in line["cause"]
        client.infer("m", {"do": np.array([""])})
        after = restarts(client)
        assert sum(after) - sum(before) == (deed in DIES)


def restarts(client: Client) -> list[int]:
    return [slot["restarts"] for slot in client.status()["slots"]]


def test_a_worker_that_closed_its_heartbeats_does_not_keep_the_daemon_busy(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(HANDLER)
    text = CONFIG.replace("heartbeat: 200ms", "heartbeat: 1s")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        client.infer("m", {"do": np.array(["closed heartbeats"])})
        process = psutil.Process(daemon.process.pid)
        before = sum(process.cpu_times()[:2])
        daemon.wait_line("worker hangs")  # some seconds later
        assert sum(process.cpu_times()[:2]) - before < 0.6


def test_a_daemon_whose_parent_ignores_sigchld_notices_how_workers_end(tmp_path: Path) -> None:
    program = """
import signal, os, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "multitower", *sys.argv[1:]])
"""
    with Running(tmp_path, CONFIG.replace("hostile:Hostile", "handlers:Echo"), program=("-c", program)) as daemon:
        daemon.wait_ready()
        os.kill(daemon.slot(0)["pid"], signal.SIGKILL)
        assert daemon.wait_line("worker died", slot=0)["cause"] == "killed by SIGKILL (9)"
        daemon.wait_line("worker ready", slot=0, incarnation=2)
        assert daemon.end() == 0
