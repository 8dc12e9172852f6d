"""Models of all formats whose rows influence each other run unbatched, and others do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import keras
    import tensorflow as tf

from multitower.spec import ModelSpec
from multitower.worker.formats.graph_state import may_change_state
from multitower.worker.formats.loader import load_replicas
from multitower.worker.heartbeat import CallCounter, LoadSteps
from multitower.worker.loading import CHANGES_STATE, load_other_signatures
from multitower.worker.model_errors import LoadError
from multitower.worker.warmup.row_check import NO_INPUTS, RowFindings, check_rows
from multitower.worker.warmup.samples import load_samples
from multitower.worker.warmup.warmup import warm_up
from multitower.worker_wire import KeySpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

FLOATS = tf.TensorSpec([None, 3], tf.float32, name="x")
IDS = tf.TensorSpec([None, 2], tf.int32, name="x")

MIXING: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "repeat": (lambda x: tf.repeat(x, x[:, 0], axis=0), IDS),
    "cumsum": (tf.cumsum, FLOATS),
    "maximum": (lambda x: x / tf.reduce_max(x), FLOATS),
    "softmax": (lambda x: tf.nn.softmax(x, axis=0), FLOATS),
    "statistics": (lambda x: (x - tf.reduce_mean(x, 0)) / (tf.math.reduce_std(x, 0) + 1e-3), FLOATS),
    "embedding": (lambda x: tf.cumsum(tf.gather([[1.0, 2.0], [3.0, 5.0]], x)), IDS),
}
BATCHES = [{"max_batch_size": 32}, {"max_batch_size": 8, "allowed_batch_sizes": (8,)}]


def saved(path: Path, function: Callable[[Any], Any], x: Any) -> Path:
    module = tf.Module()
    module.weights = [tf.Variable(1.0)]
    serve = tf.function(lambda x: {"y": function(x)}, input_signature=[x]).get_concrete_function()
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
    return path


def check(path: Path, devices: Sequence[str] = ("cpu:0",), **more: Any) -> list[RowFindings]:
    """What values have shown of each replica."""
    spec = ModelSpec(name="m", path=str(path), **{"max_batch_size": 32, **more})
    models = load_replicas(spec, devices)
    samples = load_samples(models[0], spec)
    return [check_rows(model, spec, warm_up(model, spec, samples), samples) for model in models]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("name", MIXING)
def test_a_saved_model_whose_rows_influence_each_other_is_found(
    name: str, batches: dict[str, Any], tmp_path: Path
) -> None:
    (found,) = check(saved(tmp_path / "m", *MIXING[name]), **batches)
    assert found.unbatched_because is not None


def test_towers_are_checked(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", *MIXING["softmax"])
    found = check(path, log_device_placement=True)
    assert [bool(each.unbatched_because) for each in found] == [True]
    assert check(saved(tmp_path / "n", tf.tanh, FLOATS), log_device_placement=True) == [RowFindings()]


def test_a_frozen_graph_is_checked(tmp_path: Path) -> None:
    for number, function in enumerate((tf.tanh, lambda x: tf.nn.softmax(x, axis=0))):
        with tf.Graph().as_default() as graph:
            tf.identity(function(tf.compat.v1.placeholder(tf.float32, [None, 3], name="x")), name="y")
        path = tmp_path / f"{number}.pb"
        path.write_bytes(graph.as_graph_def().SerializeToString())
        (found,) = check(path, inputs={"x": "x:0"}, outputs={"y": "y:0"})
        assert bool(found.unbatched_because) == bool(number)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_a_keras_file_is_checked(batches: dict[str, Any], tmp_path: Path) -> None:
    x = keras.Input((6,), name="x")
    dense = keras.layers.Dense(5, name="dense")(x)
    keras.Model(x, keras.layers.BatchNormalization()(dense)).save(tmp_path / "good.keras")
    keras.Model(x, keras.layers.Softmax(axis=0)(dense)).save(tmp_path / "mixing.keras")
    assert check(tmp_path / "good.keras", **batches) == [RowFindings()]
    (mixing,) = check(tmp_path / "mixing.keras", **batches)
    assert mixing.unbatched_because is not None


def test_a_network_of_half_types_stays_batched(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    layers = [tf.constant(rng.normal(size=(64, 64)) / 8, tf.float16) for _ in range(8)]

    def network(x: Any) -> Any:
        state = tf.cast(x, tf.float16)
        for layer in layers:
            state = tf.nn.relu(state @ layer) + state
        return tf.cast(tf.nn.softmax(state), tf.float32)

    path = saved(tmp_path / "m", network, tf.TensorSpec([None, 64], tf.float32, name="x"))
    for batches in BATCHES:
        assert check(path, **batches) == [RowFindings()]


def test_recorded_requests_are_used(tmp_path: Path) -> None:
    def guarded(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_greater(x, 100.0)]):
            return tf.cumsum(x)

    path = saved(tmp_path / "m", guarded, FLOATS)
    (found,) = check(path)
    assert found.unbatched_because is None
    assert found.unverified_because == "it raised an exception for made-up inputs of different rows"
    np.savez(tmp_path / "w.npz", x=np.float32([[200, 300, 400]]))
    (found,) = check(path, warmup=str(tmp_path / "w.npz"))
    assert found.unbatched_because is not None


BECAUSE = "the values of output 'y' in a row depend on the other rows of the batch"
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: mixing, path: softmax}
  - {name: padded, path: softmax, batching: {max_batch_size: 8, allowed_batch_sizes: [8]}}
  - {name: trusted, path: softmax, batching: {trust: true}}
  - {name: random, path: random}
  - {name: good, path: good}
"""


def test_a_daemon_answers_each_request_as_if_it_were_without_others(tmp_path: Path) -> None:
    saved(tmp_path / "softmax", *MIXING["softmax"])
    saved(tmp_path / "random", lambda x: tf.nn.dropout(x, 0.5), FLOATS)
    saved(tmp_path / "good", tf.tanh, FLOATS)
    rng = np.random.default_rng(1)
    inputs = [rng.uniform(size=(1 + number % 3, 3)).astype(np.float32) for number in range(96)]
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        for name in ("mixing", "padded"):
            futures = [client.submit(name, {"x": x}) for x in inputs]
            for x, future in zip(inputs, futures, strict=True):
                np.testing.assert_allclose(future.result(STEP_S)["y"], tf.nn.softmax(x, axis=0), rtol=1e-5)
        models = {model["name"]: model for model in client.status()["models"]}
        for name in ("mixing", "padded"):
            assert models[name]["unbatched_because"] == BECAUSE
            assert models[name]["max_batch_size"] == 0
        for name, why in (("trusted", "batching.trust is set"), ("random", "vary from run to run")):
            assert models[name]["unbatched_because"] is None
            assert why in models[name]["unverified_because"]
            assert models[name]["max_batch_size"] == 32
        assert models["good"]["unbatched_because"] is models["good"]["unverified_because"] is None
        daemon.wait_line("model runs unbatched", model="mixing", cause=BECAUSE)


def test_a_signature_that_changes_a_state_runs_once_for_each_batch(tmp_path: Path) -> None:
    module = tf.Module()
    module.count = tf.Variable(0.0)
    functions = {
        "serving_default": lambda x: {"y": x},
        "count": lambda x: {"y": x + module.count.assign_add(1.0)},
        "twice": lambda x: {"y": 2 * x},
    }
    signatures = {
        name: tf.function(function, input_signature=[FLOATS]).get_concrete_function()
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=signatures)
    spec = ModelSpec(name="m", path=str(tmp_path / "m"), max_batch_size=8)
    (model,) = load_replicas(spec, ["cpu:0"])
    counter = CallCounter()
    executors, reports = load_other_signatures(model, spec, (), counter, LoadSteps())
    assert {report.name: report.unverified_because for report in reports} == {
        "count": CHANGES_STATE,
        "twice": NO_INPUTS,
    }
    for name, calls in (("count", 2), ("twice", 5)):
        key = KeySpec("m", (("x", "FP32", (3,)),), None, True, name)
        before = counter.calls
        rows = [np.float32([[number] * 3]).tobytes() for number in range(3)]
        executors[name].run(executors[name].prepare(key, [1, 1, 1], rows))
        assert counter.calls - before == calls, "one request, and the others: their sizes show what outputs are like"


def test_a_session_changes_a_state_only_where_its_outputs_need_it(tmp_path: Path) -> None:
    """The graph of a session also has the operations that save and restore its variables."""
    path = tmp_path / "m"
    module = tf.Module()
    module.count = tf.Variable(0.0)
    functions = {
        "serving_default": lambda x: {"y": x * module.count},
        "count": lambda x: {"y": x + module.count.assign_add(1.0)},
    }
    signatures = {
        name: tf.function(function, input_signature=[FLOATS]).get_concrete_function()
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    for more in ({}, {"log_device_placement": True}):
        (model,) = load_replicas(ModelSpec(name="m", path=str(path), max_batch_size=8, **more), ["cpu:0"])
        count = model.other_signatures["count"]
        assert not isinstance(count, LoadError)
        assert (may_change_state(model), may_change_state(count)) == (False, True)
