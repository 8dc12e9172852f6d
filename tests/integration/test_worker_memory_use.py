"""The memory that a model takes: on the host, by a fake TensorFlow, and by a stand-in for NVML."""

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


def test_host_memory_is_the_growth_of_the_process() -> None:
    meter = MemoryMeter(["cpu:0"], tensorflow=False)
    held = np.ones(64 * MIB, np.uint8)
    growth = meter.growth()
    assert 60 * MIB < growth.host_memory_bytes < 100 * MIB
    assert (growth.device_memory_bytes, growth.device_memory_peak_bytes) == (None, None)
    del held


class Allocators:
    """The memory of two GPUs as `tf.config` reports it."""

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
    """`tensorflow_process` is imported with the test's fake TensorFlow, and not kept afterwards."""
    name = "multitower.worker.formats.tensorflow_process"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    sys.modules.pop(name, None)


@pytest.mark.usefixtures("fresh_import")
def test_device_memory_is_what_tensorflows_allocators_report(monkeypatch: pytest.MonkeyPatch) -> None:
    allocators = Allocators()
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=allocators))  # type: ignore[arg-type]
    meter = MemoryMeter(["GPU-a", "GPU-b"], tensorflow=True)
    allocators.current = {"GPU:0": 25 * MIB, "GPU:1": 11 * MIB}
    allocators.peak = {"GPU:0": 40 * MIB, "GPU:1": 30 * MIB}
    growth = meter.growth()
    assert (growth.device_memory_bytes, growth.device_memory_peak_bytes) == (30 * MIB, 64 * MIB)


@pytest.mark.usefixtures("fresh_import")
def test_device_memory_that_cannot_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_device_memory_of_a_handler_is_what_nvml_reports(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    set_gpus(tmp_path / "gpus")
    environment = {**os.environ, **fake_gpus.environment(file=str(tmp_path / "gpus"))}
    command = [sys.executable, "-c", PROBE, str(Path(__file__).parents[1] / "fakes"), str(tmp_path / "gpus")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    told = [f"{320 * MIB} None", f"{200 * MIB} None", "None None"]
    assert (done.stdout.splitlines(), done.stderr) == (told, "")
