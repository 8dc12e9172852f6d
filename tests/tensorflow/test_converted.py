"""A folder that TensorFlow Serving serves, and its two files converted: the daemon serves them unchanged."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from running import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import made_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

MODELS = """
model_config_list {
  config { name: 'latest' base_path: 'FOLDER/dense' model_platform: 'tensorflow' }
  config {
    name: 'pinned' base_path: 'FOLDER/dense' model_platform: 'tensorflow'
    model_version_policy { specific { versions: 2 } }
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
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("\n") == 1, "of the one version, which stands in the path"
    config = 'listen: ["{endpoint}"]\nspares: 0\n' + done.stdout
    with Running(tmp_path, config, arguments=("--set", "devices={cpu: 1}")) as daemon:
        daemon.wait_ready()
        with daemon.client() as client:
            weights = np.arange(24, dtype=np.float32).reshape(6, 4) / 7
            for model, factor in (("latest", 10.0), ("pinned", 2.0)):
                np.testing.assert_allclose(client.infer(model, {"x": x})["y"], x @ (weights * factor), rtol=1e-4)
                configured = client.model_config(model)
                assert configured["max_batch_size"] == 8
            assert client.metadata("latest")["versions"] == ["10"]
            assert client.metadata("pinned")["versions"] == ["1"]
