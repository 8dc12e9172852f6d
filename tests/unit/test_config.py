"""Valid configurations: the values of keys, and their defaults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multitower.spec import ModelSpec
from multitower.supervisor.config.config import Config, MemoryLimit, schema
from multitower.supervisor.config.loading import load
from multitower.wire import DEFAULT_ENDPOINT

MODEL = "models: [{name: digits, path: digits}]\n"
HANDLER = "models: [{name: h, handler: 'my.module:Class'}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "saved_model.pb").touch()
    return tmp_path


def loaded(folder: Path, text: str) -> Config:
    file = folder / "config.yaml"
    file.write_text(text)
    return load(file, environment={})


def test_one_model_is_a_complete_configuration(folder: Path) -> None:
    config = loaded(folder, MODEL)
    assert config.listen == (DEFAULT_ENDPOINT,)
    assert config.insecure is False
    assert config.devices == "all"
    assert config.workers_per_device == 1
    assert config.memory == MemoryLimit()
    assert (config.threads.intra_op, config.threads.inter_op) == ("auto", "auto")
    assert config.cores == "auto"
    assert config.spares == 1
    assert (config.restart.max_restarts, config.restart.window) == (5, 60.0)
    assert (config.restart.backoff.first, config.restart.backoff.max) == (0.5, 30.0)
    assert config.exit_when_failed is False
    assert config.runtime_dir is None
    assert config.drain_timeout == 30.0
    assert config.max_message_size == 64 << 20
    assert (config.max_unread_bytes, config.unread_timeout) == (2 << 30, 30.0)
    assert config.max_connections == "auto"
    (model,) = config.models
    assert (model.name, model.path, model.handler, model.signature) == ("digits", folder / "digits", None, None)
    assert model.parameters == {}
    assert model.batching is not None
    assert model.batching.max_batch_size == 32
    assert model.batching.allowed_batch_sizes == ()
    assert model.batching.max_queue_delay == 0.0
    assert (model.queue.max_size, model.queue.max_bytes, model.queue.timeout) == (1000, 512 << 20, 30.0)
    assert model.retry == 1


@pytest.mark.parametrize("name", ["config.yaml", "./config.yaml", "sub/../config.yaml"])
def test_paths_are_the_same_however_the_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder / "sub").mkdir()
    (folder / "config.yaml").write_text(MODEL)
    monkeypatch.chdir(folder)
    config = load(name, environment={})
    assert config.path.is_absolute()
    assert config.folder == config.path.parent
    assert config.folder.samefile(folder)
    assert config.models[0].path is not None
    assert config.models[0].path.samefile(folder / "digits")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("devices: [0, 2]", "devices", (0, 2)),
        ("devices: [[0, 1], [2, GPU-8f]]", "devices", ((0, 1), (2, "GPU-8f"))),
        ("devices: [MIG-5e0c, mig-GPU-8f/1/0, [MIG-9]]", "devices", ("MIG-5e0c", "mig-GPU-8f/1/0", ("MIG-9",))),
        ("devices: [0, [1, 2], cpu:0]", "devices", (0, (1, 2), "cpu:0")),
        ("devices: [[cpu:0, cpu:1], [cpu:2, cpu:255]]", "devices", (("cpu:0", "cpu:1"), ("cpu:2", "cpu:255"))),
        ("devices:\n- - cpu:0\n  - cpu:1", "devices", (("cpu:0", "cpu:1"),)),
        ("devices: [GPU-8f3a1c, gpu-2E77-00]", "devices", ("GPU-8f3a1c", "gpu-2E77-00")),
        ("workers_per_device: 3", "workers_per_device", 3),
        ("memory: 6GiB", "memory", MemoryLimit(size=6 << 30)),
        ("memory: 80%", "memory", MemoryLimit(fraction=0.8)),
        ("memory: 100%\nworkers_per_device: 2", "memory", MemoryLimit(fraction=1.0)),
        ("cores: split", "cores", "split"),
        ("spares: 0", "spares", 0),
        ("exit_when_failed: true", "exit_when_failed", True),
        ("drain_timeout: 0s", "drain_timeout", 0.0),
        ("max_message_size: 1KiB", "max_message_size", 1024),
        ("peer_timeout: 0", "peer_timeout", 0.0),
        ("peer_timeout: 2m", "peer_timeout", 120.0),
        ("spin: 50us", "spin", 0.00005),
        ("spin: 0", "spin", 0.0),
        ("listen: ['tcp://[::1]:*', tcp://localhost:1]", "listen", ("tcp://[::1]:*", "tcp://localhost:1")),
        ("listen: tcp://127.0.0.1:1", "listen", ("tcp://127.0.0.1:1",)),
        ("listen: [ipc:///run/front.sock]", "listen", ("ipc:///run/front.sock",)),
        ("insecure: true\nlisten: [tcp://*:5555]", "listen", ("tcp://*:5555",)),
        ("runtime_dir: /run/multitower", "runtime_dir", Path("/run/multitower")),
    ],
)
def test_values_of_the_daemon_are_parsed(folder: Path, text: str, key: str, value: object) -> None:
    assert getattr(loaded(folder, MODEL + text), key) == value


def test_cpu_devices_have_a_number(folder: Path) -> None:
    devices = loaded(folder, MODEL + "devices: {cpu: 2}").devices
    assert not isinstance(devices, str | tuple)
    assert devices.cpu == 2


def test_threads_are_numbers_or_auto(folder: Path) -> None:
    threads = loaded(folder, MODEL + "threads: {intra_op: 4}").threads
    assert (threads.intra_op, threads.inter_op) == (4, "auto")


def test_relative_paths_start_at_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (folder / "m.keras").touch()
    text = "models: [{name: a, path: ./m.keras}, {name: b, path: digits/../digits}]\nlisten: [ipc://run/front.sock]\n"
    config = loaded(folder, text)
    assert [model.path for model in config.models] == [folder / "m.keras", folder / "digits"]
    assert config.listen == (f"ipc://{folder}/run/front.sock",)


def test_a_folder_of_versions_is_a_model(folder: Path) -> None:
    (folder / "versions" / "3").mkdir(parents=True)
    (folder / "versions" / "3" / "saved_model.pbtxt").touch()
    (folder / "versions" / "notes").mkdir()
    config = loaded(folder, "models: [{name: a, path: versions}]")
    assert config.models[0].path == folder / "versions"


SPEC = ModelSpec(name="h", handler="my.module:Class")


@pytest.mark.parametrize(
    ("more", "spec"),
    [
        ("", {}),
        (", parameters: {size: 2, deep: [{a: null}]}", {"parameters": {"size": 2, "deep": [{"a": None}]}}),
        (", batching: {}", {"max_batch_size": 32}),
        (", batching: {max_batch_size: 0}", {"max_batch_size": 0}),
        (
            ", batching: {pad_variable_length_inputs: true}",
            {"max_batch_size": 32, "pad_variable_length_inputs": True},
        ),
        (", batching: {trust: true}", {"max_batch_size": 32, "trust_batching": True}),
        (
            ", batching: {max_batch_size: 4, allowed_batch_sizes: [1, 4]}",
            {"max_batch_size": 4, "allowed_batch_sizes": (1, 4)},
        ),
    ],
)
def test_a_handler_is_described_to_workers(folder: Path, more: str, spec: dict[str, Any]) -> None:
    model_spec = loaded(folder, HANDLER.replace("}", more + "}")).models[0].to_spec()
    assert model_spec == replace(SPEC, **spec)
    assert ModelSpec.from_dict(json.loads(model_spec.to_json())) == model_spec, "it is the same after serialisation"


def test_a_handler_may_be_a_nested_class(folder: Path) -> None:
    assert loaded(folder, HANDLER.replace("Class", "Outer.Inner")).models[0].handler == "my.module:Outer.Inner"


def test_a_path_is_described_to_workers(folder: Path) -> None:
    model = loaded(folder, "models: [{name: a, path: digits, signature: serve, tags: [serve, gpu]}]").models[0]
    assert model.to_spec() == ModelSpec(
        name="a", path=str(folder / "digits"), signature="serve", tags=("serve", "gpu"), max_batch_size=32
    )
    assert ModelSpec.from_dict(json.loads(model.to_spec().to_json())) == model.to_spec()


def test_warm_up_and_xla_are_described_to_workers(folder: Path) -> None:
    (folder / "w.npz").touch()
    more = "warmup: w.npz, jit_compile: true, placement: as_saved, log_device_placement: true"
    sizes = "{max_batch_size: 2, allowed_batch_sizes: [1, 2]}"
    for batching, largest in ((sizes, 2), ("{max_batch_size: 0}", 0)):
        model_spec = (
            loaded(folder, f"models: [{{name: a, path: digits, {more}, batching: {batching}}}]").models[0].to_spec()
        )
        assert (model_spec.warmup, model_spec.jit_compile, model_spec.max_batch_size) == (
            str(folder / "w.npz"),
            True,
            largest,
        )
        assert (model_spec.placement, model_spec.log_device_placement) == ("as_saved", True)


def test_libraries_of_custom_operations_are_described_to_workers(folder: Path) -> None:
    for name in ("a.so", "b.so"):
        (folder / name).touch()
    spec = loaded(folder, "models: [{name: a, path: digits, custom_ops: [b.so, ./a.so]}]").models[0].to_spec()
    assert spec.custom_ops == (str(folder / "b.so"), str(folder / "a.so")), "in the order of the file"
    assert ModelSpec.from_dict(json.loads(spec.to_json())) == spec, "it is the same after serialisation"


def test_a_frozen_graph_is_described_to_workers(folder: Path) -> None:
    (folder / "frozen.pb").touch()
    names = 'inputs: {x: "x:0"}, outputs: {scores: "softmax:0", best: top}'
    model_spec = loaded(folder, f"models: [{{name: a, path: frozen.pb, {names}}}]").models[0].to_spec()
    assert model_spec == ModelSpec(
        name="a",
        path=str(folder / "frozen.pb"),
        inputs={"x": "x:0"},
        outputs={"scores": "softmax:0", "best": "top"},
        max_batch_size=32,
    )
    assert ModelSpec.from_dict(json.loads(model_spec.to_json())) == model_spec, "it is the same after serialisation"


def test_a_configuration_cannot_be_changed(folder: Path) -> None:
    config = loaded(folder, MODEL)
    with pytest.raises(ValueError, match="frozen"):
        config.spares = 5  # type: ignore[misc]


def test_the_schema_describes_every_key_and_has_no_null() -> None:
    def walk(part: Any, path: str) -> None:
        if isinstance(part, dict):
            for name, inner in part.get("properties", {}).items():
                described = "description" in inner or "$ref" in inner
                assert described, f"{path}.{name} has no description"
                assert "title" not in inner
                assert inner.get("default", "") is not None
            for name, inner in part.items():
                walk(inner, f"{path}.{name}")
        elif isinstance(part, list):
            for inner in part:
                walk(inner, path)
        else:
            assert part is not None

    tree = schema()
    assert tree["$schema"].endswith("2020-12/schema")
    assert tree["additionalProperties"] is False
    assert tree["required"] == ["models"]
    walk(tree, "")
