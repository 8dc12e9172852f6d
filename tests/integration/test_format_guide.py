"""docs/adding-a-model-format.md: its format, added to a copy of the package, is served as the page says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, blocks
from running import STEP_S, Running

import multitower
from multitower import InvalidRequest

PAGE = ROOT / "docs" / "adding-a-model-format.md"
PYTHON = [block.text for block in blocks(PAGE) if block.language == "python"]
(ENTRY,) = [text for text in PYTHON if text.startswith("ModelFormat(")]
(FORMAT,) = [text for text in PYTHON if "class LinearModel" in text]
(MAKE,) = [text for text in PYTHON if "np.savez" in text]
(MODELS,) = [block.text for block in blocks(PAGE) if block.language == "text"]
((REQUEST, COMMAND),) = [
    (line.split("'")[1], line.partition("| multitower ")[2])
    for block in blocks(PAGE)
    for line in block.text.splitlines()
    if line.startswith("echo ")
]
(ANSWER,) = [json.loads(block.text) for block in blocks(PAGE) if block.language == "json"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An environment in which Python finds a copy of the package with the page's format."""
    folder = tmp_path_factory.mktemp("package")
    package = folder / "multitower"
    # From the checkout or, where the tests run on a wheel, from there; with the files behind the links.
    shutil.copytree(Path(multitower.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    table = package / "format_registry.py"
    before, after = table.read_text().split("FILE_FORMATS: Final = (\n")
    table.write_text(f"{before}FILE_FORMATS: Final = (\n{ENTRY.strip()},\n{after}")
    (package / "worker" / "formats" / "linear.py").write_text(FORMAT)
    # Safe: `python -m` would look into the checkout first.
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def daemon(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guide")
    subprocess.run([sys.executable, "-c", MAKE], cwd=folder, timeout=60, check=True)
    np.savez(folder / "broken.npz", weights=np.ones(3))
    broken = "  - {name: broken, path: broken.npz}\n"
    config = 'listen: ["{endpoint}"]\nspares: 0\n' + MODELS + broken
    with Running(folder, config, environment=environment) as running:
        yield running.wait_ready()
        assert running.end() == 0


def test_its_command_gets_its_answer(daemon: Running, environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "multitower", *COMMAND.split(), "--endpoint", daemon.endpoint]
    done = subprocess.run(
        command,
        input=REQUEST,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ANSWER


def test_a_model_of_the_format_is_checked_batched_and_reported_like_any_other(daemon: Running) -> None:
    with daemon.client() as client:
        model = next(model for model in client.status()["models"] if model["name"] == "halves")
        assert (model["max_batch_size"], model["unbatched_because"]) == (8, None)
        metadata = client.metadata("halves")
        assert metadata["platform"] == "numpy_linear"
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        with pytest.raises(InvalidRequest, match="shape"):
            client.infer("halves", {"x": np.zeros((1, 4), np.float32)})


def test_a_file_that_is_wrong_fails_its_model_with_the_formats_own_cause(daemon: Running) -> None:
    with daemon.client() as client:
        broken = next(model for model in client.status()["models"] if model["name"] == "broken")
    assert "broken.npz is no linear model" in json.dumps(broken)


def test_no_worker_imports_tensorflow_for_it(daemon: Running) -> None:
    (pid,) = [slot["pid"] for slot in daemon.status()["slots"]]
    assert "libtensorflow" not in Path(f"/proc/{pid}/maps").read_text()
