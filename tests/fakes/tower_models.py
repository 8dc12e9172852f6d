"""Models of every format on four towers, compared with the results of calling TensorFlow directly.

`python tower_models.py FOLDER` writes models there, loads each on four logical CPU devices, and prints as JSON what it
found. A process of its own, since the number of TensorFlow's devices is settled once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import tensorflow as tf

from multitower.spec import Assignment, ModelSpec
from multitower.worker.formats.loader import load, load_replicas
from multitower.worker.formats.model import Arrays
from multitower.worker.formats.tensorflow_process import configure
from multitower.worker.formats.tensorflow_types import as_array
from multitower.worker.formats.towers import TowerPlacement
from multitower.worker.model_errors import LoadError

DEVICES = ("cpu:4", "cpu:5", "cpu:6", "cpu:7")
RNG = np.random.default_rng(5)
X = RNG.normal(size=(3, 6)).astype(np.float32)
WORDS = np.array([b"one", b"two", b"three"], object)


class Branching(tf.Module):
    """A model with nodes in functions of every kind, variables, tables, and an asset."""

    def __init__(self, vocabulary: Path) -> None:
        super().__init__()
        vocabulary.write_text("one\ntwo\n")
        file = tf.lookup.TextFileInitializer(
            str(vocabulary),
            *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
        )
        pairs = tf.lookup.KeyValueTensorInitializer([b"one", b"three"], [1.0, 3.0])
        self.numbers = tf.lookup.StaticHashTable(file, 7)
        self.values = tf.lookup.StaticHashTable(pairs, -1.0)
        self.weights = tf.Variable(RNG.normal(size=(6, 6)).astype(np.float32))
        self.bias = tf.Variable(RNG.normal(size=6).astype(np.float32))

    @tf.function
    def layer(self, x: Any) -> Any:
        """A function that other functions call."""
        return tf.nn.relu(tf.matmul(x, self.weights) + self.bias)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x"), tf.TensorSpec([None], tf.string, name="word")]
    )
    def serve(self, x: Any, word: Any) -> Any:
        """Calls `layer`, in a branch and in a loop."""
        y = tf.cond(tf.reduce_sum(x) > 0, lambda: self.layer(x), lambda: tf.tanh(x))
        y = tf.while_loop(lambda turn, _: turn < 3, lambda turn, y: (turn + 1, self.layer(y)), (0, y))[1]
        # Is not inlined: each of its calls is a separate step.
        y += tf.map_fn(lambda row: tf.reduce_sum(row) * row, y)
        return {"y": y + self.values.lookup(word)[:, None], "number": self.numbers.lookup(word), "word": word}


def branching(folder: Path) -> tuple[Path, Arrays]:
    module = Branching(folder / "vocabulary.txt")
    tf.saved_model.save(module, str(folder / "branching"), signatures=module.serve)
    (folder / "vocabulary.txt").unlink()  # the model has a copy
    return folder / "branching", {"x": X, "word": WORDS}


def first(folder: Path) -> tuple[Path, Arrays]:
    """A SavedModel of TensorFlow 1 with a variable, a table, and a node that is assigned to a device."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x, word = v1.placeholder(tf.float32, [None, 6], "x"), v1.placeholder(tf.string, [None], "word")
        table = v1.lookup.StaticHashTable(v1.lookup.KeyValueTensorInitializer([b"one"], [5.0]), 2.0)
        with tf.device("/device:CPU:0"):
            weights = v1.get_variable("weights", initializer=tf.constant(RNG.normal(size=(6, 2)).astype(np.float32)))
        y = tf.matmul(x, weights) * table.lookup(word)[:, None]
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        v1.saved_model.simple_save(
            session, str(folder / "first"), {"x": x, "word-1": word}, {"y": y}, v1.tables_initializer()
        )
    return folder / "first", {"x": X, "word-1": WORDS}


def keras_3(folder: Path) -> Path:
    """A Keras file with a table, state that is no weight, and names that are no Python identifiers."""
    import keras

    keras.utils.set_random_seed(1)
    x, word = keras.Input([6], name="x-1.0"), keras.Input([1], dtype="string", name="word")
    found = keras.layers.Embedding(5, 4)(keras.layers.StringLookup(vocabulary=["one", "two"])(word))
    joined = keras.layers.Concatenate()([keras.layers.BatchNormalization()(x), keras.layers.Flatten()(found)])
    model = keras.Model([x, word], keras.layers.Dense(3, activation="gelu", name="y-1")(joined))
    model.save(folder / "keras.keras")
    model.export(str(folder / "exported"), verbose=False)
    return folder / "keras.keras"


def parallel(folder: Path) -> tuple[Path, Arrays]:
    """A graph that names two devices."""

    def serve(x: Any) -> Any:
        with tf.device("/device:CPU:1"):
            y = tf.matmul(x, tf.transpose(x))
        with tf.device("/device:CPU:3"):
            return {"y": tf.matmul(y, x)}

    made_models.saved(folder / "parallel", tf.TensorSpec([None, 6], tf.float32, name="x"), serve=serve)
    return folder / "parallel", {"x": X}


def endless(folder: Path) -> None:
    """Counts up to its input, and so takes as long as that says; raises on a negative one."""

    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="negative row")]):
            turns = tf.cast(tf.reduce_max(x), tf.int64)
        start = tf.constant(0, tf.int64), x
        return {"y": tf.while_loop(lambda turn, _: turn < turns, lambda turn, y: (turn + 1, y + 1.0), start)[1]}

    made_models.saved(folder / "endless", tf.TensorSpec([None, 1], tf.float32, name="x"), serve=serve)


def called(path: Path, inputs: Arrays) -> Arrays:
    """The outputs when TensorFlow is called directly."""
    loaded = tf.saved_model.load(str(path))
    signatures = loaded.signatures
    call = signatures["serving_default"] if "serving_default" in signatures else next(iter(signatures.values()))
    specs = call.structured_input_signature[1]
    outputs = call(**{name: tf.constant(array, specs[name].dtype) for name, array in inputs.items()})
    return {name: as_array(value.numpy()) for name, value in outputs.items()}


def by_itself(spec: ModelSpec) -> Callable[[Arrays], Arrays]:
    """The outputs of a worker of one device; other tests compare those with TensorFlow's."""
    return load(spec, DEVICES[:1]).infer


def same(left: Arrays, right: Arrays) -> bool:
    """Whether all outputs are equal, bit for bit."""

    def content(array: Any) -> Any:
        return array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes()

    return left.keys() == right.keys() and all(content(left[name]) == content(right[name]) for name in left)


def devices_of(model: Any) -> dict[str, list[str]]:
    """The devices of the graph's nodes, and of the nodes of its functions."""
    graph = model.graph
    inner = [node for function in graph.library.function for node in function.node_def]
    return {
        side: sorted({node.device for node in nodes}) for side, nodes in (("graph", graph.node), ("library", inner))
    }


def tried(spec: ModelSpec, inputs: Arrays, expected: Arrays) -> list[dict[str, Any]]:
    """Runs each replica of a model; returns its tower, and whether its outputs are equal to `expected`."""
    found = []
    for model in load_replicas(spec, DEVICES):
        results = [model.try_out(inputs), model.infer(inputs)]
        tower: Any = model.tower
        found.append(
            {
                "equal": all(same(result, expected) for result in results),
                "device": tower.device,
                "nodes": dict(tower.nodes),
                "fallbacks": dict(tower.fallbacks),
                **devices_of(model),
            }
        )
    return found


def elsewhere(spec: ModelSpec, inputs: Arrays) -> dict[str, Any]:
    """A tower on a GPU that does not exist."""
    from multitower.worker.formats.saved_model import SavedModel

    model = SavedModel(spec, TowerPlacement(("GPU-a", "GPU-b"), 1))
    model.try_out(inputs)
    tower: Any = model.tower
    return {"device": tower.device, "nodes": dict(tower.nodes), "fallbacks": dict(tower.fallbacks)}


def main(folder: Path) -> None:
    configure(
        Assignment(slot=0, incarnation=1, devices=DEVICES, environment={}, intra_op_threads=1, inter_op_threads=1)
    )
    found: dict[str, Any] = {}
    for path, inputs in (branching(folder), first(folder)):
        found[path.name] = tried(ModelSpec(name="m", path=str(path)), inputs, called(path, inputs))
    values = made_models.datatypes(folder / "datatypes")
    columns = {f"{name}_out": array[:, ::-1] for name, array in values.items()}
    names = {name: f"{name}:0" for name in values}
    outputs = {name: f"{name}:0" for name in columns}
    for file in ("datatypes", "datatypes-v1", "datatypes.keras", "datatypes.h5"):
        found[file] = tried(ModelSpec(name="m", path=str(folder / file)), values, columns)
    spec = ModelSpec(name="m", path=str(folder / "datatypes.pb"), inputs=names, outputs=outputs)
    found["datatypes.pb"] = tried(spec, values, columns)
    made_models.frozen(folder / "frozen")
    turns = {"x": X, "turns": np.arange(3)}
    spec = ModelSpec(
        name="m",
        path=str(folder / "frozen.pb"),
        inputs={"x": "in/x:0", "turns": "in/turns:0"},
        outputs={"scores": "out/softmax:0"},
    )
    found["frozen.pb"] = tried(spec, turns, by_itself(spec)(turns))
    made_models.legacy(folder / "legacy")
    spec = ModelSpec(name="m", path=str(folder / "legacy.h5"))
    steps = {"steps": RNG.normal(size=(3, 4, 3)).astype(np.float32)}
    found["legacy.h5"] = tried(spec, steps, by_itself(spec)(steps))
    spec = ModelSpec(name="m", path=str(keras_3(folder)))
    given = {"x-1.0": X, "word": WORDS[:, None]}
    found["keras.keras"] = tried(spec, given, by_itself(spec)(given))
    exported = {"x_1_0": X, "word": WORDS[:, None]}
    spec = ModelSpec(name="m", path=str(folder / "exported"))
    found["exported"] = tried(spec, exported, called(folder / "exported", exported))
    path, inputs = parallel(folder)
    spec = ModelSpec(name="m", path=str(path), placement="as_saved")
    found["parallel"] = tried(spec, inputs, called(path, inputs))
    found["elsewhere"] = elsewhere(ModelSpec(name="m", path=str(folder / "branching")), {"x": X, "word": WORDS})
    endless(folder)
    try:
        load_replicas(ModelSpec(name="m", path=str(path), jit_compile=True), DEVICES)
    except LoadError as error:
        found["compiled"] = str(error)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
