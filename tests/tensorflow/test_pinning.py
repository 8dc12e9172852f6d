"""CUDA reads CUDA_VISIBLE_DEVICES when TensorFlow first asks for devices: what late pinning of spares rests on.

A stand-in libcuda writes down what it saw at cuInit; see tests/fakes/cuda.c.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_gpus import UUIDS, CuInit, FakeGpus, read_log

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")

COLD_START = """
import json, os, sys
pinned = json.loads(sys.argv[1])
os.environ.update(pinned)
import tensorflow as tf
tf.config.list_physical_devices()
print(json.dumps({"pid": os.getpid()}))
"""
SPARE = """
import json, os, sys
import tensorflow as tf
after_import = open(os.environ["FAKE_CUDA_LOG"]).read() if os.path.exists(os.environ["FAKE_CUDA_LOG"]) else ""
os.environ.update(json.loads(sys.argv[1]))
tf.config.list_physical_devices()
print(json.dumps({"pid": os.getpid(), "after_import": after_import}))
"""


def run(fake_gpus: FakeGpus, log: Path, code: str, uuid: str) -> dict[str, Any]:
    pinned = {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    inherited = {name: value for name, value in os.environ.items() if name not in pinned}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(pinned)],
        env=inherited | fake_gpus.environment(log),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_cuda_sees_the_device_that_was_pinned_before_tensorflow_was_imported(
    fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    log = tmp_path / "cuda.log"
    report = run(fake_gpus, log, COLD_START, UUIDS[1])
    assert set(read_log(log)) == {CuInit(report["pid"], UUIDS[1], "PCI_BUS_ID")}


def test_a_device_can_be_pinned_after_tensorflow_was_imported(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    log = tmp_path / "cuda.log"
    report = run(fake_gpus, log, SPARE, UUIDS[2])
    assert report["after_import"] == ""
    assert set(read_log(log)) == {CuInit(report["pid"], UUIDS[2], "PCI_BUS_ID")}
