"""Messages to a service manager, a log on a full disk, and the figures of the status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from running import STEP_S, Running, multitower

from multitower import Client

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "handlers:Versioned", parameters: {version: 1, load_s: 0.5}}
"""


def wait_for(manager: socket.socket, word: str) -> list[str]:
    """Returns the messages up to the first one that begins with this word, that one included."""
    messages: list[str] = []
    while not messages or not messages[-1].startswith(word):
        messages.append(manager.recv(4096).decode())
        assert len(messages) < 200, messages
    return messages


def test_the_service_manager_gets_each_state(tmp_path: Path, manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    with Running(tmp_path, CONFIG, environment=environment) as daemon:
        starting = wait_for(manager, "READY=1")
        assert any(message.startswith("EXTEND_TIMEOUT_USEC=") for message in starting)
        assert "1/1 slots ready" in starting[-1]
        wait_for(manager, "WATCHDOG=1")
        wait_for(manager, "WATCHDOG=1")
        worker = psutil.Process(daemon.wait_line("worker ready")["pid"])
        assert "NOTIFY_SOCKET" not in worker.environ()
        daemon.config.write_text(daemon.config.read_text().replace("version: 1", "version: 2"))
        daemon.signal(signal.SIGHUP)
        wait_for(manager, "RELOADING=1")
        wait_for(manager, "READY=1")
        daemon.signal(signal.SIGTERM)
        assert "draining" in wait_for(manager, "STOPPING=1")[-1]
        assert daemon.wait_end() == 0


def test_a_daemon_that_serves_nothing_is_not_ready_and_its_status_tells_why(
    tmp_path: Path, manager: socket.socket
) -> None:
    text = CONFIG.replace("handlers:Versioned", "handlers:BadLoader").replace("version: 1, load_s: 0.5", "way: sleep")
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with Running(tmp_path, text + "load_timeout: 3s\n", environment=environment) as daemon:
        messages: list[str] = []
        while not messages or "m failed: " not in messages[-1]:
            messages += [message for message in wait_for(manager, "STATUS=") if message.startswith("STATUS=")]
        assert any("slot 0 loads m version 1" in message for message in messages)
        assert "took over 3 s (load_timeout) while loading m version 1" in messages[-1]
        line = daemon.wait_line("every slot has failed")
        assert "with exit_when_failed: true it would exit with code 69" in line["next"]
        daemon.config.with_name("sleep").touch()
        assert multitower("restart", "0", daemon=daemon).returncode == 0
        starting = wait_for(manager, "READY=1")
        assert "1/1 slots ready" in starting[-1]
        assert daemon.end() == 0


def test_a_log_on_a_full_disk_does_not_stop_the_daemon(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as plain:
        config = plain.config.read_text()
        plain.wait_ready()
        plain.end()
    endpoint = f"ipc:///tmp/mt-full-{os.getpid()}.sock"
    (tmp_path / "full.yaml").write_text(config.replace(plain.endpoint, endpoint))
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "multitower", "serve", str(tmp_path / "full.yaml")]
        daemon = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        with Client(endpoint, connect_timeout=60) as client:
            client.wait_until_ready(60)
            pid = client.status()["slots"][0]["pid"]
            os.kill(pid, signal.SIGKILL)
            answer = client.infer("m", {"x": np.ones((1, 1))}, timeout=STEP_S)
            assert answer["pid"][0] != pid
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(STEP_S) == 0
    finally:
        daemon.kill()
        daemon.wait()


def test_the_status_has_figures_of_each_slot(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        for number in range(20):
            client.infer("m", {"x": np.array([[number]])})
        until = time.monotonic() + STEP_S
        while (slot := client.status()["slots"][0])["cpu_percent"] is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert 0 < slot["batch_ms"]["p50"] <= slot["batch_ms"]["p99"] < 1000
        assert slot["rows_per_s"] > 0
        assert abs(slot["rss_bytes"] - psutil.Process(slot["pid"]).memory_info().rss) < 32 << 20
        assert (slot["device_memory_bytes"], slot["device_present"]) == (None, True)


def test_workers_that_grow_beyond_max_rss_are_replaced(tmp_path: Path) -> None:
    text = CONFIG.replace("Versioned", "Hungry").replace("{version: 1, load_s: 0.5}", "{leak: 20000000}")
    text += "heartbeat: 100ms\nmax_rss: 200MiB\n"
    with Running(tmp_path, text) as daemon:
        with daemon.wait_ready().client() as client:
            for _ in range(15):
                assert client.infer("m", {"x": np.array([[1]])})["x"].tolist() == [[1]]
            daemon.wait_line("worker ready", slot=0, incarnation=2)
            assert client.infer("m", {"x": np.array([[1]])})["x"].tolist() == [[1]]
        assert "max_rss" in daemon.wait_line("replacing worker")["why"]
