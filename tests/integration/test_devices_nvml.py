"""The real NVML bindings on a stand-in library, in subprocesses: the linker reads LD_LIBRARY_PATH at the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_gpus import SLICES, UUIDS, FakeGpus, read_log

GIB = 2**30
CLI = "from multitower.cli.devices import devices; devices(prog_name='devices')"
DISCOVER = """
import dataclasses, json, sys
from multitower.supervisor.machine.discovery import discover
print(json.dumps(dataclasses.asdict(discover())))
"""


def run(code: str, *arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def discovered(fake_gpus: FakeGpus, **nvml: str | int) -> tuple[list[dict[str, Any]], str | None]:
    answer = json.loads(run(DISCOVER, **fake_gpus.environment(**nvml)))
    return answer["gpus"], answer["problem"]


def test_discover_reads_what_nvml_reports(fake_gpus: FakeGpus) -> None:
    gpus, problem = discovered(fake_gpus)
    assert problem is None
    assert [gpu["name"] for gpu in gpus] == list(UUIDS)
    assert gpus[2] == {
        "name": UUIDS[2],
        "kind": "gpu",
        "index": 2,
        "product": "NVIDIA Stand-in",
        "memory_bytes": 40 * GIB,
        "memory_used_bytes": 2 * GIB,
        "pci_bus_id": "00000000:57:00.0",
        "parent": None,
        "numa_node": None,
        "cores": None,
    }


def test_a_product_name_that_is_not_utf8_is_read(fake_gpus: FakeGpus) -> None:
    gpus, problem = discovered(fake_gpus, product=os.fsdecode(b"NVIDIA \xae"), count=1)
    assert [gpu["product"] for gpu in gpus] == ["NVIDIA \N{REPLACEMENT CHARACTER}"]
    assert problem is None


def test_the_stand_in_takes_its_gpus_from_the_environment(fake_gpus: FakeGpus) -> None:
    gpus, _ = discovered(fake_gpus, uuids="GPU-aa,GPU-bb,GPU-cc", count=2)
    assert [gpu["name"] for gpu in gpus] == ["GPU-aa", "GPU-bb"]


def test_indices_follow_pci_addresses_whatever_the_order_of_nvml(fake_gpus: FakeGpus) -> None:
    gpus, _ = discovered(fake_gpus, reversed=1)
    assert [(gpu["index"], gpu["name"]) for gpu in gpus] == list(enumerate(UUIDS))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"lost": 1}, "cannot be used"),
        ({"split": 1, "slices": "-"}, "is in MIG mode and has no slice"),
        ({"split": 1, "lost": 1}, "cannot be used"),
    ],
)
def test_an_unusable_gpu_is_omitted_and_the_others_keep_their_indices(
    fake_gpus: FakeGpus, settings: dict[str, str | int], why: str
) -> None:
    gpus, problem = discovered(fake_gpus, **settings)
    assert [(gpu["index"], gpu["name"]) for gpu in gpus] == [(0, UUIDS[0]), (2, UUIDS[2]), (3, UUIDS[3])]
    assert problem is not None
    assert "GPU 1" in problem
    assert why in problem


def test_slices_replace_a_gpu_in_mig_mode(fake_gpus: FakeGpus) -> None:
    gpus, problem = discovered(fake_gpus, split=1, reversed=1)
    assert problem is None
    assert [gpu["name"] for gpu in gpus] == [UUIDS[0], *SLICES, UUIDS[2], UUIDS[3]]
    assert [gpu["index"] for gpu in gpus] == [0, None, None, 2, 3]
    parent = gpus[2].pop("parent")
    assert gpus[2] == {
        "name": SLICES[1],
        "kind": "mig",
        "index": None,
        "product": "NVIDIA Stand-in MIG 2g.10gb",
        "memory_bytes": 10 * GIB,
        "memory_used_bytes": 2 * GIB,
        "pci_bus_id": "00000000:37:00.0",
        "numa_node": None,
        "cores": None,
    }
    assert (parent["name"], parent["index"], parent["memory_bytes"]) == (UUIDS[1], 1, None)


def test_gpus_and_slices_have_the_node_and_cores_near_them(fake_gpus: FakeGpus) -> None:
    gpus, problem = discovered(fake_gpus, affinity="0:0:0-31,1:3:200-201", split=1)
    assert problem is None
    near = [(gpu["numa_node"], gpu["cores"]) for gpu in gpus]
    assert near == [(0, [*range(32)]), (3, [200, 201]), (3, [200, 201]), (None, None), (None, None)]


def test_a_gpu_without_memory_of_its_own_is_listed(fake_gpus: FakeGpus) -> None:
    gpus, problem = discovered(fake_gpus, shared=0)
    assert (gpus[0]["memory_bytes"], gpus[0]["memory_used_bytes"]) == (None, None)
    assert problem is None


@pytest.mark.parametrize(
    ("nvml", "why"),
    [
        ({"failure": 9}, "driver is not loaded"),
        ({"failure": 4}, "/dev/nvidia"),
        ({"failure": 18}, "different versions"),
        ({"failure": 999}, "NVML says"),
        ({"count": 0}, "reports no GPU"),
    ],
)
def test_the_reason_why_there_is_no_gpu_is_reported(fake_gpus: FakeGpus, nvml: dict[str, int], why: str) -> None:
    gpus, problem = discovered(fake_gpus, **nvml)
    assert gpus == []
    assert problem is not None
    assert why in problem


def test_nvml_is_shut_down_again_and_neither_cuda_nor_tensorflow_is_touched(
    fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    log = tmp_path / "cuda.log"
    code = """
import sys, pynvml
from multitower.supervisor.machine.discovery import discover
assert len(discover().gpus) == len(discover().gpus) == 4
try:
    pynvml.nvmlDeviceGetCount()
except pynvml.NVMLError_Uninitialized:
    print("shut down")
assert "libcuda.so" not in open("/proc/self/maps").read()
assert "tensorflow" not in sys.modules
"""
    assert run(code, **fake_gpus.environment(log)) == "shut down\n"
    assert read_log(log) == []


def test_the_command_lists_whole_uuids_even_in_a_narrow_pipe(fake_gpus: FakeGpus) -> None:
    output = run(CLI, **fake_gpus.environment(), COLUMNS="40")
    lines = output.splitlines()
    for index, uuid in enumerate(UUIDS):
        (line,) = [line for line in lines if uuid in line]
        used = f"{index}.0 GiB" if index else "0 MiB"
        expected = f"{index} {uuid} NVIDIA Stand-in 40.0 GiB {used} 00000000:{0x17 + 0x20 * index:02X}:00.0"
        assert " ".join(line.split()) == expected
    assert f"CPU cores available: {len(os.sched_getaffinity(0))}" in output


def test_the_command_lists_slices_with_their_gpu(fake_gpus: FakeGpus) -> None:
    lines = run(CLI, **fake_gpus.environment(split=1)).splitlines()
    (line,) = [line for line in lines if SLICES[1] in line]
    assert line.split()[:3] == ["in", "1", SLICES[1]]
    assert not any(UUIDS[1] in line for line in lines)
    answer = json.loads(run(CLI, "--json", **fake_gpus.environment(split=1)))
    listed = [(gpu["index"], gpu["kind"], gpu["parent"]) for gpu in answer["gpus"][:3]]
    assert listed == [(0, "gpu", None), (None, "mig", UUIDS[1]), (None, "mig", UUIDS[1])]


def test_the_command_shows_the_cores_near_a_gpu_where_they_are_known(fake_gpus: FakeGpus) -> None:
    output = run(CLI, **fake_gpus.environment(affinity="1:3:4-7"))
    assert "Cores near" in output
    (known,) = [line for line in output.splitlines() if UUIDS[1] in line]
    assert known.split()[-2:] == ["3", "4-7"]
    (unknown,) = [line for line in output.splitlines() if UUIDS[0] in line]
    assert unknown.split()[-2:] == ["-", "-"]
    assert "Cores near" not in run(CLI, **fake_gpus.environment())


def test_the_command_says_why_a_gpu_is_missing_from_the_table(fake_gpus: FakeGpus) -> None:
    output = run(CLI, **fake_gpus.environment(lost=3))
    assert UUIDS[3] not in output
    assert "Note: GPU 3 cannot be used" in output


def test_the_command_warns_of_a_variable_without_effect(fake_gpus: FakeGpus) -> None:
    output = run(CLI, **fake_gpus.environment(), CUDA_VISIBLE_DEVICES="2")
    assert "CUDA_VISIBLE_DEVICES=2 is set" in output
    assert UUIDS[0] in output


def test_the_command_prints_json_for_programs(fake_gpus: FakeGpus) -> None:
    answer = json.loads(run(CLI, "--json", **fake_gpus.environment(count=1)))
    assert answer == {
        "gpus": [
            {
                "index": 0,
                "kind": "gpu",
                "uuid": UUIDS[0],
                "product": "NVIDIA Stand-in",
                "memory_bytes": 40 * GIB,
                "memory_used_bytes": 0,
                "pci_bus_id": "00000000:17:00.0",
                "parent": None,
                "numa_node": None,
                "cores": None,
            }
        ],
        "problem": None,
        "cpu_cores": sorted(os.sched_getaffinity(0)),
    }


def test_without_a_driver_the_command_succeeds_and_says_what_to_check(fake_gpus: FakeGpus) -> None:
    output = run(CLI, **fake_gpus.environment(failure=9))
    assert "No GPU found: the NVIDIA driver is not loaded; check nvidia-smi" in output
    assert "devices: {cpu: 1}" in output
    answer = json.loads(run(CLI, "--json", **fake_gpus.environment(failure=9)))
    assert answer["gpus"] == []
    assert "not loaded" in answer["problem"]


def test_a_missing_nvml_library_is_reported() -> None:
    # The name that the bindings ask the linker for is made to fail, so that this holds on a machine with GPUs too.
    code = """
import ctypes, pynvml
def missing(name):
    raise OSError(f"{name}: cannot open shared object file")
pynvml.CDLL = missing
from multitower.supervisor.machine.discovery import discover
print(discover().problem)
"""
    assert "libnvidia-ml.so.1 was not found" in run(code)
