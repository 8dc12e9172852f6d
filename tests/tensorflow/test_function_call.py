"""The fast way to call a model gives what Python's way gives, and is not used where it might not."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_text import log_text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import keras
    import tensorflow as tf

    from multitower.worker.formats import function_call
    from multitower.worker.formats.function_call import FunctionCall
    from multitower.worker.formats.keras3_model import Keras3Model
    from multitower.worker.formats.saved_model import SavedModel

from multitower.spec import ModelSpec
from multitower.worker.model_errors import is_out_of_memory
from multitower.worker.warmup.warmup import warm_up

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

PAIR = tf.TensorSpec([None, 2], tf.float32, name="x")
RNG = np.random.default_rng(7)


def spec(path: Path | str, **more: Any) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), max_batch_size=4, **more)


def saved(folder: Path, function: Callable[..., Any], *specs: Any, **tracked: Any) -> Path:
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    signature = tf.function(function, input_signature=list(specs or (PAIR,))).get_concrete_function()
    tf.saved_model.save(module, str(folder), signatures=signature)
    return folder


def call_of(model: Any) -> FunctionCall:
    call = model.call
    assert isinstance(call, FunctionCall)
    return call


def warmed(path: Path) -> SavedModel:
    model = SavedModel(spec(path))
    warm_up(model, spec(path))
    return model


def same_both_ways(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the outputs of the fast way, after checking that Python's way gives the same."""
    call = call_of(model)
    assert call.fast
    found = call(inputs)
    plain = call._call_from_python(call._to_tensors(inputs))
    assert found.keys() == plain.keys()
    for name, array in plain.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tolist() == array.tolist(), name
    return found


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call in the fast way."""
    rows: list[int] = []
    run = function_call._Operation.run

    def counted(self: Any, tensors: Any) -> Any:
        rows.append(next(iter(tensors.values())).shape[0])
        return run(self, tensors)

    monkeypatch.setattr(function_call._Operation, "run", counted)
    return rows


# Models that are called in the fast way.


def test_warm_up_runs_each_size_in_both_ways_and_requests_in_the_fast_one(
    tmp_path: Path, operations: list[int]
) -> None:
    runs = tf.Variable(0)

    def serve(x: Any) -> Any:
        runs.assign_add(1)
        return {"y": x + 1.0}

    path = saved(tmp_path / "m", serve, runs=runs)
    model = warmed(path)
    counter = call_of(model)._keep_alive.runs  # type: ignore[attr-defined]
    assert operations == [1, 2, 4]
    assert counter.numpy() == 6
    same_both_ways(model, {"x": np.ones((0, 2), np.float32)})
    assert operations == [1, 2, 4, 0]
    assert counter.numpy() == 8, "what a model writes is written in both ways"


def test_the_fast_way_is_not_used_without_a_warm_up(tmp_path: Path, operations: list[int]) -> None:
    model = SavedModel(spec(saved(tmp_path / "m", lambda x: {"y": x + 1.0})))
    assert model.infer({"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1, 1]]
    assert not operations


@pytest.mark.parametrize("names", ["abcd", "dcba", "bdac"])
def test_equal_inputs_and_equal_outputs_are_not_confused(names: str, tmp_path: Path) -> None:
    def serve(*values: Any) -> Any:
        x = dict(zip(names, values, strict=True))
        # In no order, one of them twice, and one that is an input.
        return {"z": x["a"] - x["b"], "m": x["c"], "again": x["c"], "k": x["d"] - x["a"], "0": x["a"] - x["b"]}

    model = warmed(saved(tmp_path / "m", serve, *(tf.TensorSpec([None, 2], tf.float32, name=n) for n in names)))
    inputs = {name: np.full((3, 2), 10.0**place, np.float32) for place, name in enumerate("abcd")}
    found = same_both_ways(model, inputs)
    assert {name: array[0, 0] for name, array in found.items()} == {
        "z": -9,
        "m": 100,
        "again": 100,
        "k": 999,
        "0": -9,
    }


def test_names_that_are_no_python_identifiers(tmp_path: Path) -> None:
    specs = [tf.TensorSpec([None], tf.float32, name=name) for name in ("b/1", "a-b")]
    model = warmed(saved(tmp_path / "m", lambda one, two: {"x/y": one - two}, *specs))
    inputs = {tensor.name: np.float32([2.0 ** len(tensor.name)]) for tensor in model.inputs}
    same_both_ways(model, inputs)


def test_strings_and_a_lookup_table(tmp_path: Path) -> None:
    words = tf.lookup.KeyValueTensorInitializer([b"one", b"two"], tf.constant([1, 2], tf.int64))
    table = tf.lookup.StaticHashTable(words, -1)
    path = saved(
        tmp_path / "m",
        lambda s: {"number": table.lookup(s), "upper": tf.strings.upper(s)},
        tf.TensorSpec([None], tf.string, name="s"),
        table=table,
    )
    found = same_both_ways(warmed(path), {"s": np.array([b"two", b"\0x\0", b"one"], object)})
    assert found["number"].tolist() == [2, -1, 1]
    assert found["upper"].tolist() == [b"TWO", b"\0X\0", b"ONE"]


def test_a_variable_that_changes_is_read_anew(tmp_path: Path) -> None:
    weights = tf.Variable([[1.0], [2.0]])
    model = warmed(saved(tmp_path / "m", lambda x: {"y": x @ weights}, weights=weights))
    x = np.ones((3, 2), np.float32)
    assert same_both_ways(model, {"x": x})["y"].tolist() == [[3]] * 3
    call_of(model)._keep_alive.weights.assign([[5.0], [6.0]])  # type: ignore[attr-defined]
    assert same_both_ways(model, {"x": x})["y"].tolist() == [[11]] * 3


@pytest.mark.parametrize("resource", [False, True])
def test_a_model_of_tensorflow_1(resource: bool, tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        left, right = v1.placeholder(tf.float32, [None, 2], "z"), v1.placeholder(tf.float32, [None, 2], "a")
        weights = v1.get_variable("w", initializer=[[1.0], [2.0]], use_resource=resource)
        scores = tf.matmul(left - right, weights)
        session.run(v1.global_variables_initializer())
        outputs = {"scores": scores, "again": scores, "input": left}
        v1.saved_model.simple_save(session, str(tmp_path / "m"), {"left": left, "right": right}, outputs)
    inputs = {"left": np.float32([[1, 1], [5, 5]]), "right": np.float32([[0, 1], [1, 2]])}
    found = same_both_ways(warmed(tmp_path / "m"), inputs)
    assert found["scores"].tolist() == found["again"].tolist() == [[1], [10]]


def test_a_keras_model_of_several_inputs_and_outputs(tmp_path: Path) -> None:
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    gap = keras.layers.Subtract(name="gap")([left, right])
    dense = keras.layers.Dense(3, activation="tanh", name="dense")(gap)
    outputs = {"late": keras.layers.BatchNormalization()(dense), "gap": gap}
    keras.Model({"right": right, "left": left}, outputs).save(tmp_path / "m.keras")
    model = Keras3Model(spec(tmp_path / "m.keras"))
    assert warm_up(model, spec(tmp_path / "m.keras"))[:2] == (None, True)
    inputs = {name: RNG.normal(size=(5, 3)).astype(np.float32) for name in ("left", "right")}
    found = same_both_ways(model, inputs)
    assert found["gap"].tolist() == (inputs["left"] - inputs["right"]).tolist()


def test_many_threads_may_call_it(tmp_path: Path) -> None:
    weights = tf.Variable([[1.0], [2.0]])
    model = warmed(saved(tmp_path / "m", lambda x: {"y": x @ weights, "x": x}, weights=weights))
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for turn in range(100):
            x = np.full((1 + turn % 5, 2), number * 1000 + turn, np.float32)
            answer = model.infer({"x": x})
            if answer["x"].tolist() != x.tolist() or answer["y"].tolist() != (x.sum(1, keepdims=True) * 1.5).tolist():
                wrong.append((number, turn))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_the_fast_way_has_the_options_and_devices_of_pythons_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow.python.eager import context

    model = warmed(saved(tmp_path / "m", lambda x: {"y": x + 1.0}))
    options = context.context().function_call_options.as_attrs()
    attributes = call_of(model)._operation._attributes  # type: ignore[union-attr]
    assert {name: attributes[name] for name in options} == options
    assert tf.compat.v1.ConfigProto.FromString(options["config_proto"]).allow_soft_placement
    x = {"x": tf.ones((1, 2))}
    (quick,), (plain,) = call_of(model)._operation.run(x).values(), call_of(model)._function(**x).values()  # type: ignore[union-attr]
    assert (quick.device, quick.backing_device) == (plain.device, plain.backing_device)


# Errors.


def raised(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  its class is what is compared
        function()
    return caught.value


def test_errors_are_those_of_pythons_way(tmp_path: Path) -> None:
    def serve(x: Any, huge: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="negative row")]):
            return {"y": tf.sqrt(x), "many": tf.fill([huge[0] * 0 + tf.reduce_max(huge)], 1.0)}

    path = saved(tmp_path / "m", serve, PAIR, tf.TensorSpec([None], tf.int64, name="huge"))
    model = SavedModel(spec(path))
    call = call_of(model)
    call.try_out({"x": np.ones((1, 2), np.float32), "huge": np.int64([1])})
    assert call.fast
    fine, few = np.ones((1, 2), np.float32), np.int64([1])
    for inputs, kind, exhausted in [
        ({"x": -fine, "huge": few}, tf.errors.InvalidArgumentError, False),
        ({"x": fine, "huge": np.int64([1 << 50])}, tf.errors.ResourceExhaustedError, True),
    ]:
        # TensorFlow tries to allocate memory for ten seconds before it raises.
        quick, plain = raised(lambda: call(inputs)), raised(lambda: call._call_from_python(call._to_tensors(inputs)))  # noqa: B023
        assert type(quick) is type(plain) is kind
        assert is_out_of_memory(quick) == is_out_of_memory(plain) == exhausted
    assert "negative row" in str(raised(lambda: call({"x": -fine, "huge": few})))
    assert call({"x": fine, "huge": few})["many"].tolist() == [1], "and it serves on"


@pytest.mark.parametrize(
    "shape", [(), (2,), (1, 3), (1, 0), (2, 2, 2), (0, 5)], ids=lambda shape: "x".join(map(str, shape)) or "scalar"
)
def test_inputs_of_other_shapes_never_reach_the_operation(
    shape: tuple[int, ...], tmp_path: Path, operations: list[int]
) -> None:
    weights = tf.Variable([[1.0], [2.0]])
    model = warmed(saved(tmp_path / "m", lambda x: {"y": x @ weights}, weights=weights))
    before = list(operations)
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
        model.infer({"x": np.ones(shape, np.float32)})
    with pytest.raises(TypeError):
        model.infer({})
    with pytest.raises(KeyError):
        model.infer({"x": np.ones((1, 2), np.float32), "other": np.ones(1)})
    assert operations == before
    assert model.infer({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[3]]
    assert operations == [*before, 1]


# Models that are not called in the fast way.


def numbers(x: Any) -> Any:
    return {"y": x + tf.random.uniform(tf.shape(x))}


def compiled(x: Any) -> Any:
    return {"y": x * 2.0}


def refuses(x: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_less(x, 1.0, message="ones are refused")]):
        return {"y": x + 0.0}


def in_turn(counter: Any) -> Callable[[Any], Any]:
    return lambda x: {"y": x + tf.cast(counter.assign_add(1), tf.float32)}


@pytest.mark.parametrize("kind", ["random", "counting"])
def test_a_model_with_varying_values_is_not_called_in_the_fast_way(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = tf.Variable(0)
    path = saved(tmp_path / "m", numbers if kind == "random" else in_turn(counter), counter=counter)
    with caplog.at_level(logging.DEBUG, "multitower.worker"):
        model = warmed(path)
    assert not call_of(model).fast
    assert "it gives other values of 'y'" in log_text(caplog)
    assert model.infer({"x": np.ones((3, 2), np.float32)})["y"].shape == (3, 2)


def test_the_fast_way_is_not_tried_again_after_it_differed(tmp_path: Path, operations: list[int]) -> None:
    model = warmed(saved(tmp_path / "m", numbers))
    assert operations == [1]
    assert model.infer({"x": np.ones((3, 2), np.float32)})["y"].shape == (3, 2)
    assert operations == [1]


def test_a_model_that_refuses_made_up_inputs_is_not_called_fast(tmp_path: Path, operations: list[int]) -> None:
    model = warmed(saved(tmp_path / "m", refuses))
    assert model.infer({"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[0, 0]]
    assert not call_of(model).fast
    assert not operations


def tried(function: Any, **more: Any) -> FunctionCall:
    call = FunctionCall(function, {"x": PAIR}, lambda tensors: ((), tensors), more.get("by_name", lambda y: y))
    assert call.try_out({"x": np.ones((2, 2), np.float32)})["y"].shape == (2, 2)
    return call


def test_a_function_that_xla_compiles_is_not_called_in_the_fast_way(caplog: pytest.LogCaptureFixture) -> None:
    function = tf.function(compiled, input_signature=[PAIR], jit_compile=True).get_concrete_function()
    with caplog.at_level(logging.DEBUG, "multitower.worker"):
        assert not tried(function).fast
    assert "XLA compiles it" in log_text(caplog)


def test_a_capture_that_is_made_for_each_call_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    number = [1.0]

    @tf.function(input_signature=[PAIR])  # type: ignore[untyped-decorator]
    def serve(x: Any) -> Any:
        graph = tf.compat.v1.get_default_graph()
        return {"y": x + graph.capture_call_time_value(lambda: tf.constant(number[0]), tf.TensorSpec([], tf.float32))}

    with caplog.at_level(logging.DEBUG, "multitower.worker"):
        call = tried(serve.get_concrete_function())
    assert "made anew for each call" in log_text(caplog)
    number[0] = 5.0
    assert call({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[6, 6]]


def test_large_constants_are_not_held_twice(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_call, "MAX_GRAPH_BYTES", 3 << 20)
    table = np.arange(1 << 20, dtype=np.float32).reshape(-1, 2)
    function = tf.function(lambda x: {"y": x + tf.constant(table)[:2]}, input_signature=[PAIR])
    with caplog.at_level(logging.DEBUG, "multitower.worker"):
        assert not tried(function.get_concrete_function()).fast
    assert "its graph is 4 MiB, with constants that would be held twice" in log_text(caplog)


def test_outputs_that_are_computed_outside_the_function_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    function = tf.function(compiled, input_signature=[PAIR]).get_concrete_function()
    with caplog.at_level(logging.DEBUG, "multitower.worker"):
        assert not tried(function, by_name=lambda outputs: {"y": outputs["y"] + 1.0}).fast
    assert "not plain tensors, one for each name" in log_text(caplog)


def test_a_tensorflow_without_the_needed_parts_is_called_from_python(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = tf.function(compiled, input_signature=[PAIR]).get_concrete_function()
    monkeypatch.delattr(type(function), "inference_fn")
    with caplog.at_level(logging.DEBUG, "multitower.worker"):
        assert not tried(function).fast
    assert "model is called through TensorFlow's usual path, which is slower cause=AttributeError" in log_text(caplog)


def test_a_difference_of_one_bit_is_a_difference(caplog: pytest.LogCaptureFixture) -> None:
    signs = iter([1.0, -1.0])
    function = tf.function(lambda x: {"y": x * 0.0 * SIGN, "nan": x * np.nan}, input_signature=[PAIR])
    SIGN.assign(next(signs))
    concrete = function.get_concrete_function()
    run = function_call._Operation.run

    def flipped(self: Any, tensors: Any) -> Any:
        SIGN.assign(next(signs))
        return run(self, tensors)

    with caplog.at_level(logging.DEBUG, "multitower.worker"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(function_call._Operation, "run", flipped)
        assert not tried(concrete).fast
    assert "other values of 'y'" in log_text(caplog), "and numbers that are none are equal to themselves"


SIGN = tf.Variable(1.0)
