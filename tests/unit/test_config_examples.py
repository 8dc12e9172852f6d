"""configs/ and docs/configuration.md match the code."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made_security import PRINCIPALS, SERVER_KEY, make_security, write_certificate

from multitower.cli.keys import keys
from multitower.errors import InvalidRequest
from multitower.exit_codes import Exit
from multitower.supervisor.config import overrides as config_overrides
from multitower.supervisor.config.config import Config, schema
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.principals import Role
from multitower.supervisor.config.source import ConfigError
from multitower.supervisor.config.yaml_reader import Reader

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
TUNING = ROOT / "configs" / "tuning.yaml"
MODELS = ["digits", "sentences"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The examples, beside the models that they name."""
    folder = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", folder, ignore=shutil.ignore_patterns("models"))
    for name in MODELS:
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "1" / "saved_model.pb").touch()
    make_security(folder)
    (folder / "client_ca.pem").write_text(write_certificate(folder)[0].read_text())
    return folder


def plain(text: str) -> Any:
    return Reader("x.yaml").read(text).plain()


@pytest.mark.parametrize("name", [path.name for path in CONFIGS])
def test_every_example_loads(folder: Path, name: str) -> None:
    config = load(folder / name, environment={})
    assert {model.path.name for model in config.models if model.path is not None} <= set(MODELS)


def test_the_commands_in_the_locked_example_make_what_it_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / SERVER_KEY).unlink()
    (folder / PRINCIPALS).unlink()
    monkeypatch.chdir(folder)
    commands = re.findall(r"^#   multitower keys (.+)$", (folder / "locked.yaml").read_text(), re.MULTILINE)
    for command in commands:
        done = CliRunner().invoke(keys, shlex.split(command))
        assert done.exit_code == 0, done.output
    found = load("locked.yaml", environment={}).principals
    assert found is not None
    service, dashboard = found.by_name["checkout-service"], found.by_name["dashboard"]
    assert (service.roles, service.models) == ({Role.INFER}, ("digits",))
    assert (dashboard.roles, dashboard.public_keys, dashboard.token_hashes) == ({Role.OBSERVE}, (), ())


def test_without_a_lock_no_address_of_the_locked_example_is_accepted(folder: Path) -> None:
    def refused(**changes: Any) -> str:
        locked = plain((folder / "locked.yaml").read_text()) | changes
        (folder / "open.yaml").write_text(json.dumps({key: value for key, value in locked.items() if value}))
        with pytest.raises(ConfigError) as error:
            load(folder / "open.yaml", environment={})
        return str(error.value)

    for key in ("listen[0]", "gateway.http", "gateway.grpc"):
        assert f" {key}: " in refused(security=None)
    assert "add gateway.tls" in refused(gateway={"http": "0.0.0.0:8000"})


def test_the_document_names_all_examples() -> None:
    assert set(re.findall(r"\]\(\.\./configs/(\w+\.yaml)\)", DOCUMENT)) == {path.name for path in CONFIGS}


def test_the_shortest_example_has_five_lines() -> None:
    text = (ROOT / "configs" / "minimal.yaml").read_text()
    assert len(text.splitlines()) == 5
    assert text in DOCUMENT


def test_the_values_in_tuning_are_the_defaults(folder: Path) -> None:
    (folder / "least.yaml").write_text("models: [{name: digits, path: models/digits}]\n")
    least, tuning = (load(folder / name, environment={}) for name in ("least.yaml", "tuning.yaml"))
    for key in Config.model_fields:
        assert getattr(tuning, key) == getattr(least, key)


SCHEMA = schema()


def leaves(part: Any = SCHEMA, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema that is not a section, with its part of the schema."""
    if "$ref" in part:
        part = SCHEMA["$defs"][part["$ref"].rpartition("/")[2]]
    if "properties" in part:
        for name, inner in part["properties"].items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif "$ref" in part.get("items", {}):
        yield from leaves(part["items"], f"{path}[]")
    else:
        yield path, part


LEAVES = dict(leaves())


def test_the_walk_over_the_schema_finds_keys_at_every_depth() -> None:
    assert {"listen", "threads.intra_op", "restart.backoff.max", "models[].queue.timeout"} <= set(LEAVES)


def rows() -> dict[str, list[str]]:
    """The tables of the document: key, then type, default and meaning."""
    found = {}
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"`[a-z_.\[\]]+`", cells[0]) and len(cells) == 4:
            found[cells[0].strip("`")] = cells[1:]
    return found


@pytest.mark.parametrize("key", LEAVES)
def test_the_document_lists_every_key_with_its_default(key: str) -> None:
    _, default, meaning = rows()[key]
    assert len(meaning) > 10
    if "default" in LEAVES[key]:
        assert plain(f"x: {default.strip('`')}")["x"] == LEAVES[key]["default"]
    elif key == "models[].parameters":
        assert default == "`{}`"
    else:
        assert default in ("", "required")


def test_the_document_lists_no_unknown_key() -> None:
    assert set(rows()) - set(LEAVES) == {"devices.cpu"}


COMMENTED = ("gateway", "request_log", "security", "tracing")
"""Sections that are commented out in tuning.yaml: there are none by default."""


@pytest.mark.parametrize("key", [key for key in LEAVES if key.partition(".")[0] not in COMMENTED])
def test_tuning_lists_every_key_with_its_default(key: str) -> None:
    if "default" not in LEAVES[key] and key not in ("models[].name", "models[].path"):
        assert re.search(rf"^\s*# {key.rpartition('.')[2]}: ", TUNING.read_text(), re.MULTILINE)
        return
    value = plain(TUNING.read_text())
    for step in key.replace("[]", ".0").split("."):
        value = value[int(step) if step.isdecimal() else step]
    assert value == LEAVES[key].get("default", value)


@pytest.mark.parametrize("title", COMMENTED)
def test_a_commented_section_of_tuning_has_every_key_with_its_default(title: str) -> None:
    commented = re.search(rf"^# {title}:\n(#   .*\n)+", TUNING.read_text(), re.MULTILINE)
    assert commented is not None
    flat = flatten(plain(re.sub(r"^# ?", "", commented[0], flags=re.MULTILINE))[title])
    keys = [key for key in LEAVES if key.startswith(f"{title}.")]
    for name, part in ((key.removeprefix(f"{title}."), LEAVES[key]) for key in keys):
        value = flat.pop(name)
        assert value == part.get("default", value)
    assert flat == {}


def flatten(section: dict[str, Any]) -> dict[str, Any]:
    """The keys of a section and of those in it, as `curve.secret_key`."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": each for inner, each in flatten(value).items()}
        else:
            found[name] = value
    return found


def test_the_document_lists_every_exit_code() -> None:
    section = DOCUMENT.partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == {*Exit}


def test_the_overrides_of_the_document_work(folder: Path) -> None:
    found = re.findall(r"^(MULTITOWER_\w+)=('[^']*'|\S+)|--set ('[^']*'|\S+)", DOCUMENT, re.MULTILINE)
    environment = {name: value.strip("'") for name, value, _ in found if name}
    overrides = [override.strip("'") for _, _, override in found if override]
    assert len(environment) == 2
    assert len(overrides) == 2
    config = load(folder / "minimal.yaml", environment=environment, overrides=overrides)
    assert config.restart.window == 30
    assert config.devices == (0, 1)
    assert config_overrides.PREFIX in DOCUMENT


def handler_of(config: Path, device: str) -> Any:
    """The handler of an example, loaded as a worker does it."""
    model = load(config, environment={}).models[0]
    assert model.handler is not None
    module_name, _, name = model.handler.partition(":")
    spec = importlib.util.spec_from_file_location(f"example_{module_name}", config.parent / f"{module_name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = getattr(module, name)()
    handler.load([device], model.parameters)
    return handler


def test_the_example_of_a_handler_works_as_described(folder: Path) -> None:
    handler = handler_of(folder / "handler.yaml", "cpu:0")

    images = np.zeros((2, 130, 33, 3), np.uint8)
    images[0, :65] = 200
    images[1, ..., 2] = 100
    thumbnails = handler.infer({"images": images})["thumbnails"]
    assert thumbnails.shape == (2, 64, 33, 3)
    assert thumbnails.dtype == np.uint8
    assert (thumbnails[0, :32] == 200).all()
    assert (thumbnails[0, 33:] == 0).all()
    assert (thumbnails[1] == [0, 0, 100]).all()
    small = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert (handler.infer({"images": small})["thumbnails"] == small).all()
    with pytest.raises(ValueError, match="without pixels"):
        handler.infer({"images": images[:, :0]})


class Tensor:
    """As much of a tensor of PyTorch as the example uses; its values are numpy's."""

    def __init__(self, array: np.ndarray, device: str) -> None:
        self.array, self.device = array.copy(), device

    def cpu(self) -> Tensor:
        return Tensor(self.array, "cpu")

    def numpy(self) -> np.ndarray:
        assert self.device == "cpu", "of a GPU's tensor there is no array"
        return self.array


def stand_in_for_torch(program: Any) -> dict[str, ModuleType]:
    """The functions of PyTorch that the example calls, by module; it is too large to be installed for one test."""

    def move(file: str, device: str) -> SimpleNamespace:
        def module(*tensors: Tensor) -> Any:
            assert {tensor.device for tensor in tensors} == {device}
            results = program(Path(file).name, *(tensor.array for tensor in tensors))
            wrapped = [Tensor(result, device) for result in results]
            return wrapped if len(wrapped) > 1 else wrapped[0]

        return SimpleNamespace(module=lambda: module)

    names = ("torch", "torch.export", "torch.export.passes")
    modules: list[Any] = [ModuleType(name) for name in names]
    torch, export, passes = modules
    torch.tensor = Tensor
    torch.inference_mode = contextlib.nullcontext
    torch.export = export
    export.load = lambda file: file
    # `import torch` alone does not bring this one.
    passes.move_to_device_pass = move
    return dict(zip(names, modules, strict=True))


@pytest.mark.parametrize("device", ["cpu:0", "GPU-8f3a"])
def test_the_example_of_pytorch_takes_and_returns_arrays(
    device: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def program(file: str, features: np.ndarray) -> list[np.ndarray]:
        asked.append(file)
        return [features * 2]

    for name, module in stand_in_for_torch(program).items():
        monkeypatch.setitem(sys.modules, name, module)
    handler = handler_of(folder / "pytorch.yaml", device)
    features = np.float32([[1, 2]])
    features.flags.writeable = False
    assert handler.infer({"features": features})["scores"].tolist() == [[2, 4]]
    assert asked == ["classifier.pt2"]
    with pytest.raises(InvalidRequest, match="the inputs features are missing"):
        handler.infer({"x": features})
