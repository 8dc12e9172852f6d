"""Requests with no rows or no elements are answered alike by batched and unbatched models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import Client

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

BATCHING = {
    "batched": "{max_batch_size: 8}",
    "padded": "{max_batch_size: 8, allowed_batch_sizes: [2, 8]}",
    "varying": "{max_batch_size: 8, pad_variable_length_inputs: true}",
    "unbatched": "{max_batch_size: 0}",
}
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
""" + "".join(
    f"  - {{name: {model}-{name}, path: {model}, batching: {batching}}}\n"
    for model in ("doubled", "emptied")
    for name, batching in BATCHING.items()
)


def save(folder: Path, function: Callable[..., Any], *specs: Any) -> None:
    module = tf.Module()
    module.f = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.f})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tmp_path_factory.mktemp("empty")
    specs = [tf.TensorSpec([None, None], tf.float32, name="x"), tf.TensorSpec([None], tf.string, name="s")]
    save(
        folder / "doubled",
        lambda x, s: {"y": 2 * x, "t": tf.strings.join([s, "!"]), "sum": tf.reduce_sum(x, 1)},
        *specs,
    )
    save(folder / "emptied", lambda x: {"y": x[:, :0]}, specs[0])
    with Running(folder, CONFIG) as daemon, daemon.wait_ready().client() as client:
        yield client


SHAPES = [(0, 5), (0, 0), (1, 0), (3, 0), (20, 0), (2, 5)]


@pytest.mark.parametrize("name", BATCHING)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_empty_inputs_are_answered(shape: tuple[int, int], name: str, client: Client) -> None:
    x, s = np.ones(shape, np.float32), np.full(shape[0], b"a", object)
    answer = client.infer(f"doubled-{name}", {"x": x, "s": s}, timeout=STEP_S)
    assert np.array_equal(answer["y"], 2 * x)
    assert answer["t"].tolist() == [b"a!"] * shape[0]
    assert answer["sum"].tolist() == [float(shape[1])] * shape[0]


@pytest.mark.parametrize("name", BATCHING)
def test_concurrent_requests_of_all_shapes_get_their_own_answers(name: str, client: Client) -> None:
    requests = [np.full(shape, number, np.float32) for number in range(12) for shape in SHAPES]
    futures = [client.submit(f"emptied-{name}", {"x": x}, timeout=STEP_S) for x in requests]
    for x, future in zip(requests, futures, strict=True):
        assert future.result(STEP_S)["y"].shape == (len(x), 0)
