"""Real workers with models that end or block them while they are loaded: what each costs, and what the others serve."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from asking import Asking
from running import STEP_S, Running, multitower, outliving
from status_rows import model_row

from multitower import MultitowerError

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 1
restart: {backoff: {first: 100ms, max: 100ms}}
models:
  - {name: sleeps, handler: "handlers:BadLoader", parameters: {way: sleep}, load_timeout: 1s}
  - {name: computes, handler: "handlers:BadLoader", parameters: {way: compute}, load_timeout: 1s}
  - {name: aborts, handler: "handlers:BadLoader", parameters: {way: abort}}
  - {name: leaks, handler: "starting_handlers:StartingLoader", parameters: {ways: [child, session], file: FILE}}
  - {name: good, handler: "handlers:Echo"}
"""
LATE = '  - {name: late, handler: "handlers:BadLoader", parameters: {way: wait_in_native_code}, load_timeout: 60s}\n'

TOO_LONG = "it was not loaded in time: killed because it took over 1 s (load_timeout) while loading"
CAUSES = {
    "sleeps": f"{TOO_LONG} sleeps version 1; its stacks are in the log",
    "computes": f"{TOO_LONG} computes version 1; its stacks are in the log",
    "aborts": "it has ended 3 workers of the slot: killed by SIGABRT (6)",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon that serves the model that is good, and has given up the others."""
    folder = tmp_path_factory.mktemp("load")
    with Running(folder, CONFIG.replace("FILE", str(folder / "pids"))) as daemon:
        daemon.wait_line("worker ready")
        with Asking(daemon) as asking:
            daemon.wait_line("model is not loaded any more", model="aborts")
        assert asking.errors == []
        assert asking.answers > 0
        yield daemon
        assert daemon.end() == 0


@pytest.mark.parametrize("name", CAUSES)
def test_a_model_that_does_not_load_fails_with_the_cause(daemon: Running, name: str) -> None:
    with daemon.client() as client:
        row = model_row(client, name)
        assert row["state"] == "failed"
        assert CAUSES[name] in row["cause"]
        with pytest.raises(MultitowerError, match="no_worker") as raised:
            client.infer(name, {"x": np.ones(1)})
        assert CAUSES[name] in raised.value.message


@pytest.mark.parametrize(("name", "method"), [("sleeps", "sleep"), ("computes", "compute")])
def test_the_stacks_of_a_worker_that_takes_too_long_are_in_the_log(daemon: Running, name: str, method: str) -> None:
    died = daemon.wait_line(
        "worker died", cause=f"killed because it took over 1 s (load_timeout) while loading {name} version 1"
    )
    output = "\n".join(line["message"] for line in daemon.lines if line.get("pid") == died["pid"])
    assert re.search(f'File ".*handlers.py", line [0-9]+ in {method}', output)


def test_what_doctor_says_of_each_model_is_what_the_daemon_has_done(daemon: Running) -> None:
    config = daemon.config.with_name("doctor.yaml")
    config.write_text(daemon.config.read_text().replace("pids", "pids_of_doctor"))
    command = [sys.executable, "-m", "multitower", "doctor", "--json", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    findings = [each for each in json.loads(done.stdout)["findings"] if each["section"] == "models"]
    problems = {each["text"].split()[0]: each["advice"] for each in findings if each["level"] == "problem"}
    assert problems.keys() == CAUSES.keys()
    left_out = "start another worker without it, which serves the other models, and"
    for name in ("sleeps", "computes"):
        assert f"end the worker, {left_out} not try it again by itself" in problems[name]
    assert f"{left_out} try it again beside that one, up to 3 times in all" in problems["aborts"]
    texts = "\n".join(each["text"] for each in findings)
    assert re.search('sleeps: its worker was executing File ".*handlers.py", line [0-9]+ in sleep', texts)
    assert "leaks starts processes while it loads, which run beside its worker: sleep, sleep" in texts


def test_each_model_is_left_out_of_the_next_worker(daemon: Running) -> None:
    started = [line for line in daemon.lines if line["message"] in ("worker started", "spare assigned")]
    died = [line for line in daemon.lines if line["message"] in ("worker died", "replacement worker died")]
    # One for each of the two that take too long and three for the one that aborts; the last one serves.
    assert (len(died), len(started)) == (5, 6)
    assert [line["message"] for line in died].count("worker died") == 3


def test_the_models_that_fail_cost_no_restart_budget(daemon: Running) -> None:
    assert (daemon.slot()["state"], daemon.slot()["restarts"]) == ("ready", 3)


def test_what_a_model_has_started_while_it_loaded_ends_with_its_worker(daemon: Running) -> None:
    helpers = [psutil.Process(int(pid)) for pid in daemon.config.with_name("pids").read_text().split()]
    assert (len(helpers), all(helper.is_running() for helper in helpers)) == (2, True)
    psutil.Process(daemon.slot()["pid"]).kill()
    assert not outliving(helpers, STEP_S)
    daemon.wait(lambda: bool(daemon.slot()["state"] == "ready"))
    with daemon.client() as client:
        assert {row["name"] for row in client.status()["models"] if row["state"] == "ready"} == {"good", "leaks"}


def test_a_model_that_an_operator_loads_and_that_hangs_leaves_the_worker_that_serves(daemon: Running) -> None:
    pid = daemon.slot()["pid"]
    before = daemon.config.read_text()
    daemon.config.write_text(before + LATE)
    with Asking(daemon) as asking:
        done = multitower("load", "late", daemon=daemon)
    daemon.config.write_text(before)
    assert done.returncode != 0
    assert "killed because it hung: no heartbeat for" in done.stderr
    assert "while loading late version 1" in done.stderr
    assert (asking.errors, daemon.slot()["pid"]) == ([], pid)


def test_a_model_is_tried_again_with_more_time_after_a_reload(daemon: Running) -> None:
    daemon.config.with_name("sleep").touch()
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace("{way: sleep}, load_timeout: 1s", "{way: sleep}, load_timeout: 1h"))
    with Asking(daemon) as asking, daemon.client() as client:
        reloaded = multitower("reload", daemon=daemon)
        assert reloaded.returncode == 0, reloaded.stderr
        daemon.wait(lambda: model_row(client, "sleeps")["state"] == "ready")
        assert "it has ended 3 workers" in model_row(client, "aborts")["cause"]
    assert asking.errors == []


def test_the_only_model_of_a_daemon_fails_after_one_load_that_takes_too_long(tmp_path: Path) -> None:
    lines = CONFIG.splitlines(keepends=True)
    with Running(tmp_path, "".join(line for line in lines if "name:" not in line or "sleeps" in line)) as daemon:
        line = daemon.wait_line("slot failed")
        assert "it was not loaded in time" in line["cause"]
        with daemon.client() as client, pytest.raises(MultitowerError) as raised:
            client.infer("sleeps", {"x": np.ones(1)})
        assert CAUSES["sleeps"] in raised.value.message
        daemon.config.with_name("sleep").touch()
        assert multitower("restart", "0", daemon=daemon).returncode == 0
        assert daemon.wait_ready().end() == 0
