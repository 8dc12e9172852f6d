"""What is configured but not there yet is waited for, and the rest is served meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running, multitower
from status_rows import model_row

from multitower import Client, Unavailable
from multitower.exit_codes import Exit

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
watch: {interval: 100ms, settle: 100ms}
models:
  - {name: here, handler: "handlers:Echo"}
"""
LATER = """  - {name: later, path: PATH}
"""
X = np.arange(3)


def waiting(daemon: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.status()["daemon"]["waiting"]
    return found


def answers(endpoint: str) -> bool:
    with Client(endpoint, connect_timeout=STEP_S) as client:
        return client.infer("here", {"x": X}, timeout=STEP_S)["x"].tolist() == X.tolist()


def test_a_model_that_is_missing_is_waited_for_and_the_others_are_served(tmp_path: Path) -> None:
    path = tmp_path / "mount" / "later"
    text = CONFIG + LATER.replace("PATH", str(path))
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        assert client.infer("here", {"x": X})["x"].tolist() == X.tolist()
        [entry] = waiting(daemon)
        assert (entry["kind"], entry["name"]) == ("model", "later")
        assert entry["cause"] == f"{path} does not exist, nor does {path.parent}"
        assert (model_row(daemon, "later")["state"], model_row(daemon, "here")["state"]) == ("waiting", "ready")
        assert str(path) in model_row(daemon, "later")["cause"]
        with pytest.raises(Unavailable, match="it is waited for"):
            client.infer("later", {"x": X})
        shown = multitower("status", daemon=daemon)
        assert shown.returncode == Exit.UNAVAILABLE, "not every model is served"
        assert f"waiting for model later: {path} does not exist" in " ".join(shown.stdout.split())
        path.mkdir(parents=True)
        daemon.wait(lambda: "it is empty" in str(waiting(daemon)))
        assert daemon.end() == Exit.OK


def test_with_strict_a_missing_model_ends_the_start(tmp_path: Path) -> None:
    text = CONFIG + LATER.replace("PATH", str(tmp_path / "later"))
    with Running(tmp_path, text, arguments=("--strict",)) as daemon:
        assert daemon.wait_end() == Exit.CONFIG
        assert f"models[1].path: {tmp_path / 'later'} does not exist" in daemon.stderr


def test_a_gpu_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.replace("{cpu: 1}", "[77]")) as daemon:
        daemon.wait_line("waiting for devices")
        assert [entry["kind"] for entry in waiting(daemon)] == ["devices", "model"]
        assert daemon.status()["slots"] == []
        with daemon.client() as client, pytest.raises(Unavailable, match="devices: 77 is not the index of a GPU"):
            client.infer("here", {"x": X})
        shown = multitower("status", daemon=daemon)
        assert shown.returncode == Exit.UNAVAILABLE
        assert "waiting for devices: devices: 77 is not the index of a GPU" in shown.stdout
        assert daemon.end() == Exit.OK


def test_with_strict_a_missing_gpu_ends_the_start(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.replace("{cpu: 1}", "[77]"), arguments=("--strict",)) as daemon:
        assert daemon.wait_end() == Exit.CONFIG
        assert "devices: 77 is not the index of a GPU here" in daemon.stderr


def test_with_strict_an_endpoint_that_cannot_be_bound_ends_the_start(tmp_path: Path) -> None:
    text = CONFIG.replace("[", f'["ipc://{tmp_path}/no/front.sock", ', 1)
    with Running(tmp_path, text, arguments=("--strict",)) as daemon:
        assert daemon.wait_end() == Exit.CONFIG
        assert f"the folder {tmp_path}/no does not exist" in daemon.stderr


def test_what_the_file_itself_makes_wrong_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    with Running(tmp_path, CONFIG + LATER.replace("PATH", "model.txt")) as daemon:
        assert daemon.wait_end() == Exit.CONFIG
        assert "models[1].path" in daemon.stderr


def test_endpoints_are_bound_once_their_folder_address_or_name_is_there(tmp_path: Path) -> None:
    folder = Path(os.path.realpath("/tmp")) / f"mt-late-{os.getpid()}"
    late = f"ipc://{folder}/front.sock"
    absent = "tcp://no-such-host.invalid:5999"
    text = CONFIG.replace("[", f'["{late}", "{absent}", "tcp://192.0.2.1:5998", ', 1) + "insecure: true\n"
    try:
        with Running(tmp_path, text) as daemon:
            daemon.wait_ready()
            causes = {entry["name"]: entry["cause"] for entry in waiting(daemon)}
            assert set(causes) == {late, absent, "tcp://192.0.2.1:5998"}
            assert f"the folder {folder} does not exist" in causes[late]
            assert "Cannot assign requested address" in causes["tcp://192.0.2.1:5998"]
            daemon.wait(lambda: "the name no-such-host.invalid cannot be resolved" in str(waiting(daemon)))
            assert daemon.status()["daemon"]["listen"] == [daemon.endpoint]
            assert answers(daemon.endpoint)
            folder.mkdir()
            daemon.wait_line("listening", endpoint=late)
            assert answers(late)
            assert daemon.status()["daemon"]["listen"] == [late, daemon.endpoint]
            assert late not in str(waiting(daemon))
            assert daemon.end() == Exit.OK
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


def test_an_endpoint_that_another_process_holds_still_ends_the_start(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with Running(tmp_path, CONFIG.replace("{endpoint}", taken)) as daemon:
            assert daemon.wait_end() == Exit.TEMPORARY


def test_the_service_manager_waits_until_a_first_model_serves(tmp_path: Path, manager: socket.socket) -> None:
    path = tmp_path / "later"
    text = CONFIG.replace("{interval: 100ms, settle: 100ms}", "{interval: 100ms, settle: 0s}")
    text = text[: text.index("  - {name: here")] + LATER.replace("PATH", str(path))
    text = text.replace("[", f'["ipc://{tmp_path}/no/front.sock", ', 1)
    with Running(tmp_path, text, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as daemon:
        messages: list[str] = []
        while not any(f"waiting for model later: {path} does not exist" in text for text in messages) or not any(
            text.startswith("EXTEND_TIMEOUT_USEC=") for text in messages
        ):
            messages.append(manager.recv(4096).decode())
        assert not any("READY=1" in text for text in messages)
        assert any(f"waiting for endpoint ipc://{tmp_path}/no/front.sock: " in text for text in messages)
        assert daemon.end() == Exit.OK


def test_a_reload_on_a_file_system_that_does_not_answer_ends_in_time(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon:
        daemon.wait_ready()
        text = daemon.config.read_text()
        daemon.config.unlink()
        os.mkfifo(daemon.config)  # reading it blocks until somebody writes to it
        started = time.monotonic()
        command = [sys.executable, "-m", "multitower", "reload", "--timeout", "4", "--endpoint", daemon.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
        assert time.monotonic() - started < 30.0
        assert done.returncode == 1
        assert "could not be read within 3.6 s, and nothing has changed" in done.stderr
        assert answers(daemon.endpoint)
        restarted = multitower("restart", "0", daemon=daemon)
        assert (restarted.returncode, restarted.stderr) == (0, "")
        # The file system answers again, and so does the thread that waited for it.
        os.rename(daemon.config, tmp_path / "pipe")
        daemon.config.write_text(text)
        reloaded = multitower("reload", daemon=daemon)
        assert (reloaded.returncode, reloaded.stderr) == (0, "")
        with open(tmp_path / "pipe", "w") as pipe:
            pipe.write(text)
        assert answers(daemon.endpoint)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end() == Exit.OK
