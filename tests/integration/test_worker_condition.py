"""A killed, a stopped, a hanging and a slow worker of a real daemon are told apart in its status, while it happens."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import Client

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 3}
spares: 0
models:
  - {name: m, handler: "handlers:Sleeper", parameters: {seconds: 0.005, slow: 2, factor: 20}}
  - {name: patient, handler: "handlers:Patient"}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("daemon"), CONFIG) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


@contextmanager
def load(client: Client) -> Iterator[None]:
    """Keeps all workers busy with small requests."""
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            client.infer("m", {"x": np.zeros((1, 1), np.float32)})

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(STEP_S)


def wait_for(client: Client, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Asks for the status until it is as wanted; returns it."""
    until = time.monotonic() + STEP_S
    while not condition(status := client.status()):
        assert time.monotonic() < until, status["slots"]
        time.sleep(0.01)
    return status


def conditions(status: dict[str, Any]) -> list[str]:
    return [slot["condition"] for slot in status["slots"]]


def test_a_slow_worker_is_slow_and_the_others_are_not(client: Client) -> None:
    with load(client):
        status = wait_for(client, lambda status: conditions(status)[2] == "slow")
    assert conditions(status) == ["ok", "ok", "slow"]
    assert status["slots"][2]["condition_cause"].endswith("times as long as those of the other workers")


def test_a_stopped_worker_is_unresponsive_and_then_dead(daemon: Running, client: Client) -> None:
    os.kill(daemon.slot(0)["pid"], signal.SIGSTOP)
    status = wait_for(client, lambda status: conditions(status)[0] == "unresponsive")
    assert status["slots"][0]["state"] in ("ready", "draining")
    assert "stopped" in status["slots"][0]["condition_cause"]
    status = wait_for(client, lambda status: conditions(status)[0] == "died")
    assert "stopped" in status["slots"][0]["condition_cause"]
    wait_for(client, lambda status: status["slots"][0]["state"] == "ready")


def test_a_killed_worker_is_dead_until_another_one_serves(daemon: Running, client: Client) -> None:
    os.kill(daemon.slot(1)["pid"], signal.SIGKILL)
    status = wait_for(client, lambda status: conditions(status)[1] == "died")
    assert "SIGKILL" in status["slots"][1]["condition_cause"]
    assert status["slots"][1]["state"] != "ready"
    wait_for(client, lambda status: conditions(status)[1] == "ok")


def test_a_batch_that_runs_far_longer_than_others_is_told_while_it_runs(client: Client) -> None:
    for _ in range(30):
        client.infer("patient", {"seconds": np.array([0.005]), "x": np.zeros(1)})
    answer = client.submit("patient", {"seconds": np.array([STEP_S]), "x": np.zeros(1)})
    status = wait_for(client, lambda status: "unresponsive" in conditions(status))
    (slot,) = (slot for slot in status["slots"] if slot["condition"] == "unresponsive")
    assert slot["condition_cause"].startswith("its batch has run for ")
    assert slot["batch_running_s"] >= 0.75
    assert not answer.done(), "it is told before the batch has ended"
    answer.cancel()
