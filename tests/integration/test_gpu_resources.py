"""Measurements of the GPUs of a stand-in for NVML.

Only subprocesses can use the stand-in, since the linker reads LD_LIBRARY_PATH at the start: see `Probe`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gpus import SLICES, UUIDS, FakeGpus, read_log, set_gpus
from waiting import wait_for

MIB = 2**20
GIB = 2**30
WAIT_S = 60.0
SOON_S = 10.0
"""Seconds for a call that must not wait for the driver; one that waits for a driver that hangs never returns."""


PROBE = """
import dataclasses, json, logging, sys, time
from multitower.supervisor.machine import gpu_sampler, resources
from multitower.supervisor.machine.process_limits import ProcessLimits
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
gpu_sampler.REOPEN_S, resources.STALE_S = 0.05, 1.0
sampler = resources.Sampler(ProcessLimits(), 0.02)
for line in sys.stdin:
    order, began, answer = json.loads(line), time.monotonic(), None
    if "watch" in order:
        sampler.watch({int(slot): (pid, tuple(names)) for slot, (pid, names) in order["watch"].items()})
    elif "sample" in order:
        sample = sampler.sample(order["sample"])
        names = ("device_memory_bytes", "device_memory_of", "utilization_percent")
        summed = {name: getattr(sample, name) for name in names if sample is not None}
        present = {"device_present": sampler.are_devices_present(order["sample"])}
        answer = None if sample is None else dataclasses.asdict(sample) | summed | present
    elif "gpus" in order:
        answer = {name: dataclasses.asdict(gpu) for name, gpu in sampler.gpus().items()}
    elif "maps" in order:
        answer = open("/proc/self/maps").read()
    elif "close" in order:
        sampler.close()
    print(json.dumps({"answer": answer, "took_s": time.monotonic() - began}), flush=True)
"""


class Probe:
    """A `Sampler` in a subprocess with the stand-in's GPUs, which watches its own pid."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROBE],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.pid = self.process.pid

    def ask(self, **order: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        reply = json.loads(line)
        self.took_s: float = reply["took_s"]
        return reply["answer"]

    def watch(self, *devices: str) -> None:
        """What each slot has; several devices of one are joined by commas."""
        self.ask(watch={slot: (self.pid, names.split(",")) for slot, names in enumerate(devices)})

    def wait(
        self, slot: int, good: Callable[[dict[str, Any]], object] = lambda sample: sample["device_present"] is not None
    ) -> dict[str, Any]:
        sample = wait_for(lambda: self.ask(sample=slot), lambda sample: sample is not None and good(sample))
        assert isinstance(sample, dict)
        return sample

    def wait_log(self, text: str, times: int = 1) -> None:
        wait_for(self.log.read_text, lambda log: log.count(text) == times)


Start = Callable[..., Probe]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The settings file of the stand-in."""
    return tmp_path / "gpus"


@pytest.fixture
def start(fake_gpus: FakeGpus, tmp_path: Path, settings: Path) -> Iterator[Start]:
    started: list[Probe] = []

    def probe(**nvml: str | int) -> Probe:
        environment = fake_gpus.environment(tmp_path / "cuda.log", file=str(settings), **nvml)
        started.append(Probe(environment, tmp_path / "stderr"))
        return started[-1]

    yield probe
    for each in started:
        each.process.kill()
        each.process.communicate(timeout=WAIT_S)


def gpu_figures(sample: dict[str, Any]) -> tuple[Any, ...]:
    names = ("device_present", "device_memory_bytes", "device_memory_of", "utilization_percent")
    return tuple(sample[name] for name in names)


def test_device_memory_is_of_the_process_or_else_of_the_device(start: Start, settings: Path, tmp_path: Path) -> None:
    probe = start()
    set_gpus(settings, utilization=37, processes=f"0:1:11,1:{probe.pid}:300,1:1:12,3:{probe.pid}:-1")
    probe.watch("cpu:0", UUIDS[1], UUIDS[2], UUIDS[3])
    assert gpu_figures(probe.wait(1)) == (True, 300 * MIB, "process", 37)
    assert gpu_figures(probe.wait(2)) == (True, 2 * GIB, "device", 37)
    assert gpu_figures(probe.wait(3)) == (True, 3 * GIB, "device", 37)
    sample = probe.wait(0, lambda sample: sample["cpu_percent"] is not None)
    assert gpu_figures(sample) == (True, None, None, None)
    assert sample["pid"] == probe.pid
    assert sample["rss_bytes"] > MIB
    assert "libcuda" not in probe.ask(maps=True)
    assert read_log(tmp_path / "cuda.log") == []
    probe.ask(close=True)
    assert probe.took_s < SOON_S
    assert probe.log.read_text() == ""


def test_devices_of_a_worker_are_reported_one_by_one_and_together(start: Start, settings: Path) -> None:
    probe = start()
    set_gpus(settings, utilization=37, processes=f"1:{probe.pid}:300,2:{probe.pid}:200")
    probe.watch(f"{UUIDS[1]},{UUIDS[2]}", f"{UUIDS[2]},{UUIDS[3]}", "cpu:0,cpu:1")
    sample = probe.wait(0)
    assert gpu_figures(sample) == (True, 500 * MIB, "process", 37)
    each = [(device["name"], device["memory_bytes"], device["free_bytes"] // GIB) for device in sample["devices"]]
    assert each == [(UUIDS[1], 300 * MIB, 39), (UUIDS[2], 200 * MIB, 38)]
    assert gpu_figures(probe.wait(1)) == (True, 200 * MIB + 3 * GIB, "device", 37)
    assert gpu_figures(probe.wait(2)) == (True, None, None, None)
    set_gpus(settings, lost=2)
    sample = probe.wait(0, lambda sample: sample["device_present"] is False)
    assert [device["present"] for device in sample["devices"]] == [True, False]
    assert gpu_figures(sample) == (False, None, None, None)


def test_a_mig_slice_has_memory_but_no_utilization(start: Start, settings: Path) -> None:
    probe = start()
    set_gpus(settings, split=1, utilization=37, processes=f"1:1:11,102:{probe.pid}:300")
    probe.watch(*SLICES, UUIDS[2])
    assert gpu_figures(probe.wait(0)) == (True, 0, "device", None)
    sample = probe.wait(1)
    assert gpu_figures(sample) == (True, 300 * MIB, "process", None)
    assert sample["devices"][0]["free_bytes"] == 8 * GIB
    assert gpu_figures(probe.wait(2)) == (True, 2 * GIB, "device", 37)
    # The second slice is removed, and then the whole GPU.
    set_gpus(settings, split=1, slices=SLICES[0])
    probe.wait(1, lambda sample: sample["device_present"] is False)
    probe.wait(0, lambda sample: sample["device_present"] is True)
    set_gpus(settings, split=1, lost=1)
    probe.wait(0, lambda sample: sample["device_present"] is False)
    probe.wait(2, lambda sample: sample["device_present"] is True)


def test_nvml_is_not_used_while_no_gpu_is_watched(start: Start) -> None:
    probe = start()
    probe.watch("cpu:0")
    probe.wait(0)
    assert "libnvidia-ml" not in probe.ask(maps=True)
    probe.watch(UUIDS[0])
    probe.wait(0, lambda sample: sample["device_memory_of"] == "device")
    assert "libnvidia-ml" in probe.ask(maps=True)


def test_a_gpu_that_does_not_report_figures_is_present(start: Start) -> None:
    probe = start(shared=1, utilization=-1)
    probe.watch(UUIDS[0], UUIDS[1])
    assert gpu_figures(probe.wait(1)) == (True, None, None, None)
    assert gpu_figures(probe.wait(0)) == (True, 0, "device", None)


def test_a_gpu_that_falls_off_the_bus_and_returns_is_noticed(start: Start, settings: Path) -> None:
    probe = start()
    probe.watch(UUIDS[1], UUIDS[2])
    probe.wait(0)
    for round_ in (1, 2):
        set_gpus(settings, lost=1)
        sample = probe.wait(0, lambda sample: sample["device_present"] is False)
        assert gpu_figures(sample) == (False, None, None, None)
        assert sample["rss_bytes"] > MIB
        # NVML is opened anew meanwhile, to see whether the GPU is back; that is not to disturb the other one for long.
        probe.wait(1, lambda sample: sample["device_present"] is True)
        set_gpus(settings)
        probe.wait(0, lambda sample: sample["device_memory_bytes"] == GIB)
        probe.wait_log("device is gone", round_)
        probe.wait_log("device is back", round_)


def test_a_gpu_that_nvml_does_not_list_is_absent(start: Start) -> None:
    probe = start(count=2)
    probe.watch(UUIDS[1], UUIDS[2])
    assert gpu_figures(probe.wait(1)) == (False, None, None, None)
    probe.wait(0, lambda sample: sample["device_present"])


@pytest.mark.parametrize("error", [1, 9, 999])
def test_a_driver_that_fails_for_a_while_affects_only_figures_of_gpus(start: Start, settings: Path, error: int) -> None:
    probe = start()
    probe.watch(UUIDS[1])
    probe.wait(0, lambda sample: sample["device_present"])
    set_gpus(settings, failure=error)
    sample = probe.wait(0, lambda sample: sample["device_present"] is None)
    assert gpu_figures(sample) == (None, None, None, None)
    assert sample["rss_bytes"] > MIB
    probe.wait(0, lambda later: later["at"] > sample["at"])
    set_gpus(settings)
    assert gpu_figures(probe.wait(0, lambda sample: sample["device_present"])) == (True, GIB, "device", 0)
    probe.wait_log("NVML does not answer")
    probe.wait_log("NVML answers again")


def test_a_driver_that_is_loaded_later_is_found(start: Start, settings: Path) -> None:
    set_gpus(settings, failure=9)
    probe = start()
    probe.watch(UUIDS[1])
    probe.wait_log("NVML does not answer")
    assert gpu_figures(probe.wait(0, bool)) == (None, None, None, None)
    set_gpus(settings)
    probe.wait(0, lambda sample: sample["device_present"])


def test_a_driver_that_hangs_affects_only_figures_of_gpus(start: Start, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    probe = start(hang=str(hang))
    probe.watch(UUIDS[1], "cpu:0")
    probe.wait(0)
    hang.touch()
    before = probe.wait(0, lambda sample: sample["device_present"] is None)
    assert gpu_figures(before) == (None, None, None, None)
    probe.wait(0, lambda sample: sample["at"] > before["at"])
    hang.unlink()
    probe.wait(0)
    hang.touch()
    probe.wait(0, lambda sample: sample["device_present"] is None)
    probe.watch(UUIDS[2])
    assert probe.took_s < SOON_S
    probe.ask(close=True)
    assert probe.took_s < SOON_S


def test_power_and_temperature_of_gpus_are_read_where_nvml_tells_them(start: Start, settings: Path) -> None:
    probe = start(split=1)
    probe.watch(UUIDS[2], SLICES[0])
    gpus = wait_for(lambda: probe.ask(gpus=True), lambda gpus: len(gpus) == 2)
    told = ("power_watts", "temperature_celsius", "energy_joules", "total_bytes")
    assert [gpus[UUIDS[2]][name] for name in told] == [70.0, 42, 7000.0, 40 << 30]
    assert [gpus[SLICES[0]][name] for name in told] == [None, None, None, 10 << 30], "as those of real slices"
    settings.write_text("MILLIWATTS=-1\n")
    wait_for(lambda: probe.ask(gpus=True)[UUIDS[2]], lambda gpu: gpu["power_watts"] is None and gpu["present"])
