"""The request log of a real daemon: its file may be missing or moved away, and a reload changes what it has."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import Client, NotFound

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
request_log: {path: logs/requests.log}
models:
  - {name: echo, handler: "handlers:Echo", batching: {max_batch_size: 8}}
"""

X = {"x": np.float32([[1.5, 2.5]])}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("logged"), CONFIG) as running:
        yield running.wait_ready()


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as made:
        yield made


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_lines(daemon: Running, path: Path, count: int) -> list[dict[str, Any]]:
    daemon.wait(lambda: len(lines_of(path)) >= count, STEP_S)
    return lines_of(path)


def test_the_log_survives_a_missing_folder_a_rotation_and_a_reload(daemon: Running, client: Client) -> None:
    path = daemon.config.parent / "logs" / "requests.log"
    assert client.infer("echo", X)
    daemon.wait_line("request log cannot be written", STEP_S, cause="No such file or directory")
    path.parent.mkdir()
    assert client.infer("echo", X)
    (line,) = wait_lines(daemon, path, 1)
    assert (line["model"], line["version"], line["outcome"], line["slot"]) == ("echo", "1", "ok", 0)
    assert (line["rows"], line["batch_rows"], line["interface"]) == (1, 1, "mt1")
    assert 0 < line["compute_ms"] <= line["total_ms"] >= line["queue_ms"]
    daemon.wait_line("request log can be written again", STEP_S)

    worker = daemon.slot()["pid"]
    moved = path.rename(path.with_name("moved.log"))
    with pytest.raises(NotFound):
        client.infer("nosuch", X)
    assert len(wait_lines(daemon, moved, 2)) == 2, "until it is told, it writes to the file that was moved"
    daemon.signal(signal.SIGUSR1)
    daemon.wait(lambda: bool(client.infer("echo", X)) and path.exists(), STEP_S)
    assert lines_of(moved)[1]["outcome"] == "model_unknown"
    assert daemon.slot()["pid"] == worker

    daemon.config.write_text(daemon.config.read_text().replace("requests.log}", "requests.log, tensors: true}"))
    seen = len(daemon.lines)
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("logging requests", STEP_S, after=seen, tensors=True)
    client.infer("echo", X)
    daemon.wait(lambda: "inputs" in lines_of(path)[-1], STEP_S)
    last = lines_of(path)[-1]
    assert last["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]
    assert next(output["data"] for output in last["outputs"]) == [1.5, 2.5]
