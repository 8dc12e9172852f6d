"""Models that need more than TensorFlow: Python functions, kernels that do not exist, operations of a library.

`python custom_models.py FOLDER` writes them, and compiles the library, `FOLDER/add_one.so`, where there is a compiler.
A process of its own: what a test process registers would help the models.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

X = tf.TensorSpec([None, 2], tf.float32, name="x")
COMPILER = shutil.which("g++") or shutil.which("c++")


def main() -> None:
    """Writes the models."""
    folder = Path(sys.argv[1])
    save(folder / "python-function", serving_default=python_function)
    save(folder / "numpy-function", serving_default=numpy_function)
    save(folder / "mapped", serving_default=mapped)
    save(folder / "in-a-branch", serving_default=in_a_branch)
    save(folder / "good-default", serving_default=plain, other=python_function)
    save(folder / "bad-default", serving_default=python_function, other=plain)
    save(folder / "gpu-only", serving_default=gpu_only)
    save(folder / "no-kernel", serving_default=no_kernel)
    save(folder / "bad-xla", serving_default=bad_xla)
    save(folder / "picky", serving_default=picky)
    write_frozen(folder / "python-function.pb", frozen_python_function)
    write_frozen(folder / "branch.pb", frozen_branch)
    write_frozen(folder / "table.pb", frozen_table)
    if COMPILER is not None:
        library = folder / "add_one.so"
        build(COMPILER, library)
        operations = tf.load_op_library(str(library))
        save(folder / "custom", serving_default=lambda x: {"y": operations.test_add_one(x=x)})


def build(compiler: str, library: Path) -> None:
    """Compiles the library of `add_one.cc`."""
    source = Path(__file__).with_name("add_one.cc")
    flags = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    subprocess.run([compiler, "-shared", "-fPIC", "-O0", "-w", source, "-o", library, *flags], check=True)


def save(folder: Path, **signatures: Callable[[Any], Any]) -> None:
    """Saves a model with these signatures."""
    module = tf.Module()
    functions = {
        name: tf.function(function, input_signature=[X]).get_concrete_function()
        for name, function in signatures.items()
    }
    tf.saved_model.save(module, str(folder), signatures=functions)


def plain(x: Any) -> Any:
    return {"y": 2 * x}


def python_function(x: Any) -> Any:
    return {"y": tf.ensure_shape(tf.py_function(lambda values: values + 1, [x], tf.float32), [None, 2])}


def numpy_function(x: Any) -> Any:
    return {"y": tf.ensure_shape(tf.numpy_function(lambda values: values + 1, [x], tf.float32), [None, 2])}


def mapped(x: Any) -> Any:
    return {"y": tf.map_fn(lambda row: tf.ensure_shape(tf.py_function(lambda v: v, [row], tf.float32), [2]), x)}


def in_a_branch(x: Any) -> Any:
    return {"y": tf.cond(tf.reduce_sum(x) > 1e6, lambda: python_function(x)["y"], lambda: 2 * x)}


def gpu_only(x: Any) -> Any:
    zeros = tf.zeros([1, 1, 2])
    return {"y": tf.raw_ops.CudnnRNN(input=x[None], input_h=zeros, input_c=zeros, params=tf.zeros([100]))[0][0]}


def no_kernel(x: Any) -> Any:
    squares = tf.cast(x[:, :, None] * x[:, None, :], tf.float16)
    return {"y": tf.cast(tf.linalg.cholesky(squares), tf.float32)}


def bad_xla(x: Any) -> Any:
    return {"y": compiled_strings(x)}


@tf.function(jit_compile=True)
def compiled_strings(x: Any) -> Any:
    return tf.strings.length(tf.strings.as_string(x))


def picky(x: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_greater(x, 5.0)]):
        return {"y": tf.identity(x)}


def write_frozen(file: Path, build_graph: Callable[[Any], Any]) -> None:
    """Writes a graph from `x` to `y`."""
    graph = tf.Graph()
    with graph.as_default():
        build_graph(tf.compat.v1.placeholder(tf.float32, [None, 2], name="x"))
    file.write_bytes(graph.as_graph_def().SerializeToString())


def frozen_python_function(x: Any) -> None:
    tf.identity(python_function(x)["y"], name="y")


def frozen_branch(x: Any) -> None:
    """A condition of TensorFlow 1: Switch and Merge."""
    tf.compat.v1.disable_control_flow_v2()
    chosen = tf.compat.v1.cond(tf.reduce_sum(x) > 1e6, lambda: python_function(x)["y"], lambda: 2 * x)
    tf.compat.v1.enable_control_flow_v2()
    tf.identity(chosen, name="y")


def frozen_table(x: Any) -> None:
    """A table whose initialiser is missing."""
    table = tf.raw_ops.HashTableV2(key_dtype=tf.int64, value_dtype=tf.float32)
    found = tf.raw_ops.LookupTableFindV2(table_handle=table, keys=tf.cast(x, tf.int64), default_value=0.0)
    tf.identity(found, name="y")


if __name__ == "__main__":
    main()
