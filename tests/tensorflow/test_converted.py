"""A folder that TensorFlow Serving serves, and its two converted files: the daemon serves them unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from running import START_S, STEP_S, Running

from multitower import NotFound

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import made_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

MODELS = """
model_config_list {
  config { name: 'latest' base_path: 'FOLDER/dense' model_platform: 'tensorflow' }
  config {
    name: 'both' base_path: 'FOLDER/dense' model_platform: 'tensorflow'
    model_version_policy { specific { versions: 2 versions: 10 } }
    version_labels { key: 'stable' value: 2 }
    version_labels { key: 'canary' value: 10 }
  }
}
"""
BATCHING = "max_batch_size { value: 8 } batch_timeout_micros { value: 1000 } allowed_batch_sizes: [4, 8]"


def test_files_of_tensorflow_serving_serve_unchanged(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    x = made_models.dense(tmp_path / "dense")["x"]
    (tmp_path / "models.config").write_text(MODELS.replace("FOLDER", str(tmp_path)))
    (tmp_path / "batching.txt").write_text(BATCHING)
    command = [sys.executable, "-m", "multitower", "convert-config", "models.config", "--batching", "batching.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=START_S, check=True)
    assert done.stderr == "", "all of it is carried over"
    config = 'listen: ["{endpoint}"]\nspares: 0\n' + done.stdout
    with Running(tmp_path, config, arguments=("--set", "devices={cpu: 1}")) as daemon:
        daemon.wait_ready()
        with daemon.client() as client:
            weights = np.arange(24, dtype=np.float32).reshape(6, 4) / 7
            asked: list[tuple[str, dict[str, str], float]] = [
                ("latest", {}, 10.0),
                ("latest", {"version": "10"}, 10.0),
                ("both", {}, 10.0),
                ("both", {"version": "2"}, 2.0),
                ("both", {"version_label": "stable"}, 2.0),
                ("both", {"version_label": "canary"}, 10.0),
            ]
            # At the same time: batches are of one version each.
            futures = [client.submit(model, {"x": x}, **version) for model, version, _ in asked * 5]
            for (_, _, factor), future in zip(asked * 5, futures, strict=True):
                np.testing.assert_allclose(future.result(STEP_S)["y"], x @ (weights * factor), rtol=1e-4)
            for model in ("latest", "both"):
                assert client.model_config(model)["max_batch_size"] == 8
            assert client.metadata("latest")["versions"] == ["10"]
            assert client.metadata("both")["versions"] == ["2", "10"]
            assert client.model_ready("both", "2")
            assert client.model_ready("both", version_label="canary")
            with pytest.raises(NotFound, match="'both' has no version '3', only 2, 10"):
                client.model_ready("both", "3")
            with pytest.raises(NotFound, match="no version label 'old', only 'stable', 'canary'"):
                client.infer("both", {"x": x}, version_label="old")
            counted = {
                (entry["name"], entry["version"]): entry["inference_stats"]["success"]["count"]
                for entry in client.statistics()["model_stats"]
            }
            assert counted == {("latest", "10"): 10, ("both", "2"): 10, ("both", "10"): 10}
            rows = [(row["name"], row["version"], row["state"], row["labels"]) for row in client.status()["models"]]
            assert rows == [
                ("latest", "10", "ready", []),
                ("both", "2", "ready", ["stable"]),
                ("both", "10", "ready", ["canary"]),
            ]
        np.save(tmp_path / "x.npy", x)
        command = [sys.executable, "-m", "multitower", "infer", "both", "--endpoint", daemon.endpoint]
        command += ["--version-label", "stable", "--input", f"x={tmp_path / 'x.npy'}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=True)
        np.testing.assert_allclose(json.loads(done.stdout)["y"], x @ (weights * 2.0), rtol=1e-4)
