"""`multitower model-server` serves a SavedModel as tensorflow_model_server would, with its flags."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import foreign
import gateway_stand_in
import numpy as np
import pytest
from foreign import curl

from multitower import Client
from multitower.exit_codes import Exit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

LIMIT_S = 240.0
ONE = """
config {
  name: 'half' base_path: 'half' model_platform: 'tensorflow'
  model_version_policy { all {} }
  version_labels { key: 'stable' value: 1 }
  logging_config {}
}
"""
with_gateway = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


def free_ports(count: int) -> list[int]:
    with_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in with_sockets]
    for each in with_sockets:
        each.close()
    return ports


class Server:
    """A running `multitower model-server`, whose lines a thread reads."""

    def __init__(self, folder: Path, *flags: str, endpoint: str, environment: dict[str, str]) -> None:
        self.endpoint = endpoint
        command = [sys.executable, "-m", "multitower", "model-server", *flags]
        self.process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )
        self.text = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> str:
        """Waits for a line that contains the pattern, and returns it."""
        until = time.monotonic() + LIMIT_S
        seen = self.text
        while (found := re.search(pattern, seen)) is None:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"no line with {pattern!r}:\n{self.text}"
            seen = line
            self.text += line
        return found.group()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        """Kills the process, if it runs yet."""
        self.process.kill()
        self.process.wait()
        self._reader.join(LIMIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


def save_half(folder: Path, offset: float) -> None:
    """A SavedModel that computes x / 2 + offset."""
    module = tf.Module()
    specs = [tf.TensorSpec([None], tf.float32, name="x")]
    module.serve = tf.function(lambda x: {"y": 0.5 * x + offset}, input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures=module.serve)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model-server")
    for version, offset in (("1", 2.0), ("2", 3.0)):
        save_half(folder / "half" / version, offset)
    (folder / "models.config").write_text(f"model_config_list {{ {ONE} }}")
    return folder


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return free_ports(2)


@pytest.fixture(scope="module")
def server(folder: Path, ports: list[int]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="mt-") as sockets:
        environment = {
            "MULTITOWER_LISTEN": json.dumps([f"ipc://{sockets}/front.sock"]),
            "MULTITOWER_RUNTIME_DIR": f"{sockets}/run",
            "MULTITOWER_SPARES": "0",
        }
        if foreign.gateway_missing():
            program = gateway_stand_in.write_program(Path(sockets, "gateway"))
            environment["MULTITOWER_GATEWAY__PROGRAM"] = str(program)
        server = Server(
            folder,
            f"--port={ports[0]}",
            "--rest_api_port",
            str(ports[1]),
            "--model_config_file=models.config",
            "--model_config_file_poll_wait_seconds=1",
            "--enable_batching",
            "--num_load_threads=4",
            "--noenable_model_warmup",
            endpoint=f"ipc://{sockets}/front.sock",
            environment=environment,
        )
        try:
            yield server
            assert server.end() == Exit.OK
        finally:
            server.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    server.wait_for("Running gRPC ModelServer")
    with Client(server.endpoint, connect_timeout=LIMIT_S) as client:
        yield client


def test_the_log_has_the_lines_that_scripts_wait_for(server: Server, ports: list[int]) -> None:
    assert server.wait_for(rf"Running gRPC ModelServer at 127\.0\.0\.1:{ports[0]} \.\.\.")
    assert server.wait_for(rf"Exporting HTTP/REST API at:localhost:{ports[1]} \.\.\.")
    assert server.text.index("daemon ready") < server.text.index("Running gRPC")


def test_the_log_names_what_has_no_counterpart(server: Server) -> None:
    server.wait_for("Running gRPC ModelServer")
    named = "--num_load_threads=4 --enable_model_warmup=false"
    assert server.text.count("flags without a counterpart have no effect") == 1
    (line,) = (line for line in server.text.splitlines() if "without a counterpart" in line)
    assert all(flag in line for flag in named.split())
    assert "logging_config was not carried over: requests are not logged" in server.text
    assert "no GPU was found: one worker on the CPU serves" in server.text


def test_the_models_are_served_with_versions_and_labels(client: Client) -> None:
    x = np.float32([2, 4])
    assert client.infer("half", {"x": x}, timeout=LIMIT_S)["y"].tolist() == [4, 5]
    assert client.infer("half", {"x": x}, version_label="stable", timeout=LIMIT_S)["y"].tolist() == [3, 4]


@with_gateway
def test_curl_gets_answers_as_from_tensorflow_serving(client: Client, ports: list[int]) -> None:
    url = f"http://localhost:{ports[1]}/v1/models/half"
    status, body = curl(f"{url}:predict", body=b'{"instances": [2.0, 4.0]}')
    assert (status, json.loads(body)) == (200, {"predictions": [4.0, 5.0]})
    status, body = curl(f"{url}/labels/stable:predict", body=b'{"instances": [2.0, 4.0]}')
    assert (status, json.loads(body)) == (200, {"predictions": [3.0, 4.0]})
    status, body = curl(url)
    states = {entry["version"]: entry["state"] for entry in json.loads(body)["model_version_status"]}
    assert (status, states) == (200, {"1": "AVAILABLE", "2": "AVAILABLE"})


def test_a_changed_file_of_models_is_applied(server: Server, client: Client, folder: Path) -> None:
    new = folder / "models.config.new"
    new.write_text(f"model_config_list {{ {ONE.replace('value: 1', 'value: 2')} }}")
    new.replace(folder / "models.config")
    server.wait_for("reloaded")
    x = np.float32([2])
    assert client.infer("half", {"x": x}, version_label="stable", timeout=LIMIT_S)["y"].tolist() == [4]
    new.write_text("model_config_list { config { name 'half' } }")
    new.replace(folder / "models.config")
    server.wait_for(r"reload refused.*models\.config:1:35: ':' is expected")
    assert client.infer("half", {"x": x}, version_label="stable", timeout=LIMIT_S)["y"].tolist() == [4]
