"""Frozen graphs of either TensorFlow, with control flow, tables, and wrong names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf
    from google.protobuf import text_format

    from multitower.worker.formats.frozen_graph import FrozenGraph

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.loader import load
from multitower.worker.model_errors import LoadError
from multitower.worker.warmup.warmup import warm_up

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

v1 = tf.compat.v1
Names = dict[str, str]


@pytest.fixture
def frozen(tmp_path: Path) -> Callable[..., FrozenGraph]:
    def freeze(build: Callable[[], object], inputs: Names, outputs: Names, **more: Any) -> FrozenGraph:
        with tf.Graph().as_default() as graph:
            build()
        path = tmp_path / "frozen.pb"
        path.write_bytes(graph.as_graph_def().SerializeToString())
        model = load(ModelSpec(name="m", path=str(path), inputs=inputs, outputs=outputs, **more), ["cpu:0"])
        assert isinstance(model, FrozenGraph)
        return model

    return freeze


def plain() -> None:
    x = v1.placeholder(tf.float32, [None, 2], name="x")
    with tf.name_scope("head"):
        tf.nn.softmax(tf.matmul(x, tf.constant([[1.0, 2.0], [3.0, 4.0]])), name="softmax")
    tf.nn.top_k(x, 1, name="top")


def test_names_come_from_the_configuration_and_shapes_from_the_graph(frozen: Callable[..., FrozenGraph]) -> None:
    model = frozen(plain, {"features": "x:0"}, {"scores": "head/softmax:0", "place": "top:1", "best": "top"})
    assert model.version == "1"
    assert model.inputs == (TensorReport(name="features", datatype="FP32", shape=(-1, 2)),)
    assert model.outputs == (
        TensorReport(name="best", datatype="FP32", shape=(-1, 1)),
        TensorReport(name="place", datatype="INT32", shape=(-1, 1)),
        TensorReport(name="scores", datatype="FP32", shape=(-1, 2)),
    )
    x = np.float32([[1, 0], [0, 5]])
    answer = model.infer({"features": x})
    np.testing.assert_allclose(answer["scores"], tf.nn.softmax(x @ [[1, 2], [3, 4]]).numpy(), rtol=1e-5)
    assert (answer["place"].tolist(), answer["best"].tolist()) == ([[0], [1]], [[1], [5]])
    assert warm_up(model, ModelSpec(name="m", max_batch_size=4))[:2] == (None, True)


def test_a_graph_in_text_format_is_served(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        plain()
    (tmp_path / "m.pbtxt").write_text(text_format.MessageToString(graph.as_graph_def()))
    model = FrozenGraph(spec_of(tmp_path / "m.pbtxt", {"x": "x"}, {"best": "top"}))
    assert model.infer({"x": np.float32([[1, 2]])})["best"].tolist() == [[2]]


def spec_of(path: Path, inputs: Names, outputs: Names) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), inputs=inputs, outputs=outputs)


def looped() -> None:
    """Computes powers of two by a loop, and signs by a condition."""
    n = v1.placeholder(tf.int64, [None], name="n")
    one = tf.constant(1, tf.int64)
    _, power = tf.while_loop(
        lambda i, _: i < tf.reduce_max(n),
        lambda i, power: (i + 1, tf.where(n > i, power * 2, power)),
        (one - 1, tf.ones_like(n)),
    )
    tf.identity(power, name="power")
    tf.cond(
        tf.reduce_all(n > 0), lambda: tf.fill(tf.shape(n), "all"), lambda: tf.fill(tf.shape(n), "some"), name="told"
    )


@pytest.mark.parametrize("version", [1, 2])
def test_control_flow_and_functions_are_run(version: int, frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        (v1.enable_control_flow_v2 if version == 2 else v1.disable_control_flow_v2)()
        try:
            looped()
        finally:
            v1.enable_control_flow_v2()

        @tf.function
        def tripled(value: Any) -> Any:
            return value * 3

        tf.identity(tripled(v1.placeholder(tf.int64, [None], name="m")), name="tripled")

    kinds = {1: {"Enter", "Merge"}, 2: {"StatelessWhile", "StatelessIf"}}[version]
    model = frozen(
        build, {"n": "n", "m": "m"}, {"power": "power", "told": f"told/{told_by(version)}:0", "t": "tripled"}
    )
    n = np.int64([3, 0, 10])
    answer = model.infer({"n": n, "m": n})
    assert kinds <= {node.op for node in model.graph.node}
    assert {name: array.tolist() for name, array in answer.items()} == {
        "power": [8, 1, 1024],
        "told": [b"some"] * 3,
        "t": [9, 0, 30],
    }


def told_by(version: int) -> str:
    return "Merge" if version == 1 else "Identity"


def test_a_frozen_function_of_tensorflow_2_is_served(frozen: Callable[..., FrozenGraph], tmp_path: Path) -> None:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    weights = tf.Variable([[2.0], [3.0]])
    function = tf.function(lambda x: tf.matmul(x, weights)).get_concrete_function(tf.TensorSpec([None, 2], name="x"))
    constant = convert_variables_to_constants_v2(function)
    path = tmp_path / "m.pb"
    path.write_bytes(constant.graph.as_graph_def().SerializeToString())
    model = FrozenGraph(spec_of(path, {"x": "x:0"}, {"y": constant.outputs[0].name}))
    assert model.infer({"x": np.float32([[1, 1], [0, 2]])})["y"].tolist() == [[5], [6]]


def test_tables_are_initialised(frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        words = v1.placeholder(tf.string, [None], name="words")
        pairs = tf.lookup.KeyValueTensorInitializer(["cat", "dog"], tf.constant([7, 8], tf.int64))
        tf.identity(tf.lookup.StaticHashTable(pairs, -1).lookup(words), name="ids")

    model = frozen(build, {"words": "words"}, {"ids": "ids"})
    assert model.infer({"words": np.array([b"dog", b"cow"], object)})["ids"].tolist() == [8, -1]


def test_a_graph_that_names_a_missing_device_is_served(frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        with tf.device("/device:GPU:1"):
            tf.negative(v1.placeholder(tf.float32, [None], name="x"), name="y")

    assert frozen(build, {"x": "x"}, {"y": "y"}).infer({"x": np.float32([3])})["y"].tolist() == [-3]


def test_a_table_initialiser_among_the_outputs_survives_freezing(frozen: Callable[..., FrozenGraph]) -> None:
    def cut(keep: bool) -> Callable[[], None]:
        with tf.Graph().as_default() as graph, v1.Session() as session:
            words = v1.placeholder(tf.string, [None], name="words")
            table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["cat"], [7]), -1)
            tf.identity(table.lookup(words), name="ids")
            names = ["ids", *([v1.get_collection(v1.GraphKeys.TABLE_INITIALIZERS)[0].name] if keep else [])]
            definition = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
        return lambda: tf.graph_util.import_graph_def(definition, name="")

    words = {"words": np.array([b"cat", b"cow"], object)}
    assert frozen(cut(True), {"words": "words"}, {"ids": "ids"}).infer(words)["ids"].tolist() == [7, -1]
    with pytest.raises(tf.errors.FailedPreconditionError, match="not initialized"):
        frozen(cut(False), {"words": "words"}, {"ids": "ids"}).infer(words)


def test_a_placeholder_with_a_default_need_not_be_an_input(frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, None, name="x")
        tf.multiply(x, v1.placeholder_with_default(2.0, [], name="factor"), name="y")

    model = frozen(build, {"x": "x"}, {"y": "y"})
    assert model.inputs[0].shape is None
    assert model.infer({"x": np.float32(4)})["y"].tolist() == 8
    model = frozen(build, {"x": "x", "f": "factor"}, {"y": "y"})
    assert model.infer({"x": np.float32(4), "f": np.float32(3)})["y"].tolist() == 12


X, Y = {"x": "x:0"}, {"y": "head/softmax:0"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"x": "X:0"}, Y, "inputs.x: 'X:0': there is no node 'X'; the graph's placeholders: 'x'"),
        (X, {"y": "softmax:0"}, "outputs.y: 'softmax:0': there is no node 'softmax'; did you mean 'head/softmax'?"),
        (X, {"y": "nothing"}, "nodes that no other uses: 'head/softmax', 'top'"),
        (X, {"y": "top:2"}, "outputs.y: 'top:2': the node 'top' (TopKV2) has 'top:0', 'top:1'"),
        (X, {"y": "top:first"}, "the node 'top' (TopKV2) has 'top:0', 'top:1'"),
        (X, {"y": "^top"}, "there is no node '^top'; did you mean 'top'"),
        ({**X, "z": "top:1"}, Y, "inputs.z: 'top:1' has no influence on any of the outputs"),
        ({**X, "z": "x"}, Y, "inputs.z and inputs.x are the same tensor, 'x:0'"),
        ({"k": "top/k:0"}, {"y": "top"}, "the outputs need a value for the placeholder 'x'; name it under inputs"),
    ],
)
def test_a_wrong_tensor_name_is_an_error_with_suggestions(
    inputs: Names, outputs: Names, message: str, frozen: Callable[..., FrozenGraph]
) -> None:
    with pytest.raises(LoadError, match=re.escape(message)):
        frozen(plain, inputs, outputs)


def test_a_placeholder_behind_a_control_input_is_needed(frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None], name="x")
        with tf.control_dependencies([v1.Print(v1.placeholder(tf.float32, [], name="hidden"), [])]):
            tf.identity(x, name="y")

    with pytest.raises(LoadError, match="the placeholder 'hidden'"):
        frozen(build, {"x": "x"}, {"y": "y"})


@pytest.mark.parametrize("resource", [True, False])
def test_a_graph_with_variables_is_an_error(resource: bool, frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        weights = v1.get_variable("w", initializer=[1.0], use_resource=resource)
        tf.add(v1.placeholder(tf.float32, [None], name="x"), weights, name="y")

    with pytest.raises(LoadError, match="not frozen: the variable 'w' has no value"):
        frozen(build, {"x": "x"}, {"y": "y"})


def test_an_operation_without_outputs_is_an_error(frozen: Callable[..., FrozenGraph]) -> None:
    with pytest.raises(LoadError, match=re.escape("'idle': the node 'idle' (NoOp) has no output")):
        frozen(lambda: (plain(), tf.no_op(name="idle")), X, {"y": "idle"})


def test_a_datatype_that_the_protocol_does_not_carry_is_an_error(frozen: Callable[..., FrozenGraph]) -> None:
    def build() -> None:
        tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64, name="table")

    with pytest.raises(LoadError, match="'t' is resource, which cannot be served"):
        frozen(build, {}, {"t": "table"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no node can be read from it"),
        (b"not a graph", "is no GraphDef"),
        (b"\x08\x01", "no node can be read from it; for a SavedModel name its folder"),
        (b"\x0a\x10\x0a\x01a\x12\x0bNoSuchThing", "cannot be imported: .*NoSuchThing"),
    ],
    ids=["empty", "text", "another message", "an unknown operation"],
)
def test_a_file_that_is_no_graph_is_an_error(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.pb").write_bytes(data)
    with pytest.raises(LoadError, match=message):
        FrozenGraph(spec_of(tmp_path / "m.pb", X, Y))
