"""The daemon as PID 1, the first process of a container: a PID namespace stands in for one."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from running import STEP_S, Running, look_at_each, outliving
from waiting import wait_for

from multitower import Client

INSIDE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "starting_handlers:Starter"}
"""

ENDED_BY_SIGTERM = 128 + signal.SIGTERM


@functools.cache
def why_not() -> str | None:
    """Why no PID namespace can be made here; None if one can."""
    try:
        done = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, timeout=STEP_S, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(f"no PID namespace: {reason}")


def first_process(unshare: int) -> psutil.Process:
    """The process that has PID 1 in the namespace."""
    (first,) = psutil.Process(unshare).children()
    return first


def with_inner_pid(unshare: int, pid: int) -> psutil.Process:
    """The process that has this process id in the namespace."""
    children = psutil.Process(unshare).children(recursive=True)
    statuses = look_at_each(children, lambda process: Path(f"/proc/{process.pid}/status").read_text())
    for process, status in statuses.items():
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
        if int(numbers[-1]) == pid:
            return process
    raise AssertionError(f"no process {pid}")


@contextmanager
def stranger(first: psutil.Process) -> Iterator[psutil.Process]:
    """A process that did not come from the daemon, and has become its child, as `docker exec` leaves them."""
    before = set(first.children())
    enter = ["nsenter", "--target", str(first.pid), "--user", "--pid", "--mount", "sh", "-c"]
    subprocess.run([*enter, "setsid sleep 1000 > /dev/null 2>&1 &"], check=True, timeout=STEP_S)
    (process,) = set(first.children()) - before
    try:
        yield process
    finally:
        if process.is_running():
            process.kill()


def test_a_signal_during_the_start_is_not_lost(tmp_path: Path) -> None:
    """The configuration is a pipe, so the daemon waits for it: until then it has collected no signals."""
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    command = [*INSIDE, sys.executable, "-m", "multitower", "serve", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as unshare:
        try:
            with config.open("w"):  # the daemon has opened it, too
                first_process(unshare.pid).send_signal(signal.SIGTERM)
                assert unshare.wait(STEP_S) == ENDED_BY_SIGTERM
        finally:
            unshare.kill()


def start_helper(client: Client, way: str) -> tuple[int, int]:
    answer = client.infer("m", {"way": np.array([way])})
    return int(answer["pid"][0]), int(answer["worker"][0])


def test_it_ends_what_workers_started_and_reaps_what_it_inherits_but_does_not_kill_that(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG, inside=INSIDE) as daemon, daemon.wait_ready().client() as client:
        unshare = daemon.process.pid
        first = first_process(unshare)
        assert "multitower" in " ".join(first.cmdline())
        started = [start_helper(client, way) for way in ("child", "group", "session", "daemon", "forked")]
        helpers = [with_inner_pid(unshare, pid) for pid, _ in started]
        worker = with_inner_pid(unshare, started[0][1])
        with stranger(first) as process:
            worker.kill()
            daemon.wait_line("worker died")
            assert not outliving(helpers, STEP_S)
            daemon.wait(lambda: not any(helper.is_running() for helper in helpers))
            assert process.is_running()
            process.kill()
            daemon.wait(lambda: not psutil.pid_exists(process.pid))
        daemon.wait_ready()
        daemon.remember()
        first.send_signal(signal.SIGTERM)
        assert daemon.wait_end() == 0


def test_sigterm_while_a_model_loads_ends_all_processes(tmp_path: Path) -> None:
    """Nothing is served yet, and the worker is in the handler's code: the daemon does not wait for it."""
    loading = CONFIG.replace("starting_handlers:Starter", "handlers:SlowLoader")
    loading = loading.replace('SlowLoader"', 'SlowLoader", parameters: {seconds: 1000}')
    with Running(tmp_path, loading, inside=INSIDE) as daemon:
        with daemon.client() as client:
            daemon.wait(lambda: client.status()["slots"][0]["state"] == "loading")
        first = first_process(daemon.process.pid)
        processes = first.children(recursive=True)
        first.send_signal(signal.SIGTERM)
        assert daemon.wait_end() == 0
        assert not outliving(processes, STEP_S)


def test_it_ends_at_once_with_a_model_that_sleeps_in_load_and_what_another_one_has_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    starter = (
        '{name: s, handler: "starting_handlers:StartingLoader", parameters: {ways: [session, daemon], file: FILE}}'
    )
    sleeper = '{name: m, handler: "handlers:BadLoader", parameters: {way: sleep}}'
    models = f"  - {starter.replace('FILE', str(pids))}\n  - {sleeper}\n"
    text = CONFIG.replace('  - {name: m, handler: "starting_handlers:Starter"}\n', models) + "drain_timeout: 1h\n"
    with Running(tmp_path, text, inside=INSIDE) as daemon:
        daemon.wait_line("worker started")
        # The file comes first: a worker reads the files of all models, m's last, before it loads any.
        started = wait_for(lambda: pids.read_text().split() if pids.exists() else [], lambda ids: len(ids) == 2)
        daemon.wait(lambda: daemon.slot()["step"] == "loading m version 1")
        unshare = daemon.process.pid
        helpers = [with_inner_pid(unshare, int(pid)) for pid in started]
        daemon.remember()
        first_process(unshare).send_signal(signal.SIGTERM)
        assert daemon.wait_end() == 0
        assert not outliving(helpers, STEP_S)
