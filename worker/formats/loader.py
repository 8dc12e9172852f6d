"""Loads models of any format: `multitower/format_registry.py` lists the formats, each with its module in this package.

A format's module has `load(spec, devices)`, which returns a `Model`; and, if the table says that it has towers,
`load_towers(spec, placements)`, which returns one `Model` for each placement. A module is imported when a model needs
it, so that a worker imports TensorFlow and Keras only where it serves models of theirs.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from multitower.spec import ModelSpec
from multitower.temporary_folder import temporary_folder

from ..model_errors import LoadError
from .model import Model
from .towers import TowerPlacement, tower_placements


class _FormatModule(Protocol):
    """A format's module."""

    def load(self, spec: ModelSpec, devices: Sequence[str]) -> Model:
        """Loads a model for a worker of one device; a handler gets all of them."""

    def load_towers(self, spec: ModelSpec, placements: Sequence[TowerPlacement]) -> list[Model]:
        """Loads a replica of a model for each placement."""


def load(spec: ModelSpec, devices: Sequence[str]) -> Model:
    """Loads one replica of a model.

    Args:
        spec: the model.
        devices: names of the worker's devices.

    Raises:
        LoadError: it cannot be served.
        BaseException: whatever the format's own code raises.
    """
    return _module_of(spec).load(spec, devices)


def load_replicas(spec: ModelSpec, devices: Sequence[str]) -> list[Model]:
    """Loads all replicas of a model that a worker of these devices holds.

    That is one for a worker of one device, and for formats without towers. With `placement: as_saved` it is one as
    well, which spans the devices.

    Raises:
        LoadError: it cannot be served.
        BaseException: whatever the format's own code raises.
    """
    if not spec.format.has_towers or (len(devices) == 1 and not spec.log_device_placement):
        return [load(spec, devices)]
    if spec.jit_compile:
        why = "log_device_placement looks at graphs" if len(devices) == 1 else "a worker of several devices runs graphs"
        raise LoadError(f"jit_compile: XLA compiles functions, but {why} in sessions")
    placements = tower_placements(devices, spec.placement, spec.name if spec.log_device_placement else "")
    return _module_of(spec).load_towers(spec, placements)


def preload() -> None:
    """Imports TensorFlow, which takes seconds: spares do it before they have an assignment.

    Meanwhile there is no garbage collection: it visits the thousands of new modules again and again, finds next to
    nothing, and takes a seventh of the import's CPU time.

    Raises:
        NoTemporaryFolderError: no folder for temporary files can be written; TensorFlow needs one.
        Exception: TensorFlow is not installed, or its installation is broken.
    """
    temporary_folder()
    gc.disable()
    try:
        import tensorflow  # noqa: F401  importing it is the purpose
    finally:
        gc.enable()


def _module_of(spec: ModelSpec) -> _FormatModule:
    return cast(_FormatModule, importlib.import_module(f"{__package__}.{spec.format.name}"))
