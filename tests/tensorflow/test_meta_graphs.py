"""One rule for both loaders: what a worker of one device serves, a tower serves, and the other way round."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Running
from worker_child import assignment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import tensorflow as tf

    from multitower.worker.formats import tensorflow_process
    from multitower.worker.formats.saved_model import SavedModel
    from multitower.worker.formats.towers import TowerPlacement

from multitower import NotFound
from multitower.spec import ModelSpec
from multitower.tools.doctor import models
from multitower.tools.doctor.findings import Level
from multitower.worker.formats.model import Model
from multitower.worker.heartbeat import CallCounter, LoadSteps
from multitower.worker.loading import load_models
from multitower.worker.model_errors import LoadError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

v1 = tf.compat.v1
Signatures = Mapping[str, Any]
PLACEMENTS = [
    pytest.param(None, id="one device"),
    pytest.param(TowerPlacement(("cpu:0", "cpu:1"), 0), id="tower"),
    pytest.param(TowerPlacement(("cpu:0", "cpu:1")), id="as saved"),
]
both_loaders = pytest.mark.parametrize("placement", PLACEMENTS)
X = np.float32([1, 2])


def signature(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
    sides = (
        {name: v1.saved_model.build_tensor_info(value) for name, value in side.items()} for side in (inputs, outputs)
    )
    return v1.saved_model.build_signature_def(*sides, "tensorflow/serving/predict")


def times(factor: float) -> Signatures:
    """A graph with a variable, and its signature."""
    x = v1.placeholder(tf.float32, [None], "x")
    return {"serving_default": signature({"x": x}, {"y": x * v1.get_variable("w", initializer=factor)})}


def written(folder: Path, *graphs: tuple[Sequence[str], Callable[[], Signatures]]) -> str:
    """Writes a SavedModel of TensorFlow 1: for each MetaGraph its tags, and what makes its graph and signatures."""
    builder = v1.saved_model.Builder(str(folder))
    for number, (tags, make) in enumerate(graphs):
        with tf.Graph().as_default(), v1.Session() as session:
            signatures = make()
            session.run(v1.global_variables_initializer())
            if number == 0:
                builder.add_meta_graph_and_variables(session, list(tags), signatures)
            else:
                builder.add_meta_graph(list(tags), signatures)
    builder.save()
    return str(folder)


def loaded(path: str, placement: TowerPlacement | None, **more: Any) -> Model:
    return SavedModel(ModelSpec(name="m", path=path, **more), placement)


def causes(model: Model) -> dict[str, str | None]:
    """The other signatures: why each cannot be served, None where it can."""
    return {name: str(each) if isinstance(each, LoadError) else None for name, each in model.other_signatures.items()}


# Which MetaGraph.


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        ([["train"], ["serve"]], 1),
        ([["serve"], ["serve", "tpu"]], 0),
        ([["serve", "tpu"], ["serve"]], 1),
        ([["serve", "gpu"]], 0),
        ([["serve", "gpu"], ["train"]], 0),
        ([["train"]], 0),
        ([[]], 0),
    ],
    ids=str,
)
@both_loaders
def test_the_meta_graph_to_serve_is_served(
    tags: list[list[str]], chosen: int, placement: TowerPlacement | None, tmp_path: Path
) -> None:
    # Each graph adds a constant of its own; variables are saved once for all.
    def make(number: int) -> Callable[[], Signatures]:
        def graph() -> Signatures:
            x = v1.placeholder(tf.float32, [None], "x")
            return {"serving_default": signature({"x": x}, {"y": x + float(number)})}

        return graph

    path = written(tmp_path / "m", *((each, make(number)) for number, each in enumerate(tags)))
    assert loaded(path, placement).infer({"x": X})["y"].tolist() == [1 + chosen, 2 + chosen]
    for number, each in enumerate(tags):
        if each:
            named = loaded(path, placement, tags=tuple(reversed(each)))
            assert named.infer({"x": X})["y"].tolist() == [1 + number, 2 + number], "what `tags` names"


@pytest.mark.parametrize(
    ("tags", "configured", "message"),
    [
        ([["a"], ["b", "c"]], (), r"set `tags` to those of one of the model's MetaGraphs: \[a\], \[b, c\]"),
        ([["serve", "a"], ["serve", "b"]], (), r"one of the model's MetaGraphs: \[a, serve\], \[b, serve\]"),
        ([["serve"]], ("serve", "gpu"), r"no MetaGraph with exactly the tags \[gpu, serve\]; the model has: \[serve\]"),
    ],
    ids=["neither", "both", "configured"],
)
@both_loaders
def test_a_meta_graph_that_cannot_be_chosen_is_named(
    tags: list[list[str]], configured: tuple[str, ...], message: str, placement: TowerPlacement | None, tmp_path: Path
) -> None:
    path = written(tmp_path / "m", *((each, lambda: times(2.0)) for each in tags))
    with pytest.raises(LoadError, match=message):
        loaded(path, placement, tags=configured)


@both_loaders
def test_a_model_of_tensorflow_2_without_the_tag_serve_is_served(
    placement: TowerPlacement | None, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    module = tf.Module()
    module.w = tf.Variable(3.0)
    x = tf.TensorSpec([None], tf.float32, name="x")
    serve = tf.function(lambda x: {"y": module.w * x}, input_signature=[x])
    tf.saved_model.save(module, str(path), signatures=serve)
    rewrite(path, lambda graph: graph.meta_info_def.ClearField("tags") or graph.meta_info_def.tags.append("mine"))
    assert loaded(str(path), placement).infer({"x": X})["y"].tolist() == [3, 6]
    assert loaded(str(path), placement, tags=("mine",)).infer({"x": X})["y"].tolist() == [3, 6]


def rewrite(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes the first MetaGraph of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(message.meta_graphs[0])
    file.write_bytes(message.SerializeToString())


# A bad signature costs itself.


def the_x() -> Any:
    """The input of `times`."""
    return v1.get_default_graph().get_tensor_by_name("x:0")


def unfed() -> Signatures:
    labels = v1.placeholder(tf.float32, [None], "labels")
    good = times(2.0)
    x = the_x()
    return {**good, "other": signature({"x": x}, {"loss": x - labels})}


def unfed_control() -> Signatures:
    good, x = times(2.0), the_x()
    with tf.control_dependencies([v1.placeholder(tf.bool, name="flag")]):
        return {**good, "other": signature({"x": x}, {"y": x + 1})}


def twice_the_same() -> Signatures:
    good, x = times(2.0), the_x()
    return {**good, "other": signature({"a": x, "b": x}, {"y": x})}


def renamed(tensor: str) -> Callable[[], Signatures]:
    def make() -> Signatures:
        good = times(2.0)
        other = v1.MetaGraphDef().signature_def["other"]
        other.CopyFrom(good["serving_default"])
        other.outputs["y"].name = tensor
        return {**good, "other": other}

    return make


def sparse_output() -> Signatures:
    good, x = times(2.0), the_x()
    return {**good, "other": signature({"x": x}, {"s": tf.sparse.from_dense(x)})}


def quantized() -> Signatures:
    q = v1.placeholder(tf.qint8, [None], "q")
    return {**times(2.0), "other": signature({"q": q}, {"y": tf.cast(tf.bitcast(q, tf.int8), tf.float32)})}


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (unfed, "its outputs need a value for the placeholder 'labels', which is none of its inputs"),
        (unfed_control, "its outputs need a value for the placeholder 'flag', which is none of its inputs"),
        (twice_the_same, "the inputs 'a' and 'b' are the same tensor, 'x:0'"),
        (renamed("gone:0"), "'y' is the tensor 'gone:0', and the graph has no such node"),
        (renamed("x:7"), "x:7"),
        (renamed("mul"), "'y' is the operation 'mul', which is no tensor"),
        (sparse_output, "'s' is a SparseTensor; only dense tensors can be served: convert it inside the model"),
        (quantized, "'q' is qint8, which cannot be served: cast it inside the model"),
    ],
    ids=["unfed", "unfed control input", "same tensor", "no node", "no output", "operation", "sparse", "quantized"],
)
@both_loaders
def test_a_signature_that_cannot_be_served_costs_itself(
    make: Callable[[], Signatures], cause: str, placement: TowerPlacement | None, tmp_path: Path
) -> None:
    path = written(tmp_path / "m", (["serve"], make))
    model = loaded(path, placement)
    assert (model.signature, model.infer({"x": X})["y"].tolist()) == ("serving_default", [2, 4])
    found = causes(model)["other"]
    assert found is not None
    assert cause in found
    with pytest.raises(LoadError) as raised:
        loaded(path, placement, signature="other")
    assert "the signature 'other' cannot be served: " in str(raised.value)
    assert cause in str(raised.value)
    assert "with `signature`: serving_default" in str(raised.value)


def test_a_bad_signature_beside_it_does_not_prevent_compilation(tmp_path: Path) -> None:
    path = written(tmp_path / "m", (["serve"], unfed))
    model = loaded(path, None, jit_compile=True)
    assert model.infer({"x": X})["y"].tolist() == [2, 4]
    assert list(causes(model)) == ["other"]


def test_a_bad_signature_does_not_make_the_only_other_one_ambiguous(tmp_path: Path) -> None:
    def make() -> Signatures:
        signatures = dict(unfed())
        return {"score": signatures.pop("serving_default"), **signatures}

    model = loaded(written(tmp_path / "m", (["serve"], make)), None)
    assert model.signature == "score"
    assert list(causes(model)) == ["other"]


def parts() -> Signatures:
    sparse = v1.sparse_placeholder(tf.float32, [None, 2], name="s")
    ragged = tf.RaggedTensor.from_row_lengths(
        v1.placeholder(tf.float32, [None], "values"), v1.placeholder(tf.int64, [None], "lengths")
    )
    return {
        "sparse": signature({"s": sparse}, {"y": tf.sparse.reduce_sum(sparse, 1)}),
        "serving_default": signature({"r": ragged}, {"y": tf.reduce_sum(ragged, 1)}),
    }


@both_loaders
def test_sparse_and_ragged_inputs_are_their_parts(placement: TowerPlacement | None, tmp_path: Path) -> None:
    model = loaded(written(tmp_path / "m", (["serve"], parts)), placement)
    ragged = {"r_component_0": np.float32([1, 2, 3]), "r_component_1": np.int64([0, 1, 3])}
    assert model.infer(ragged)["y"].tolist() == [1, 5]
    sparse = model.other_signatures["sparse"]
    assert not isinstance(sparse, LoadError)
    assert [tensor.name for tensor in sparse.inputs or ()] == ["s_dense_shape", "s_indices", "s_values"]
    given = {"s_dense_shape": np.int64([2, 2]), "s_indices": np.int64([[1, 0]]), "s_values": np.float32([5])}
    assert sparse.infer(given)["y"].tolist() == [0, 5]


@both_loaders
def test_a_model_whose_objects_cannot_be_made_is_served_from_its_graph(
    placement: TowerPlacement | None, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    x = tf.TensorSpec([None], tf.float32, name="x")
    tf.saved_model.save(tf.Module(), str(path), signatures=tf.function(lambda x: {"y": x + 1}, input_signature=[x]))

    def forget_functions(graph: Any) -> None:
        graph.object_graph_def.concrete_functions.clear()

    rewrite(path, forget_functions)
    assert loaded(str(path), placement).infer({"x": X})["y"].tolist() == [2, 3]
    with pytest.raises(LoadError, match="jit_compile: XLA compiles functions, and the model's cannot be loaded: "):
        loaded(str(path), None, jit_compile=True)


# In a daemon and in doctor.

CONFIG = """
listen: ["{endpoint}"]
devices: [cpu:0, [cpu:1, cpu:2]]
spares: 0
models:
  - {name: partly, path: partly}
  - {name: several, path: several}
  - {name: tagged, path: several, tags: [serve, gpu]}
  - {name: unclear, path: unclear}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta-graphs")
    written(folder / "partly", (["serve"], unfed))
    written(
        folder / "several", (["train"], lambda: times(2.0)), (["serve"], lambda: times(2.0)), (["serve", "gpu"], unfed)
    )
    written(folder / "unclear", (["a"], lambda: times(2.0)), (["b"], lambda: times(2.0)))
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Running]:
    with Running(folder, CONFIG) as running:
        yield running.wait_ready()
        assert running.end() == 0


def test_single_devices_and_groups_of_a_daemon_accept_the_same(daemon: Running) -> None:
    causes: dict[str, set[str | None]] = {}
    slots = daemon.status()["slots"]
    assert len(slots) == 2
    for model in [model for slot in slots for model in slot["models"]]:
        causes.setdefault(model["name"], set()).add(model["cause"])
    assert causes["partly"] == causes["several"] == causes["tagged"] == {None}
    (cause,) = causes["unclear"]
    assert cause == "set `tags` to those of one of the model's MetaGraphs: [a], [b]"


def test_a_request_for_the_bad_signature_is_refused_with_its_cause(daemon: Running) -> None:
    with daemon.client() as client:
        assert client.infer("partly", {"x": X})["y"].tolist() == [2, 4]
        with pytest.raises(NotFound, match=r"'other' of 'partly' cannot be served: .* the placeholder 'labels'"):
            client.infer("partly", {"x": X}, signature="other")
        assert set(client.metadata("several")["signatures"]) == {"serving_default"}
        assert set(client.metadata("tagged")["signatures"]) == {"serving_default", "other"}


def test_doctor_finds_it_before_the_daemon_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reports of a worker; test_doctor.py has the workers that doctor starts."""
    monkeypatch.setattr(tensorflow_process, "configure", lambda _: None)  # other tests have used TensorFlow here
    specs = [ModelSpec(name=name, path=str(folder / name)) for name in ("partly", "unclear")]
    reports = load_models(assignment(*specs), [CallCounter()], LoadSteps()).reports
    texts = {
        finding.text: finding.level
        for spec, report in zip(specs, reports, strict=True)
        for finding in models.findings(models.LoadedModel(spec=spec, report=report))
    }
    lacking = "its outputs need a value for the placeholder 'labels', which is none of its inputs"
    assert texts[f"requests to partly cannot name its signature other: {lacking}"] is Level.WARNING
    unclear = "unclear cannot be loaded: set `tags` to those of one of the model's MetaGraphs: [a], [b]"
    assert texts[unclear] is Level.PROBLEM
