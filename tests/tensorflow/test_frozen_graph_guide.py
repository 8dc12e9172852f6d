"""Runs the example of docs/frozen-graphs.md from its first program to its last, with a real daemon."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

from multitower import InvalidRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

PAGE = (Path(__file__).parents[2] / "docs" / "frozen-graphs.md").read_text()
PROGRAMS = {found[1]: found[0] for found in re.findall(r'```python\n("""(\w+\.py).*?)```', PAGE, re.DOTALL)}
(MODELS,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
Run = Callable[..., str]
LISTED, WRONG = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
SPARSE = """
  - name: sparse
    path: sparse.pb
    inputs: {indices: x/indices, values: x/values, shape: x/shape}
    outputs: {dense: dense}
    batching: {max_batch_size: 0}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        Path(name).write_text(PROGRAMS[name])
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(name)
        return capsys.readouterr().out

    return run


def test_the_example_of_the_guide_works(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("freeze.py")
    assert run("names.py", "frozen.pb") == LISTED
    run("settle.py")
    make_sparse(tmp_path / "sparse.pb")
    guessed = MODELS.replace("legacy", "guessed").replace("in/images", "images").removeprefix("models:\n")
    config = 'listen: ["{endpoint}"]\ndevices: {cpu: 1}\nspares: 0\n' + MODELS + guessed + SPARSE
    with Running(tmp_path, config) as daemon, daemon.wait_ready().client() as client:
        monkeypatch.setenv("MULTITOWER_ENDPOINT", daemon.endpoint)
        assert run("ask.py").startswith("(2, 10) ")
        inputs = {"images": np.random.default_rng(0).normal(size=(5, 64)).astype("f4"), "turns": np.int32(range(5))}
        answer = client.infer("legacy", inputs)
        for name, wanted in by_session(tmp_path / "frozen.pb", inputs).items():
            np.testing.assert_array_equal(answer[name], wanted, strict=True)
        with pytest.raises(InvalidRequest, match="datatype"):
            client.infer("legacy", {**inputs, "images": inputs["images"].astype("f8")})
        row = {
            "indices": np.int64([[0, 1], [1, 1], [2, 0]]),
            "values": np.float32([5, 7, 6]),
            "shape": np.int64([3, 2]),
        }
        assert client.infer("sparse", row)["dense"].tolist() == [[0, 5], [0, 7], [6, 0]]
        legacy, failed, _ = client.status()["models"]
        assert (legacy["max_batch_size"], legacy["unbatched_because"]) == (32, None)
        assert WRONG.strip() in failed["cause"]


def make_sparse(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.identity(tf.sparse.to_dense(tf.compat.v1.sparse_placeholder(tf.float32, name="x")), name="dense")
    path.write_bytes(graph.as_graph_def().SerializeToString())


def by_session(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        tf.graph_util.import_graph_def(v1.GraphDef.FromString(path.read_bytes()), name="")
        feeds = {f"in/{name}:0": array for name, array in inputs.items()} | {"keep_prob:0": 1.0}
        return session.run({"scores": "out/scores:0", "best": "out/best:0"}, feeds)  # type: ignore[no-any-return]
