"""Which of the configured models and devices are on this machine now, and why others are not. It may block.

A missing model or device may appear later: its file system is mounted, its files are copied, its driver is loaded. The
daemon serves the others meanwhile, and waits for it (`operations/presence_watch.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from .config.config import Config, ModelConfig
from .config.value_syntax import parse_file, parse_model_path
from .config.version_folders import versions_of
from .machine.devices import Discovery, Group, MissingDevicesError, resolve, without_entries

MODEL: Final = "model"
DEVICES: Final = "devices"

Kind: TypeAlias = Literal["model", "devices"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that is configured but not there yet.

    Attributes:
        kind: `model` or `devices`.
        name: the model's name; for devices `devices`.
        cause: why it cannot be used now, for people.
        for_devices: a model whose files are there, but none of its devices.
    """

    kind: Kind
    name: str
    cause: str
    for_devices: bool = False


def without_devices(name: str, missing: Waiting) -> Waiting:
    """Returns what is waited for where the files of a model are there, but none of its devices."""
    return Waiting(MODEL, name, f"its devices are missing: {missing.cause}", for_devices=True)


def why_absent(model: ModelConfig, folder: Path) -> str | None:
    """Returns why the files of a model cannot be loaded now, for people; None if they are there.

    Args:
        model: the model.
        folder: of its configuration.
    """
    try:
        if model.path is not None:
            parse_model_path(str(model.path), folder)
            existing = versions_of(model.path)
            if existing is not None and not model.versions.choose(existing):
                listed = ", ".join(map(str, model.versions.listed))
                return f"{model.path} has none of the versions {listed}"
        if model.warmup is not None:
            parse_file(str(model.warmup), folder, ".npz", "inputs")
        for library in model.custom_ops:
            parse_file(str(library), folder, ".so", "operations")
    except (ValueError, OSError) as error:
        return str(error)
    return None


def present_devices(config: Config, discovery: Discovery) -> tuple[tuple[Group, ...], Config, Waiting | None]:
    """Returns the devices that are there, the configuration as far as it concerns them, and what is missing.

    Raises:
        DeviceError: the configuration uses devices in an impossible way.
    """
    try:
        return resolve(config.devices, discovery), config, None
    except MissingDevicesError as error:
        remedy = [error.context] if config.devices == "all" else []
        waiting = Waiting(DEVICES, DEVICES, " ".join([*error.problems, *remedy]))
        missing: Collection[int | str] = error.entries
    if config.devices == "all" or not isinstance(config.devices, tuple):
        return (), config, waiting
    listed = without_entries(config.devices, missing)
    groups = resolve(listed, discovery) if listed else ()
    models = tuple(model for model in (_on_present(model, discovery) for model in config.models) if model is not None)
    return groups, config.model_copy(update={"models": models}), waiting


def _on_present(model: ModelConfig, discovery: Discovery) -> ModelConfig | None:
    """Returns the model with those of its devices that are there; None without any."""
    if model.devices == "all":
        return model
    try:
        resolve(model.devices, discovery)
    except MissingDevicesError as error:
        listed = without_entries(model.devices, error.entries)
        return model.model_copy(update={"devices": tuple(listed)}) if listed else None
    return model
