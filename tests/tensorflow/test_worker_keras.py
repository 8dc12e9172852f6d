"""Models in files of Keras: of Keras 3, of Keras 2, and HDF5 of either."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own, at its import
    import h5py
    import keras
    import tf_keras

    from multitower.worker.formats.keras2_model import Keras2Model
    from multitower.worker.formats.keras3_model import Keras3Model
    from multitower.worker.formats.saved_model import SavedModel

from multitower.spec import ModelSpec, TensorReport
from multitower.worker.formats.loader import load
from multitower.worker.formats.model import Model
from multitower.worker.model_errors import LoadError
from multitower.worker.warmup.warmup import warm_up

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def spec(path: Path | str, **more: Any) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), **more)


# Keras 3.


def kept(model: Any, folder: Path) -> Keras3Model:
    path = folder / "m.keras"
    model.save(path)
    return Keras3Model(spec(path))


def test_a_sequential_model_that_was_never_called_is_served(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Input((3,), name="features"), keras.layers.Dense(2, name="scores")])
    served = kept(model, tmp_path)
    assert served.inputs == (TensorReport(name="features", datatype="FP32", shape=(-1, 3)),)
    assert served.outputs == (TensorReport(name="scores", datatype="FP32", shape=(-1, 2)),)
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(served.infer({"features": x})["scores"], model(x).numpy(), rtol=1e-5)
    assert warm_up(served, spec("", max_batch_size=2))[:2] == (None, True)


def test_several_outputs_of_one_layer_are_numbered(tmp_path: Path) -> None:
    steps = keras.Input((4, 2), name="steps")
    model = keras.Model(steps, keras.layers.LSTM(3, return_state=True)(steps))
    served = kept(model, tmp_path)
    assert [tensor.name for tensor in served.outputs] == ["output_0", "output_1", "output_2"]
    x = np.ones((2, 4, 2), np.float32)
    for output, direct in zip(served.infer({"steps": x}).values(), model(x), strict=True):
        np.testing.assert_allclose(output, direct.numpy(), rtol=1e-5)


@pytest.mark.parametrize("nested", [dict, list, tuple])
def test_outputs_have_the_keys_of_the_models_dict(nested: Any, tmp_path: Path) -> None:
    left, right = keras.Input((1,), name="left"), keras.Input((1,), name="right")
    sums = keras.layers.Add(name="sums")([left, right])
    gaps = keras.layers.Subtract(name="gaps")([right, left])
    inputs = {"left": left, "right": right} if nested is dict else nested([right, left])
    served = kept(keras.Model(inputs, {"total": sums, "difference": gaps}), tmp_path)
    answer = served.infer({"left": np.float32([[1]]), "right": np.float32([[5]])})
    assert {name: array.tolist() for name, array in answer.items()} == {"total": [[6]], "difference": [[4]]}
    assert {tensor.name for tensor in served.inputs} == {"left", "right"}


def test_a_sparse_keras_input_is_refused(tmp_path: Path) -> None:
    tags = keras.Input((4,), sparse=True, name="tags")
    with pytest.raises(LoadError, match="'tags' is sparse"):
        kept(keras.Model(tags, keras.layers.Dense(2)(tags)), tmp_path)


def test_a_keras_model_without_fixed_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="never built"):
        kept(keras.Sequential([keras.layers.Dense(2)]), tmp_path)


def test_keras_with_another_backend_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(LoadError, match="set to jax: set KERAS_BACKEND=tensorflow"):
        Keras3Model(spec(tmp_path / "m.keras"))


def test_code_in_a_keras_3_file_is_not_run(tmp_path: Path) -> None:
    x = keras.Input((1,))
    with pytest.raises(ValueError, match="unsafe"):
        kept(keras.Model(x, keras.layers.Lambda(lambda value: value + 1)(x)), tmp_path)


def test_a_model_exported_by_keras_is_served_as_a_saved_model(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Input((3,), name="features"), keras.layers.Dense(2)])
    model.export(tmp_path / "m", verbose=False)
    served = SavedModel(spec(tmp_path / "m"))
    x = np.float32([[1, 2, 3]])
    (name,) = [tensor.name for tensor in served.inputs]
    (output,) = served.infer({name: x}).values()
    np.testing.assert_allclose(output, model(x).numpy(), rtol=1e-5)


# Files of Keras 2, and HDF5 of either.


def kept_h5(model: Any, folder: Path, suffix: str = ".h5") -> Model:
    path = folder / f"m{suffix}"
    model.save(path)
    return load(spec(path), ["cpu:0"])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_of_keras_3_are_served(suffix: str, tmp_path: Path) -> None:
    layers = keras.layers
    network = keras.Sequential([layers.Input((3,), name="features"), layers.Dense(2, "hard_sigmoid", name="scores")])
    served = kept_h5(network, tmp_path, suffix)
    assert isinstance(served, Keras3Model)
    assert served.inputs == (TensorReport(name="features", datatype="FP32", shape=(-1, 3)),)
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(served.infer({"features": x})["scores"], network(x).numpy(), rtol=1e-5)


KERAS_2: dict[str, Callable[[Any], Any]] = {
    "a function that is another in Keras 3": lambda layers: layers.Dense(4, "hard_sigmoid"),
    "of the same name inside a cell": lambda layers: layers.LSTM(4, recurrent_activation="hard_sigmoid"),
    "one that Keras 3 refuses": lambda layers: layers.GRU(4),
    "one that both read": lambda layers: layers.Dense(4, "tanh"),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("layer", KERAS_2)
def test_files_of_keras_2_compute_what_keras_2_computes(layer: str, suffix: str, tmp_path: Path) -> None:
    network = tf_keras.Sequential([tf_keras.Input((5, 3), name="steps"), KERAS_2[layer](tf_keras.layers)])
    served = kept_h5(network, tmp_path, suffix)
    x = np.linspace(-3, 3, 30, dtype=np.float32).reshape(2, 5, 3)
    (output,) = served.infer({"steps": x}).values()
    np.testing.assert_allclose(output, network(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", ["2.2.4", b"2.2.4", None])
def test_files_of_early_keras_versions_are_served(version: str | bytes | None, tmp_path: Path) -> None:
    """Keras 2.2 wrote no `time_major`, which Keras 3 requires of an LSTM; and its first releases wrote no version."""
    path = tmp_path / "m.h5"
    cell = tf_keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")
    network = tf_keras.Sequential([tf_keras.Input((5, 3), name="steps"), cell])
    network.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"time_major": false, ', "")
        assert "time_major" not in file.attrs["model_config"]
        del file.attrs["keras_version"]
        if version is not None:
            file.attrs["keras_version"] = version
    x = np.linspace(-3, 3, 30, dtype=np.float32).reshape(2, 5, 3)
    served = load(spec(path), ["cpu:0"])
    (output,) = served.infer({"steps": x}).values()
    np.testing.assert_allclose(output, network(x).numpy(), rtol=1e-5, atol=1e-6)


def test_an_hdf5_file_named_keras_is_read_by_keras_2(tmp_path: Path) -> None:
    network = tf_keras.Sequential([tf_keras.Input((3,), name="x"), tf_keras.layers.Dense(2, name="y")])
    network.save(tmp_path / "m.h5")
    (tmp_path / "m.h5").rename(tmp_path / "m.keras")
    assert isinstance(load(spec(tmp_path / "m.keras"), ["cpu:0"]), Keras2Model)


def recurrent() -> Any:
    """Two inputs of different datatypes, two outputs."""
    steps, extra = tf_keras.Input((5, 3), name="steps"), tf_keras.Input((2,), name="extra", dtype="float16")
    last = tf_keras.layers.LSTM(4, name="last")(steps)
    cast = tf_keras.layers.Activation("linear", dtype="float32")(extra)
    return tf_keras.Model([steps, extra], [last, tf_keras.layers.Concatenate(name="all")([last, cast])])


def test_names_and_shapes_of_a_keras_2_model(tmp_path: Path) -> None:
    network = recurrent()
    served = kept_h5(network, tmp_path)
    assert isinstance(served, Keras2Model)
    assert served.inputs == (
        TensorReport(name="steps", datatype="FP32", shape=(-1, 5, 3)),
        TensorReport(name="extra", datatype="FP16", shape=(-1, 2)),
    )
    assert {tensor.name: tensor.shape for tensor in served.outputs or ()} == {"last": (-1, 4), "all": (-1, 6)}
    inputs = {"extra": np.ones((2, 2), np.float16), "steps": np.linspace(0, 1, 30, dtype="f").reshape(2, 5, 3)}
    answer = served.infer(inputs)
    last, everything = network([inputs["steps"], inputs["extra"]])
    np.testing.assert_allclose(answer["last"], last.numpy(), rtol=1e-5)
    np.testing.assert_allclose(answer["all"], everything.numpy(), rtol=1e-5)
    assert warm_up(served, spec("", max_batch_size=2))[:2] == (None, True)


def test_output_names_of_a_keras_2_model(tmp_path: Path) -> None:
    steps = tf_keras.Input((5, 3), name="steps")
    states = tf_keras.layers.GRU(4, return_state=True, name="states")(steps)
    served = kept_h5(tf_keras.Model(steps, states), tmp_path)
    assert [tensor.name for tensor in served.outputs or ()] == ["states", "states_1"], "as Keras 2 numbers them"
    served = kept_h5(tf_keras.Model(steps, {"sequence": states[0], "state": states[1]}), tmp_path)
    assert {tensor.name for tensor in served.outputs or ()} == {"sequence", "state"}
    single = tf_keras.Sequential([tf_keras.layers.Input((5, 3), name="steps"), tf_keras.layers.GRU(4, name="g")])
    assert kept_h5(single, tmp_path).infer({"steps": np.ones((1, 5, 3), np.float32)})["g"].shape == (1, 4)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_missing_tf_keras_is_an_error_that_names_it(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(LoadError, match=r"saved by Keras 2\.[0-9.]+, which computes some.*pip install tf-keras"):
        kept_h5(recurrent(), tmp_path, suffix)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_keras_2_file_is_not_run(suffix: str, tmp_path: Path) -> None:
    x = tf_keras.Input((1,))
    inner = tf_keras.Sequential([tf_keras.layers.Lambda(lambda value: value + 1)])
    with pytest.raises(LoadError, match="Lambda layer"):
        kept_h5(tf_keras.Model(x, inner(x)), tmp_path, suffix)


def test_code_in_an_h5_file_of_keras_3_is_not_run(tmp_path: Path) -> None:
    x = keras.Input((1,))
    with pytest.raises(ValueError, match=r"[Ll]ambda"):
        kept_h5(keras.Model(x, keras.layers.Lambda(lambda value: value + 1)(x)), tmp_path)


@pytest.mark.parametrize(
    ("module", "class_name", "name"),
    [
        ("builtins", "function", "print"),
        ("tests.fakes.handlers", "Counter", "Counter"),
        ("keras.src.utils.data_utils", "get_file", "get_file"),
        ("keras.src.utils.data_utils", "os.popen", "os.popen"),
    ],
)
def test_foreign_modules_named_by_a_keras_2_file_are_not_imported(
    module: str, class_name: str, name: str, tmp_path: Path
) -> None:
    network = tf_keras.Sequential([tf_keras.Input((3,), name="x"), tf_keras.layers.Dense(2, "tanh", name="y")])
    network.save(tmp_path / "m.h5")
    foreign = {"module": module, "class_name": class_name, "config": name, "registered_name": name}
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = file.attrs["model_config"].replace('"tanh"', json.dumps(foreign))
        file.attrs["model_config"] = config
    with pytest.raises(LoadError, match=f"needs '{class_name}' of '{module}', which is no layer of Keras"):
        load(spec(tmp_path / "m.h5"), ["cpu:0"])


def test_h5_files_without_a_model_are_an_error(tmp_path: Path) -> None:
    recurrent().save_weights(tmp_path / "w.h5")
    with pytest.raises(LoadError, match="holds weights alone"):
        load(spec(tmp_path / "w.h5"), ["cpu:0"])
    (tmp_path / "n.h5").write_bytes(b"no")
    with pytest.raises(LoadError, match="no HDF5 file"):
        load(spec(tmp_path / "n.h5"), ["cpu:0"])
    with zipfile.ZipFile(tmp_path / "z.keras", "w"):
        pass
    with pytest.raises(LoadError, match=r"nor a \.keras file: .*metadata\.json"):
        load(spec(tmp_path / "z.keras"), ["cpu:0"])
