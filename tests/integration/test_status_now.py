"""What the status of a real daemon tells of the last minute: latencies, errors, refusals, queues, loads and events."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from running import Running, multitower
from status_rows import model_row

from multitower import Client, MultitowerError

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: patient, handler: "handlers:Patient", batching: {max_batch_size: 1}, queue: {max_size: 2, timeout: 60s}}
  - {name: broken, handler: "commanded_handlers:Commanded"}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("daemon"), CONFIG) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client(retries=0) as client:
        yield client


def patient(seconds: float) -> dict[str, np.ndarray]:
    return {"seconds": np.array([seconds]), "x": np.zeros(1)}


def test_the_latency_counts_from_the_receipt_of_a_request_and_includes_its_wait(
    daemon: Running, client: Client
) -> None:
    assert model_row(daemon, "patient")["latency_ms"] == {"p50": None, "p99": None}
    first, second = (client.submit("patient", patient(0.5)) for _ in range(2))
    first.result(60)
    second.result(60)
    shown = model_row(daemon, "patient")["latency_ms"]
    assert shown["p50"] >= 460, "a sixteenth less than what it slept"
    assert shown["p99"] >= 920, "it waited for the first one"


def test_the_age_of_the_oldest_waiting_request_and_refusals_by_their_reason(daemon: Running, client: Client) -> None:
    answers = [client.submit("patient", patient(1.0)) for _ in range(8)]
    # Over the same connection: the daemon has received the requests, and has answered one at most.
    (waiting,) = (each for each in client.status()["models"] if each["name"] == "patient")
    assert waiting["queue_oldest_s"] >= 0.0
    refused = sum(isinstance(answer.exception(30), MultitowerError) for answer in answers)
    assert refused > 0
    shown = model_row(daemon, "patient")
    assert shown["refused"] == {"total": {"queue_full": refused}, "last_minute": {"queue_full": refused}}
    assert shown["queue_oldest_s"] is None


def test_errors_of_a_model_are_counted_by_their_reason(daemon: Running, client: Client) -> None:
    assert model_row(daemon, "broken")["last_failed_age_s"] is None
    for _ in range(3):
        with pytest.raises(MultitowerError):
            client.infer("broken", {"command": np.array(["no such command"])})
    shown = model_row(daemon, "broken")
    assert shown["errors"] == {"total": {"model_error": 3}, "last_minute": {"model_error": 3}}
    assert 0.0 <= shown["last_failed_age_s"] < 60.0
    assert (shown["rows"], shown["batch_rows"], shown["batches"]) == (0, 3, 3), "rows a batch: 1, not 0"


def test_a_refusal_for_a_model_that_does_not_exist_counts_for_the_daemon(daemon: Running, client: Client) -> None:
    with pytest.raises(MultitowerError):
        client.infer("unknown", {"x": np.zeros(1)})
    assert daemon.status()["daemon"]["refused"]["last_minute"]["model_unknown"] == 1


def test_a_death_a_restart_and_a_reload_are_events_with_their_times(daemon: Running) -> None:
    os.kill(daemon.slot()["pid"], signal.SIGKILL)
    daemon.wait(lambda: daemon.slot()["last_death_age_s"] is not None and daemon.slot()["state"] == "ready")
    assert multitower("reload", daemon=daemon).returncode == 0
    state = daemon.status()
    assert [each["kind"] for each in state["daemon"]["events"]] == ["death", "restart", "reload", "audit"]
    assert [each["seq"] for each in state["daemon"]["events"]] == [1, 2, 3, 4]
    audit = state["daemon"]["events"][-1]
    assert audit["message"] == f"audit: reload by local:{os.geteuid()}: ok"
    assert (audit["operation"], audit["outcome"], audit["from"][:4]) == ("reload", "ok", "pid ")
    ages = [each["age_s"] for each in state["daemon"]["events"]]
    assert ages == sorted(ages, reverse=True)
    assert state["daemon"]["config"]["path"] == str(daemon.config)
    assert state["daemon"]["config"]["last_reload"]["outcome"] == "applied"
    slot = state["slots"][0]
    assert 0.0 < slot["worker_age_s"] <= slot["last_death_age_s"] < 60.0
    assert slot["worker_age_s"] <= slot["last_restart_age_s"]


def test_status_events_lists_them_for_people_and_for_programs(daemon: Running) -> None:
    assert multitower("reload", daemon=daemon).returncode == 0, "two events, whatever other tests have caused"
    known = daemon.status()["daemon"]["events"]
    assert [each["kind"] for each in known[-2:]] == ["reload", "audit"]
    as_json = multitower("status", "--events", "--json", daemon=daemon)
    assert [each["seq"] for each in json.loads(as_json.stdout)] == [each["seq"] for each in known]
    listed = multitower("status", "--events", daemon=daemon)
    assert (listed.returncode, listed.stderr) == (0, "")
    for event, line in zip(known, listed.stdout.splitlines(), strict=True):
        assert event["message"] in line
