"""Operations of the models that have no GPU kernel, found by a process with TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from multitower.cuda_visible_devices import no_gpu_environment
from multitower.durations import exact_duration
from multitower.import_path import module_command, module_environment
from multitower.spec import ModelSpec
from multitower.tools import documentation
from multitower.tools.doctor.findings import INSTALL_CUDA, Finding, Level, join_names

SECTION: Final = "operations"


class InspectionError(Exception):
    """The process with TensorFlow gave no answer; the message says why."""


def inspect_operations(specs: Sequence[ModelSpec], timeout_s: float) -> dict[str, Any]:
    """Runs `worker.formats.inspection` on models that have a path, and returns its report.

    Raises:
        InspectionError: it failed, or took too long.
    """
    command = module_command("multitower.worker.formats.inspection")
    models = json.dumps([dataclasses.asdict(spec) for spec in specs])
    environment = {**module_environment(), **no_gpu_environment(), "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        done = subprocess.run(
            command,
            input=models,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",  # native code writes what it likes
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InspectionError(f"TensorFlow did not answer within {exact_duration(timeout_s)}") from None
    if done.returncode != 0:
        last_line = next(iter(done.stderr.strip().splitlines()[-1:]), "")
        raise InspectionError(f"the process with TensorFlow ended with code {done.returncode}: {last_line[:500]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def findings(
    report: Mapping[str, Any], *, gpus_wanted: bool, not_loaded: Collection[str] = frozenset()
) -> Iterator[Finding]:
    """Findings about the models' operations.

    Args:
        report: the report of `inspect_operations`.
        gpus_wanted: whether the configuration has workers on GPUs.
        not_loaded: models for which there is a finding already that they cannot be loaded.
    """
    build = report["build"]
    for name, model in report["models"].items():
        if "obstacle" in model and name not in not_loaded:
            yield _obstacle_finding(name, model, gpus_wanted=gpus_wanted)
    if not build["gpu"]:
        text = f"TensorFlow {build['version']} is built for CPUs only and knows no GPU kernels"
        yield Finding(SECTION, Level.NOTE, text, f"on a machine with GPUs: {INSTALL_CUDA}")
        return
    for name, model in report["models"].items():
        if "obstacle" in model:
            continue
        if "error" in model:
            if name not in not_loaded:
                yield Finding(SECTION, Level.NOTE, f"{name}: its operations cannot be read: {model['error']}")
        elif model["cpu_only"]:
            lacking = [f"{op} ({count})" if count > 1 else op for op, count in model["cpu_only"].items()]
            total = sum(model["cpu_only"].values())
            text = f"{name}: {total} of {model['operations']} operations have no GPU kernel: {join_names(lacking)}"
            advice = (
                "a GPU worker runs them on the CPU and copies tensors there and back; better keep them out of the model"
            )
            yield Finding(SECTION, Level.WARNING if gpus_wanted else Level.NOTE, text, advice)
        else:
            would = "" if gpus_wanted else "would also run on a GPU: "
            text = f"{name}: {would}all {model['operations']} operations have a GPU kernel"
            yield Finding(SECTION, Level.OK, text)


def _obstacle_finding(name: str, model: Mapping[str, Any], *, gpus_wanted: bool) -> Finding:
    if model["needs_gpu"] and gpus_wanted:
        return Finding(SECTION, Level.NOTE, f"{name}: it runs on GPUs only: {model['obstacle']}")
    advice = f"the daemon would show it as failed and serve the others; see {documentation.page('Models')}"
    return Finding(SECTION, Level.PROBLEM, f"{name} can never run: {model['obstacle']}", advice)
