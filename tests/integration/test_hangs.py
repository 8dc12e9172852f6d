"""Workers that do not answer: found, asked for their stacks, killed, replaced, and their requests run elsewhere."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import DeadlineExceeded, Poisoned, Unavailable

pytestmark = pytest.mark.chaos


def config(handler: str = "Commanded", *, workers: int = 2, limit: str = "30s", more: str = "", model: str = "") -> str:
    return f"""
listen: ["{{endpoint}}"]
devices: {{cpu: {workers}}}
spares: 0
heartbeat: 200ms
{more}
models:
  - name: m
    handler: handlers:{handler}
    max_execution_time: {limit}
    {model}
"""


def is_in_stacks(file: Path, daemon: Running, **fields: object) -> bool:
    """Whether a line of a file is in the stacks that a worker writes next: one entry of the log."""
    line = daemon.wait_line("Thread 0x", **fields)
    return line["level"] == "error" and f'\n  File "{file}", line ' in line["message"]


def do(command: str) -> dict[str, Any]:
    return {"do": np.array([command])}


def test_a_stopped_worker_is_replaced_and_its_requests_are_answered_in_time(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        victim = daemon.slot(0)["pid"]
        os.kill(victim, signal.SIGSTOP)
        futures = [client.submit("m", do("echo"), timeout=10) for _ in range(40)]
        for future in futures:
            future.result(STEP_S)
        line = daemon.wait_line("worker hangs", slot=0)
        assert "the process is stopped" in line["cause"]
        daemon.wait_ready()
        assert daemon.slot(0)["pid"] != victim
        assert "hung" in daemon.slot(0)["last_error"]


def test_native_code_that_sleeps_is_found_and_its_stacks_are_logged(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        with pytest.raises(Poisoned):
            client.infer("m", do("stuck 60"))
        assert "uses no CPU" in daemon.wait_line("worker hangs")["cause"]
        assert is_in_stacks(tmp_path / "handlers.py", daemon, slot=daemon.wait_line("worker hangs")["slot"])
        daemon.wait_ready()


def test_a_call_over_its_time_is_a_hang_and_its_stacks_are_logged(tmp_path: Path) -> None:
    with Running(tmp_path, config(limit="1s")) as daemon, daemon.wait_ready().client() as client:
        with pytest.raises(Poisoned) as raised:
            client.infer("m", do("sleep 60"))
        hung = "killed because it hung: a model call took over 1 s (max_execution_time)"
        assert raised.value.message == (
            f"2 workers died while they executed this request ({hung}), and retry of 'm' is 1: do not send it again"
        )
        assert raised.value.details == {"cause": hung, "limit": "max_execution_time", "limit_value": 1.0}
        assert is_in_stacks(tmp_path / "handlers.py", daemon, model="m", version="1")
        for message in ("worker hangs", "worker died"):
            daemon.wait_line(message, model="m", version="1")
        assert "max_execution_time" in daemon.wait_line("worker hangs")["cause"]
        restarts = [slot["restarts"] for slot in client.status()["slots"]]
        with pytest.raises(Poisoned, match=r"an equal request made a worker hang \(killed because it hung"):
            client.infer("m", do("sleep 60"))
        daemon.wait_ready()
        assert [slot["restarts"] for slot in client.status()["slots"]] == restarts, "it is not run again"


def test_a_worker_whose_model_closes_its_socket_gets_no_more_batches(tmp_path: Path) -> None:
    with Running(tmp_path, config(model="retry: 0")) as daemon, daemon.wait_ready().client() as client:
        victim = client.submit("m", do("close_sockets 60"), timeout=STEP_S)
        other = int(client.infer("m", do("echo"))["pid"][0])
        for _ in range(30):
            assert client.infer("m", do("echo"))["pid"][0] == other
        with pytest.raises(Unavailable) as raised:
            victim.result(STEP_S)
        assert "it closed its socket" in raised.value.message
        line = daemon.wait_line("worker hangs", model="m", version="1")
        assert line["cause"].startswith("it closed its socket ")
        assert line["cause"].endswith(" s ago and has not exited")
        assert is_in_stacks(tmp_path / "handlers.py", daemon, slot=line["slot"])
        daemon.wait_ready()
        assert client.status()["slots"][line["slot"]]["restarts"] == 1


def test_a_request_that_hangs_beyond_its_deadline_kills_one_worker(tmp_path: Path) -> None:
    with Running(tmp_path, config(limit="2s")) as daemon, daemon.wait_ready().client() as client:
        with pytest.raises(DeadlineExceeded):
            client.infer("m", do("sleep 60"), timeout=1)
        daemon.wait_line("worker died")
        with pytest.raises(Poisoned):
            client.infer("m", do("sleep 60"), timeout=1)
        daemon.wait_ready()
        assert sum(slot["restarts"] for slot in client.status()["slots"]) == 1


def test_long_loading_and_long_computing_is_no_hang(tmp_path: Path) -> None:
    text = (
        config(limit="60s", model="queue: {timeout: 60s}")
        + """  - name: slow
    handler: handlers:SlowLoader
    parameters: {seconds: 4}
"""
    )
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client(timeout=60) as client:
        for future in [client.submit("m", do("compute 2")) for _ in range(2)]:
            future.result(60)
        assert [slot["incarnation"] for slot in client.status()["slots"]] == [1, 1]
        assert not [line for line in daemon.lines if line["message"] == "worker hangs"]


def test_many_slow_calls_in_one_batch_are_no_hang(tmp_path: Path) -> None:
    # Outputs without the batch's rows: the batch is run request by request, each well within its time.
    text = config("Commanded", workers=1, limit="1s", model="batching: {max_batch_size: 32}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        for future in [client.submit("m", do("sleep 0.2")) for _ in range(15)]:
            future.result(STEP_S)
        assert client.status()["slots"][0]["incarnation"] == 1


def test_a_suspended_machine_is_no_hang(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        everybody = [daemon.process.pid, *(child.pid for child in daemon.remember())]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # the pause itself
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)
        daemon.wait_line("event loop stalled")
        client.infer("m", do("echo"))
        assert [slot["incarnation"] for slot in client.status()["slots"]] == [1, 1]
