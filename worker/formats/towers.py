"""Which device each node of a graph is assigned to, and on which it ran. Pure: works on TensorFlow's messages.

A worker of several devices holds a *tower* on each: a replica of the model, whose whole graph, including its function
library, is assigned to that device, in a session of its own. Soft placement runs nodes that have no kernel there on the
CPU; a traced run shows which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from multitower.spec import TowerReport

AS_SAVED: Final = "as_saved"
"""The value of `placement` that keeps the devices that the graph itself names."""

_TRANSFERS: Final = frozenset(("_Arg", "_Retval", "_Send", "_Recv", "_HostSend", "_HostRecv", "NoOp"))
"""Nodes that TensorFlow adds: they move tensors to the graph, from it, and from device to device."""


@dataclass(frozen=True, slots=True)
class TowerPlacement:
    """The device of a replica.

    Attributes:
        devices: the worker's devices, as the configuration names them, in TensorFlow's order.
        index: the index of the replica's device; None where the graph keeps its own devices and may use all.
        log: the model's name, if the device of each node is to be logged; else empty.
    """

    devices: tuple[str, ...]
    index: int | None = None
    log: str = ""

    @property
    def name(self) -> str:
        """The device's name, or the names of all devices."""
        return ",".join(self.devices) if self.index is None else self.devices[self.index]

    @property
    def device(self) -> str | None:
        """TensorFlow's name of the device; None where the replica may use all."""
        if self.index is None:
            return None
        return f"/device:{_kind(self.devices)}:{self.index}"


def tower_placements(devices: Sequence[str], placement: str, log: str = "") -> list[TowerPlacement]:
    """The placements of a model's replicas: one on each device, or with `as_saved` a single one that may use all."""
    names = tuple(devices)
    if placement == AS_SAVED:
        return [TowerPlacement(names, None, log)]
    return [TowerPlacement(names, index, log) for index in range(len(names))]


def assign(graph: Any, device: str) -> None:
    """Assigns every node of a GraphDef, and of all functions in its library, to a device."""
    for node in _all_nodes(graph):
        node.device = device


def _all_nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def traced_nodes(metadata: Any) -> dict[str, tuple[str, str]]:
    """The nodes of a traced run by name: operation and device, in TensorFlow's terms.

    The graphs that TensorFlow made for each device contain all nodes, also of branches that were not taken. Functions
    that were not inlined appear in the steps only.

    Args:
        metadata: RunMetadata with the partition graphs and the steps of the devices.
    """
    found: dict[str, tuple[str, str]] = {}
    for graph in metadata.partition_graphs:
        for node in graph.node:
            found[node.name] = node.op, node.device
    for device in metadata.step_stats.dev_stats:
        for step in device.node_stats:
            # `name = Operation(inputs)`; the streams of a GPU list kernels, not nodes.
            name, _, rest = step.timeline_label.partition(" = ")
            if rest:
                found.setdefault(name, (rest.partition("(")[0], device.device))
    return {name: location for name, location in found.items() if location[0] not in _TRANSFERS}


def count_nodes(nodes: Mapping[str, tuple[str, str]], placement: TowerPlacement) -> TowerReport:
    """Counts the nodes of a traced run by device, and those that did not run on their tower's device by operation.

    Args:
        nodes: operation and device of each, from `traced_nodes`.
        placement: where they were to run.
    """
    counts: dict[str, int] = {}
    fallbacks: dict[str, int] = {}
    for operation, device in nodes.values():
        name = _configured_name(device, placement.devices)
        counts[name] = counts.get(name, 0) + 1
        if placement.index is not None and name != placement.name:
            fallbacks[operation] = fallbacks.get(operation, 0) + 1
    return TowerReport(device=placement.name, nodes=_sorted(counts), fallbacks=_sorted(fallbacks))


def _configured_name(device: str, devices: Sequence[str]) -> str:
    """The configuration's name of one of TensorFlow's devices; `cpu` where the worker's devices are GPUs."""
    kind, _, number = device.rpartition("device:")[2].partition(":")
    if kind == _kind(devices) and number.isdecimal() and int(number) < len(devices):
        return devices[int(number)]
    return kind.lower()


def _kind(devices: Sequence[str]) -> str:
    return "CPU" if devices[0].startswith("cpu") else "GPU"


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
