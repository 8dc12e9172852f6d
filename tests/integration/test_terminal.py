"""The daemon in a terminal, and under `timeout`: signals reach it, and neither workers nor what these started."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from running import START_S, STEP_S, copy_handlers, outliving

from multitower import Client, ModelError

CONFIG = """
listen: ["ipc://{folder}/front.sock"]
runtime_dir: {folder}/run
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "starting_handlers:Starter"}
  - {name: slow, handler: "handlers:Sleeper", parameters: {seconds: 2}}
  - {name: asker, handler: "handlers:Asker"}
"""


def command(folder: Path) -> list[str]:
    copy_handlers(folder)
    (folder / "config.yaml").write_text(CONFIG.replace("{folder}", str(folder)))
    return [sys.executable, "-m", "multitower", "serve", str(folder / "config.yaml")]


def start_helper(client: Client) -> psutil.Process:
    return psutil.Process(int(client.infer("m", {"way": np.array(["child"])})["pid"][0]))


def test_ctrl_c_drains_the_daemon_and_reaches_no_helper(short_folder: Path) -> None:
    terminal, slave = pty.openpty()
    with subprocess.Popen(command(short_folder), preexec_fn=lambda: os.login_tty(slave)) as daemon:
        os.close(slave)
        try:
            with Client(f"ipc://{short_folder}/front.sock", connect_timeout=START_S) as client:
                client.wait_until_ready(START_S)
                helper = start_helper(client)
                answer = client.submit("slow", {"x": np.array([7])})
                while not any(slot["depth"] for slot in client.status()["slots"]):
                    time.sleep(0.01)
                os.write(terminal, b"\x03")
                assert answer.result(STEP_S)["x"].tolist() == [7]
                assert daemon.wait(STEP_S) == 0
                assert not outliving([helper], 0)
        finally:
            daemon.kill()
            os.close(terminal)


def test_code_of_a_model_that_asks_in_the_terminal_fails_at_once(short_folder: Path) -> None:
    terminal, slave = pty.openpty()
    with subprocess.Popen(command(short_folder), preexec_fn=lambda: os.login_tty(slave)) as daemon:
        os.close(slave)
        try:
            with Client(f"ipc://{short_folder}/front.sock", connect_timeout=START_S) as client:
                client.wait_until_ready(START_S)
                with pytest.raises(ModelError, match="No such device or address"):
                    client.infer("asker", {"x": np.array([7])}, timeout=STEP_S)
        finally:
            daemon.kill()
            os.close(terminal)


def test_timeout_ends_the_daemon_and_everything_else(short_folder: Path) -> None:
    with subprocess.Popen(["timeout", "--signal=KILL", "1000", *command(short_folder)]) as timeout:
        try:
            with Client(f"ipc://{short_folder}/front.sock", connect_timeout=START_S) as client:
                client.wait_until_ready(START_S)
                helper = start_helper(client)
            everything = [helper, *psutil.Process(timeout.pid).children(recursive=True)]
            timeout.send_signal(signal.SIGALRM)  # as when the time is over
            timeout.wait(STEP_S)
            assert not outliving(everything, STEP_S)
        finally:
            timeout.kill()
