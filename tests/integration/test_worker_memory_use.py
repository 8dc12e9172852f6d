"""What a model took of memory: on the host, and as a made-up TensorFlow and a stand-in for NVML tell of devices."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpus import FakeGpus, set_gpus

from multitower.worker.memory_use import MemoryMeter

MIB = 1 << 20


def test_the_hosts_is_what_the_process_grew_by() -> None:
    meter = MemoryMeter(["cpu:0"], tensorflow=False)
    held = np.ones(64 * MIB, np.uint8)
    growth = meter.growth()
    assert 60 * MIB < growth.host_memory_bytes < 100 * MIB
    assert (growth.device_memory_bytes, growth.device_memory_peak_bytes) == (None, None)
    del held


class Allocators:
    """TensorFlow's memory of two GPUs, as `tf.config` tells of it."""

    def __init__(self) -> None:
        self.current = {"GPU:0": 5 * MIB, "GPU:1": MIB}
        self.peak = {"GPU:0": 90 * MIB, "GPU:1": 90 * MIB}
        self.experimental = self

    def list_logical_devices(self, kind: str) -> list[Any]:
        return [types.SimpleNamespace(name=f"/device:{name}") for name in self.current if name.startswith(kind)]

    def get_memory_info(self, name: str) -> dict[str, int]:
        return {"current": self.current[name], "peak": self.peak[name]}

    def reset_memory_stats(self, name: str) -> None:
        self.peak[name] = self.current[name]


@pytest.fixture
def fresh_import(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`tensorflow_process` is imported with the test's own TensorFlow, and forgotten afterwards."""
    name = "multitower.worker.formats.tensorflow_process"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    sys.modules.pop(name, None)


@pytest.mark.usefixtures("fresh_import")
def test_of_devices_tensorflow_tells_what_its_tensors_take_and_took(monkeypatch: pytest.MonkeyPatch) -> None:
    allocators = Allocators()
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=allocators))  # type: ignore[arg-type]
    meter = MemoryMeter(["GPU-a", "GPU-b"], tensorflow=True)
    allocators.current = {"GPU:0": 25 * MIB, "GPU:1": 11 * MIB}
    allocators.peak = {"GPU:0": 40 * MIB, "GPU:1": 30 * MIB}
    growth = meter.growth()
    assert (growth.device_memory_bytes, growth.device_memory_peak_bytes) == (30 * MIB, 64 * MIB)


@pytest.mark.usefixtures("fresh_import")
def test_a_figure_that_cannot_be_had_costs_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace())  # type: ignore[arg-type]
    growth = MemoryMeter(["GPU-a"], tensorflow=True).growth()
    assert growth.device_memory_bytes is None


PROBE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fake_gpus import UUIDS, set_gpus
from multitower.worker.memory_use import MemoryMeter
settings, pid = Path(sys.argv[2]), os.getpid()
for before, after in (("0:1:50", "0:1:50,0:{pid}:300,1:{pid}:20"), ("0:{pid}:300", "0:{pid}:500"), ("", "0:1:50")):
    set_gpus(settings, processes=before.format(pid=pid))
    meter = MemoryMeter(UUIDS[:2], tensorflow=False)
    set_gpus(settings, processes=after.format(pid=pid))
    growth = meter.growth()
    print(growth.device_memory_bytes, growth.device_memory_peak_bytes)
"""


def test_of_a_handlers_devices_nvml_tells_what_its_process_takes(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    set_gpus(tmp_path / "gpus")
    environment = {**os.environ, **fake_gpus.environment(file=str(tmp_path / "gpus"))}
    command = [sys.executable, "-c", PROBE, str(Path(__file__).parents[1] / "fakes"), str(tmp_path / "gpus")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    told = [f"{320 * MIB} None", f"{200 * MIB} None", "None None"]
    assert (done.stdout.splitlines(), done.stderr) == (told, "")
