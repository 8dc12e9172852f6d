"""Workers, spares and the daemon itself die or misbehave at the worst of moments.

Crashes and exit codes of a model, a dead spare and a killed parent that serves: tests/integration/test_supervision.py.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from load import Load
from running import STEP_S, Running, look_at_each

from multitower import Client, ModelError, MultitowerError, Poisoned

pytestmark = pytest.mark.chaos

FLOOD_S = 2.0
FLOOD_BYTES = 50_000_000
"""At the rate at which a worker's output is read, this lasts longer than the test."""


def config(handler: str, *, workers: int = 2, spares: int = 0, more: str = "", model: str = "") -> str:
    return f"""
listen: ["{{endpoint}}"]
devices: {{cpu: {workers}}}
spares: {spares}
restart: {{max_restarts: 1000, window: 1s, backoff: {{first: 10ms, max: 100ms}}}}
{more}
models:
  - name: m
    handler: {handler}
    {model}
"""


def do(command: str) -> dict[str, Any]:
    return {"do": np.array([command])}


def slots(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.status()["slots"]
    return found


def idle_spares(client: Client) -> list[int]:
    return [spare["pid"] for spare in client.status()["daemon"]["spares"] if spare["state"] == "idle"]


def is_running(process: psutil.Process) -> bool:
    """It has not ended; whether somebody has asked how it ended is another matter, and not the daemon's."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_model_that_uses_too_much_memory_costs_only_its_own_worker(tmp_path: Path) -> None:
    with (
        Running(tmp_path, config("commanded_handlers:Nuisance", spares=1)) as daemon,
        daemon.wait_ready().client() as client,
    ):
        good = [client.submit("m", do("pid")) for _ in range(20)]
        with pytest.raises(ModelError, match="allocate"):
            client.infer("m", do("hog"))
        assert [slot["restarts"] for slot in slots(client)] == [0, 0]
        # Not every library turns a failed allocation into an exception.
        abort = client.submit("m", do("hog-abort"))
        good += [client.submit("m", do("pid")) for _ in range(20)]
        with pytest.raises(Poisoned):
            abort.result(STEP_S)
        assert "SIGABRT" in daemon.wait_line("worker died")["cause"]
        for future in good:
            future.result(STEP_S)
        daemon.wait_ready()
        assert sum(slot["restarts"] for slot in slots(client)) == 2


def test_a_flood_of_stderr_delays_no_other_worker(tmp_path: Path) -> None:
    with Running(tmp_path, config("commanded_handlers:Nuisance")) as daemon, daemon.wait_ready().client() as client:
        for _ in range(50):
            client.infer("m", do("pid"))
        process = psutil.Process(daemon.process.pid)
        before, lines = process.memory_info().rss, len(daemon.lines)
        flooding = int(client.infer("m", do(f"flood {FLOOD_BYTES}"))["pid"][0])
        until = time.monotonic() + FLOOD_S
        latencies: list[float] = []
        answered: set[int] = set()
        memory = 0
        while time.monotonic() < until:
            started = time.monotonic()
            answered.add(int(client.infer("m", do("pid"))["pid"][0]))
            latencies.append(time.monotonic() - started)
            memory = max(memory, process.memory_info().rss)
        daemon.wait_line("the worker writes too much", after=lines, pid=flooding)
        assert flooding in answered, "the model writes in a thread, and serves meanwhile"
        assert sorted(latencies)[len(latencies) * 9 // 10] < 1.0
        assert memory - before < 16 << 20
        assert len(daemon.lines) - lines < 1000 * FLOOD_S
        assert [slot["restarts"] for slot in slots(client)] == [0, 0]
        assert daemon.end() == 0


def test_a_slow_loader_is_no_hang(tmp_path: Path) -> None:
    """Longer than many heartbeats: one sleeps, the other computes in C, which keeps its heartbeat from beating."""
    text = config("handlers:Reckoner", workers=1, more="heartbeat: 100ms", model="parameters: {load_seconds: 1.5}")
    text += "  - {name: busy, handler: 'handlers:Reckoner', parameters: {load_seconds: 1, busy: true}}\n"
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        for model in ("m", "busy"):
            assert client.infer(model, {"x": np.array([[5]])})["y"].tolist() == [[16]]
        assert [(slot["incarnation"], slot["restarts"]) for slot in slots(client)] == [(1, 0)]


def test_several_workers_killed_at_once_and_while_they_load_come_back(tmp_path: Path) -> None:
    model = "parameters: {seconds: 0.01, load_seconds: 0.3}\n    batching: {max_batch_size: 4}\n    retry: 3"
    text = config("handlers:DeclaredReckoner", spares=1, model=model)
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:

        def kill(*pids: int) -> None:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            # A slot may take a spare that is dead already, and so need one process more.
            daemon.wait(lambda: all(slot["state"] == "ready" and slot["pid"] not in pids for slot in slots(client)))

        def spare() -> int:
            daemon.wait(lambda: bool(idle_spares(client)))
            return idle_spares(client)[0]

        def workers() -> list[int]:
            return [slot["pid"] for slot in slots(client)]

        with Load(daemon.endpoint, processes=1) as load:
            kill(*workers())
            kill(spare(), workers()[0])

            # The spare that takes over is killed while it loads.
            idle, victim = spare(), slots(client)[1]
            os.kill(victim["pid"], signal.SIGKILL)
            daemon.wait_line("spare assigned", pid=idle, slot=1)
            daemon.wait(lambda: slots(client)[1]["state"] == "loading")
            kill(idle)
            assert slots(client)[1]["incarnation"] == victim["incarnation"] + 2

            kill(spare(), *workers())
            load.wait_ok(50)
            tally = load.stop()
        assert not tally.faults(), f"{tally}\n{daemon.text()}"
        assert sum(slot["restarts"] for slot in slots(client)) >= 7
        daemon.wait(lambda: bool(idle_spares(client)))
        assert daemon.end() == 0


def test_a_kill_during_a_drain_costs_no_answer(tmp_path: Path) -> None:
    """The only worker: what was accepted is answered by the one that follows it, though the daemon is stopping."""
    text = config("handlers:DeclaredReckoner", workers=1, model="parameters: {seconds: 0.1}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        accepted = [client.submit("m", {"x": np.array([[number]])}) for number in range(15)]
        daemon.wait(lambda: client.status()["models"][0]["queue"] > 0)
        pid = slots(client)[0]["pid"]
        daemon.remember()
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("draining")
        os.kill(pid, signal.SIGKILL)
        assert [future.result(STEP_S)["y"].tolist() for future in accepted] == [[[3 * n + 1]] for n in range(15)]
        daemon.wait_line("worker died", pid=pid)
        assert daemon.wait_end() == 0


@pytest.mark.parametrize("stage", ["starting", "draining"])
def test_no_process_outlives_a_parent_killed_while(stage: str, tmp_path: Path) -> None:
    text = config("handlers:Reckoner", workers=3, spares=1, model="parameters: {seconds: 30}")
    with Running(tmp_path, text) as daemon:
        if stage == "starting":
            daemon.wait_line("worker started", slot=2)
        else:
            with daemon.wait_ready().client() as client:
                for number in range(3):
                    client.submit("m", {"x": np.array([[number]])})
                daemon.wait(lambda: all(slot["depth"] for slot in slots(client)))
                daemon.wait(lambda: bool(idle_spares(client)))
                daemon.signal(signal.SIGTERM)
                daemon.wait_line("draining")
        killed_alone(daemon, at_least=3)


@pytest.mark.parametrize("at", ["loading", "taking over"])
def test_a_daemon_killed_during_a_replacement_leaves_no_process(tmp_path: Path, at: str) -> None:
    """In the middle of a reload under load: of a slot, two processes live, or one of them is leaving."""
    model = "parameters: {load_seconds: 0.5, seconds: 0.01}\n    batching: {max_batch_size: 4}"
    text = config("handlers:DeclaredReckoner", workers=3, spares=1, model=model)
    with (
        Running(tmp_path, text) as daemon,
        daemon.wait_ready().client(retries=0, timeout=STEP_S) as client,
        Load(daemon.endpoint, processes=1) as load,
    ):
        before = [slot["pid"] for slot in slots(client)]
        daemon.config.write_text(daemon.config.read_text().replace("seconds: 0.5", "seconds: 0.6"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("replacing worker", slot=0)
        load.wait_ok(20)
        if at == "taking over":
            daemon.wait_line("worker ready", slot=0, incarnation=2)
        futures = [client.submit("m", {"x": np.array([[number]])}) for number in range(500)]
        children = killed_alone(daemon, at_least=4)
        killed = time.monotonic()
        errors = [error for future in futures if (error := future.exception(STEP_S)) is not None]
        assert time.monotonic() - killed < STEP_S / 2, "nobody waits for its request's time to be over"
        assert {error.reason for error in errors if isinstance(error, MultitowerError)} == {"connection_lost"}
        assert all(isinstance(error, MultitowerError) for error in errors)
        assert set(before[1:]) <= {child.pid for child in children}, "it had not come to the last slots yet"


def killed_alone(daemon: Running, at_least: int) -> list[psutil.Process]:
    """The daemon is killed; what it had started, which must end by itself, at once."""
    # Stopped first, so that it starts no process between the look and the kill.
    daemon.signal(signal.SIGSTOP)
    children = daemon.remember()
    assert len(children) >= at_least
    daemon.signal(signal.SIGKILL)
    until = time.monotonic() + STEP_S / 2
    while alive := [child for child in children if is_running(child)]:
        assert time.monotonic() < until, f"still there: {look_at_each(alive, psutil.Process.cmdline)}"
        time.sleep(0.01)
    return children
