"""The programs of examples/, each in a process of its own, against a scripted daemon that serves `digits`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received

from multitower import curve_keys, wire
from multitower.errors import Reason

EXAMPLES = Path(__file__).parents[2] / "examples"


def answer(request: Received) -> list[bytes] | None:
    if request.kind == wire.SERVER_READY:
        return fake_daemon.ok(request.id, {"ready": True, "slots_ready": 1, "slots_total": 1})
    if request.kind == wire.MODEL_METADATA:
        return fake_daemon.ok(request.id, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]})
    if request.kind == wire.STATUS:
        return fake_daemon.ok(request.id, {"slots": [{"slot": 0, "device": "cpu:0", "completed": 104}]})
    if request.kind == wire.CANCEL:
        return fake_daemon.ok(request.id, {"cancelled": 0})
    (entry,) = request.json["inputs"]
    assert (request.json["model_name"], entry["name"], entry["shape"][1:]) == ("digits", "x", [64])
    if entry["datatype"] != "FP32":
        return fake_daemon.error(request.id, Reason.DATATYPE_MISMATCH, "the input 'x' is FP32")
    rows = len(request.inputs["x"])
    return fake_daemon.outputs(request.id, probabilities=np.full((rows, 10), 0.1, np.float32))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with FakeDaemon(answer) as daemon:
        yield daemon.endpoint


def run(name: str, endpoint: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        env={**os.environ, "MULTITOWER_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "req.py",
        "client.py",
        "async_client.py",
        "client_with_keys.py",
    }


def test_the_example_without_the_library_works(endpoint: str) -> None:
    assert run("req.py", endpoint).startswith('MT1:ok {"model_name":')
    tree = ast.parse((EXAMPLES / "req.py").read_text())
    code = tree.body[1:]  # without the docstring
    assert len({line for statement in code for line in range(statement.lineno, (statement.end_lineno or 0) + 1)}) <= 10
    assert not any("multitower" in ast.unparse(statement) for statement in code if isinstance(statement, ast.Import))


def test_the_example_of_the_client_for_threads_works(endpoint: str) -> None:
    out = run("client.py", endpoint)
    assert "digits takes x: FP32 [-1, 64]" in out
    assert "one hundred images: 100 rows" in out
    assert "refused: INVALID_ARGUMENT/datatype_mismatch: the input 'x' is FP32" in out
    assert "slot 0 on cpu:0: 104 rows answered" in out


def test_the_example_of_the_client_for_asyncio_works(endpoint: str) -> None:
    out = run("async_client.py", endpoint)
    assert "one hundred images: 100 rows" in out
    assert "cancelled" in out


def test_the_example_of_a_client_with_keys_works(tmp_path: Path) -> None:
    server, client = curve_keys.new_pair(), curve_keys.new_pair()

    def answer_or_refuse(request: Received) -> Sequence[bytes] | None:
        if request.kind == wire.STATUS:
            return fake_daemon.error(request.id, Reason.FORBIDDEN, "the role observe is needed")
        return answer(request)

    key, server_key = tmp_path / "ana.key_secret", tmp_path / "gpus.key"
    key.write_text(curve_keys.certificate(client.public, client.secret))
    key.chmod(0o600)
    server_key.write_text(curve_keys.certificate(server.public))
    with FakeDaemon(answer_or_refuse, secret_key=server.secret, admits={client.public}) as daemon:
        out = run("client_with_keys.py", "", str(key), str(server_key), daemon.endpoint)
    assert "one image: [0]" in out
    assert "this key may not see the status: PERMISSION_DENIED/forbidden: the role observe is needed" in out
