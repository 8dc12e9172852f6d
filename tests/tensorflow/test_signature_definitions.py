"""Signatures of SavedModels for clients of TensorFlow Serving: their definitions, and those that take tf.Examples."""

from __future__ import annotations

import base64
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_text import log_text
from running import STEP_S, Running

from multitower import Client

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    from multitower.worker.formats import signature_definitions
    from multitower.worker.formats.saved_model import SavedModel
    from multitower.worker.formats.towers import TowerPlacement

from multitower.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

v1 = tf.compat.v1
VECTOR = tf.TensorSpec([None], tf.float32)
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: examples, path: examples}
  - {name: unbatched, path: examples, batching: {max_batch_size: 0}}
  - {name: functions, path: functions, versions: all}
  - {name: handler, handler: "handlers:Echo"}
"""


def scored(factor: float) -> Any:
    def score(x: Any, offset: Any = tf.constant(1.0)) -> Any:  # noqa: B008  saved as the input's default
        return {"y": factor * x + offset}

    return tf.function(score, input_signature=[VECTOR, tf.TensorSpec([], tf.float32)])


def dashed() -> Any:
    function = tf.function(lambda **inputs: {"out/1": -inputs["my_input"]})
    return function.get_concrete_function(**{"my-input": tf.TensorSpec([None], tf.float32, name="my-input")})


def save_functions(folder: Path, factor: float) -> None:
    module = tf.Module()
    module.scored, dash = scored(factor), dashed()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.scored, "dashed": dash})


def save_examples(folder: Path) -> None:
    """A SavedModel of TensorFlow 1, with the signatures that its Estimators wrote."""
    builder = v1.saved_model.Builder(str(folder))
    with tf.Graph().as_default(), v1.Session() as session:
        examples = v1.placeholder(tf.string, [None], "examples")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        score = tf.reduce_sum(x, axis=1, name="score")
        scores = tf.stack([score, -score], axis=1)
        classes = tf.broadcast_to(tf.constant([b"plus", b"minus"]), tf.shape(scores))
        as_tensor_info = v1.saved_model.build_tensor_info
        predict = v1.saved_model.build_signature_def(
            {"x": as_tensor_info(x)}, {"score": as_tensor_info(score)}, "tensorflow/serving/predict"
        )
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": v1.saved_model.classification_signature_def(examples, classes, scores),
                "regression": v1.saved_model.regression_signature_def(examples, tf.reshape(score, [-1, 1])),
                "predict": predict,
            },
        )
        builder.save()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("definitions")
    save_examples(folder / "examples")
    for version in (1, 2):
        save_functions(folder / "functions" / str(version), float(version))
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with Running(folder, CONFIG) as daemon, daemon.wait_ready().client() as client:
        yield client


def signature_def_map(data: bytes) -> dict[str, Any]:
    """Reads a SignatureDefMap by its published definition."""
    file = descriptor_pb2.FileDescriptorProto(
        name="signature_def_map.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[meta_graph_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="SignatureDefMap")
    entry = message.nested_type.add(name="SignatureDefEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    names = {"type": "TYPE_MESSAGE"}
    entry.field.add(name="value", number=2, type_name=".tensorflow.SignatureDef", label="LABEL_OPTIONAL", **names)
    of_entry = ".tensorflow.serving.SignatureDefMap.SignatureDefEntry"
    message.field.add(name="signature_def", number=1, type_name=of_entry, label="LABEL_REPEATED", **names)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.SignatureDefMap"))
    return dict(made.FromString(data).signature_def)


def reported(client: Client, model: str, version: str = "") -> dict[str, Any]:
    return signature_def_map(base64.b64decode(client.metadata(model, version)["signature_defs"], validate=True))


def saved_in(folder: Path) -> dict[str, Any]:
    return dict(parse_saved_model(str(folder)).meta_graphs[0].signature_def)


def test_the_metadata_has_the_signature_defs_of_a_saved_model(client: Client, folder: Path) -> None:
    definitions = reported(client, "examples")
    assert definitions == saved_in(folder / "examples")
    assert definitions["serving_default"].method_name == "tensorflow/serving/classify"
    assert definitions["regression"].method_name == "tensorflow/serving/regress"
    assert definitions["serving_default"].inputs["inputs"].name == "examples:0"


def test_each_version_has_its_own_signature_defs_with_defaults(client: Client, folder: Path) -> None:
    for version in ("1", "2"):
        definitions = reported(client, "functions", version)
        assert definitions == saved_in(folder / "functions" / version)
        assert tf.make_ndarray(definitions["serving_default"].defaults["offset"]).tolist() == 1


def test_a_model_without_a_saved_model_has_no_signature_defs(client: Client) -> None:
    assert "signature_defs" not in client.metadata("handler")


def test_an_input_whose_key_is_no_argument_name_is_served(client: Client) -> None:
    (tensor,) = client.metadata("functions")["signatures"]["dashed"]["inputs"]
    assert (tensor["name"], tensor["signature_key"]) == ("my_input", "my-input")
    answer = client.infer("functions", {"my_input": np.float32([1, 2])}, signature="dashed", timeout=STEP_S)
    assert answer["out/1"].tolist() == [-1, -2]
    assert not any("signature_key" in tensor for tensor in client.metadata("functions")["inputs"])


def example(*values: float) -> bytes:
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    written: bytes = tf.train.Example(features=tf.train.Features(feature={"x": feature})).SerializeToString()
    return written


@pytest.mark.parametrize("model", ["examples", "unbatched"])
def test_signatures_that_take_examples_are_served(model: str, client: Client) -> None:
    examples = {"inputs": np.array([example(1, 2), example(3, 4)], object)}
    classes = client.infer(model, examples, timeout=STEP_S)
    assert classes["scores"].tolist() == [[3, -3], [7, -7]]
    assert classes["classes"].tolist() == [[b"plus", b"minus"]] * 2
    values = client.infer(model, examples, signature="regression", timeout=STEP_S)
    assert values["outputs"].tolist() == [[3], [7]]


def test_requests_with_examples_share_batches(client: Client) -> None:
    assert client.metadata("examples")["signatures"]["regression"]["max_batch_size"] == 32
    sent = [
        client.submit("examples", {"inputs": np.array([example(number, 0)], object)}, timeout=STEP_S)
        for number in range(32)
    ]
    assert [future.result(STEP_S)["scores"][0, 0] for future in sent] == list(range(32))


@pytest.mark.parametrize("placement", [None, TowerPlacement(("cpu:0", "cpu:1"), 0)], ids=["functions", "tower"])
def test_both_loaders_report_the_same_definitions(placement: TowerPlacement | None, folder: Path) -> None:
    path = folder / "functions" / "2"
    model = SavedModel(ModelSpec(name="m", path=str(path)), placement)
    assert signature_def_map(model.signature_definitions) == saved_in(path)
    assert [tensor.signature_key for tensor in model.other_signatures["dashed"].inputs] == ["my-input"]


def test_definitions_that_are_too_large_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = parse_saved_model(str(folder / "functions" / "1")).meta_graphs[0]
    whole = signature_definitions.serialize_definitions(graph)
    monkeypatch.setattr(signature_definitions, "MAX_BYTES", len(whole) - 1)
    with caplog.at_level(logging.WARNING):
        shorter = signature_def_map(signature_definitions.serialize_definitions(graph))
        assert "SignatureDefs reported without the defaults" in log_text(caplog)
        assert not shorter["serving_default"].defaults
        assert shorter["serving_default"].inputs == saved_in(folder / "functions" / "1")["serving_default"].inputs
        assert graph.signature_def["serving_default"].defaults, "the model itself keeps its defaults"
        monkeypatch.setattr(signature_definitions, "MAX_BYTES", 10)
        assert signature_definitions.serialize_definitions(graph) == b""
    assert "SignatureDefs not reported" in log_text(caplog)
