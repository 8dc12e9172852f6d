"""Models as TensorFlow writes them: unusual signatures, tensors and files; and the devices of a worker."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from log_text import log_text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import ml_dtypes
    import tensorflow as tf

    from multitower.worker.formats import tensorflow_process
    from multitower.worker.formats.saved_model import SavedModel
    from multitower.worker.heartbeat import CallCounter, LoadSteps
    from multitower.worker.loading import load_other_signatures

from multitower.spec import Assignment, ModelReport, ModelSpec, TensorReport, WorkerReport
from multitower.worker.formats.loader import load
from multitower.worker.formats.model import Model
from multitower.worker.model_errors import LoadError
from multitower.worker.warmup.warmup import warm_up
from multitower.worker_wire import KeySpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

VECTOR = tf.TensorSpec([None], tf.float32, name="x")


def saved(folder: Path, *specs: Any, **functions: Callable[..., Any]) -> str:
    module = tf.Module()
    signatures = {
        name: tf.function(function, input_signature=list(specs)).get_concrete_function()
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return str(folder)


def spec(path: Path | str, **more: Any) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), **more)


def plus(number: float) -> Callable[[Any], Any]:
    return lambda x: {"y": x + number}


# Signatures.


@pytest.mark.parametrize(
    ("names", "wanted", "picked"),
    [
        (["serving_default", "serve", "a"], None, 0),
        (["a", "serve"], None, 1),
        (["a"], None, 0),
        (["serving_default", "a"], "a", 1),
    ],
)
def test_the_default_signature_is_chosen(names: list[str], wanted: str | None, picked: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "m", VECTOR, **{name: plus(index) for index, name in enumerate(names)})
    model = SavedModel(spec(path, signature=wanted))
    assert model.infer({"x": np.zeros(1, np.float32)})["y"].tolist() == [picked]


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (["b", "a"], None, "set `signature` to one of those that the model has: a, b"),
        (["b", "a"], "serving_default", "no signature 'serving_default'; the model has: a, b"),
        ([], None, "the model has: none"),
    ],
)
def test_a_default_signature_that_cannot_be_chosen_is_an_error(
    names: list[str], wanted: str | None, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "m", VECTOR, **{name: plus(0) for name in names})
    with pytest.raises(LoadError, match=message):
        SavedModel(spec(path, signature=wanted))


@pytest.mark.parametrize("graph", [False, True])
def test_all_signatures_are_served_or_reported_with_a_cause(
    graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ragged = {"ragged": lambda x: {"y": tf.RaggedTensor.from_tensor(x[:, None])}} if not graph else {}
    odd = {"odd": lambda x: {"q": tf.quantization.quantize(x, 0, 1, tf.qint8).output}}
    functions = {"serving_default": plus(1), "twice": lambda x: {"double": 2 * x}, "total": total, **ragged, **odd}
    path = saved(tmp_path / "m", VECTOR, **functions)
    if graph:
        monkeypatch.setattr(tf.saved_model, "load", no_optimizer)
    wanted = spec(path, max_batch_size=4)
    model = SavedModel(wanted)
    executors, reports = load_other_signatures(model, wanted, (), CallCounter(), LoadSteps())
    assert model.signature == "serving_default"
    assert set(executors) == {"twice", "total"}
    by_name = {report.name: report for report in reports}
    assert by_name["twice"].outputs == (TensorReport(name="double", datatype="FP32", shape=(-1,)),)
    assert (by_name["twice"].max_batch_size, by_name["twice"].cause) == (4, None)
    assert by_name["total"].max_batch_size == 0
    assert "'sum' is not the batch" in str(by_name["total"].unbatched_because)
    assert "'q' is qint8" in str(by_name["odd"].cause)
    assert graph or "'y' is a RaggedTensor" in str(by_name["ragged"].cause)
    report = ModelReport(name="m", signature=model.signature, signatures=reports)
    assert WorkerReport.from_json(WorkerReport(state="ready", pid=1, models=(report,)).to_json()).models == (report,)
    key = KeySpec("m", (("x", "FP32", ()),), None, True, "twice")
    twice = executors["twice"]
    ((_, frame),), _ = twice.run(twice.prepare(key, [2], [np.float32([1, 2]).tobytes()]))
    assert np.frombuffer(frame, np.float32).tolist() == [2, 4]


def total(x: Any) -> Any:
    return {"sum": tf.reduce_sum(x)}


def no_optimizer(folder: str) -> Any:
    raise AttributeError("'_UserObject' object has no attribute 'add_slot'")


def test_assets_and_tables_are_found_after_the_model_was_moved(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    module = tf.Module()
    words = tf.lookup.TextFileInitializer(
        str(tmp_path / "words.txt"),
        *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
        *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
    )
    module.table = tf.lookup.StaticHashTable(words, -1)
    text = tf.TensorSpec([None], tf.string, name="text")
    serve = tf.function(lambda text: {"id": module.table.lookup(text)}, input_signature=[text])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serve": serve})
    (tmp_path / "words.txt").unlink()
    (tmp_path / "m").rename(tmp_path / "moved")
    model = SavedModel(spec(tmp_path / "moved"))
    assert model.infer({"text": np.array([b"dog", b"cow"], object)})["id"].tolist() == [1, -1]


def test_a_table_of_a_tensorflow_1_model_is_initialised(tmp_path: Path) -> None:
    path, v1 = str(tmp_path / "m"), tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        text = v1.placeholder(tf.string, [None])
        pairs = tf.lookup.KeyValueTensorInitializer(["cat", "dog"], tf.constant([7, 8], tf.int64))
        ids = tf.lookup.StaticHashTable(pairs, -1).lookup(text)
        session.run(v1.tables_initializer())
        init = v1.tables_initializer()
        v1.saved_model.simple_save(session, path, {"text": text}, {"ids": ids}, legacy_init_op=init)
    assert SavedModel(spec(path)).infer({"text": np.array([b"dog", b"cow"], object)})["ids"].tolist() == [8, -1]


def test_the_version_is_the_folder_that_the_supervisor_chose(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        saved(tmp_path / str(version), VECTOR, serve=plus(version))
    model = load(spec(tmp_path, version="2"), ["cpu:0"])
    assert model.version == "2"
    assert model.infer({"x": np.zeros(1, np.float32)})["y"].tolist() == [2]
    assert load(spec(tmp_path / "3"), ["cpu:0"]).version == "1", "a folder without versions"


# Tensors.


def test_inputs_and_outputs_are_sorted_by_name(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "m",
        tf.TensorSpec([None, 2], tf.int64, name="b"),
        tf.TensorSpec(None, tf.string, name="a"),
        serve=lambda b, a: {"z": b, "c": tf.strings.length(a)},
    )
    model = SavedModel(spec(path))
    assert model.inputs == (
        TensorReport(name="a", datatype="BYTES", shape=None),
        TensorReport(name="b", datatype="INT64", shape=(-1, 2)),
    )
    assert model.outputs == (
        TensorReport(name="c", datatype="INT32", shape=None),
        TensorReport(name="z", datatype="INT64", shape=(-1, 2)),
    )


@pytest.mark.parametrize(
    ("shape", "elements"), [((), b"\0"), ((0,), []), ((2,), [b"a\0", b""]), ((1, 2), [[b"\xff", b"b"]])]
)
def test_strings_of_every_shape_are_served(shape: tuple[int, ...], elements: Any, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "m", tf.TensorSpec(shape, tf.string, name="s"), serve=lambda s: {"t": tf.strings.join([s, s])}
    )
    array = np.empty(shape, object)
    array[...] = elements
    doubled = SavedModel(spec(path)).infer({"s": array})["t"]
    assert doubled.dtype == object
    assert doubled.shape == shape
    assert doubled.ravel().tolist() == [element * 2 for element in array.ravel()]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: tf.RaggedTensor.from_tensor(x[:, None]), "'y' is a RaggedTensor; only dense"),
        (tf.sparse.from_dense, "'y' is a SparseTensor; only dense"),
        (lambda x: tf.cast(x, tf.dtypes.experimental.float8_e5m2), "'y' is float8_e5m2, which cannot be served"),
        (lambda x: tf.quantization.quantize(x, 0, 1, tf.qint8).output, "'y' is qint8, which cannot be served"),
        (lambda x: tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[]), "'y' is resource, which cannot be served"),
    ],
    ids=["ragged", "sparse", "float8", "quantized", "resource"],
)
def test_tensors_that_the_protocol_cannot_carry_are_refused(
    output: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "m", VECTOR, serve=lambda x: {"y": output(x)})
    with pytest.raises(LoadError, match=message):
        SavedModel(spec(path))


def test_a_tensorflow_1_model_is_served(tmp_path: Path) -> None:
    path = str(tmp_path / "m")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], name="x")
        weights = v1.get_variable("w", initializer=[[1.0], [2.0]], use_resource=False)
        y = tf.matmul(x, weights)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, path, {"inputs": x}, {"scores": y})
    model = SavedModel(spec(path, max_batch_size=4))
    assert warm_up(model, spec(path, max_batch_size=4))[:2] == (None, True)
    assert model.infer({"inputs": np.float32([[1, 1], [2, 0]])})["scores"].tolist() == [[3], [2]]


def test_a_model_with_an_unknown_optimizer_is_served_from_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(
        tmp_path / "m",
        tf.TensorSpec([None, 2], tf.bfloat16, name="b"),
        tf.TensorSpec([None], tf.string, name="a"),
        serve=lambda b, a: {"z": b + 1, "c": tf.strings.upper(a), "s": tf.strings.reduce_join(a)},
    )

    direct = SavedModel(spec(path))
    monkeypatch.setattr(tf.saved_model, "load", no_optimizer)
    with caplog.at_level(logging.WARNING):
        model = SavedModel(spec(path))
    assert "add_slot" in log_text(caplog)
    assert (model.inputs, model.outputs) == (direct.inputs, direct.outputs)
    inputs = {"a": np.array([b"x\0", b""], object), "b": np.ones((2, 2), ml_dtypes.bfloat16)}
    for name, array in direct.infer(inputs).items():
        again = model.infer(inputs)[name]
        assert (again.dtype, again.shape, again.tolist()) == (array.dtype, array.shape, array.tolist())
    with pytest.raises(LoadError, match=r"the model has: serve$"):
        SavedModel(spec(path, signature="other"))


def test_other_errors_while_loading_are_raised(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "m", VECTOR, serve=plus(1)))
    (path / "saved_model.pb").write_bytes(b"\xff not a model")
    with pytest.raises(Exception, match=r"saved_model\.pb"):
        SavedModel(spec(path))


@pytest.mark.parametrize("batched", [True, False])
def test_a_warm_up_finds_an_output_without_the_batch_dimension(batched: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "m", VECTOR, serve=lambda x: {"kept": tf.boolean_mask(x, x > (0 if batched else 1))})
    model: Model = SavedModel(spec(path))
    because, proven, _ = warm_up(model, spec(path, max_batch_size=4))
    assert proven == batched
    assert because == (None if batched else "1 rows gave the output 'kept' the shape [0]")


# Devices.


def work(**more: Any) -> Assignment:
    settings: dict[str, Any] = {"slot": 0, "incarnation": 1, "devices": ("GPU-1",), "environment": {}}
    return Assignment(**settings | {"intra_op_threads": 3, "inter_op_threads": 2} | more)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of a fake `tf.config` that lists two GPUs."""
    said: list[Any] = []
    threads = SimpleNamespace(
        set_intra_op_parallelism_threads=lambda count: said.append(("intra", count)),
        set_inter_op_parallelism_threads=lambda count: said.append(("inter", count)),
    )
    config = SimpleNamespace(
        threading=threads,
        list_physical_devices=lambda kind: said.append(kind) or ["g0", "g1"],
        experimental=SimpleNamespace(set_memory_growth=lambda gpu, on: said.append(("growth", gpu, on))),
        LogicalDeviceConfiguration=tf.config.LogicalDeviceConfiguration,
        set_logical_device_configuration=lambda gpu, c: said.append(("limit", gpu, [one.memory_limit for one in c])),
    )
    monkeypatch.setattr(tensorflow_process.tf, "config", config)
    return said


def test_memory_growth_is_set_on_every_gpu_of_the_slot(told: list[Any]) -> None:
    tensorflow_process.configure(work())
    assert told == [("intra", 3), ("inter", 2), "GPU", ("growth", "g0", True), ("growth", "g1", True)]


def test_a_memory_limit_is_set_in_mib_instead_of_growth(told: list[Any]) -> None:
    tensorflow_process.configure(work(memory_limit_bytes=6 << 30))
    assert told[3:] == [("limit", "g0", [6144]), ("limit", "g1", [6144])]


def test_a_cpu_slot_does_not_ask_for_gpus(told: list[Any]) -> None:
    tensorflow_process.configure(work(devices=("cpu:0",)))
    assert told == [("intra", 3), ("inter", 2)]


def test_fewer_gpus_than_the_slot_has_are_an_error(told: list[Any]) -> None:
    tensorflow_process.configure(work(devices=("GPU-1", "GPU-2")))
    with pytest.raises(LoadError, match="sees only 2 of 3 GPUs although GPU-1, GPU-2, GPU-3 are visible to it"):
        tensorflow_process.configure(work(devices=("GPU-1", "GPU-2", "GPU-3")))


def test_a_gpu_that_tensorflow_does_not_see_is_an_error(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow_process.tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(LoadError, match=r"sees no GPU although GPU-1 .*tensorflow\[and-cuda\]"):
        tensorflow_process.configure(work())
