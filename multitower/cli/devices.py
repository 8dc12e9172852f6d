"""`multitower devices`: this machine's GPUs, by the names that a configuration may use, or why there is none."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from multitower.cli.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multitower.supervisor.machine.devices import Device, Discovery


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def devices(as_json: bool) -> None:
    """List this machine's GPUs, MIG slices and CPU cores.

    `devices` in the configuration takes an index or the beginning of a UUID from this list. A MIG slice is `in` the GPU
    of that index, and its only name is its UUID. No daemon is asked and no GPU is used.
    """
    from multitower.supervisor.machine.discovery import discover
    from multitower.supervisor.machine.process_limits import ProcessLimits

    discovery = discover()
    cores = sorted(ProcessLimits().cores())
    if as_json:
        print(_json(discovery, cores))
    else:
        _print(discovery, cores)


def _json(discovery: Discovery, cores: Sequence[int]) -> str:
    gpus = [
        {
            "index": gpu.index,
            "kind": gpu.kind,
            "uuid": gpu.name,
            "product": gpu.product,
            "memory_bytes": gpu.memory_bytes,
            "memory_used_bytes": gpu.memory_used_bytes,
            "pci_bus_id": gpu.pci_bus_id,
            "parent": gpu.parent.name if gpu.parent is not None else None,
            "numa_node": gpu.numa_node,
            "cores": gpu.cores,
        }
        for gpu in discovery.gpus
    ]
    return json.dumps({"gpus": gpus, "problem": discovery.problem, "cpu_cores": cores}, indent=2)


def _print(discovery: Discovery, cores: Sequence[int]) -> None:
    if discovery.gpus:
        _print_gpus(discovery.gpus)
    if discovery.problem is not None:
        print(f"{'Note' if discovery.gpus else 'No GPU found'}: {discovery.problem}.")
    if not discovery.gpus:
        print("To serve on the CPU, set devices: {cpu: 1}.")
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if inherited is not None:
        print(
            f"CUDA_VISIBLE_DEVICES={inherited} is set here, but does not limit multitower: "
            "name the GPUs in `devices` of the configuration."
        )
    print(f"CPU cores available: {len(cores)}")


def _print_gpus(gpus: Sequence[Device]) -> None:
    from multitower.supervisor.machine.cores import format_core_list
    from multitower.supervisor.machine.devices import format_bytes

    headings = [">Index", "UUID", "Product", ">Memory", ">Used", "PCI bus id"]
    with_cores = any(gpu.cores is not None for gpu in gpus)
    if with_cores:
        headings += [">Node", "Cores near"]
    rows: list[Sequence[object]] = []
    for gpu in gpus:
        cells: list[object] = [
            gpu.index if gpu.parent is None else f"in {gpu.parent.index}",
            gpu.name,
            gpu.product,
            format_bytes(gpu.memory_bytes),
            format_bytes(gpu.memory_used_bytes),
            gpu.pci_bus_id,
        ]
        if with_cores:
            cells += [gpu.numa_node, format_core_list(gpu.cores or ()) or None]
        rows.append(cells)
    print_table(headings, rows)
