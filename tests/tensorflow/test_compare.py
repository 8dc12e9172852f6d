"""`multitower compare` on a machine without GPUs: both ways are measured, and a process of each is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

    from multitower.worker.formats import visible_sessions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

COMPARE_S = 900.0
"""Far more than the 35 s that it takes alone: it starts TensorFlow seven times, and other tests may use the cores."""


def run_compare(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multitower", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPARE_S)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel whose name promises a frozen graph: what is there is what counts."""
    folder = tmp_path_factory.mktemp("compare") / "model.pb"
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    serve = tf.function(lambda x: {"y": tf.tanh(x)}, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(tf.Module(), str(folder), signatures=serve)
    return folder


@pytest.mark.timeout(COMPARE_S + 100)
def test_a_crash_takes_down_one_process_or_all_towers(model: Path) -> None:
    done = run_compare(model, "--cpu", "--seconds", "0.5", "--outstanding", "4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == ["cpu:0", "cpu:1"]
    processes, sessions, towers = found["ways"]
    assert [way["number"] for way in found["ways"]] == [1, 2, 4]
    assert "no GPU" in sessions["not_run"]
    assert sessions["figures"] is None
    for way, count, lost in ((processes, 2, 1), (towers, 1, 2)):
        figures = way["figures"]
        assert way["not_run"] is None
        assert figures["requests_per_s"] > 10
        assert 0 < figures["p50_s"] <= figures["p99_s"]
        assert figures["processes"] == count
        assert figures["memory_bytes"] > count * (50 << 20)
        assert figures["failed"] == 0
        crash = figures["crash"]
        assert (crash["devices"], crash["lost"], crash["failed"]) == (2, lost, 0)
        assert crash["back_s"] > 0.1
    assert (processes["figures"]["fallbacks"], towers["figures"]["fallbacks"]) == (None, {})
    # With one process, nothing is answered until it is back; with two, the other one answers meanwhile.
    assert towers["figures"]["crash"]["silent_s"] > 0.5 * towers["figures"]["crash"]["back_s"]
    assert processes["figures"]["crash"]["silent_s"] < 0.5 * processes["figures"]["crash"]["back_s"]


def test_sessions_on_missing_gpus_report_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["visible_sessions", "2"])
    # It is a program that gives its descriptor 1 to libraries.
    stdout = os.dup(1)
    try:
        visible_sessions.main()
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    found = json.loads(capfd.readouterr().out)
    assert [(each["asked"], each["device"]) for each in found] == [("0", None), ("1", None)]
    assert all("GPU:0" in each["error"] for each in found)
