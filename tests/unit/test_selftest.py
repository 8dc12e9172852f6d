"""The rules of `multitower selftest`: memory that is left, results, the private configuration, wrong options."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from multitower.cli.commands import multitower
from multitower.errors import Reason, Unavailable
from multitower.supervisor.config.config import load
from multitower.supervisor.machine.devices import Device
from multitower.supervisor.machine.placement import place_workers_on
from multitower.tools.selftest import MIB
from multitower.tools.selftest.memory_readings import Reading, memory_left, tolerance
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
