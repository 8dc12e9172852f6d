"""One process, four devices: every node on its own, equal results, and errors that stay with their tower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Running
from worker_child import WorkerChild, assignment

from multitower import ModelError
from multitower.spec import ModelSpec
from multitower.worker_wire import KeySpec

SCRIPT = Path(__file__).parents[1] / "fakes" / "tower_models.py"
DEVICES = ("cpu:4", "cpu:5", "cpu:6", "cpu:7")
TOWERS = ("branching", "first", "datatypes", "datatypes-v1", "datatypes.pb", "datatypes.keras", "datatypes.h5")
TOWERS += ("frozen.pb", "legacy.h5", "keras.keras", "exported")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    # The script imports its neighbour, which Python in safe-path mode does not look for.
    path = os.pathsep.join(filter(None, (str(SCRIPT.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, SCRIPT, folder]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", TOWERS)
def test_each_tower_runs_on_its_device_and_gives_tensorflows_results(found: dict[str, Any], name: str) -> None:
    towers = found[name]
    assert [tower["device"] for tower in towers] == list(DEVICES)
    for number, tower in enumerate(towers):
        device = f"/device:CPU:{number}"
        assert tower["graph"] == [device]
        assert tower["library"] in ([device], [])
        assert tower["equal"], "bit for bit"
        # Where the nodes ran: all on the tower, except where a tensor of the request enters a branch.
        assert tower["nodes"][DEVICES[number]] >= 10
        assert tower["fallbacks"] in ({}, {"Switch": 1} if name == "branching" else {})
        assert sum(tower["nodes"].values()) - tower["nodes"][DEVICES[number]] == sum(tower["fallbacks"].values())
    if name in ("branching", "frozen.pb", "keras.keras"):
        assert all(tower["library"] for tower in towers), "nothing of it would be in a function"


def test_nodes_without_a_kernel_on_the_towers_device_are_counted(found: dict[str, Any]) -> None:
    tower = found["elsewhere"]
    assert (tower["device"], list(tower["nodes"])) == ("GPU-b", ["cpu"])
    assert sum(tower["fallbacks"].values()) == tower["nodes"]["cpu"]
    assert {"LookupTableFindV2", "ReadVariableOp"} <= set(tower["fallbacks"])


def test_a_graph_may_keep_its_own_devices(found: dict[str, Any]) -> None:
    (replica,) = found["parallel"]
    assert replica["equal"]
    assert replica["device"] == ",".join(DEVICES)
    assert {"/device:CPU:1", "/device:CPU:3"} <= set(replica["library"])
    assert {"cpu:5", "cpu:7"} <= set(replica["nodes"])
    assert replica["fallbacks"] == {}


def test_towers_refuse_jit_compile_with_a_cause(found: dict[str, Any]) -> None:
    assert found["compiled"].startswith("jit_compile: XLA compiles functions")


@pytest.fixture(scope="module")
def endless(folder: Path, found: dict[str, Any]) -> Path:
    """A model whose input says how long it takes; it raises on a negative one."""
    return folder / "endless"


def test_towers_run_at_the_same_time_and_share_no_errors(endless: Path) -> None:
    work = assignment(ModelSpec(name="m", path=str(endless), max_batch_size=4), devices=("cpu:0", "cpu:1"))
    # A key for each tower, since each remembers its own keys.
    first, second = (KeySpec("m", (("x", "FP32", (1,)),), outputs, True) for outputs in (("y",), None))
    with WorkerChild(work) as worker:
        (report,) = worker.reports("ready")[-1].models
        assert [tower.device for tower in report.towers] == ["cpu:0", "cpu:1"]
        long = worker.send(first, {"x": np.float32([[200_000]])}, tower=0)
        bad = worker.send(second, {"x": np.float32([[-1]])}, {"x": np.float32([[2]])}, tower=1)
        error, good = worker.result(bad)
        assert isinstance(error, ModelError)
        assert "negative row" in error.message
        assert isinstance(good, dict)
        assert good["y"].tolist() == [[4.0]]
        # The first tower ran meanwhile, and answers last.
        ((answer),) = worker.result(long)
        assert isinstance(answer, dict)
        assert answer["y"].tolist() == [[400_000.0]]
        assert worker.stop() == 0


CONFIG = """
listen: ["{endpoint}"]
devices: [["cpu:0", "cpu:1"]]
spares: 0
models:
  - name: m
    path: endless
    batching: {max_batch_size: 1}
    log_device_placement: true
    # They wait while another process imports TensorFlow.
    queue: {timeout: 10m}
    max_execution_time: 10m
  - {name: whole, path: parallel, placement: as_saved}
  - {name: handled, handler: "commanded_handlers:Commanded"}
"""


@pytest.fixture(scope="module")
def daemon(folder: Path, endless: Path) -> Iterator[Running]:
    with Running(folder, CONFIG) as running:
        yield running.wait_ready()


def test_a_daemon_gives_each_tower_its_own_batches_and_reports_towers(daemon: Running) -> None:
    with daemon.client() as client:
        slow = client.submit("m", {"x": np.float32([[100_000]])})
        quick = [client.infer("m", {"x": np.float32([[n]])})["y"].item() for n in range(20)]
        assert quick == [2.0 * n for n in range(20)]
        assert not slow.done(), "the other tower was free all the time"
        with pytest.raises(ModelError, match="negative row"):
            client.infer("m", {"x": np.float32([[-1]])})
        assert slow.result()["y"].item() == 200_000.0
        assert client.infer("whole", {"x": np.ones((1, 6), np.float32)})["y"].shape == (1, 6)
    slot = daemon.slot()
    assert slot["device"] == "cpu:0,cpu:1"
    assert [tower["devices"] for tower in slot["towers"]] == [["cpu:0", "cpu:0,cpu:1"], ["cpu:1"]]
    assert all(tower["batches"] > 0 for tower in slot["towers"])
    assert sum(tower["completed"] for tower in slot["towers"]) == slot["completed"]
    (model,) = slot["towers"][1]["models"]
    assert (model["name"], model["device"]) == ("m", "cpu:1")
    assert model["nodes"]["cpu:1"] > 10
    assert model["fallbacks"] == {"Switch": 1}, "where the request's tensor enters the loop"
    assert "m on cpu:1: " in daemon.text()


def test_a_crash_ends_both_towers_and_no_request_is_lost(daemon: Running) -> None:
    died = threading.Event()
    with daemon.client() as client:
        waiting = [client.submit("m", {"x": np.float32([[50_000 + n]])}) for n in range(4)]
        daemon.wait(lambda: daemon.slot()["depth"] >= 2)
        (pid,) = [slot["pid"] for slot in daemon.status()["slots"]]
        for process in daemon.remember():
            if process.pid == pid:
                process.kill()
                died.set()
        assert died.is_set()
        assert [future.result()["y"].item() for future in waiting] == [100_000.0 + 2 * n for n in range(4)]
    assert daemon.slot()["restarts"] == 1
