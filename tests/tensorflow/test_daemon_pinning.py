"""Workers of the daemon see only their own devices, and run near them, after a cold start and as a spare."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from fake_gpus import SLICES, UUIDS, CuInit, FakeGpus, read_log
from running import STEP_S, Running

# `saved` makes the spare import TensorFlow; it cannot load where TensorFlow sees no GPU, and says so.
CONFIG = """
listen: ["{endpoint}"]
devices: [MIG-91b7, [1, 0]]
cores: split
spares: 1
models:
  - {name: pinned, handler: "handlers:Pinned"}
  - {name: saved, path: saved}
"""


def test_each_worker_sees_only_its_devices_and_runs_near_them(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    log = tmp_path / "cuda.log"
    wanted = [SLICES[1], f"{UUIDS[1]},{UUIDS[0]}"]
    available = sorted(os.sched_getaffinity(0))
    cores = [[available[-1]], [available[0]]]  # near the slice's GPU, and near the others
    affinity = ",".join(f"{gpu}:{node}:{core}-{core}" for gpu, node in ((0, 1), (1, 1), (3, 0)) for core in cores[node])
    # What somebody exported in the shell must not reach the workers.
    exported = {"CUDA_VISIBLE_DEVICES": "2", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    environment = fake_gpus.environment(log, split=3, affinity=affinity) | exported
    with Running(tmp_path, CONFIG, environment=environment) as daemon, daemon.wait_ready().client() as client:
        slots = client.status()["slots"]
        assert [slot["device"] for slot in slots] == wanted
        assert [slot["visible_devices"] for slot in slots] == wanted
        assert [slot["cores"] for slot in slots] == cores
        assert [sorted(os.sched_getaffinity(slot["pid"])) for slot in slots] == cores
        saw = {slot["pid"]: slot["device"] for slot in slots}
        assert set(read_log(log)) == {CuInit(pid, uuid, "PCI_BUS_ID") for pid, uuid in saw.items()}
        answers = [client.submit("pinned", {"x": np.zeros(1)}) for _ in range(40)]
        for future in answers:
            answer = future.result(STEP_S)
            assert answer["visible"][0].decode() == saw[int(answer["pid"][0])]
        cause = slots[0]["models"][1]["cause"]
        assert SLICES[1] in cause
        assert "sees no GPU" in cause

        daemon.wait(lambda: [s["state"] for s in client.status()["daemon"]["spares"]] == ["idle"])
        spare = client.status()["daemon"]["spares"][0]["pid"]
        assert spare not in {entry.pid for entry in read_log(log)}, "a spare touches no device"
        assert "tensorflow" in Path(f"/proc/{spare}/maps").read_text()
        os.kill(slots[1]["pid"], signal.SIGKILL)
        daemon.wait_line("worker ready", slot=1, incarnation=2)
        slot = client.status()["slots"][1]
        assert (slot["pid"], slot["device"], slot["visible_devices"]) == (spare, wanted[1], wanted[1])
        assert CuInit(spare, wanted[1], "PCI_BUS_ID") in read_log(log)
        assert {entry.visible_devices for entry in read_log(log) if entry.pid == spare} == {wanted[1]}
        assert daemon.process.pid not in {entry.pid for entry in read_log(log)}, "the parent holds no CUDA context"
