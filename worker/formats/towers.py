"""Which device each node of a graph is to be on, and on which it has really run. Pure, on TensorFlow's messages.

A worker that is given several devices holds a *tower* on each: a replica of the model, whose whole graph, function
library included, is assigned to that device, in a session of its own. Soft placement lets what has no kernel there run
on the CPU instead; a traced run tells what that was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from multitower.spec import TowerReport

AS_SAVED: Final = "as_saved"
"""The value of `placement` that leaves a graph's own devices alone."""

_MOVES: Final = frozenset(("_Arg", "_Retval", "_Send", "_Recv", "_HostSend", "_HostRecv", "NoOp"))
"""What TensorFlow puts in itself: the way of tensors to the graph, from it, and from device to device."""


@dataclass(frozen=True, slots=True)
class TowerPlacement:
    """Where a replica of a model is.

    Attributes:
        devices: the worker's, as the configuration names them, in TensorFlow's order.
        index: of the replica's device; None where the graph's own devices are left alone, and it may use all.
        log: the name of the model, where the device of each of its nodes is to be logged; else empty.
    """

    devices: tuple[str, ...]
    index: int | None = None
    log: str = ""

    @property
    def name(self) -> str:
        """The device's name, or those of all."""
        return ",".join(self.devices) if self.index is None else self.devices[self.index]

    @property
    def device(self) -> str | None:
        """TensorFlow's name of it; None where there is not one alone."""
        if self.index is None:
            return None
        return f"/device:{_kind(self.devices)}:{self.index}"


def tower_placements(devices: Sequence[str], placement: str, log: str = "") -> list[TowerPlacement]:
    """Where the replicas of a model are to be: one on each device, or a single one that may use all."""
    names = tuple(devices)
    if placement == AS_SAVED:
        return [TowerPlacement(names, None, log)]
    return [TowerPlacement(names, index, log) for index in range(len(names))]


def assign(graph: Any, device: str) -> None:
    """Puts every node of a GraphDef, and of all functions in its library, on a device."""
    for node in _nodes(graph):
        node.device = device


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def nodes_of(metadata: Any) -> dict[str, tuple[str, str]]:
    """The nodes of a traced run by name: operation and device, in TensorFlow's words.

    The graphs that TensorFlow made for each device have all nodes, also of branches that were not taken; functions
    that stayed functions show in the steps alone.

    Args:
        metadata: RunMetadata with the partition graphs and the steps of the devices.
    """
    found: dict[str, tuple[str, str]] = {}
    for graph in metadata.partition_graphs:
        for node in graph.node:
            found[node.name] = node.op, node.device
    for device in metadata.step_stats.dev_stats:
        for step in device.node_stats:
            # `name = Operation(inputs)`; streams of a GPU tell of kernels, not of nodes.
            name, _, rest = step.timeline_label.partition(" = ")
            if rest:
                found.setdefault(name, (rest.partition("(")[0], device.device))
    return {name: location for name, location in found.items() if location[0] not in _MOVES}


def where(nodes: Mapping[str, tuple[str, str]], placement: TowerPlacement) -> TowerReport:
    """What `nodes_of` has found, counted.

    Args:
        nodes: operation and device of each.
        placement: where they were to be.
    """
    counts: dict[str, int] = {}
    fallbacks: dict[str, int] = {}
    for operation, device in nodes.values():
        name = _name_of(device, placement.devices)
        counts[name] = counts.get(name, 0) + 1
        if placement.index is not None and name != placement.name:
            fallbacks[operation] = fallbacks.get(operation, 0) + 1
    return TowerReport(device=placement.name, nodes=_sorted(counts), fallbacks=_sorted(fallbacks))


def _name_of(device: str, devices: Sequence[str]) -> str:
    """A device of TensorFlow's as the configuration names it; `cpu` where the worker's devices are GPUs."""
    kind, _, number = device.rpartition("device:")[2].partition(":")
    if kind == _kind(devices) and number.isdecimal() and int(number) < len(devices):
        return devices[int(number)]
    return kind.lower()


def _kind(devices: Sequence[str]) -> str:
    return "CPU" if devices[0].startswith("cpu") else "GPU"


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
