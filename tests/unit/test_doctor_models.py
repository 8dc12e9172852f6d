"""The rules of the doctor about models and their operations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor_findings import BUILD, CPU_BUILD, MIB, SPEC, levels, worst

from multitower.spec import ModelReport, ModelSpec, SignatureReport, TensorReport
from multitower.tools.doctor import machine, models, operations
from multitower.tools.doctor.findings import Level
from multitower.tools.doctor.models import LoadedModel

X = TensorReport(name="x", datatype="FP32", shape=(-1, 6))
Y = TensorReport(name="y", datatype="BYTES", shape=None)
REPORT = ModelReport(
    name="m", version="7", platform="keras", inputs=(X,), outputs=(Y,), max_batch_size=8, load_s=1.0, warmup_s=0.5
)


def test_findings_about_a_model_that_loads() -> None:
    others = SignatureReport(name="a", inputs=(Y,), outputs=(X,)), SignatureReport(name="b", cause="it is ragged")
    report = replace(REPORT, signature="s", signatures=others, pad_variable_length_inputs=True)
    loaded = LoadedModel(spec=SPEC, report=report, before_bytes=MIB, after_bytes=3 * MIB, log_lines=["no warm-up"])
    assert levels(models.findings(loaded)) == [
        ("ok", "m: version 7, keras, loaded in 1.0 s, warmed up in 0.5 s, 2 MiB of host memory"),
        ("ok", "m, signature s: x FP32 [-1, 6] → y BYTES of any shape"),
        ("ok", "m is batched: up to 8 rows, padded to 4, 8, inputs of varying length padded"),
        ("ok", "requests to m may name a: y BYTES of any shape → x FP32 [-1, 6]"),
        ("warning", "requests to m cannot name its signature b: it is ragged"),
        ("note", "m: its worker logged: no warm-up"),
    ]


@pytest.mark.parametrize(
    ("loaded", "level", "words"),
    [
        (LoadedModel(spec=SPEC, cause="killed"), Level.PROBLEM, "m cannot be loaded: killed"),
        (
            LoadedModel(
                spec=SPEC, report=ModelReport(name="m", state="failed", cause="no such signature"), cause="m: …"
            ),
            Level.PROBLEM,
            "m cannot be loaded: no such signature",
        ),
        (
            LoadedModel(spec=SPEC, report=replace(REPORT, max_batch_size=0, unbatched_because="it has no inputs")),
            Level.WARNING,
            "is unbatched: it has no inputs",
        ),
        (
            LoadedModel(spec=SPEC, report=replace(REPORT, unverified_because="its outputs vary from run to run")),
            Level.NOTE,
            "values could not show that rows of a batch are independent: its outputs vary from run to run",
        ),
        (
            LoadedModel(spec=ModelSpec(name="m", handler="a:B"), report=replace(REPORT, max_batch_size=0, inputs=None)),
            Level.NOTE,
            "unbatched, as configured",
        ),
    ],
)
def test_findings_about_a_model_that_fails_or_is_not_batched_for_sure(
    loaded: LoadedModel, level: Level, words: str
) -> None:
    found = worst(models.findings(loaded))
    assert found.level is level
    assert words in found.text


def test_findings_about_batching_name_the_signature_that_they_concern() -> None:
    others = (
        SignatureReport(name="a", unbatched_because="the values of output 'y' differ"),
        SignatureReport(name="b", max_batch_size=8, unverified_because="its outputs vary from run to run"),
    )
    loaded = LoadedModel(spec=SPEC, report=replace(REPORT, signature="s", signatures=others))
    varying = "values could not show that rows of a batch are independent: its outputs vary from run to run"
    assert [found for found in levels(models.findings(loaded)) if found[0] != "ok"] == [
        ("warning", "m, signature a, is unbatched: the values of output 'y' differ"),
        ("note", f"m, signature b, is batched, but {varying}"),
    ]
    trusted = LoadedModel(spec=replace(SPEC, trust_batching=True), report=loaded.report)
    assert "note" not in {level for level, _ in levels(models.findings(trusted))}


def test_a_model_that_the_configuration_insists_on_batching_has_no_advice() -> None:
    report = replace(REPORT, unverified_because="batching.trust is set")
    found = levels(models.findings(LoadedModel(spec=replace(SPEC, trust_batching=True), report=report)))
    assert ("ok", "m is batched: up to 8 rows, padded to 4, 8, whatever values show (batching.trust)") in found
    assert {level for level, _ in found} == {"ok"}


@pytest.mark.parametrize(
    ("build", "model", "gpus", "level", "words"),
    [
        (BUILD, {"operations": 9, "cpu_only": {}}, True, Level.OK, "m: all 9 operations have a GPU kernel"),
        (
            BUILD,
            {"operations": 9, "cpu_only": {}},
            False,
            Level.OK,
            "m: would also run on a GPU: all 9 operations have",
        ),
        (
            BUILD,
            {"operations": 9, "cpu_only": {"StringJoin": 2, "Unique": 1}},
            True,
            Level.WARNING,
            "3 of 9 operations have no GPU kernel: StringJoin (2), Unique",
        ),
        (BUILD, {"operations": 9, "cpu_only": {"StringJoin": 2}}, False, Level.NOTE, "2 of 9"),
        (BUILD, {"error": "ValueError: broken"}, True, Level.NOTE, "cannot be read: ValueError: broken"),
        (CPU_BUILD, {"operations": 9, "cpu_only": {}}, True, Level.NOTE, "built for CPUs only"),
        (BUILD, {"obstacle": "no op X", "needs_gpu": False}, True, Level.PROBLEM, "m can never run: no op X"),
        (CPU_BUILD, {"obstacle": "no op X", "needs_gpu": True}, False, Level.PROBLEM, "m can never run: no op X"),
        (BUILD, {"obstacle": "no op X", "needs_gpu": True}, True, Level.NOTE, "m: it runs on GPUs only: no op X"),
    ],
)
def test_findings_about_operations_without_gpu_kernel(
    build: dict[str, Any], model: dict[str, Any], gpus: bool, level: Level, words: str
) -> None:
    found = worst(operations.findings({"build": build, "models": {"m": model}}, gpus_wanted=gpus))
    assert found.level is level
    assert words in found.text


@pytest.mark.parametrize("gpus", [False, True])
def test_a_model_for_gpus_only_is_no_problem_where_gpus_serve_it(gpus: bool) -> None:
    report = ModelReport(name="m", state="failed", cause="X has a kernel for GPUs only", needs_gpu=True)
    (finding,) = models.findings(LoadedModel(spec=SPEC, report=report), gpus_wanted=gpus)
    assert finding.level is (Level.NOTE if gpus else Level.PROBLEM)
    assert "X has a kernel for GPUs only" in finding.text


def test_a_model_that_did_not_load_gets_no_second_finding() -> None:
    broken = {"error": "no weights"}
    models = {"m": broken, "n": broken, "o": {"obstacle": "no op X", "needs_gpu": False}}
    answer = {"build": BUILD, "models": models}
    found = list(operations.findings(answer, gpus_wanted=True, not_loaded={"m", "o"}))
    assert [finding.text for finding in found] == ["n: its operations cannot be read: no weights"]


def test_bytes_of_the_system_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_bytes(b"\xff\n")
    assert machine._read(tmp_path / "cpu.max") == "\N{REPLACEMENT CHARACTER}\n"


def test_output_of_tensorflow_that_is_not_utf8_does_not_end_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nprintf 'native \\377 code' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(operations.InspectionError, match="ended with code 3: native \N{REPLACEMENT CHARACTER} code"):
        operations.inspect_operations([], 60.0)
