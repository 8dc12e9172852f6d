"""Models that can never run in a worker fail with a cause and a remedy; custom operations come from libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_child import STEP_S, WorkerChild, assignment

from multitower.spec import ModelReport, ModelSpec
from multitower.tools.doctor import operations
from multitower.worker_wire import KeySpec

BUILD = Path(__file__).parents[1] / "fakes" / "custom_models.py"
FROZEN = {"inputs": {"x": "x"}, "outputs": {"y": "y"}}
X = KeySpec("m", (("x", "FP32", (2,)),), None, True)

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="there is no C++ compiler for the library"
)

CAUSES = {
    "python-function": "it calls a Python function, at the node 'EagerPyFunc'",
    "numpy-function": "it calls a Python function, at the node 'PyFunc'",
    "mapped": "it calls a Python function",
    "python-function.pb": "it calls a Python function",
    "bad-default": "the model can be served by another one, with `signature`: other",
    "gpu-only": "the operation CudnnRNN has a kernel for GPUs only, and this worker has none",
    "no-kernel": "the operation Cholesky has no kernel for this worker's devices and its datatypes",
    "bad-xla": "XLA cannot compile the operation AsString",
    "table.pb": "it uses a table or a variable that nothing initialises",
}
SERVED = ("in-a-branch", "branch.pb", "good-default", "picky")


def spec_of(folder: Path, file: str, **more: Any) -> ModelSpec:
    tensors: Mapping[str, Any] = FROZEN if file.endswith(".pb") else {}
    return ModelSpec(**{"name": file, "path": str(folder / file), "max_batch_size": 4, **tensors, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, str(BUILD), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, ModelReport]:
    """What a worker reports that loads all models which need no library, and one that lacks its own."""
    broken = folder / "broken.so"
    broken.write_text("no library")
    models = [spec_of(folder, name) for name in (*CAUSES, *SERVED)]
    if (folder / "custom").exists():
        models.append(spec_of(folder, "custom"))
        models.append(spec_of(folder, "custom", name="with broken", custom_ops=(str(broken),)))
    with WorkerChild(assignment(*models)) as child:
        found = {report.name: report for report in child.reports("ready")[-1].models}
        assert child.stop() == 0
    return found


@pytest.mark.parametrize("name", CAUSES)
def test_a_model_that_can_never_run_fails_with_its_cause(name: str, reports: dict[str, ModelReport]) -> None:
    assert reports[name].state == "failed"
    assert CAUSES[name] in (reports[name].cause or "")
    assert reports[name].needs_gpu is (name == "gpu-only")


@pytest.mark.parametrize("name", SERVED)
def test_a_model_that_may_run_on_other_inputs_is_served(name: str, reports: dict[str, ModelReport]) -> None:
    assert (reports[name].state, reports[name].cause) == ("ready", None)


def test_a_signature_that_can_never_run_costs_only_itself(reports: dict[str, ModelReport]) -> None:
    (other,) = reports["good-default"].signatures
    assert other.name == "other"
    assert "it calls a Python function" in (other.cause or "")


@needs_compiler
def test_without_its_library_a_custom_operation_fails_its_model(folder: Path, reports: dict[str, ModelReport]) -> None:
    cause = reports["custom"].cause or ""
    assert "the operation TestAddOne is not registered in TensorFlow" in cause
    assert "name that library (.so) in the model's `custom_ops`" in cause
    cause = reports["with broken"].cause or ""
    assert f"custom_ops: {folder / 'broken.so'} cannot be loaded: NotFoundError" in cause


@needs_compiler
def test_a_spare_loads_custom_operations_after_its_assignment(folder: Path, tmp_path: Path) -> None:
    library, copy = folder / "add_one.so", tmp_path / "copy.so"
    shutil.copy(library, copy)
    work = assignment(
        spec_of(folder, "custom", name="m", custom_ops=(str(library),)),
        # TensorFlow would take a second copy for a rival of the first, and refuse to run either.
        spec_of(folder, "custom", name="same", custom_ops=(str(copy),)),
    )
    with WorkerChild(None, import_tensorflow=True) as child:
        child.reports("idle")
        assert "add_one.so" not in Path(f"/proc/{child.pid}/maps").read_text()
        child.assign(work)
        states = [(report.state, report.cause) for report in child.reports("ready")[-1].models]
        assert states == [("ready", None)] * 2
        assert "add_one.so" in Path(f"/proc/{child.pid}/maps").read_text()
        for name in ("m", "same"):
            key = KeySpec(name, X.inputs, None, True)
            (answer,) = child.result(child.send(key, {"x": np.zeros((3, 2), np.float32)}))
            assert isinstance(answer, dict), answer
            assert answer["y"].tolist() == [[1, 1]] * 3
        assert child.stop() == 0


def test_doctor_finds_models_that_can_never_run(folder: Path) -> None:
    names = ["python-function", "gpu-only", "no-kernel", *SERVED]
    library = folder / "add_one.so"
    specs = [spec_of(folder, name) for name in names]
    if library.exists():
        specs.append(spec_of(folder, "custom", name="with library", custom_ops=(str(library),)))
        specs.append(spec_of(folder, "custom"))
    report = operations.inspect_operations(specs, STEP_S)
    obstacles = {name: model["obstacle"] for name, model in report["models"].items() if "obstacle" in model}
    assert "it calls a Python function" in obstacles.pop("python-function")
    assert "CudnnRNN has a kernel for GPUs only" in obstacles.pop("gpu-only")
    assert "Cholesky has no kernel" in obstacles.pop("no-kernel")
    if library.exists():
        assert "TestAddOne is not registered" in obstacles.pop("custom"), "although another model's library has it"
    assert not obstacles
