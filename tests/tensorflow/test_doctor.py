"""The doctor on real models: their signatures, and operations that only a CPU can run."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from running import START_S

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of TensorFlow's import
    import keras
    import tensorflow as tf

    from multitower.worker.formats import inspection, kernels

from multitower.spec import ModelSpec
from multitower.tools.doctor import operations

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.skipif(not tf.test.is_built_with_gpu_support(), reason="this TensorFlow has no kernels for GPUs"),
]

TEXT = tf.TensorSpec([None], tf.string, name="text")


class Module(tf.Module):
    """Two signatures: one of strings, with a nested function, and one of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable([[1.0, 2.0]])

    @tf.function(input_signature=[TEXT])
    def inner(self, text: Any) -> Any:
        return tf.strings.upper(tf.strings.upper(text))

    @tf.function(input_signature=[TEXT])
    def strings(self, text: Any) -> Any:
        return {"upper": self.inner(text)}

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def numbers(self, x: Any) -> Any:
        return {"y": tf.matmul(x, self.weights)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models; the folder of one has a name that promises a frozen graph."""
    folder = tmp_path_factory.mktemp("doctored")
    module = Module()
    signatures = {"serving_default": module.strings, "numbers": module.numbers}
    tf.saved_model.save(module, str(folder / "mixed.pb" / "3"), signatures=signatures)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.save(folder / "dense.keras")
    graph = tf.Graph()
    with graph.as_default():
        text = tf.compat.v1.placeholder(tf.string, name="text")
        tf.strings.upper(text, name="upper")
        tf.strings.lower(text, name="of_no_use")
    (folder / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    model.save(folder / "old.h5")
    (folder / "none.h5").touch()
    return folder


def node(op: str, **types: Any) -> Any:
    definition = tf.compat.v1.NodeDef(name="n", op=op)
    for name, dtype in types.items():
        definition.attr[name].type = dtype.as_datatype_enum
    return definition


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        (node("MatMul", T=tf.float32), False),
        (node("StringUpper"), True),
        (node("Add", T=tf.float32), False),
        (node("Add", T=tf.string), True),
        (node("Add"), False),
        (node("Placeholder", dtype=tf.string), False),
        (node("PartitionedCall"), False),
        (node("__inference_of_somebody_17"), False),
    ],
    ids=lambda value: value.op if hasattr(value, "op") else None,
)
def test_an_operation_is_cpu_only_for_types_without_gpu_kernel(definition: Any, expected: bool) -> None:
    assert kernels.is_cpu_only(definition) is expected


def test_operations_of_every_format_are_inspected(folder: Path) -> None:
    mixed = {"path": str(folder / "mixed.pb"), "version": "3"}
    specs = [
        ModelSpec(name="default", **mixed),
        ModelSpec(name="numbers", signature="numbers", **mixed),
        ModelSpec(name="nosuch", signature="nosuch", **mixed),
        ModelSpec(name="dense", path=str(folder / "dense.keras")),
        ModelSpec(name="frozen", path=str(folder / "frozen.pb"), inputs={"x": "text"}, outputs={"y": "upper:0"}),
        ModelSpec(name="old", path=str(folder / "old.h5")),
        ModelSpec(name="none", path=str(folder / "none.h5")),
    ]
    models = {spec.name: inspection._inspect(spec) for spec in specs}  # here: TensorFlow is imported already
    assert models["default"]["cpu_only"] == {"StringUpper": 2}, "not those of saving, nor of the other signature"
    assert models["numbers"]["cpu_only"] == {}
    assert models["numbers"]["operations"] > 3
    assert "the model has: numbers, serving_default" in models["nosuch"]["error"]
    assert models["dense"]["cpu_only"] == {}
    assert models["dense"]["operations"] > 3
    assert models["frozen"]["cpu_only"] == {"StringUpper": 1}
    assert models["old"]["cpu_only"] == {}
    assert models["old"]["operations"] > 3
    assert "is no HDF5 file" in models["none"]["error"]


def test_a_broken_tensorflow_is_reported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('libfoo is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(operations.InspectionError, match="libfoo is missing"):
        operations.inspect_operations([ModelSpec(name="dense", path=str(folder / "dense.keras"))], START_S)


PROGRAM = """
import sys
from multitower.cli.doctor import doctor
try:
    doctor(["x.yaml", "--json", "--timeout", "240"], prog_name="doctor")
finally:
    assert not {"tensorflow", "keras"} & set(sys.modules), "this process loads no TensorFlow"
    assert not any(name.startswith("multitower.worker.") for name in sys.modules)
"""


def test_doctor_examines_real_models(folder: Path) -> None:
    (folder / "x.yaml").write_text(
        """
listen: ["tcp://127.0.0.1:*"]
devices: {cpu: 2}
models:
  - {name: mixed, path: mixed.pb, batching: {max_batch_size: 4, allowed_batch_sizes: [2, 4]}}
  - {name: nosuch, path: mixed.pb, signature: nosuch}
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, timeout=2 * START_S, check=False
    )
    assert done.returncode == 69, done.stdout + done.stderr
    found = [(finding["level"], finding["text"]) for finding in json.loads(done.stdout)["findings"]]
    texts = [text for _, text in found]
    assert any(text.startswith("mixed: version 3, tensorflow_savedmodel, loaded in ") for text in texts)
    assert ("ok", "mixed, signature serving_default: text BYTES [-1] → upper BYTES [-1]") in found
    assert ("ok", "requests to mixed may name numbers: x FP32 [-1, 1] → y FP32 [-1, 2]") in found
    assert ("ok", "mixed is batched: up to 4 rows, padded to 2, 4") in found
    assert any(level == "problem" and "no signature 'nosuch'" in text for level, text in found)
    assert any(level == "note" and "no GPU kernel: StringUpper (2)" in text for level, text in found)
    (memory,) = [text for text in texts if text.startswith("host: 2 workers of ")]
    assert "estimated, since not every model was loaded" in memory
