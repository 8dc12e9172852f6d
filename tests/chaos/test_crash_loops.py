"""A broken model among others on the same slots: these serve on, the daemon reports it, and it can be repaired.

A whole slot that cannot come up: tests/integration/test_supervision.py (its models), test_lost_device.py (its device),
test_full_disk.py (its sockets). When a model is quarantined: tests/unit/test_model_quarantine.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from load import Load
from running import STEP_S, Running, multitower

from multitower import Client, MultitowerError, Poisoned, Unavailable

# The default budget of restarts is what the other models depend on.
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 1
models:
  - name: good
    handler: handlers:DeclaredReckoner
    parameters: {seconds: 0.005}
    batching: {max_batch_size: 8}
  - name: fragile
    handler: handlers:Fragile
    batching: {max_batch_size: 4}
    quarantine: 60s
"""

pytestmark = pytest.mark.chaos


def ask(client: Client, number: int) -> Future[Any]:
    return client.submit("fragile", {"x": np.array([[number]])})


def answers(client: Client, numbers: range = range(20)) -> None:
    """The fragile model does what it should."""
    futures = [ask(client, number) for number in numbers]
    assert [future.result(STEP_S)["y"].tolist() for future in futures] == [[[3 * n + 1]] for n in numbers]


def models(client: Client) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in client.status()["models"]}


def says_that_it_is_broken(client: Client, daemon: Running, cause: str) -> None:
    """In every place where somebody may look, while both slots serve the other model."""
    ready = client.server_ready()
    assert (ready["ready"], ready["slots_ready"], ready["slots_total"]) == (False, 2, 2)
    rows = models(client)
    assert (rows["good"]["state"], rows["good"]["slots_ready"]) == ("ready", 2)
    assert (rows["fragile"]["state"], rows["fragile"]["slots_ready"]) == ("failed", 0)
    assert cause in rows["fragile"]["cause"]
    assert multitower("status", daemon=daemon).returncode == 69, "a model has no worker"
    with pytest.raises(Unavailable, match=cause) as raised:
        ask(client, 0).result(STEP_S)
    assert raised.value.reason == "no_worker"


@contextmanager
def load_on_the_good_one(daemon: Running) -> Iterator[Load]:
    with Load(daemon.endpoint, model="good", processes=1) as load:
        yield load
        load.wait_ok(50)
        tally = load.stop()
    assert not tally.faults(), f"{tally}\n{daemon.text()}"


def test_a_model_broken_from_the_start_does_not_harm_others_and_can_be_repaired(tmp_path: Path) -> None:
    (tmp_path / "fragile").write_text("load")
    with (
        Running(tmp_path, CONFIG) as daemon,
        daemon.wait_ready().client(retries=0) as client,
        load_on_the_good_one(daemon),
    ):
        says_that_it_is_broken(client, daemon, "FileNotFoundError: the weights are missing")
        pids = [slot["pid"] for slot in client.status()["slots"]]
        still = multitower("restart", "0", daemon=daemon)
        assert still.returncode != 0
        assert "the weights are missing" in still.stderr
        assert [slot["pid"] for slot in client.status()["slots"]] == pids, "what serves is kept"

        (tmp_path / "fragile").unlink()
        assert multitower("restart", "0", daemon=daemon).returncode == 0
        # One slot has it: that is enough for its requests, and for `server_ready`.
        answers(client)
        rows = models(client)["fragile"]
        assert (rows["state"], rows["slots_ready"]) == ("ready", 1)
        assert client.ready()
        first, second = client.status()["slots"]
        assert [model["state"] for model in first["models"]] == ["ready", "ready"]
        assert [model["state"] for model in second["models"]] == ["ready", "failed"]
        assert multitower("restart", "1", daemon=daemon).returncode == 0
        assert models(client)["fragile"]["slots_ready"] == 2
        assert multitower("status", daemon=daemon).returncode == 0
        assert sum(slot["restarts"] for slot in client.status()["slots"]) == 0


def test_a_model_that_crashes_at_its_first_request_costs_no_slot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fragile").write_text("infer")
    with (
        Running(tmp_path, CONFIG) as daemon,
        daemon.wait_ready().client(retries=0) as client,
        load_on_the_good_one(daemon) as load,
    ):
        assert client.ready(), "nothing can be known yet"
        for number in range(3):
            with pytest.raises(Poisoned, match="2 workers died"):
                ask(client, number).result(STEP_S)
            load.wait_ok(20)
        daemon.wait_line("model quarantined", model="fragile")
        daemon.wait(lambda: all(slot["state"] == "ready" for slot in client.status()["slots"]))
        says_that_it_is_broken(client, daemon, "3 requests in a row crashed their workers")
        died = sum(slot["restarts"] for slot in client.status()["slots"])
        assert died == 6
        for number in range(100):
            with pytest.raises(Unavailable):
                ask(client, number).result(STEP_S)
        assert sum(slot["restarts"] for slot in client.status()["slots"]) == died, "they cost no other worker"

        (tmp_path / "fragile").unlink()
        assert multitower("restart", "1", daemon=daemon).returncode == 0
        answers(client)
        assert client.ready()
        assert models(client)["fragile"]["slots_ready"] == 2, "the other slot has it, too"
        assert multitower("status", daemon=daemon).returncode == 0
    with capsys.disabled():
        print(f"\n{died} workers died, and {load.stop()}")  # noqa: T201  docs/reliability.md quotes it


def test_a_flood_for_a_crashing_model_is_answered_and_no_slot_fails(tmp_path: Path) -> None:
    (tmp_path / "fragile").write_text("infer")
    with (
        Running(tmp_path, CONFIG) as daemon,
        daemon.wait_ready().client(retries=0) as client,
        load_on_the_good_one(daemon) as load,
    ):
        flood = [ask(client, number) for number in range(200)]
        errors = [future.exception(STEP_S) for future in flood]
        reasons = [error.reason if isinstance(error, MultitowerError) else error for error in errors]
        assert set(reasons) == {"poisoned", "no_worker"}
        assert reasons.count("poisoned") <= 8
        load.wait_ok(20)
        daemon.wait(lambda: all(slot["state"] == "ready" for slot in client.status()["slots"]))
        says_that_it_is_broken(client, daemon, "requests in a row crashed their workers")


@pytest.mark.parametrize("way", ["time", "reload"])
def test_a_model_in_quarantine_is_tried_again_later(tmp_path: Path, way: str) -> None:
    (tmp_path / "fragile").write_text("infer")
    text = CONFIG.replace("quarantine: 60s", "quarantine: 2s") if way == "time" else CONFIG
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client(retries=0) as client:
        for number in range(3):
            with pytest.raises(Poisoned):
                ask(client, number).result(STEP_S)
        assert not client.ready()
        (tmp_path / "fragile").unlink()
        if way == "reload":
            changed = daemon.config.read_text().replace("handlers:Fragile", "handlers:Fragile\n    retry: 2")
            daemon.config.write_text(changed)
            assert multitower("reload", daemon=daemon).returncode == 0
            assert not client.ready(), "the model is the same"
            daemon.config.write_text(changed.replace("retry: 2", "parameters: {generation: 2}"))
            assert multitower("reload", daemon=daemon).returncode == 0
        daemon.wait(client.ready)
        answers(client)
        assert models(client)["fragile"]["state"] == "ready"
