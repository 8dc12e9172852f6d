"""Inputs with defaults in the signature of a SavedModel may be left out of requests, as in TensorFlow Serving."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import Client, InvalidRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

ROWS = tf.TensorSpec([None], tf.float32)
SCALAR = tf.TensorSpec([], tf.float32)


def other(x: Any, unit: Any = tf.constant("m")) -> Any:  # noqa: B008  saved as the input's default
    return {"text": tf.strings.join([tf.strings.as_string(tf.cast(x, tf.int32)), unit])}


def scaled(x: Any, factor: Any = tf.constant([2.0]), offset: Any = tf.constant(1.0)) -> Any:  # noqa: B008
    return {"y": x * factor + offset}


def matched(x: Any, y: Any = tf.constant([10.0, 20.0])) -> Any:  # noqa: B008
    return {"z": x + y}


def constant(x: Any = tf.constant([5.0, 6.0])) -> Any:  # noqa: B008
    return {"y": x}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optional")
    second = tf.function(other, input_signature=[ROWS, tf.TensorSpec([], tf.string)])
    for function, specs in ((scaled, [ROWS, ROWS, SCALAR]), (matched, [ROWS, ROWS]), (constant, [ROWS])):
        module = tf.Module()
        module.f = tf.function(function, input_signature=specs)
        signatures = {"serving_default": module.f, "other": second}
        tf.saved_model.save(module, str(folder / function.__name__), signatures=signatures)
    np.savez(folder / "recorded.npz", x=floats(1, 2, 3))
    np.savez(folder / "recorded-whole.npz", x=floats(1, 2, 3), offset=np.float32(4))
    return folder


CONFIG = """
listen: ["{endpoint}"]
devices: {DEVICES}
spares: 0
models:
  - {name: scaled, path: scaled, batching: {max_batch_size: 8, max_queue_delay: 50ms}}
  - {name: recorded, path: scaled, warmup: recorded.npz}
  - {name: recorded-whole, path: scaled, warmup: recorded-whole.npz}
  - {name: matched, path: matched}
  - {name: constant, path: constant}
  - {name: unbatched, path: scaled, batching: {max_batch_size: 0}}
"""


@pytest.fixture(scope="module", params=["{cpu: 1}", "[[cpu:0, cpu:1]]"], ids=["functions", "towers"])
def client(request: pytest.FixtureRequest, folder: Path) -> Iterator[Client]:
    with (
        Running(folder, CONFIG.replace("{DEVICES}", request.param)) as daemon,
        daemon.wait_ready().client() as client,
    ):
        yield client


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_metadata_says_which_inputs_are_optional(client: Client) -> None:
    inputs = client.metadata("scaled")["inputs"]
    assert {tensor["name"]: tensor.get("optional", False) for tensor in inputs} == {
        "factor": True,
        "offset": True,
        "x": False,
    }
    config = client.model_config("scaled")
    assert config["max_batch_size"] == 8, "an optional scalar does not prevent batches of requests without it"
    for recorded in ("recorded", "recorded-whole"):
        assert client.model_config(recorded)["max_batch_size"] == 32
    assert {tensor["name"]: tensor.get("optional") for tensor in config["input"]} == {
        "factor": True,
        "offset": True,
        "x": None,
    }


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, [3, 5, 7]),
        ({"factor": floats(0, 1, 2)}, [1, 3, 7]),
        ({"offset": np.float32(5)}, [7, 9, 11]),
        ({"factor": floats(0, 1, 2), "offset": np.float32(5)}, [5, 7, 11]),
    ],
)
def test_any_optional_inputs_may_be_left_out(given: dict[str, Any], wanted: list[float], client: Client) -> None:
    for model in ("scaled", "recorded", "recorded-whole", "unbatched"):
        assert client.infer(model, {"x": floats(1, 2, 3), **given}, timeout=STEP_S)["y"].tolist() == wanted


def test_requests_with_and_without_an_input_never_share_a_batch(client: Client) -> None:
    before = batches(client)
    futures = []
    for number in range(32):
        inputs: dict[str, Any] = {"x": floats(number)}
        inputs |= {"factor": floats(3)} if number % 4 == 1 else {}
        inputs |= {"offset": np.float32(7)} if number % 4 == 2 else {}
        futures.append(client.submit("scaled", inputs, timeout=STEP_S))
    for number, future in enumerate(futures):
        factor, offset = 3 if number % 4 == 1 else 2, 7 if number % 4 == 2 else 1
        assert future.result(STEP_S)["y"].tolist() == [factor * number + offset]
    executions, inferences = (after - start for after, start in zip(batches(client), before, strict=True))
    assert inferences == 32
    assert executions < 32, "requests that lack the same inputs share batches"


def batches(client: Client) -> tuple[int, int]:
    (stats,) = client.statistics("scaled")["model_stats"]
    return stats["execution_count"], stats["inference_count"]


def test_a_default_of_several_rows_is_used_as_it_is(client: Client) -> None:
    assert client.infer("matched", {"x": floats(1, 2)}, timeout=STEP_S)["z"].tolist() == [11, 22]
    assert client.infer("matched", {"x": floats(1), "y": floats(3)}, timeout=STEP_S)["z"].tolist() == [4]


def test_a_request_without_any_input_is_answered(client: Client) -> None:
    assert client.infer("constant", {}, timeout=STEP_S)["y"].tolist() == [5, 6]


def test_another_signature_has_defaults_of_its_own(client: Client) -> None:
    answer = client.infer("scaled", {"x": floats(3, 4)}, signature="other", timeout=STEP_S)
    assert answer["text"].tolist() == [b"3m", b"4m"]
    given = {"x": floats(3), "unit": np.array(b"km", object)}
    assert client.infer("scaled", given, signature="other", timeout=STEP_S)["text"].tolist() == [b"3km"]


def test_an_input_without_a_default_is_still_required(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="the model also needs the input 'x'"):
        client.infer("scaled", {"factor": floats(1)})
