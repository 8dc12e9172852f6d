"""Which operations have no kernel for a GPU, as a process with TensorFlow tells."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from multitower.spec import ModelSpec
from multitower.supervisor.machine.placement import NO_GPU
from multitower.tools.doctor.findings import Finding, Level, listed

SECTION: Final = "operations"


class LookError(Exception):
    """The process with TensorFlow gave no answer; the message says why."""


def look(specs: Sequence[ModelSpec], timeout_s: float) -> dict[str, Any]:
    """What `worker.kernels` tells of the models that have a path.

    Raises:
        LookError: it failed, or was not done in time.
    """
    command = [sys.executable, "-m", "multitower.worker.formats.kernels"]
    asked = json.dumps([dataclasses.asdict(spec) for spec in specs])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": NO_GPU, "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        done = subprocess.run(
            command, input=asked, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise LookError(f"TensorFlow did not answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        last = next(iter(done.stderr.strip().splitlines()[-1:]), "")
        raise LookError(f"the process with TensorFlow ended with code {done.returncode}: {last[:500]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def findings(answer: Mapping[str, Any], *, gpus_wanted: bool, told: Collection[str] = frozenset()) -> Iterator[Finding]:
    """What there is to say of the models' operations.

    Args:
        answer: what `look` gave.
        gpus_wanted: the configuration has workers on GPUs.
        told: models that cannot be loaded, which has been said.
    """
    build = answer["build"]
    if not build["gpu"]:
        text = f"TensorFlow {build['version']} is built for CPUs alone, and cannot tell what has a kernel for GPUs"
        yield Finding(SECTION, Level.NOTE, text, "pip install 'multitower[gpu]' where there are GPUs")
        return
    for name, model in answer["models"].items():
        if "error" in model:
            if name not in told:
                yield Finding(SECTION, Level.NOTE, f"{name}: its operations were not looked at: {model['error']}")
        elif model["cpu_only"]:
            lacking = [f"{op} ({count})" if count > 1 else op for op, count in model["cpu_only"].items()]
            total = sum(model["cpu_only"].values())
            text = f"{name}: {total} of {model['operations']} operations have no GPU kernel: {listed(lacking)}"
            advice = "on a GPU worker they run on the CPU, and tensors are copied there and back; keep them outside"
            yield Finding(SECTION, Level.WARNING if gpus_wanted else Level.NOTE, text, advice)
        else:
            yield Finding(SECTION, Level.OK, f"{name}: all {model['operations']} operations have a GPU kernel")
