"""Real workers with a model that takes long to load: the others of its slot are served meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from asking import Asking
from running import STEP_S, Running, multitower, outliving
from waiting import wait_for

from multitower import MultitowerError

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
slow_load: 500ms
restart: {backoff: {first: 100ms, max: 100ms}}
models:
  - {name: good, handler: "handlers:Echo"}
  - {name: slow, handler: "handlers:BadLoader", parameters: {way: wait}}
  - {name: also_good, handler: "handlers:Echo", parameters: {}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("slow"), CONFIG) as daemon:
        yield daemon


def states(daemon: Running) -> dict[str, str]:
    with daemon.client() as client:
        return {row["name"]: row["state"] for row in client.status()["models"]}


def wait_set_aside(daemon: Running) -> int:
    """Waits until the other models are served while the slow one loads; returns the pid of the worker that loads it."""
    daemon.wait(lambda: states(daemon) == {"good": "ready", "slow": "loading", "also_good": "ready"})
    replacement: dict[str, Any] = wait_for(
        lambda: daemon.slot()["replacement"] or {}, lambda worker: worker.get("step") == "loading slow version 1"
    )
    pid: int = replacement["pid"]
    return pid


def finish(daemon: Running, pid: int) -> None:
    """Lets the slow model load, in the worker with this pid, which takes over."""
    serving = psutil.Process(daemon.slot()["pid"])
    with Asking(daemon) as asking:
        daemon.config.with_name("wait").touch()
        daemon.wait(lambda: set(states(daemon).values()) == {"ready"})
        assert not outliving([serving], STEP_S)
    assert (asking.errors, daemon.slot()["pid"], daemon.slot()["replacement"]) == ([], pid, None)
    daemon.config.with_name("wait").unlink()


def test_at_the_first_start_the_other_models_are_served_while_one_loads(daemon: Running) -> None:
    first = wait_set_aside(daemon)
    line = daemon.wait_line("model takes long to load", model="slow", version="1", slot=0)
    assert line["cause"].startswith("it takes over 0.5 s (slow_load)")
    with daemon.client() as client:
        for name in ("good", "also_good"):
            assert client.infer(name, {"x": np.ones(1)})["x"].tolist() == [1]
        assert not client.server_ready()["ready"]
        with pytest.raises(MultitowerError, match="no_worker") as raised:
            client.infer("slow", {"x": np.ones(1)})
        assert "still loading" in raised.value.message
    shown = multitower("status", daemon=daemon)
    assert (shown.returncode, "loading slow version 1" in shown.stdout) == (69, True)

    psutil.Process(daemon.slot()["pid"]).kill()
    daemon.wait_line("worker died", cause="killed by SIGKILL (9)")
    assert wait_set_aside(daemon) == first, "the death of the other worker does not concern it"
    finish(daemon, first)


def test_after_a_crash_the_other_models_do_not_wait_for_a_slow_one(daemon: Running) -> None:
    pid = daemon.slot()["pid"]
    psutil.Process(pid).kill()
    daemon.wait_line("worker died", pid=pid)
    loading = wait_set_aside(daemon)
    serving = daemon.slot()["pid"]
    with Asking(daemon) as asking:
        os.kill(loading, signal.SIGABRT)
        daemon.wait_line("replacement worker died", pid=loading)
        daemon.wait(lambda: daemon.slot()["replacement"] is not None)
    assert (asking.errors, daemon.slot()["pid"]) == ([], serving), "it is tried again beside the others"
    daemon.config.with_name("wait").touch()
    daemon.wait(lambda: set(states(daemon).values()) == {"ready"})
    daemon.config.with_name("wait").unlink()


def test_a_reload_of_another_model_does_not_wait_for_a_slow_one(daemon: Running) -> None:
    psutil.Process(daemon.slot()["pid"]).kill()
    wait_set_aside(daemon)
    daemon.config.write_text(daemon.config.read_text().replace("parameters: {}", "parameters: {changed: true}"))
    with Asking(daemon) as asking:
        reloaded = multitower("reload", daemon=daemon)
        assert reloaded.returncode == 0, reloaded.stderr
        daemon.wait(lambda: daemon.slot()["replacement"] is not None)
    assert asking.errors == []


def test_a_stop_ends_both_workers(daemon: Running) -> None:
    workers = [psutil.Process(pid) for pid in (daemon.slot()["pid"], daemon.slot()["replacement"]["pid"])]
    assert daemon.end() == 0
    assert not outliving(workers, STEP_S)
