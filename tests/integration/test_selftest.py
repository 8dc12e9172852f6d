"""`multitower selftest`: every check passes on CPU devices and on the stand-ins, and fails where something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_gpus import SLICES, UUIDS, FakeGpus, read_log
from running import STEP_S, outliving

pytestmark = pytest.mark.timeout(300)

COMMAND = (sys.executable, "-m", "multitower", "selftest")
OF_A_DEVICE = ["device", "memory", "spare", "memory freed", "out of memory", "hang", "crash"]
OF_THE_DAEMON = ["start", "router", "regions", "processes left", "files left"]


def environment(temporary: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    # A configuration of the user's own, in the environment, is not the private daemon's.
    return {**inherited, "TMPDIR": str(temporary), "MULTITOWER_RETRY": "nonsense", "NO_COLOR": "1", **(more or {})}


def selftest(
    temporary: Path, *arguments: str, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(temporary, more),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def by_device(done: subprocess.CompletedProcess[str]) -> dict[str | None, dict[str, Any]]:
    """The results of `--json`: by device, then by check."""
    found: dict[str | None, dict[str, Any]] = {}
    for result in json.loads(done.stdout)["results"]:
        found.setdefault(result["device"], {})[result["check"]] = result
    return found


def failures(results: Mapping[str, Any]) -> set[str]:
    return {check for check, result in results.items() if result["outcome"] != "ok"}


def test_every_check_passes_on_cpu_devices_and_nothing_is_left(short_folder: Path) -> None:
    done = selftest(short_folder, "--devices", "{cpu: 2}", "--memory", "64MiB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slot 1: cpu:1" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("cpu:", "daemon"))]
    assert len(rows) == 2 * len(OF_A_DEVICE) + len(OF_THE_DAEMON)
    assert all("ok" in row for row in rows), done.stdout
    assert f"{len(rows)} ok, after" in done.stdout
    assert "requests/s" in done.stdout
    assert list(short_folder.iterdir()) == []


def test_every_check_passes_on_slices_and_on_a_group_whose_processes_nvml_hides(
    short_folder: Path, fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    initialised, memory = tmp_path / "nvml.log", tmp_path / "memory"
    memory.mkdir()
    more = fake_gpus.environment(
        tmp_path / "cuda.log", memory, split=1, hidden=1, reversed=1, init_log=str(initialised)
    )
    done = selftest(short_folder, "--devices", "[MIG-91b7, [2, 0], MIG-5e0c]", "--json", more=more)
    assert done.returncode == 0, done.stdout + done.stderr
    group = f"{UUIDS[2]},{UUIDS[0]}"
    results = by_device(done)
    assert [*results] == [SLICES[1], group, SLICES[0], None]
    for device in (SLICES[1], group, SLICES[0]):
        assert [*results[device]] == OF_A_DEVICE
    assert [*results[None]] == [*OF_THE_DAEMON, "device memory left"]
    assert results[group]["device"]["detail"] == "sees 2 devices, with the UUID that NVML reports"
    assert results[group]["memory"]["detail"] == "status shows 512 MiB more for the device"
    report = json.loads(done.stdout)
    assert report["counts"] == {"ok": 27, "failed": 0, "skipped": 0}
    assert report["requests_per_s"] > 0
    # To initialise NVML may take seconds: discovery, free memory, what is left at the end, and each worker's memory.
    pids = initialised.read_text().splitlines()
    assert pids.count(pids[0]) <= 3 + 3
    folders = {entry.mps_folder for entry in read_log(tmp_path / "cuda.log")}
    assert len(folders) == 1
    assert str(folders.pop()).startswith(str(short_folder)), "a folder of the selftest, without a control daemon of MPS"
    assert list(short_folder.iterdir()) == []


def test_each_fault_of_a_device_fails_the_checks_that_it_concerns_and_no_others(
    short_folder: Path, fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    full, exclusive = UUIDS[0].replace("8f3a1c02", "f0110000"), UUIDS[0].replace("8f3a1c02", "e8c10000")
    uuids = ",".join((*UUIDS, "GPU-1057", full, exclusive))
    more = fake_gpus.environment(memory=tmp_path, uuids=uuids, lost=4, kept=3, mute=1, full=5, exclusive=6)
    faults = f"uuid@{UUIDS[0]},grant@{UUIDS[0]},more@{UUIDS[1]},abort@{UUIDS[2]},full@{full},full@{exclusive}"
    more["FAKE_CUDA_FAULT"] = faults
    done = selftest(short_folder, "--json", more=more)
    assert done.returncode == 1, done.stdout + done.stderr
    results = by_device(done)
    # Whatever replaced the worker, it has to see its device.
    seen_wrongly = {"device", "spare", "hang", "crash"}
    assert failures(results[UUIDS[0]]) == seen_wrongly | {"out of memory"}
    granted = results[UUIDS[0]]["out of memory"]
    assert granted["outcome"] == "skipped"
    assert granted["detail"].startswith("the driver grants twice the memory of the device")
    assert "it should see 8f3a1c02-" in results[UUIDS[0]]["device"]["detail"]
    assert failures(results[UUIDS[1]]) == seen_wrongly | {"memory freed"}
    assert "NVML does not answer any more" in results[UUIDS[1]]["memory freed"]["detail"]
    assert "00000000-0000-0000-0000-000000000001" in results[UUIDS[1]]["spare"]["detail"]
    assert failures(results[UUIDS[2]]) == {"out of memory"}
    assert "worker_died" in results[UUIDS[2]]["out of memory"]["detail"]
    assert failures(results[UUIDS[3]]) == {"memory freed"}
    assert "556 MiB more than before" in results[UUIDS[3]]["memory freed"]["detail"]
    assert results[UUIDS[3]]["memory"]["detail"] == "status shows 256 MiB more for the process"
    assert failures(results[None]) == {"discovery", "device memory left"}
    assert "GPU 4 cannot be used" in results[None]["discovery"]["detail"]
    assert "GPU 3: " in results[None]["device memory left"]["detail"]
    assert "GPU 1: NVML does not answer any more" in results[None]["device memory left"]["detail"]
    # No worker starts on a device that others need.
    for device, reason in ((full, "only 0 MiB are free"), (exclusive, "in compute mode EXCLUSIVE_PROCESS")):
        assert [*results[device]] == ["device"]
        assert results[device]["device"]["outcome"] == "skipped"
        assert reason in results[device]["device"]["detail"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((full, exclusive))]


def test_ctrl_c_ends_the_selftest_and_leaves_nothing(short_folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--devices", "{cpu: 1}"],
        env=environment(short_folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("daemon: start: ok")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        lines = process.stderr.read().splitlines()
        assert process.wait(STEP_S) == 128 + signal.SIGINT
    assert lines[-1] == "ending the daemon of the selftest"
    assert not any("failed" in line for line in lines)
    assert len(children) >= 2
    assert outliving(children, STEP_S) == []
    assert list(short_folder.iterdir()) == []


def test_a_signal_ends_the_selftest_although_a_call_of_nvml_does_not_return(
    short_folder: Path, fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    hang, memory = tmp_path / "hang", tmp_path / "memory"
    memory.mkdir()
    more = fake_gpus.environment(memory=memory, count=1, hang=str(hang))
    with subprocess.Popen(
        COMMAND, env=environment(short_folder, more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("daemon: start: ok")
        hang.touch()
        assert process.stderr.readline().startswith("GPU 0: device: ok")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(2 * STEP_S) == 128 + signal.SIGTERM
        finally:
            hang.unlink()
    assert outliving(children, STEP_S) == []
    assert list(short_folder.iterdir()) == []


def test_a_start_that_fails_is_a_result_like_others_and_says_what_to_do(short_folder: Path) -> None:
    long = short_folder / ("long" * 25)
    long.mkdir()
    done = selftest(long, "--devices", "{cpu: 1}", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    results = by_device(done)[None]
    assert failures(results) == {"start", "processes left"}
    assert "set TMPDIR to a folder with a shorter path" in results["start"]["detail"]
    assert results["processes left"]["outcome"] == "skipped"
    assert "Traceback" not in done.stderr
