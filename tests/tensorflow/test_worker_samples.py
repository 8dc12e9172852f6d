"""Recorded requests of TensorFlow Serving and of numpy, and what XLA compiles with them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import keras
    import tensorflow as tf

    from multitower.worker.formats.keras3_model import Keras3Model
    from multitower.worker.formats.saved_model import SavedModel
    from multitower.worker.heartbeat import CallCounter, LoadSteps
    from multitower.worker.loading import load_other_signatures

from multitower.spec import ModelSpec
from multitower.worker.formats.model import Arrays
from multitower.worker.model_errors import LoadError
from multitower.worker.warmup.samples import SERVING_FILE, load_samples
from multitower.worker.warmup.warmup import warm_up

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

# PredictionLogs as tensorflow-serving-api 2.21 writes them. x is [[1.5, -2.0]]. The examples have the feature `a`, with
# the values 3 and 4, and 9 as the context of an empty example.
PREDICT = "322b0a290a070a016d12020803121b0a0178121608011208120208011202080222080000c03f000000c01a0179"
TWICE = "32320a300a0e0a016d120208031a057477696365121b0a0178121608011208120208011202080222080000c03f000000c01a0179"
CLASSIFY = "12320a300a0a1a08636c61737369667912220a200a0e0a0c0a0a0a016112051a030a01030a0e0a0c0a0a0a016112051a030a0104"
REGRESS = "1a240a220a0a1a08636c617373696679121412120a00120e0a0c0a0a0a016112051a030a0109"
SESSION_RUN = "2a070a050a030a016d"


def parse(examples: Any) -> Any:
    return tf.io.parse_example(examples, {"a": tf.io.FixedLenFeature([], tf.int64)})["a"]


def guarded(check: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def serve(x: Any) -> Any:
        with tf.control_dependencies([check(x[:, 1], 0.0)]):
            return {"y": tf.identity(x)}

    return serve


def saved(folder: Path, default: Callable[[Any], Any] | None = None) -> Path:
    """A model with three signatures: two with the input `x`, one with serialised examples."""
    x = tf.TensorSpec([None, 2], tf.float32, name="x")
    functions = {
        "serving_default": (default or (lambda x: {"y": x + 1}), x),
        "twice": (lambda x: {"y": x * 2}, x),
        "classify": (lambda inputs: {"classes": parse(inputs)}, tf.TensorSpec([None], tf.string, name="inputs")),
    }
    module = tf.Module()
    signatures = {
        name: tf.function(function, input_signature=[spec]).get_concrete_function()
        for name, (function, spec) in functions.items()
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def record(folder: Path, *messages: str) -> Path:
    file = folder / SERVING_FILE
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for message in messages:
            writer.write(bytes.fromhex(message))
    return file


def spec_of(path: Path, **more: Any) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), **{"max_batch_size": 4, **more})


def plain(inputs: Arrays) -> dict[str, Any]:
    return {name: array.tolist() for name, array in inputs.items()}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "1")


def test_recorded_requests_of_tensorflow_serving_are_read(serving: Path) -> None:
    file = record(serving, PREDICT, SESSION_RUN, TWICE, CLASSIFY, REGRESS)
    spec = spec_of(serving.parent, version="1")
    model = SavedModel(spec)
    samples = load_samples(model, spec)
    assert [sample.signature for sample in samples] == ["", "twice", "classify", "classify"]
    assert plain(samples[0].inputs) == plain(samples[1].inputs) == {"x": [[1.5, -2.0]]}
    assert [parse(sample.inputs["inputs"]).numpy().tolist() for sample in samples[2:]] == [[3, 4], [9]]
    assert samples[2].origin == f"{file}, record 3"
    assert warm_up(model, spec, samples)[:2] == (None, True)
    executors, reports = load_other_signatures(model, spec, samples, CallCounter(), LoadSteps())
    assert set(executors) == {"classify", "twice"}
    # Made-up text is no valid example, so only recorded examples can prove this signature.
    assert executors["classify"]._proven
    assert [report.unbatched_because for report in reports] == [None, None]


def test_every_size_is_run_on_the_first_request(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", guarded(tf.debugging.assert_less))
    spec = spec_of(path)
    assert warm_up(SavedModel(spec), spec)[:2] == (None, False), "ones are refused"
    record(path, PREDICT)
    assert warm_up(SavedModel(spec), spec, load_samples(SavedModel(spec), spec))[:2] == (None, True)


@pytest.fixture(scope="module")
def model(serving: Path) -> SavedModel:
    return SavedModel(spec_of(serving.parent, version="1"))


WRONG = {
    "a field that is cut off": (PREDICT[:-8], "it cannot be read: a field is longer than its message"),
    "a number that is cut off": ("32030a0108", "it cannot be read: a number is cut off"),
    "a number that is too long": ("32" + "ff" * 11, "it cannot be read: a number has more than 64 bits"),
    "an unknown wire type": ("33", "it cannot be read: a field has the unknown wire type 3"),
    "a number for a message": ("32020801", "it cannot be read: a field holds a number where a message is due"),
    "no inputs": ("32020a00", "it has the inputs none, but the model takes x"),
    "a tensor of no datatype": (PREDICT.replace("08011208", "08631208"), "it cannot be read"),
    "another input": (PREDICT.replace("0178", "0179", 1), "it has the inputs y, but the model takes x"),
    "another datatype": (
        PREDICT.replace("08011208120208011202080222", "08081208120208011202080122"),
        "the model takes FP32 for the input 'x'; the file has complex64",
    ),
    "another shape": (
        PREDICT.replace("08011208120208011202080222", "08011208120208021202080122"),
        "the model takes the shape \\[-1, 2\\] .* for the input 'x'; the file has \\[2, 1\\]",
    ),
    "another signature": (TWICE.replace("7477696365", "7477697365"), "no signature 'twise'; the model has: classify, "),
}


@pytest.mark.parametrize(("message", "told"), WRONG.values(), ids=WRONG)
def test_the_error_names_a_wrong_record(message: str, told: str, model: SavedModel, tmp_path: Path) -> None:
    file = record(tmp_path, PREDICT, message)
    with pytest.raises(LoadError, match=re.escape(f"{file}, record 2: ") + ".*" + told):
        load_samples(model, spec_of(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-5], lambda data: data[:-9] + b"\xff" + data[-8:], lambda data: data + b"not a record at all"],
    ids=["cut off", "another byte", "something more"],
)
def test_the_error_names_a_damaged_file(damage: Callable[[bytes], bytes], model: SavedModel, tmp_path: Path) -> None:
    file = record(tmp_path, PREDICT, PREDICT)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(LoadError, match=re.escape(str(file)) + r", record [23]: it cannot be read"):
        load_samples(model, spec_of(tmp_path))


def test_any_changed_byte_at_most_fails_the_model(model: SavedModel, tmp_path: Path) -> None:
    good, rng = bytes.fromhex(PREDICT), np.random.default_rng(5)
    for number in range(80):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] = rng.integers(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        record(folder, bad.hex())
        with contextlib.suppress(LoadError):
            assert all(sample.inputs["x"].shape[1:] == (2,) for sample in load_samples(model, spec_of(folder)))


def test_a_model_that_raises_on_a_recorded_request_fails(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", guarded(tf.debugging.assert_greater))
    file = record(path, PREDICT)
    spec = spec_of(path)
    with pytest.raises(LoadError, match=re.escape(f"{file}, record 1: the model raised on it: InvalidArgumentError")):
        warm_up(SavedModel(spec), spec, load_samples(SavedModel(spec), spec))


# XLA.


def test_xla_compiles_each_signature(serving: Path) -> None:
    spec = spec_of(serving.parent, version="1", allowed_batch_sizes=(1, 4), jit_compile=True)
    model = SavedModel(spec)
    assert warm_up(model, spec)[:2] == (None, True)
    x = np.float32([[1, 2], [3, 4]])
    assert model.infer({"x": x})["y"].tolist() == (x + 1).tolist()
    twice = model.other_signatures["twice"]
    assert not isinstance(twice, LoadError)
    assert twice.infer({"x": x})["y"].tolist() == (x * 2).tolist()


def test_a_model_that_xla_cannot_compile_fails_before_it_serves(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", lambda x: {"y": tf.strings.as_string(x)})
    spec = spec_of(path, jit_compile=True)
    with pytest.raises(LoadError, match=r"jit_compile: XLA cannot compile it.*(AsString|unsupported)"):
        warm_up(SavedModel(spec), spec)


def test_xla_compiles_a_keras_model(tmp_path: Path) -> None:
    layers = keras.layers
    network = keras.Sequential([layers.Input((3,), name="x"), layers.Dense(2, name="y", activation="tanh")])
    network.save(tmp_path / "m.keras")
    spec = spec_of(tmp_path / "m.keras", jit_compile=True)
    model = Keras3Model(spec)
    assert warm_up(model, spec)[:2] == (None, True)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(model.infer({"x": x})["y"], network(x).numpy(), rtol=1e-5)
