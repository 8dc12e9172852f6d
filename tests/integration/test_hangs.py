"""Workers that do not answer: found, asked for their stacks, killed, replaced, and their requests run elsewhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import DeadlineExceeded, Poisoned, Unavailable

pytestmark = pytest.mark.chaos


CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
heartbeat: 200ms
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
models:
  - {name: m, handler: "commanded_handlers:Commanded", max_execution_time: 60s, queue: {timeout: 60s}}
  - {name: untried, handler: "commanded_handlers:Commanded", max_execution_time: 30s, retry: 0}
  - {name: late, handler: "commanded_handlers:Commanded", max_execution_time: 2s}
  - {name: batched, handler: "commanded_handlers:Commanded", max_execution_time: 1s, batching: {max_batch_size: 32}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon whose two workers may hang. Each test begins with two that serve."""
    with Running(tmp_path_factory.mktemp("hangs"), CONFIG) as daemon:
        yield daemon.wait_ready()


ONE_MODEL = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
heartbeat: 200ms
models:
  - {name: m, handler: "commanded_handlers:Commanded", max_execution_time: 1s}
"""


@pytest.fixture
def seen(daemon: Running) -> int:
    """How many lines the log has before the test."""
    return len(daemon.wait_ready().lines)


def handler_is_in_stacks(daemon: Running, seen: int, **fields: object) -> bool:
    """Whether a line of the handler is in the stacks that a worker writes next: one entry of the log."""
    line = daemon.wait_line("Thread 0x", after=seen, **fields)
    file = daemon.config.with_name("commanded_handlers.py")
    return line["level"] == "error" and f'\n  File "{file}", line ' in line["message"]


def restarts(daemon: Running) -> list[int]:
    return [slot["restarts"] for slot in daemon.status()["slots"]]


def incarnations(daemon: Running) -> list[int]:
    return [slot["incarnation"] for slot in daemon.status()["slots"]]


def do(command: str) -> dict[str, Any]:
    return {"do": np.array([command])}


def test_a_stopped_worker_is_replaced_and_its_requests_are_answered_in_time(daemon: Running, seen: int) -> None:
    with daemon.client() as client:
        victim = daemon.slot(0)["pid"]
        os.kill(victim, signal.SIGSTOP)
        futures = [client.submit("m", do("echo"), timeout=10) for _ in range(40)]
        for future in futures:
            future.result(STEP_S)
        line = daemon.wait_line("worker hangs", after=seen, slot=0)
        assert "the process is stopped" in line["cause"]
        daemon.wait_ready()
        assert daemon.slot(0)["pid"] != victim
        assert "hung" in daemon.slot(0)["last_error"]


def test_native_code_that_sleeps_is_found_and_its_stacks_are_logged(daemon: Running, seen: int) -> None:
    with daemon.client() as client:
        with pytest.raises(Poisoned):
            client.infer("m", do("stuck 60"))
        line = daemon.wait_line("worker hangs", after=seen)
        assert "uses no CPU" in line["cause"]
        assert handler_is_in_stacks(daemon, seen, slot=line["slot"])


def test_a_call_over_its_time_is_a_hang_and_its_stacks_are_logged_with_the_model(tmp_path: Path) -> None:
    # With a daemon of its own: what a worker of several models writes has the name of none.
    with Running(tmp_path, ONE_MODEL) as daemon, daemon.wait_ready().client() as client:
        with pytest.raises(Poisoned) as raised:
            client.infer("m", do("sleep 60"))
        hung = "killed because it hung: a model call took over 1 s (max_execution_time)"
        assert raised.value.message == (
            f"2 workers died while they executed this request ({hung}), and retry of 'm' is 1: do not send it again"
        )
        assert raised.value.details == {"cause": hung, "limit": "max_execution_time", "limit_value": 1.0}
        assert handler_is_in_stacks(daemon, 0, model="m", version="1")
        for message in ("worker hangs", "worker died"):
            daemon.wait_line(message, model="m", version="1")
        assert "max_execution_time" in daemon.wait_line("worker hangs")["cause"]
        before = restarts(daemon)
        with pytest.raises(Poisoned, match=r"an equal request made a worker hang \(killed because it hung"):
            client.infer("m", do("sleep 60"))
        daemon.wait_ready()
        assert restarts(daemon) == before, "it is not run again"


def test_a_worker_whose_model_closes_its_socket_gets_no_more_batches(daemon: Running, seen: int) -> None:
    with daemon.client() as client:
        before = restarts(daemon)
        victim = client.submit("untried", do("close_sockets 60"), timeout=STEP_S)
        other = int(client.infer("m", do("echo"))["pid"][0])
        for _ in range(30):
            assert client.infer("m", do("echo"))["pid"][0] == other
        with pytest.raises(Unavailable) as raised:
            victim.result(STEP_S)
        assert "it closed its socket" in raised.value.message
        line = daemon.wait_line("worker hangs", after=seen, model="untried", version="1")
        assert line["cause"].startswith("it closed its socket ")
        assert line["cause"].endswith(" s ago and has not exited")
        assert handler_is_in_stacks(daemon, seen, slot=line["slot"])
        daemon.wait_ready()
        before[line["slot"]] += 1
        assert restarts(daemon) == before


def test_a_request_that_hangs_beyond_its_deadline_kills_one_worker(daemon: Running, seen: int) -> None:
    with daemon.client() as client:
        before = sum(restarts(daemon))
        with pytest.raises(DeadlineExceeded):
            client.infer("late", do("sleep 60"), timeout=1)
        daemon.wait_line("worker died", after=seen)
        with pytest.raises(Poisoned):
            client.infer("late", do("sleep 60"), timeout=1)
        daemon.wait_ready()
        assert sum(restarts(daemon)) == before + 1


LOADING = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
heartbeat: 200ms
models:
  - {name: slow, handler: "handlers:SlowLoader", parameters: {seconds: 4}}
"""


def test_long_loading_is_no_hang(tmp_path: Path) -> None:
    with Running(tmp_path, LOADING) as daemon:
        assert incarnations(daemon.wait_ready()) == [1]
        assert not [line for line in daemon.lines if line["message"] == "worker hangs"]


def test_long_computing_is_no_hang(daemon: Running, seen: int) -> None:
    before = incarnations(daemon)
    with daemon.client(timeout=60) as client:
        for future in [client.submit("m", do("compute 2")) for _ in range(2)]:
            future.result(60)
        assert incarnations(daemon) == before
        assert not [line for line in daemon.lines[seen:] if line["message"] == "worker hangs"]


def test_many_slow_calls_in_one_batch_are_no_hang(daemon: Running, seen: int) -> None:
    # Outputs without the batch's rows: batches are run request by request, each well within its time.
    before = incarnations(daemon)
    with daemon.client() as client:
        for future in [client.submit("batched", do("sleep 0.2")) for _ in range(30)]:
            future.result(STEP_S)
        assert incarnations(daemon) == before
        assert not [line for line in daemon.lines[seen:] if line["message"] == "worker hangs"]


@pytest.mark.usefixtures("seen")
def test_a_suspended_machine_is_no_hang(daemon: Running) -> None:
    before = incarnations(daemon)
    with daemon.client() as client:
        everybody = [daemon.process.pid, *(child.pid for child in daemon.remember())]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # the pause itself
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)
        daemon.wait_line("event loop stalled")
        client.infer("m", do("echo"))
        assert incarnations(daemon) == before
