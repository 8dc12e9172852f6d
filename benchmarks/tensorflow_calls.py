"""Ways to call TensorFlow: microseconds from numpy arrays to numpy arrays, with one SavedModel.

    python benchmarks/tensorflow_calls.py [--rounds 40] [--seconds 0.02] [--rows 1,8,32] [--model NAME=FOLDER ...]

- signature: `loaded.signatures[...]`, the usual way.
- session: TensorFlow 1's `Session.make_callable`.
- dlpack: the signature, with numeric inputs passed by DLPack instead of `tf.constant`. TensorFlow uses their memory
  without a copy, and crashes if that is not aligned to 64 bytes; so the inputs are first copied to aligned memory.
- operation: what a worker does (`worker/formats/function_call.py`), after its warm-up.

TensorFlow has one thread, which is enough for small models. Each round runs all ways in turn, in a rotating order.
Figures are medians of the rounds, and in brackets the median of each round's ratio to the signature. `same` means that
all ways gave the same bits.

The last line is the CPU time for a full run of Python's garbage collector, before and after `gc.freeze`, which a worker
calls when it becomes ready.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import keras
    import tensorflow as tf

from multitower.spec import ModelSpec
from multitower.worker.formats.model import Arrays
from multitower.worker.formats.saved_model import SavedModel
from multitower.worker.warmup import warmup

ALIGNMENT = 64
"""Bytes; the alignment that TensorFlow's kernels are compiled for."""

NAMES = ("signature", "session", "dlpack", "operation")

Way = Callable[[Arrays], Arrays]


class Digits(tf.Module):  # type: ignore[misc]
    """64 numbers to 10 classes, like the demo's model."""

    spec = tf.TensorSpec([None, 64], tf.float32, name="x")

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = matrix(64, 256), matrix(256, 10)

    def __call__(self, x: Any) -> Any:
        """Two layers."""
        return tf.nn.softmax(tf.nn.relu(x @ self.hidden) @ self.last)


class Words(tf.Module):  # type: ignore[misc]
    """A text to 8 classes: hashed words, an embedding, one layer."""

    spec = tf.TensorSpec([None], tf.string, name="text")

    def __init__(self) -> None:
        super().__init__()
        self.meanings, self.last = matrix(1000, 16), matrix(16, 8)

    def __call__(self, text: Any) -> Any:
        """The mean of the words' embeddings, and one layer."""
        words = tf.strings.split(text).to_tensor(b"", shape=[None, 8])
        meanings = tf.gather(self.meanings, tf.strings.to_hash_bucket_fast(words, 1000))
        return tf.nn.softmax(tf.reduce_mean(meanings, axis=1) @ self.last)


class Images(tf.Module):  # type: ignore[misc]
    """MobileNetV2 on pictures of 96 by 96: milliseconds a row."""

    spec = tf.TensorSpec([None, 96, 96, 3], tf.float32, name="x")

    def __init__(self) -> None:
        super().__init__()
        self.network = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10)

    def __call__(self, x: Any) -> Any:
        """The network, in inference mode."""
        return self.network(x, training=False)


def matrix(rows: int, columns: int) -> Any:
    """Random weights."""
    return tf.Variable(np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32) / rows**0.5)


def save(module: Any, folder: Path) -> Path:
    """Writes a model as a SavedModel."""
    signature = tf.function(lambda x: {"y": module(x)}, input_signature=[module.spec])
    tf.saved_model.save(module, str(folder), signatures=signature)
    return folder


def aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An aligned copy."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy: np.ndarray[Any, Any] = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def ways(folder: Path, rows: list[int]) -> dict[str, Way]:
    """All ways by name, each with the model loaded."""
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures["serving_default"]
    specs = function.structured_input_signature[1]

    def signature(arrays: Arrays) -> Arrays:
        assert loaded  # keeps the variables, which a function refers to weakly
        tensors = {name: tf.constant(array, specs[name].dtype) for name, array in arrays.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    def dlpack(arrays: Arrays) -> Arrays:
        tensors = {
            name: tf.constant(array, tf.string)
            if array.dtype == object
            else tf.experimental.dlpack.from_dlpack(aligned(array).__dlpack__())
            for name, array in arrays.items()
        }
        return {name: value.numpy() for name, value in function(**tensors).items()}

    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        info = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
    names = list(info.outputs)
    inputs = [graph.get_tensor_by_name(info.inputs[name].name) for name in specs]
    run = session.make_callable([graph.get_tensor_by_name(info.outputs[name].name) for name in names], inputs)

    def in_session(arrays: Arrays) -> Arrays:
        return dict(zip(names, run(*(arrays[name] for name in specs)), strict=True))

    spec = ModelSpec(name=folder.name, path=str(folder), max_batch_size=max(rows), allowed_batch_sizes=tuple(rows))
    begun = time.perf_counter()
    model = SavedModel(spec)
    ready = time.perf_counter()
    warmup.warm_up(model, spec)
    print(f"{folder.name}: loaded in {ready - begun:.2f} s, warmed up in {time.perf_counter() - ready:.2f} s")
    return {"signature": signature, "session": in_session, "dlpack": dlpack, "operation": model.infer}


def random_inputs(folder: Path, rows: int) -> Arrays:
    """Random inputs of this many rows."""
    rng = np.random.default_rng(rows)
    arrays: Arrays = {}
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    for name, spec in signature.structured_input_signature[1].items():
        shape = [size or 1 if axis else rows for axis, size in enumerate(spec.shape)]
        if spec.dtype == tf.string:
            arrays[name] = np.full(shape, b"a few words of an ordinary English text", object)
        else:
            arrays[name] = rng.random(shape).astype(spec.dtype.as_numpy_dtype)
    return arrays


def microseconds(way: Way, arrays: Arrays, seconds: float) -> float:
    """Microseconds of a call, averaged over about this many seconds."""
    begun = time.perf_counter()
    calls = 0
    while calls < 3 or time.perf_counter() - begun < seconds:
        way(arrays)
        calls += 1
    return (time.perf_counter() - begun) / calls * 1e6


def format_cell(own: list[float], signature: list[float]) -> str:
    """The median, and the median of the ratios, as text."""
    ratio = statistics.median(one / other for one, other in zip(own, signature, strict=True))
    return f"{statistics.median(own):10.1f} ({ratio:.2f})"


def compare(folder: Path, rows: list[int], rounds: int, seconds: float) -> None:
    """Prints a line for each number of rows."""
    candidates = ways(folder, rows)
    for count in rows:
        arrays = random_inputs(folder, count)
        bits: dict[str, dict[str, Any]] = {}
        for name, way in [*candidates.items()]:
            try:
                bits[name] = {
                    output: array.tolist() if array.dtype == object else array.tobytes()
                    for output, array in way(arrays).items()
                }
            except tf.errors.OpError as error:
                # TensorFlow 1's loader does not restore some variables of Keras.
                print(f"{folder.name}: {name} cannot call it: {error.message.splitlines()[-1].strip()[:100]}")
                del candidates[name]
        figures: dict[str, list[float]] = {name: [] for name in candidates}
        for number in range(rounds):
            shift = number % len(candidates)
            for name in [*candidates][shift:] + [*candidates][:shift]:
                figures[name].append(microseconds(candidates[name], arrays, seconds))
        cells = (
            format_cell(figures[name], figures["signature"]) if name in figures else f"{'-':>17}" for name in NAMES
        )
        others = [name for name in bits if bits[name] != bits["signature"]]
        print(f"{folder.name:>12}{count:6}{''.join(cells)}   {', '.join(others) + ' differ' if others else 'same'}")


def collection_ms(rounds: int) -> float:
    """CPU milliseconds for a full run of the garbage collector: the median of some runs; the first is not counted."""
    gc.collect()
    found: list[float] = []
    for _ in range(rounds):
        begun = time.thread_time()
        gc.collect()
        found.append((time.thread_time() - begun) * 1e3)
    return statistics.median(found)


def main() -> None:
    """Measures all models, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.02, help="for each way in a round")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="a further SavedModel")
    options = parser.parse_args()
    rows = [int(text) for text in options.rows.split(",")]
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    warnings.simplefilter("ignore")  # Keras and TensorFlow 1 use functions that they deprecate
    with tempfile.TemporaryDirectory() as temporary:
        folders = [save(kind(), Path(temporary, kind.__name__.lower())) for kind in (Digits, Words, Images)]
        for text in options.model:
            name, _, path = text.partition("=")
            Path(temporary, name).symlink_to(Path(path).resolve())
            folders.append(Path(temporary, name))
        print(f"{'':>12}{'rows':>6}" + "".join(f"{name:>17}" for name in NAMES) + "   microseconds")
        for folder in folders:
            compare(folder, rows, options.rounds, options.seconds)
        before = collection_ms(options.rounds)
        gc.freeze()
        print(
            f"a full run of the garbage collector: {before:.1f} ms; {collection_ms(options.rounds):.3f} ms when frozen"
        )


if __name__ == "__main__":
    main()
