"""The rules of `multitower selftest`: memory that is left, results, the private configuration, wrong options."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from multitower.cli.commands import multitower
from multitower.errors import Reason, Unavailable
from multitower.supervisor.config.loading import load
from multitower.supervisor.machine.devices import NONE_REPORTED, Device, Discovery, MissingDevicesError
from multitower.supervisor.machine.gpu_sampler import UNKNOWN, GpuUsage
from multitower.supervisor.machine.placement import place_workers_on
from multitower.tools.selftest import MIB, daemon_checks, probe
from multitower.tools.selftest.cuda_driver import CudaDevice, CudaError
from multitower.tools.selftest.daemon_checks import Leftovers
from multitower.tools.selftest.device_checks import DeviceChecks
from multitower.tools.selftest.memory_readings import Reading, memory_left, reading, tolerance
from multitower.tools.selftest.occupancy import find_mps
from multitower.tools.selftest.results import CheckFailed, CheckSkipped, Interrupted, Outcome, Report, Result
from multitower.tools.selftest.session import AT_ONCE, make_config
from multitower.tools.selftest.targets import Target, find_targets

ALLOWED = 64 * MIB


def gpu(name: str, index: int | None, kind: str = "gpu") -> Device:
    return Device(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        index=index,
        product="NVIDIA Stand-in",
        memory_bytes=40 << 30,
        memory_used_bytes=0,
        pci_bus_id=None,
    )


def left(before: Reading, after: Reading, *, listed: bool) -> str | None:
    return memory_left(before, after, listed=listed, allowed=ALLOWED)


def test_a_process_that_is_still_listed_holds_its_memory() -> None:
    problem = left(Reading(None, 0, 0), Reading(300 * MIB, 300 * MIB, 0), listed=True)
    assert problem == "the process that was killed still holds 300 MiB"


def test_memory_that_no_listed_process_has_is_left_and_that_of_others_is_not() -> None:
    before = Reading(100 * MIB, 1000 * MIB, 400 * MIB)
    assert left(before, Reading(None, 9000 * MIB, 400 * MIB), listed=True) is None, "another process took 8 GiB"
    assert left(before, Reading(None, 1000 * MIB, 464 * MIB), listed=True) is None, "within the tolerance"
    problem = left(before, Reading(None, 1000 * MIB, 465 * MIB), listed=True)
    assert problem == "65 MiB more than before belong to no process that NVML lists"


def test_memory_of_the_whole_device_is_compared_where_no_process_is_listed() -> None:
    before = Reading(None, 1000 * MIB, 1000 * MIB)
    assert left(before, Reading(None, 1064 * MIB, 1064 * MIB), listed=False) is None
    assert left(before, Reading(None, 500 * MIB, 500 * MIB), listed=False) is None, "another process ended"
    problem = left(before, Reading(None, 1256 * MIB, 1256 * MIB), listed=False)
    assert problem == "256 MiB more than before are in use on the device"


def test_memory_that_nvml_no_longer_reports_does_not_pass_for_free() -> None:
    before = Reading(256 * MIB, 1000 * MIB, 400 * MIB)
    for listed in (True, False):
        silent = left(before, Reading(None, answered=False), listed=listed)
        assert silent == "NVML does not answer any more for the device"
        unknown = left(before, Reading(None), listed=listed)
        assert unknown == "NVML does not report any more how much memory of the device is in use"
    assert left(Reading(256 * MIB), Reading(None), listed=True) is None, "never known, and not listed any more"


def test_a_reading_tells_devices_without_an_answer_from_devices_without_figures() -> None:
    usages = {"GPU-a": GpuUsage(True, 300, 700, 0, {5: 100}), "GPU-b": GpuUsage(True, 50, 90, 0, {5: 20})}
    assert reading(usages, ["GPU-a", "GPU-b"], 5) == Reading(120, 350, 230, 90)
    assert reading(usages, ["GPU-a"], 6) == Reading(None, 300, 200, 700)
    assert reading({**usages, "GPU-b": GpuUsage(True)}, ["GPU-a", "GPU-b"], 5) == Reading(100)
    for silent in ({}, {"GPU-b": UNKNOWN}, {"GPU-b": GpuUsage(False)}):
        assert reading({"GPU-a": usages["GPU-a"], **silent}, ["GPU-a", "GPU-b"], 5) == Reading(None, answered=False)


def test_devices_whose_memory_nvml_does_not_know_are_named_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[list[str]] = []

    class Sampler:
        def read(self, uuids: list[str]) -> dict[str, GpuUsage]:
            reads.append(uuids)
            return {"GPU-a": GpuUsage(True, 0, 40 << 30), "GPU-b": GpuUsage(True)}

        def close(self) -> None:
            reads.append([])

    monkeypatch.setattr(daemon_checks, "GpuSampler", Sampler)
    targets = [Target(0, (gpu("GPU-a", 0),)), Target(1, (gpu("GPU-b", 1),))]
    leftovers = daemon_checks.Leftovers(targets, tmp_path, ALLOWED)
    with closing(leftovers), pytest.raises(CheckSkipped, match="how much memory of GPU 1 is in use"):
        leftovers.check_device_memory()
    assert reads == [["GPU-a", "GPU-b"], ["GPU-a", "GPU-b"], []], "one reading of all devices each time"


class FakeDriver:
    """Grants memory on each device from the address 4096 on; the function `fails` gives an error from a call on."""

    knows_slices = True

    def __init__(self, fails: str, after: int = 0) -> None:
        self.fails, self.left = fails, after
        self.calls: list[str] = []

    def devices(self) -> tuple[CudaDevice, ...]:
        return tuple(CudaDevice(self, number) for number in range(2))  # type: ignore[arg-type]

    def call(self, function: str, *arguments: Any) -> None:
        self.calls.append(function)
        if function == self.fails:
            self.left -= 1
            if self.left < 0:
                raise CudaError(f"{function} failed")
        if function == "cuMemAlloc_v2":
            arguments[0]._obj.value = 4096
        elif function == "cuMemcpyDtoH_v2":
            arguments[0]._obj.value = 0xA5


def test_the_probe_frees_memory_that_it_could_not_write_to() -> None:
    driver = FakeDriver("cuMemsetD8_v2")
    with pytest.raises(CudaError):
        driver.devices()[0].allocate(MIB)
    assert driver.calls.count("cuMemFree_v2") == 1


def test_the_probe_gives_back_what_a_group_got_before_one_device_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver("cuMemAlloc_v2", after=1)
    monkeypatch.setattr(probe, "Driver", lambda: driver)
    memory = probe.DeviceMemory()
    with pytest.raises(CudaError):
        memory.take(MIB)
    memory.give_back()
    assert driver.calls.count("cuMemFree_v2") == 1


def test_the_probe_writes_nothing_to_memory_that_exceeds_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver("")
    monkeypatch.setattr(probe, "Driver", lambda: driver)
    probe.DeviceMemory().exhaust()
    assert "cuMemsetD8_v2" not in driver.calls
    assert driver.calls[-1] == "cuMemFree_v2"


class DyingSession:
    """Each request is answered that the worker died of SIGKILL, and no spare is there."""

    def __init__(self, cause: str, pid: int = -1, spares: set[int] | None = None) -> None:
        self.cause, self.pid, self.spares = cause, pid, spares

    def ask(self, *_: object) -> dict[str, Any]:
        raise Unavailable(Reason.WORKER_DIED, self.cause)

    def hang(self, _: Target) -> None:
        raise Unavailable(Reason.WORKER_DIED, self.cause)

    def wait_serving(self, *_: object) -> dict[str, Any]:
        return {"pid": self.pid, "state": "ready"}

    def slot(self, _: Target) -> dict[str, Any]:
        return {"rss_bytes": 0}

    def wait(self, condition: object, seconds: float) -> bool:
        return False

    def wait_for_spares(self) -> set[int]:
        if self.spares is None:
            raise CheckFailed("no spare was ready")
        return self.spares


def test_a_process_that_the_selftest_did_not_start_is_not_killed() -> None:
    command = "sleep 60 >/dev/null 2>&1 & echo $!"  # its parent ends, so that it is below this process no more
    pid = int(subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True).stdout)
    other = psutil.Process(pid)
    try:
        report = Report(lambda result: None)
        session: Any = DyingSession("killed by SIGKILL", pid, {pid + 1})
        (target,), _ = find_targets("{cpu: 1}")
        DeviceChecks(session, target, 64 * MIB, report).run()
        details = {result.check: result.detail for result in report.results}
        assert details["spare"] == f"process {pid} is not one of the private daemon, and was not killed"
        assert other.is_running()
        assert other.status() != psutil.STATUS_ZOMBIE
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("cause", "hang", "crash"),
    [
        ("killed by SIGKILL", "did not die of a call over 2 s", "did not die of a segmentation fault"),
        ("a model call took over 2 s (max_execution_time)", "was answered after 0.00 s", "segmentation fault"),
        ("killed by SIGSEGV", "did not die of a call over 2 s", "killed by SIGSEGV"),
    ],
)
def test_a_death_of_another_cause_passes_neither_for_a_hang_nor_for_a_crash(cause: str, hang: str, crash: str) -> None:
    report = Report(lambda result: None)
    session: Any = DyingSession(cause)
    (target,), _ = find_targets("{cpu: 1}")
    DeviceChecks(session, target, 64 * MIB, report).run()
    details = {result.check: result.detail for result in report.results}
    assert report.counts()["ok"] == 0
    assert hang in details["hang"]
    assert crash in details["crash"]


def test_an_unexpected_exception_is_a_failure_of_its_check_alone() -> None:
    report = Report(lambda result: None)

    def vanish() -> str:
        raise KeyError("pid")

    report.run("regions", None, vanish)
    report.run("files left", None, lambda: "none")
    assert report.counts() == {"ok": 1, "failed": 1, "skipped": 0}
    assert report.results[0].detail.startswith("unexpected KeyError: 'pid' (test_selftest.py, line ")


def test_all_gpus_are_not_checked_unasked_where_a_scheduler_chose_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    done = CliRunner().invoke(multitower, ["selftest"])
    assert done.exit_code == 2
    assert "CUDA_VISIBLE_DEVICES=1 is set here" in done.output
    assert "--devices all" in done.output


def test_a_control_daemon_of_mps_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert find_mps() is None
    (tmp_path / "control").touch()
    assert find_mps() == tmp_path


def test_nothing_is_left_of_a_process_on_the_host_that_has_ended() -> None:
    assert left(Reading(10 * MIB), Reading(None), listed=False) is None
    assert left(Reading(10 * MIB), Reading(10 * MIB), listed=False) is not None


def test_the_tolerance_is_a_quarter_of_the_memory_and_at_least_16_mib() -> None:
    assert tolerance(256 * MIB) == 64 * MIB
    assert tolerance(40 * MIB) == 16 * MIB


def test_results_say_how_each_check_ended_by_worker() -> None:
    shown: list[Result] = []
    report = Report(shown.append)
    first, second = Target(0, (gpu("GPU-a", 0),)), Target(1, (gpu("GPU-b", 1), gpu("GPU-c", 2)))

    def fail() -> str:
        raise CheckFailed("it is wrong")

    def skip() -> str:
        raise CheckSkipped("not here")

    def lose() -> str:
        raise Unavailable(Reason.WORKER_DIED, "the worker died")

    report.run("start", None, lambda: "good")
    report.run("device", second, fail)
    report.run("device", first, skip)
    report.run("hang", second, lose)
    assert [(result.check, result.outcome) for result in shown] == [
        ("start", Outcome.OK),
        ("device", Outcome.FAILED),
        ("device", Outcome.SKIPPED),
        ("hang", Outcome.FAILED),
    ]
    assert [result.target for result in report.sorted()] == [first, second, second, None]
    assert report.counts() == {"ok": 1, "failed": 2, "skipped": 1}
    assert "the worker died" in shown[-1].detail
    assert report.sorted()[1].to_json()["device"] == "GPU-b,GPU-c"


def test_checks_that_fail_because_the_selftest_ends_are_not_recorded() -> None:
    report = Report(lambda result: None)

    def fail() -> str:
        report.stop.set()
        raise CheckFailed("the daemon has ended")

    with pytest.raises(Interrupted):
        report.run("device", None, fail)
    assert report.results == []


def test_targets_have_short_names() -> None:
    assert Target(0, (gpu("GPU-a", 0), gpu("GPU-b", 3))).label == "GPU 0+3"
    assert Target(0, (gpu("MIG-5e0c8f7a-2d31", None, "mig"),)).label == "MIG-5e0c8f7a"
    targets, _ = find_targets("[[cpu:0, cpu:1], cpu:2]")
    assert [target.label for target in targets] == ["cpu:0+cpu:1", "cpu:2"]


@pytest.mark.parametrize("problem", ["", "NVIDIA's driver is not installed"])
def test_without_a_gpu_it_says_so_and_how_to_test_cpus(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitower.tools.selftest.targets.discover", lambda: Discovery((), problem=problem))
    with pytest.raises(MissingDevicesError) as raised:
        find_targets("all")
    cause = problem or NONE_REPORTED
    assert (
        str(raised.value) == f"no GPU found: {cause}; to test CPU devices: multitower selftest --devices '{{cpu: 2}}'"
    )


def test_each_worker_of_the_private_daemon_has_a_probe_of_its_own(tmp_path: Path) -> None:
    groups = (
        (gpu("GPU-a1", 0), gpu("GPU-b2", 1)),
        (gpu("MIG-c3", None, "mig"),),
        *((gpu(f"GPU-d{n}", n),) for n in range(2, 7)),
    )
    targets = [Target(number, group) for number, group in enumerate(groups)]
    path = tmp_path / "selftest.yaml"
    path.write_text(make_config(targets))
    config = load(path, environment={})
    placements = place_workers_on(config, groups)
    assert [placement.models for placement in placements] == [
        ("idle", f"probe-{number}", f"hang-{number}") for number in range(len(groups))
    ]
    assert config.spares == AT_ONCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "256"], "a size needs its unit"),
        (["--memory", "1MiB"], "1MiB is less than 64MiB, the least"),
        (["--devices", "cpu"], "must be all, a list of devices or {cpu: N}"),
        (["--devices", "[]"], "the list is empty"),
        (["--log", "/nowhere/at/all.log"], "/nowhere/at/all.log cannot be written: No such file or directory"),
    ],
)
def test_wrong_options_are_named_before_anything_starts(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(multitower, ["selftest", *arguments])
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (2, [], "is free; the daemon and a worker held it before"),
        (1, [], "is free; the daemon, but no worker, held it before"),
        (2, [77], "processes [77] hold the memory of a client that has ended"),
        (0, [], "neither the daemon nor a worker held the shared memory"),
    ],
)
def test_the_check_of_regions_tells_who_held_them_and_who_still_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: list[int], outcome: str
) -> None:
    session: Any = SimpleNamespace(wait=lambda condition, _: condition())
    with closing(Leftovers([], tmp_path, MIB)) as leftovers:
        monkeypatch.setattr(leftovers, "_region_holders", before)
        monkeypatch.setattr(leftovers, "_holders", lambda: after)
        try:
            found = leftovers.check_regions(session)
        except (CheckFailed, CheckSkipped) as error:
            found = str(error)
    assert outcome in found


def test_children_that_were_there_before_the_daemon_are_not_left_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_checks, "LEFT_S", 0.1)
    child = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with (
        subprocess.Popen(child, stdin=subprocess.PIPE),
        closing(Leftovers([], tmp_path, MIB)) as leftovers,
        subprocess.Popen(child, stdin=subprocess.PIPE) as later,
    ):
        leftovers.note_processes()
        with pytest.raises(CheckFailed, match=rf"^processes are left: {later.pid} \([^,]*\)$"):
            leftovers.check_processes([])
