"""Small models of every kind that users have, and the outputs of TensorFlow for some inputs, called directly.

`python made_models.py FOLDER NAME=PATH...` writes `FOLDER/<model>` and, for each of these models and of the SavedModels
at the paths, `FOLDER/<model>.npz` with `in/<input>` and `out/<output>`, and the models of `served_models.py`. It is a
program, so that tests need no TensorFlow themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import served_models
import tensorflow as tf

Arrays = dict[str, Any]
RNG = np.random.default_rng(3)
ROWS = 5
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "string"),
)


class Dense(tf.Module):
    """A matrix product, the simplest model."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        weights = np.arange(24, dtype=np.float32).reshape(6, 4) / 7 * factor
        self.weights = tf.Variable(weights)

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        """x @ W, and its largest column."""
        y = tf.matmul(x, self.weights)
        return {"y": y, "best": tf.argmax(y, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
    def twice(self, x: Any) -> Any:
        """Another signature."""
        return {"double": 2.0 * x}


def dense(folder: Path) -> Arrays:
    for version, factor in (("1", 1.0), ("2", 2.0), ("10", 10.0)):
        module = Dense(factor)
        signatures = {"serving_default": module.serve, "twice": module.twice}
        tf.saved_model.save(module, str(folder / version), signatures=signatures)
    # One is no version, and the latest is not the last in alphabetical order.
    (folder / "9-broken").mkdir()
    return {"x": RNG.normal(size=(ROWS, 6)).astype(np.float32)}


def saved(folder: Path, *specs: Any, **functions: Any) -> None:
    """A SavedModel with one function for each signature."""
    module = tf.Module()
    signatures = {
        name: tf.function(function, input_signature=list(specs)).get_concrete_function()
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)


def words(folder: Path) -> Arrays:
    """Strings in, strings out."""
    spec = tf.TensorSpec([None, 2], tf.string, name="text")
    saved(
        folder,
        spec,
        serve=lambda text: {"upper": tf.strings.upper(text), "length": tf.strings.length(text)},
    )
    text = np.array([[b"", b"\x00\xff raw"], ["grün".encode(), b"b" * 300]], dtype=object)
    return {"text": text}


def datatypes(folder: Path) -> Arrays:
    """Every datatype as input and, with each row reversed, as output: in every format."""
    specs = [tf.TensorSpec([None, 3], tf.as_dtype(name), name=name) for name in DTYPES]
    saved(
        folder,
        *specs,
        only=lambda *values: {f"{n}_out": tf.reverse(v, [1]) for n, v in zip(DTYPES, values, strict=True)},
    )
    datatypes_1(folder.with_name("datatypes-v1"), folder.with_name("datatypes.pb"))
    datatypes_keras(folder)
    values = RNG.integers(0, 2, size=(ROWS, 3))
    arrays: Arrays = {name: values.astype(tf.as_dtype(name).as_numpy_dtype) for name in DTYPES if name != "string"}
    return {
        **arrays,
        "string": np.array([[b"\x00%d" % number, b"", "ü".encode() * 9] for number in range(ROWS)], object),
    }


def datatypes_1(folder: Path, file: Path) -> None:
    """As a SavedModel of TensorFlow 1, and as a frozen graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        inputs = {name: v1.placeholder(tf.as_dtype(name), [None, 3], name=name) for name in DTYPES}
        outputs = {f"{n}_out": tf.reverse(value, [1], name=f"{n}_out") for n, value in inputs.items()}
        v1.saved_model.simple_save(session, str(folder), inputs, outputs)
    file.write_bytes(graph.as_graph_def().SerializeToString())


def datatypes_keras(path: Path) -> None:
    """As files of Keras 3 and of Keras 2."""
    import keras
    import tf_keras

    inputs = {name: keras.Input((3,), name=name, dtype=name) for name in DTYPES}
    outputs = {f"{name}_out": keras.ops.flip(value, axis=1) for name, value in inputs.items()}
    keras.Model(inputs, outputs).save(path.with_suffix(".keras"))
    inputs = {name: tf_keras.Input((3,), name=name, dtype=name) for name in DTYPES}
    outputs = {f"{name}_out": tf.reverse(value, [1]) for name, value in inputs.items()}
    tf_keras.Model(inputs, outputs).save(path.with_suffix(".h5"))


def vocabulary(folder: Path) -> Arrays:
    """Looks words up in a table from an asset; returns rows of a variable."""
    module = tf.Module()
    module.table = words_table(folder)
    module.vectors = tf.Variable(RNG.normal(size=(4, 3)).astype(np.float32))

    def serve(text: Any) -> Any:
        ids = module.table.lookup(text)
        return {"id": ids, "vector": tf.gather(module.vectors, ids)}

    text = tf.TensorSpec([None], tf.string, name="text")
    tf.saved_model.save(module, str(folder), signatures=tf.function(serve, input_signature=[text]))
    # Only the copy among the assets remains.
    folder.with_suffix(".txt").unlink()
    return {"text": WORDS}


def vocabulary_1(folder: Path) -> None:
    """The same model as TensorFlow 1 saved it, with another signature. Its expected outputs come from a session."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        text = v1.placeholder(tf.string, [None])
        ids = words_table(folder).lookup(text)
        vectors = v1.get_variable("vectors", initializer=RNG.normal(size=(4, 3)).astype(np.float32), use_resource=False)
        outputs = {"id": ids, "vector": tf.gather(vectors, ids)}
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        made = v1.saved_model.predict_signature_def
        signatures = {"serving_default": made({"text": text}, outputs), "ids": made({"words": text}, {"id": ids})}
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            [tf.saved_model.SERVING],
            signatures,
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
        np.savez(folder.with_suffix(".npz"), **columns({"text": WORDS}, session.run(outputs, {text: WORDS})))
    folder.with_suffix(".txt").unlink()


WORDS = np.array([b"cat", b"dog", b"cow", b"bird", b""], object)


def words_table(folder: Path) -> Any:
    file = folder.with_suffix(".txt")
    file.write_text("cat\ndog\nbird\n")
    whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    return tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(str(file), tf.string, whole, tf.int64, number), tf.constant(3, tf.int64)
    )


def ragged(folder: Path) -> None:
    """A model that cannot be served: an output has no shape."""
    spec = tf.TensorSpec([None], tf.string, name="text")
    saved(folder / "ragged", spec, serve=lambda text: {"words": tf.strings.split(text)})
    saved(
        folder / "sparse",
        tf.TensorSpec([None, 2], tf.float32, name="x"),
        serve=lambda x: {"positive": tf.sparse.from_dense(tf.nn.relu(x))},
    )


def frozen(folder: Path) -> None:
    """A frozen graph with names inside scopes, and a loop whose number of turns is its largest input."""
    v1 = tf.compat.v1
    # Loops consist of operations in TensorFlow 1, and of functions in TensorFlow 2.
    (v1.disable_control_flow_v2 if folder.name == "frozen-1" else v1.enable_control_flow_v2)()
    inputs = {"x": RNG.normal(size=(ROWS, 6)).astype(np.float32), "turns": np.arange(ROWS, dtype=np.int64)}
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x, turns = v1.placeholder(tf.float32, [None, 6], name="in/x"), v1.placeholder(tf.int64, [None], name="in/turns")
        weights = tf.constant(RNG.normal(size=(6, 6)).astype(np.float32))

        def turn(step: Any, state: Any) -> Any:
            return step + 1, tf.where((turns > step)[:, None], tf.tanh(tf.matmul(state, weights)), state)

        state = tf.while_loop(lambda step, _: step < tf.reduce_max(turns), turn, (tf.constant(0, tf.int64), x))[1]
        v1.enable_control_flow_v2()
        scores = tf.nn.softmax(state, name="out/softmax")
        folder.with_suffix(".pb").write_bytes(graph.as_graph_def().SerializeToString())
        outputs = {"scores": session.run(scores, {"in/x:0": inputs["x"], "in/turns:0": inputs["turns"]})}
    np.savez(folder.with_suffix(".npz"), **columns(inputs, outputs))


def legacy(folder: Path) -> None:
    """A recurrent network that Keras 2 saved, in both of its formats: Keras 3 does not read it."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    steps = tf_keras.Input((4, 3), name="steps")
    model = tf_keras.Model(steps, tf_keras.layers.LSTM(5, name="last")(steps))
    model.save(folder.with_suffix(".h5"))
    model.save(folder.with_suffix(".keras"))
    inputs = {"steps": RNG.normal(size=(ROWS, 4, 3)).astype(np.float32)}
    outputs = {"last": tf.function(lambda x: model(x, training=False))(tf.constant(inputs["steps"])).numpy()}
    np.savez(folder.with_suffix(".npz"), **columns(inputs, outputs))


def mean(folder: Path) -> Arrays:
    """An output over the whole batch, declared without the batch dimension."""
    saved(folder, tf.TensorSpec([None, 3], tf.float32, name="x"), serve=lambda x: {"mean": tf.reduce_mean(x, axis=0)})
    return {"x": RNG.normal(size=(ROWS, 3)).astype(np.float32)}


def sneaky(folder: Path) -> Arrays:
    """An output over the whole batch that only running the model reveals."""

    def serve(x: Any) -> Any:
        total = tf.reduce_sum(x)
        return {"sum": tf.reshape(total, tf.stack([tf.size(total)]))}

    saved(folder, tf.TensorSpec([None, 3], tf.float32, name="x"), serve=serve)
    return {"x": RNG.normal(size=(ROWS, 3)).astype(np.float32)}


def masked(folder: Path) -> Arrays:
    """Sums the first `length` numbers of each row, so padding changes nothing. Integers, so that sums are exact."""

    def serve(x: Any, length: Any) -> Any:
        return {"sum": tf.reduce_sum(tf.where(tf.sequence_mask(length, tf.shape(x)[1]), x, 0.0), axis=1)}

    specs = tf.TensorSpec([None, None], tf.float32, name="x"), tf.TensorSpec([None], tf.int32, name="length")
    saved(folder, *specs, serve=serve)
    return {"x": RNG.integers(0, 99, size=(ROWS, 7)).astype(np.float32), "length": np.full(ROWS, 7, np.int32)}


def scalar(folder: Path) -> Arrays:
    """A model without a batch dimension."""
    saved(folder, tf.TensorSpec([], tf.float64, name="x"), serve=lambda x: {"y": x * x})
    return {"x": np.float64(1.5)}


def fixed(folder: Path) -> Arrays:
    """A model for batches of exactly two rows."""
    saved(folder, tf.TensorSpec([2, 3], tf.float32, name="x"), serve=lambda x: {"y": x + 1.0})
    return {"x": RNG.normal(size=(2, 3)).astype(np.float32)}


def picky(folder: Path) -> Arrays:
    """Raises when any row of the batch holds a negative number."""

    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="negative row")]):
            return {"y": tf.sqrt(x)}

    saved(folder, tf.TensorSpec([None, 1], tf.float32, name="x"), serve=serve)
    return {"x": np.abs(RNG.normal(size=(ROWS, 1))).astype(np.float32)}


def keras_file(folder: Path) -> None:
    """A Keras model of two inputs and two outputs, in both formats of Keras 3."""
    import keras

    keras.utils.set_random_seed(1)
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    outputs = {
        "small": keras.layers.Dense(1, name="small")(joined),
        "large": keras.layers.Dense(4, activation="tanh", name="large")(joined),
    }
    model = keras.Model({"left": left, "right": right}, outputs)
    model.save(folder.with_suffix(".keras"))
    model.save(folder.with_suffix(".h5"))
    inputs = {"left": RNG.normal(size=(ROWS, 3)).astype("f4"), "right": RNG.normal(size=(ROWS, 2)).astype("f4")}
    # As a graph: eager operations may differ in the last bit.
    call = tf.function(lambda arguments: model(arguments, training=False))
    direct = call({name: tf.constant(array) for name, array in inputs.items()})
    np.savez(folder.with_suffix(".npz"), **columns(inputs, {name: value.numpy() for name, value in direct.items()}))


MADE = (dense, words, vocabulary, datatypes, mean, sneaky, masked, scalar, fixed, picky)

REAL: dict[str, Arrays] = {
    "guesslang": {
        "text": np.array(
            [b"def f(x):\n    return x\n", b"#include <stdio.h>\nint main() {}", b"SELECT * FROM t;"], object
        )
    },
    "basic-pitch": {"audio": RNG.normal(size=(2, 43844, 1)).astype(np.float32) * 0.1},
}


def columns(inputs: Arrays, outputs: Arrays) -> Arrays:
    """The arrays for an .npz file; datatypes that it cannot contain become text or wider numbers."""
    return {
        f"{side}/{name}": np.asarray(array, "S") if np.asarray(array).dtype == object else np.asarray(array)
        for side, arrays in (("in", inputs), ("out", outputs))
        for name, array in arrays.items()
    }


def direct(path: Path, inputs: Arrays) -> Arrays:
    """The outputs of a SavedModel's signature when TensorFlow calls it."""
    try:
        loaded = tf.saved_model.load(str(path))
    except AttributeError:  # an optimizer that this Keras cannot create again
        return direct_graph(path, inputs)
    signatures = loaded.signatures
    call = signatures["serving_default"] if "serving_default" in signatures else next(iter(signatures.values()))
    specs = call.structured_input_signature[1]
    if len(inputs) == 1:
        # The real models' input has a name of its own.
        inputs = dict(zip(specs, inputs.values(), strict=True))
    arguments = {name: tf.constant(array, specs[name].dtype) for name, array in inputs.items()}
    outputs = {name: value.numpy() for name, value in call(**arguments).items()}
    return columns(inputs, outputs)


def direct_graph(path: Path, inputs: Arrays) -> Arrays:
    """The same through TensorFlow 1's loader, which creates no Python objects."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(path)).signature_def["serving_default"]
        inputs = dict(zip(signature.inputs, inputs.values(), strict=True))
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        fetches = {name: info.name for name, info in signature.outputs.items()}
        return columns(inputs, session.run(fetches, feeds))


def main(folder: Path, real: dict[str, Path]) -> None:
    """Writes all models."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras_file(folder / "keras")
    frozen(folder / "frozen")
    frozen(folder / "frozen-1")
    vocabulary_1(folder / "vocabulary-1")
    ragged(folder)
    legacy(folder / "legacy")
    for make in MADE:
        path = folder / make.__name__
        inputs = make(path)
        versions = [entry for entry in path.iterdir() if entry.name.isdecimal()]
        latest = max(versions, key=lambda entry: int(entry.name), default=path)
        np.savez(folder / f"{make.__name__}.npz", **direct(latest, inputs))
    for name, path in real.items():
        np.savez(folder / f"{name}.npz", **direct(path, REAL[name]))
    served_models.make(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: Path(path) for name, path in (argument.split("=") for argument in sys.argv[2:])})
