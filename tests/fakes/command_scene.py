"""A scripted daemon that serves `digits`, for tests of commands that ask a daemon."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_daemon
import numpy as np
import pytest
from click.testing import CliRunner
from fake_daemon import FakeDaemon, Received

from multitower import wire
from multitower.cli import commands
from multitower.errors import Reason

STATUS: dict[str, Any] = {
    "daemon": {
        "pid": 4711,
        "version": "0.1.0",
        "compiled": True,
        "state": "running",
        "uptime_s": 7500.0,
        "rss_bytes": 64 << 20,
        "listen": ["tcp://127.0.0.1:5555"],
        "spares": [{"pid": 4714, "state": "idle"}],
        "ready": True,
        "slots_ready": 1,
        "slots_total": 2,
        "rejected": 3,
        "late": 0,
        "replies_dropped": 0,
    },
    "slots": [
        {
            "slot": 0,
            "state": "ready",
            "pid": 4712,
            "device": "GPU-8f3a1c20",
            "visible_devices": "GPU-8f3a1c20",
            "incarnation": 1,
            "restarts": 0,
            "depth": 5,
            "completed": 123456,
            "last_error": None,
            "models": [],
        },
        {
            "slot": 1,
            "state": "failed",
            "pid": None,
            "device": "GPU-2e",
            "visible_devices": None,
            "incarnation": 6,
            "restarts": 5,
            "depth": 0,
            "completed": 0,
            "last_error": "exit code 3 [/red] while loading",
            "models": [],
        },
    ],
    "models": [
        {
            "name": "digits",
            "version": "3",
            "labels": ["stable", "best"],
            "labels_not_served": {"canary": "4"},
            "state": "ready",
            "cause": None,
            "slots_ready": 1,
            "queue": 2,
            "queue_bytes": 512,
            "completed": 1000,
            "failed": 1,
            "batches": 100,
            "rows": 250,
            "max_batch_size": 32,
            "unbatched_because": None,
        },
        {
            "name": "other",
            "version": None,
            "labels": [],
            "labels_not_served": {},
            "state": "loading",
            "cause": None,
            "slots_ready": 0,
            "queue": 0,
            "queue_bytes": 0,
            "completed": 0,
            "failed": 0,
            "batches": 0,
            "rows": 0,
            "max_batch_size": 0,
            "unbatched_because": None,
        },
    ],
}
DIGITS = {
    "name": "digits",
    "versions": ["3"],
    "platform": "tensorflow_savedmodel",
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "n", "datatype": "UINT8", "shape": [-1]},
        {"name": "word", "datatype": "BYTES", "shape": [-1]},
        {"name": "wide", "datatype": "COMPLEX64", "shape": [-1]},
    ],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
}


class Script:
    """Answers like a daemon that serves `digits`, and keeps the requests."""

    def __init__(self) -> None:
        self.status = json.loads(json.dumps(STATUS))
        self.asked: list[Received] = []
        self.answer: dict[str, np.ndarray] | None = None

    def __call__(self, request: Received) -> list[bytes]:
        if request.kind == wire.STATUS:
            return fake_daemon.ok(request.id, self.status)
        name = request.json["model_name"]
        if name == "other":
            return fake_daemon.error(request.id, Reason.NO_WORKER, "'other' is not loaded: it is still loading")
        if name == "free":
            if request.kind == wire.MODEL_METADATA:
                return fake_daemon.ok(request.id, {**DIGITS, "name": name, "inputs": [], "outputs": []})
        elif name != "digits":
            return fake_daemon.error(request.id, Reason.MODEL_UNKNOWN, f"there is no model {name!r}, only digits")
        if request.kind == wire.MODEL_METADATA:
            return fake_daemon.ok(request.id, DIGITS)
        self.asked.append(request)
        if self.answer is not None:
            return fake_daemon.outputs(request.id, **self.answer)
        return fake_daemon.echo(request)


@contextlib.contextmanager
def scripted_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """A daemon that commands ask by default, while the test runs in a folder."""
    script = Script()
    with FakeDaemon(script) as daemon:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MULTITOWER_ENDPOINT", daemon.endpoint)
        yield script


def multitower(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Runs a command in this process; returns its exit code and what it wrote to both streams."""
    done = CliRunner().invoke(commands.multitower, arguments, input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout, done.stderr
