"""SavedModels as users of TensorFlow Serving have them, and what TensorFlow answers when it is called directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
SERVING = v1.saved_model
KINDS = ("float32", "float64", "int64", "uint8", "bool", "float16", "bfloat16", "string")


def line(folder: Path) -> None:
    """Versions 1 and 2 of y = x / 2 + 2 and y = x / 2 + 3, with signatures of all three methods."""
    for version in (1, 2):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 1], name="x")
            slope = v1.get_variable("slope", initializer=np.float32(0.5))
            y = tf.identity(slope * x + (1 + version), name="y")
            serialized = v1.placeholder(tf.string, [None], name="examples")
            parsed = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
            score = slope * parsed + (1 + version)
            scores = tf.concat([score, -score], axis=1)
            classes = tf.broadcast_to(tf.constant(["above", "below"]), tf.shape(scores))
            info = SERVING.build_tensor_info
            make = SERVING.signature_def_utils
            signatures = {
                "serving_default": make.predict_signature_def({"x": x}, {"y": y}),
                "both": make.predict_signature_def({"x": x}, {"y": y, "doubled": tf.multiply(y, 2.0, name="doubled")}),
                "regress": make.build_signature_def(
                    {"inputs": info(serialized)}, {"outputs": info(score)}, "tensorflow/serving/regress"
                ),
                "classify": make.build_signature_def(
                    {"inputs": info(serialized)},
                    {"classes": info(classes), "scores": info(scores)},
                    "tensorflow/serving/classify",
                ),
            }
            session.run(v1.global_variables_initializer())
            builder = SERVING.Builder(str(folder / str(version)))
            builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], signatures)
            builder.save()


def saved(folder: Path, function: Any, *specs: Any) -> None:
    module = tf.Module()
    tf.saved_model.save(module, str(folder), signatures=tf.function(function, input_signature=specs))


def texts(folder: Path) -> None:
    """Strings; one output is named as one of bytes."""
    text = tf.TensorSpec([None], tf.string, name="text")
    saved(folder, lambda text: {"upper": tf.strings.upper(text), "raw_bytes": tf.strings.join([text, b"\xff"])}, text)


def kinds(folder: Path) -> None:
    """Each datatype, with its rows reversed."""
    specs = [tf.TensorSpec([None, 2], tf.as_dtype(name), name=name) for name in KINDS]
    saved(folder, lambda *given: {name: tf.reverse(x, [1]) for name, x in zip(KINDS, given, strict=True)}, *specs)


def defaults(folder: Path) -> None:
    """An input that may be left out."""
    specs = tf.TensorSpec([None, 1], tf.float32, name="x"), tf.TensorSpec([], tf.float32, name="offset")

    def serve(x: Any, offset: Any = tf.constant(10.0)) -> Any:  # noqa: B008  becomes the signature's default
        return {"y": x + offset}

    saved(folder, serve, *specs)


def lookup(folder: Path) -> None:
    """A table of three entries; for other indices TensorFlow raises an InvalidArgumentError."""
    index = tf.TensorSpec([None, 1], tf.int64, name="index")
    saved(folder, lambda index: {"y": tf.gather(tf.constant([10.0, 20.0, 30.0]), index)}, index)


def called(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of the default signature."""
    call = tf.saved_model.load(str(path)).signatures["serving_default"]
    specs = call.structured_input_signature[1]
    arguments = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
    return {name: plain(value.numpy()) for name, value in call(**arguments).items()}


def called_in_session(path: Path, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of any signature, in TensorFlow 1's way."""
    with tf.Graph().as_default(), v1.Session() as session:
        found = SERVING.load(session, ["serve"], str(path)).signature_def[signature]
        feeds = {found.inputs[name].name: value for name, value in inputs.items()}
        outputs = session.run({name: info.name for name, info in found.outputs.items()}, feeds)
        return {name: plain(value) for name, value in outputs.items()}


def plain(value: Any) -> Any:
    """Nested lists; bytes become text with a character for each byte."""
    if value.dtype == object:
        return np.frompyfunc(lambda data: data.decode("latin-1"), 1, 1)(value).tolist()
    return value.astype("f4").tolist() if value.dtype == tf.bfloat16.as_numpy_dtype else value.tolist()


def serialized(*numbers: float) -> Any:
    made = [tf.train.Example() for _ in numbers]
    for example, number in zip(made, numbers, strict=True):
        example.features.feature["x"].float_list.value.append(number)
    return [example.SerializeToString() for example in made]


def make(folder: Path) -> None:
    """Writes the models, and `expected.json`: for each one and its signatures, inputs and what a direct call gives."""
    (folder / "expected.json").write_text(json.dumps(_make_models(folder)))


def _make_models(folder: Path) -> dict[str, Any]:
    for make in (line, texts, kinds, defaults, lookup):
        make(folder / make.__name__)
    x = [[1.0], [3.0]]
    text = [b"", b"gr\xc3\xbcn", b"\x00\xff"]
    values = {
        "float32": [[1.5, -0.1]],
        "float64": [[0.1, 1e300]],
        "int64": [[2**53 + 1, -(2**63)]],
        "uint8": [[0, 255]],
        "bool": [[True, False]],
        "float16": [[0.5, -65504.0]],
        "bfloat16": [[1.5, -3.0]],
    }
    return {
        "line": {
            str(version): {
                "serving_default": called_in_session(folder / "line" / str(version), "serving_default", {"x": x}),
                "both": called_in_session(folder / "line" / str(version), "both", {"x": x}),
                **{
                    name: called_in_session(folder / "line" / str(version), name, {"inputs": serialized(1.0, 3.0)})
                    for name in ("regress", "classify")
                },
            }
            for version in (1, 2)
        },
        "texts": {"text": [each.decode("latin-1") for each in text], **called(folder / "texts", {"text": text})},
        "kinds": {
            "sent": {**values, "string": [["a", "\xff"]]},
            "answered": called(folder / "kinds", {**values, "string": [[b"a", b"\xff"]]}),
        },
        "defaults": called(folder / "defaults", {"x": x, "offset": 10.0}),
    }
