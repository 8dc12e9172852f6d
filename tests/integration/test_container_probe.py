"""The container's health checks ask a real daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import STEP_S, Running

PROBE = Path(__file__).parents[2] / "deploy" / "container" / "probe.py"

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "starting_handlers:Starter"}
  - {name: missing, path: missing}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon that serves one model and waits for another."""
    with Running(tmp_path_factory.mktemp("probe"), CONFIG) as running:
        running.wait_line("worker ready")
        yield running


def ask(question: str, endpoint: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, PROBE, question],
        env={**os.environ, "MULTITOWER_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_daemon_that_waits_for_a_model_is_live_and_serving_but_not_ready(daemon: Running) -> None:
    assert ask("live", daemon.endpoint) == (0, "the daemon answers\n")
    assert ask("serving", daemon.endpoint) == (0, "the daemon is running; 1 of 1 slots are ready\n")
    code, text = ask("ready", daemon.endpoint)
    assert code == 1
    assert text == "a model has no ready worker, or the daemon drains; 1 of 1 slots are ready\n"


def test_a_daemon_that_serves_all_models_is_ready(daemon: Running) -> None:
    unload = [sys.executable, "-m", "multitower", "unload", "missing", "--endpoint", daemon.endpoint]
    subprocess.run(unload, check=True, capture_output=True, timeout=STEP_S)
    assert ask("ready", daemon.endpoint) == (0, "each model has a ready worker; 1 of 1 slots are ready\n")


def test_no_daemon_is_neither_live_nor_ready(tmp_path: Path) -> None:
    for question in ("live", "serving", "ready"):
        code, text = ask(question, f"ipc://{tmp_path}/none.sock")
        assert code == 1
        assert "none.sock" in text


def test_another_question_is_refused() -> None:
    code, text = ask("healthy", "ipc:///none.sock")
    assert code == 2
    assert text.startswith("usage: ")
