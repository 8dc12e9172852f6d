"""The rules of the doctor about memory of devices and of the host, and about what a daemon would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor_findings import GIB, MIB, SPEC, gpu, slot, worst

from multitower.load_step import LoadStep
from multitower.spec import ModelReport, ModelSpec
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.machine.devices import Device
from multitower.supervisor.machine.process_limits import MemoryHeadroom
from multitower.tools.doctor import memory, models
from multitower.tools.doctor.consequences import Situation
from multitower.tools.doctor.findings import Level
from multitower.tools.doctor.models import LoadedModel


@pytest.mark.parametrize(
    ("device", "workers", "limit", "sizes", "level", "words"),
    [
        (
            gpu(),
            1,
            None,
            {"m": 10 * GIB},
            Level.OK,
            "about 12.6 GiB, without the memory for batches; 40.0 GiB are free",
        ),
        (gpu(), 2, None, {"m": 10 * GIB}, Level.OK, "2 workers of about 12.6 GiB"),
        (gpu(), 4, None, {"m": 10 * GIB}, Level.PROBLEM, "40.0 GiB in all"),
        (gpu(used=30 * GIB), 1, None, {"m": 10 * GIB}, Level.WARNING, "10.0 GiB are free"),
        (gpu(), 1, 4 * GIB, {"m": 10 * GIB}, Level.WARNING, "memory limits each worker to 4.0 GiB"),
        (gpu(), 1, 20 * GIB, {"m": 10 * GIB}, Level.OK, "an estimate"),
        (gpu(total=None), 1, None, {"m": 10 * GIB}, Level.NOTE, "the device uses the host's memory"),
        (replace(gpu(), kind="mig"), 1, None, {"m": GIB, "h": None}, Level.NOTE, "handlers need is unknown: h"),
        (gpu(), 1, None, {"m": GIB, "h": None}, Level.NOTE, "the device memory that handlers need is unknown: h"),
    ],
)
def test_device_memory_is_compared_with_an_estimate(
    device: Device, workers: int, limit: int | None, sizes: dict[str, int | None], level: Level, words: str
) -> None:
    slots = [slot(number, limit=limit) for number in range(workers)]
    found = worst(memory.device_findings([device], slots, sizes))
    assert found.level is level
    assert words in found.text


def test_cpu_devices_have_no_finding_about_device_memory() -> None:
    device = replace(gpu(name="cpu:0"), kind="cpu")
    assert list(memory.device_findings([device], [slot(device="cpu:0")], {"m": 1, "h": None})) == []


@pytest.mark.parametrize(
    ("measured", "available", "level", "words"),
    [
        (
            {"m": (500 * MIB, 1500 * MIB)},
            10 * GIB,
            Level.OK,
            "2 workers of 1.5 GiB and 1 spare of 500 MiB take 3.4 GiB",
        ),
        ({"m": (500 * MIB, 1500 * MIB)}, 3 * GIB, Level.PROBLEM, "measured here on the CPU"),
        ({}, 10 * GIB, Level.OK, "estimated, since not every model was loaded"),
        ({}, 1 * GIB, Level.WARNING, "estimated"),
    ],
)
def test_host_memory_is_compared_with_what_loading_took(
    measured: dict[str, tuple[int, int]], available: int, level: Level, words: str
) -> None:
    found = next(memory.host_findings([["m"]] * 2, 1, {"m": 100 * MIB}, measured, left(available)))
    assert found.level is level
    assert words in found.text


def left(*available: int) -> list[MemoryHeadroom]:
    """What is left of the machine's memory, and of the limits of control groups."""
    sources = ["this machine", *(f"memory.max of the control group /{number}" for number in range(1, 5))]
    return [MemoryHeadroom(each, 2 * each, source) for each, source in zip(available, sources, strict=False)]


def test_host_memory_is_compared_with_the_narrowest_limit() -> None:
    measured = {"m": (100 * MIB, 200 * MIB)}
    found = next(memory.host_findings([["m"]] * 2, 0, {"m": None}, measured, left(GIB, 399 * MIB, 500 * MIB)))
    assert found.level is Level.PROBLEM
    assert "memory.max of the control group /1 leaves 399 MiB" in found.text


@pytest.mark.parametrize(("available", "level"), [(640, Level.OK), (639, Level.NOTE)])
def test_doctor_notes_that_a_replacement_has_no_room_beside_the_old_worker(available: int, level: Level) -> None:
    measured = {"m": (100 * MIB, 200 * MIB)}
    found = list(memory.host_findings([["m"]] * 2, 0, {"m": None}, measured, left(GIB, available * MIB)))
    assert found[-1].level is level
    assert level is Level.OK or "the old one ends first" in found[-1].text


@pytest.mark.parametrize(("available", "warned"), [(1000, False), (999, True)])
def test_doctor_compares_the_peak_of_warm_ups_with_the_memory(available: int, warned: bool) -> None:
    measured = {"m": (100 * MIB, 200 * MIB), "n": (100 * MIB, 150 * MIB)}
    peaks = {"m": (450 * MIB, 1000), "n": (160 * MIB, 8)}
    found = memory.warm_up_finding([["m", "n"], ["m", "n"]], measured, peaks, left(2 * GIB, available * MIB))
    assert (found is not None) is warned
    if found is not None:
        assert found.level is Level.WARNING
        assert "2 workers that warm up at the same time take up to 1000 MiB, and memory.max of" in found.text
        assert "max_batch_size of m (1000)" in str(found.advice)


def test_no_warm_up_is_compared_where_no_model_was_loaded() -> None:
    assert memory.warm_up_finding([["m"]], {}, {}, left(0)) is None


def test_doctor_names_the_rows_whose_warm_up_ends_the_process() -> None:
    step = LoadStep("m", "7", rows=1000, fewer_rows=512)
    loaded = LoadedModel(spec=SPEC, cause=f"its process killed by SIGKILL (9) while {step}", step=step)
    (found,) = models.findings(loaded)
    assert found.level is Level.PROBLEM
    assert found.text.startswith("m ends its process in the warm-up with 1000 rows: its process killed by SIGKILL")
    assert "max_batch_size to 512 or less" in str(found.advice)


ALONE = Situation(has_others=False, load_s=60.0, max_restarts=5)
OTHERS = Situation(has_others=True, load_s=60.0, max_restarts=5)
LOADING = LoadStep("m", "7")
WARM_UP = LoadStep("m", "7", rows=32, fewer_rows=16)
UNLOADABLE = ModelReport(name="m", version="7", state="failed", cause="a cause")


@pytest.mark.parametrize(
    ("failure", "situation", "words"),
    [
        ({"report": UNLOADABLE}, OTHERS, "would show it as failed and serve the others"),
        ({"report": UNLOADABLE}, ALONE, "would show it as failed, and serve nothing on its slots"),
        ({"crashed": True}, OTHERS, "would start its worker again, up to 5 times within restart.window"),
        ({"step": WARM_UP, "timed_out": True}, OTHERS, "end the worker, start another worker without it, which serves"),
        ({"step": WARM_UP, "gave_up": True}, OTHERS, "would wait for it for up to 60 s (load_timeout)"),
        (
            {"step": LOADING, "crashed": True},
            OTHERS,
            "would start another worker without it, which serves the other models, and try it again beside that one, "
            "up to 3 times in all",
        ),
        ({"step": LOADING, "crashed": False}, OTHERS, "would load all once more, and after a second death start"),
        (
            {"step": LOADING, "crashed": True},
            replace(OTHERS, max_restarts=0),
            "would start another worker without it, which serves the other models; ",
        ),
        ({"step": LOADING, "crashed": True}, ALONE, "up to 5 times within restart.window (restart.max_restarts), and"),
        ({"step": LOADING, "timed_out": True}, OTHERS, "end the worker, start another worker without it, which serves"),
        ({"step": LOADING, "timed_out": True}, ALONE, "end the worker, show its slot as failed, and not try it again"),
        ({"step": LOADING, "gave_up": True}, OTHERS, "would wait for it for up to 60 s (load_timeout)"),
        (
            {"step": LOADING, "gave_up": True},
            replace(OTHERS, slow_load_s=10.0),
            "would start a second worker after 10 s (slow_load) if memory suffices for two, which serves the other "
            "models, and wait for it for up to 60 s (load_timeout)",
        ),
        (
            {"step": LOADING, "timed_out": True},
            replace(OTHERS, slow_load_s=10.0),
            "the other models, end the worker that loads it after 60 s (load_timeout), and not try it again by itself",
        ),
        (
            {"step": LOADING, "timed_out": True},
            replace(OTHERS, slow_load_s=60.0),
            "would end the worker, start an",
        ),
        ({"step": LOADING, "timed_out": True}, replace(ALONE, slow_load_s=10.0), "end the worker, show its slot as f"),
    ],
)
def test_doctor_says_what_the_daemon_would_do(failure: dict[str, Any], situation: Situation, words: str) -> None:
    (found,) = models.findings(LoadedModel(spec=SPEC, cause="a cause", **failure), situation)
    assert found.level is Level.PROBLEM
    assert found.text == "m cannot be loaded: a cause"
    assert words in str(found.advice)


def config_of(folder: Path, *names: str) -> Config:
    """A configuration with these models; the one with the name `later` is not loaded at the start."""
    models = "".join(
        f"  - {{name: {name}, handler: 'h:M', load_at_startup: {str(name != 'later').lower()}}}\n" for name in names
    )
    file = folder / "config.yaml"
    file.write_text(f"devices: {{cpu: 1}}\nmodels:\n{models}")
    return load(file, environment={})


@pytest.mark.parametrize(
    ("served", "models_of_slots", "others"),
    [
        ([("m", "1")], [("m",)], False),
        ([("m", "1"), ("m", "2")], [("m",)], True),
        ([("m", "1"), ("n", "1")], [("m", "n")], True),
        ([("m", "1"), ("n", "1")], [("m",), ("n",)], False),
        ([("m", "1"), ("n", "1")], [], True),
        ([("m", "1"), ("later", "1")], [("m", "later")], False),
        ([("m", "1")], [("m", "missing")], False),
    ],
)
def test_other_models_are_those_that_a_worker_loads_with_it(
    served: list[tuple[str, str]], models_of_slots: list[tuple[str, ...]], others: bool, tmp_path: Path
) -> None:
    config = config_of(tmp_path, "m", "n", "later", "missing")
    placements = [slot(number, models=models) for number, models in enumerate(models_of_slots)]
    specs = [ModelSpec(name=name, version=version) for name, version in served]
    assert Situation.of("m", config, placements, 60.0, specs).has_others == others


def test_a_model_that_only_an_order_loads_has_the_others_beside_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "later", "m")
    specs = [ModelSpec(name="later"), ModelSpec(name="m")]
    assert Situation.of("later", config, [slot(models=("later", "m"))], 60.0, specs).has_others


def test_doctor_warns_if_the_kernel_ends_all_processes_at_once() -> None:
    found = memory.killed_together_finding("/kubepods/pod1")
    assert found.level is Level.WARNING
    assert "every process of the control group /kubepods/pod1" in found.text


def test_a_slot_needs_memory_for_its_own_models_only() -> None:
    sizes: dict[str, int | None] = {"m": 10 * GIB, "n": 20 * GIB}
    devices = [gpu(name="GPU-a"), gpu(name="GPU-b")]
    slots = [slot(0, "GPU-a", models=("m",)), slot(1, "GPU-b", models=("m", "n"))]
    texts = [finding.text for finding in memory.device_findings(devices, slots, sizes)]
    assert ["12.6 GiB" in texts[0], "36.6 GiB" in texts[1]] == [True, True]
    found = next(memory.host_findings([each.models for each in slots], 0, sizes, {}, left(100 * GIB)))
    assert "2 workers of up to 36.6 GiB take 49.2 GiB" in found.text
    found = next(memory.host_findings([("m",)], 0, sizes, {}, left(100 * GIB)))
    assert "1 worker of 12.6 GiB takes 12.6 GiB" in found.text


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("cpu:0",), ["t", "s", "h"]),
        (("cpu:0", "cpu:1", "cpu:2"), ["t", "t", "t", "s", "h"]),
        (("GPU-a", "GPU-b"), ["t", "s", "h"]),  # the weights are in device memory
    ],
)
def test_each_tower_on_a_cpu_device_has_its_weights_in_host_memory(
    devices: tuple[str, ...], expected: list[str]
) -> None:
    specs = [
        ModelSpec(name="t", path="/t"),
        ModelSpec(name="s", path="/s", placement="as_saved"),
        ModelSpec(name="h", handler="a:B"),
    ]
    assert memory.models_in_host_memory(replace(slot(models=("t", "s", "h")), devices=devices), specs) == expected


def test_the_bytes_of_a_models_files(tmp_path: Path) -> None:
    (tmp_path / "3" / "variables").mkdir(parents=True)
    (tmp_path / "3" / "saved_model.pb").write_bytes(b"x" * 10)
    (tmp_path / "3" / "variables" / "variables.data-00000-of-00001").write_bytes(b"x" * 100)
    (tmp_path / "3" / "variables" / "variables.index").write_bytes(b"x")
    (tmp_path / "k.keras").write_bytes(b"x" * 7)
    assert memory.file_bytes(ModelSpec(name="m", path=str(tmp_path), version="3")) == 110
    assert memory.file_bytes(ModelSpec(name="m", path=str(tmp_path / "k.keras"))) == 7
    assert memory.file_bytes(ModelSpec(name="m", handler="a:B")) is None
