"""Models whose names promise another format, or that TensorFlow takes for patterns: what is there is what counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from running import START_S, Running, multitower

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import keras
    import tensorflow as tf
    import tf_keras

    from multitower.worker.formats.saved_model import SavedModel
    from multitower.worker.formats.towers import TowerPlacement

from multitower.spec import ModelSpec
from multitower.worker.formats.loader import load
from multitower.worker.model_errors import LoadError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

v1 = tf.compat.v1
X = np.float32([[1, 2]])
both_loaders = pytest.mark.parametrize(
    "placement", [None, TowerPlacement(("cpu:0", "cpu:1"), 0)], ids=["one device", "tower"]
)


def saved(folder: Path, factor: float) -> Path:
    module = tf.Module()
    module.weight = tf.Variable(factor)
    x = tf.TensorSpec([None, 2], tf.float32, name="x")
    serve = tf.function(lambda x: {"y": module.weight * x}, input_signature=[x])
    tf.saved_model.save(module, str(folder), signatures=serve)
    return folder


def saved_by_tensorflow_1(folder: Path, factor: float, checkpoint: int) -> Path:
    builder = v1.saved_model.Builder(str(folder))
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        y = x * v1.get_variable("weight", initializer=factor)
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        saver = v1.train.Saver(write_version=checkpoint)
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, saver=saver)
    builder.save()
    return folder


def dense(factor: float, library: Any = keras) -> Any:
    start = library.initializers.Constant(factor)
    layer = library.layers.Dense(1, use_bias=False, kernel_initializer=start, name="y")
    return library.Sequential([library.layers.InputLayer((2,), name="x"), layer])


def graph(factor: float) -> Any:
    with tf.Graph().as_default() as built:
        tf.multiply(v1.placeholder(tf.float32, [None, 2], "x"), factor, name="y")
    return built.as_graph_def()


def write(contents: str, path: Path) -> None:
    """Writes a file of a format under any name."""
    usual = path.parent / {"keras": "usual.keras", "hdf5": "usual.h5", "keras 2": "usual2.h5"}.get(contents, "usual")
    if contents == "binary graph":
        usual.write_bytes(graph(3.0).SerializeToString())
    elif contents == "text graph":
        usual.write_text("# frozen\n" + text_format.MessageToString(graph(3.0)))
    else:
        dense(3.0, tf_keras if contents == "keras 2" else keras).save(usual)
    usual.rename(path)


@pytest.mark.parametrize(
    ("contents", "name"),
    [
        ("keras", "m.h5"),
        ("keras", "m.pb"),
        ("keras", "m"),
        ("keras", "m[1].keras"),
        ("hdf5", "m.keras"),
        ("hdf5", "m.model"),
        ("hdf5", "m\\1.h5"),
        ("keras 2", "m.keras"),
        ("keras 2", "m.pbtxt"),
        ("binary graph", "m.pbtxt"),
        ("binary graph", "m.h5"),
        ("binary graph", "saved_model.pb"),
        ("text graph", "m.pb"),
        ("text graph", "m"),
    ],
)
def test_a_file_is_loaded_by_its_contents(contents: str, name: str, tmp_path: Path) -> None:
    write(contents, tmp_path / name)
    tensors = {"inputs": {"x": "x"}, "outputs": {"y": "y"}} if "graph" in contents else {}
    model = load(ModelSpec(name="m", path=str(tmp_path / name), **tensors), ["cpu:0"])
    assert model.infer({"x": X})["y"].tolist() == ([[3, 6]] if "graph" in contents else [[9]])


def test_a_file_of_no_format_is_refused_in_the_words_of_its_suffix(tmp_path: Path) -> None:
    for name, words in (("m.h5", "no HDF5 file"), ("m.pb", "no GraphDef"), ("m.pbtxt", "no GraphDef")):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(LoadError, match=words):
            load(ModelSpec(name="m", path=str(tmp_path / name)), ["cpu:0"])


@pytest.mark.parametrize(
    "write_model",
    [
        saved,
        lambda folder, factor: saved_by_tensorflow_1(folder, factor, 1),
        lambda folder, factor: saved_by_tensorflow_1(folder, factor, 2),
    ],
    ids=["tensorflow 2", "tensorflow 1 with checkpoints of version 1", "tensorflow 1"],
)
@both_loaders
def test_weights_are_never_those_of_a_neighbour(
    write_model: Callable[[Path, float], Path], placement: TowerPlacement | None, tmp_path: Path
) -> None:
    # As patterns, the second to fourth name match the first.
    for number, name in enumerate(("m1", "m[12]", "m*", "m?", "m\\1", "alone[1]")):
        write_model(tmp_path / name, float(number))
    for number, name in enumerate(("m1", "m[12]", "m*", "m?", "m\\1", "alone[1]")):
        model = SavedModel(ModelSpec(name="m", path=str(tmp_path / name)), placement)
        assert model.infer({"x": X})["y"].tolist() == [[number, 2 * number]], name


@both_loaders
def test_a_path_that_is_no_utf_8_is_served(placement: TowerPlacement | None, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff")
    saved(tmp_path / "m", 2.0).rename(path)
    spec = ModelSpec.from_dict(json.loads(ModelSpec(name="m", path=path).to_json()))
    assert SavedModel(spec, placement).infer({"x": X})["y"].tolist() == [[2, 4]]


@both_loaders
def test_an_asset_that_is_read_at_each_call_is_found(placement: TowerPlacement | None, tmp_path: Path) -> None:
    (tmp_path / "word.txt").write_text("bird")
    module = tf.Module()
    module.asset = tf.saved_model.Asset(str(tmp_path / "word.txt"))
    x = tf.TensorSpec([None, 2], tf.float32, name="x")
    serve = tf.function(
        lambda x: {"y": tf.fill([tf.shape(x)[0]], tf.io.read_file(module.asset.asset_path))}, input_signature=[x]
    )
    tf.saved_model.save(module, str(tmp_path / "m[1]"), signatures=serve)
    model = SavedModel(ModelSpec(name="m", path=str(tmp_path / "m[1]")), placement)
    for _ in range(2):
        assert model.infer({"x": X})["y"].tolist() == [b"bird"]


# In a daemon and in the tools; for `doctor` and `compare` see test_doctor.py and test_compare.py.

MODELS = """
models:
  - {name: pb, path: resnet.pb}
  - {name: h5, path: m.h5}
  - {name: versions, path: v.keras, versions: all}
  - {name: brackets, path: "m[12]"}
  - {name: later, path: later.pbtxt, load_at_startup: false, devices: [cpu:0]}
  - {name: archive, path: archive.pb}
"""
CONFIG = 'listen: ["{endpoint}"]\ndevices: [cpu:0, [cpu:1, cpu:2]]\nspares: 0\n' + MODELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("misleading")
    for number, name in enumerate(("resnet.pb", "m.h5", "v.keras/1", "v.keras/2", "m[12]", "later.pbtxt"), 1):
        saved(folder / name, float(number))
    write("keras", folder / "archive.pb")
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Running]:
    with Running(folder, CONFIG) as running:
        yield running.wait_ready()
        assert running.end() == 0


def test_single_devices_and_groups_serve_them(daemon: Running) -> None:
    slots = daemon.status()["slots"]
    assert [slot["state"] for slot in slots] == ["ready", "ready"]
    assert {model["cause"] for slot in slots for model in slot["models"]} == {None}
    with daemon.client() as client:
        for model, version, factor in (("pb", "", 1), ("h5", "", 2), ("versions", "1", 3), ("versions", "2", 4)):
            assert client.infer(model, {"x": X}, version=version)["y"].tolist() == [[factor, 2 * factor]]
        assert client.infer("brackets", {"x": X})["y"].tolist() == [[5, 10]]
        assert client.infer("archive", {"x": X})["y"].tolist() == [[9]]
        platforms = {name: client.metadata(name)["platform"] for name in ("pb", "versions", "archive")}
    assert platforms == {"pb": "tensorflow_savedmodel", "versions": "tensorflow_savedmodel", "archive": "keras"}


def test_load_takes_one_of_them(daemon: Running) -> None:
    done = multitower("load", "later", daemon=daemon)
    assert done.returncode == 0, done.stderr
    with daemon.client() as client:
        assert client.infer("later", {"x": X})["y"].tolist() == [[6, 12]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multitower", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def test_check_and_convert_config_accept_them(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "x.yaml").write_text("devices: {cpu: 1}\n" + MODELS)
    done = run("check", str(tmp_path / "copy" / "x.yaml"))
    assert done.returncode == 0, done.stderr
    served = " ".join(
        f'config {{ name: "m{number}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
        for number, name in enumerate(("resnet.pb", "v.keras", "m[12]"))
    )
    (tmp_path / "models.config").write_text(f"model_config_list {{ {served} }}")
    converted = run("convert-config", str(tmp_path / "models.config"))
    assert converted.returncode == 0, converted.stderr
    assert converted.stdout.count("path:") == 3
    (tmp_path / "converted.yaml").write_text(converted.stdout)
    assert run("check", str(tmp_path / "converted.yaml")).returncode == 0
