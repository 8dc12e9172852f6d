"""`multitower devices`: GPUs and slices as the configuration may name them, and what to check when there is none."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multitower.supervisor.machine.devices import Device, Discovery


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def devices(as_json: bool) -> None:
    """List this machine's GPUs, MIG slices and CPU cores.

    An index or the beginning of a UUID from this list is what `devices` in the configuration takes. A slice is `in` the
    GPU of that index, and is named by its UUID alone. No daemon is asked and no GPU is touched.
    """
    from multitower.supervisor.machine.discovery import discover

    discovery = discover()
    cores = sorted(os.sched_getaffinity(0))
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
        _print_table(discovery.gpus)
    if discovery.problem is not None:
        print(f"{'Note' if discovery.gpus else 'No GPU is seen'}: {discovery.problem}.")
    if not discovery.gpus:
        print("Without a GPU, serve on the CPU with devices: {cpu: 1}.")
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if inherited is not None:
        print(
            f"CUDA_VISIBLE_DEVICES={inherited} is set here and does not limit multitower: "
            "name the GPUs in the configuration's devices."
        )
    print(f"CPU cores available: {len(cores)}")


def _print_table(gpus: Sequence[Device]) -> None:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from multitower.supervisor.machine.cores import format_core_list
    from multitower.supervisor.machine.devices import format_bytes

    headings = ["Index", "UUID", "Product", "Memory", "Used", "PCI bus id"]
    near = any(gpu.cores is not None for gpu in gpus)
    if near:
        headings += ["Node", "Cores near"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        right = heading in ("Index", "Memory", "Used", "Node")
        table.add_column(heading, no_wrap=True, justify="right" if right else "left")
    for gpu in gpus:
        cells = [
            str(gpu.index) if gpu.parent is None else f"in {gpu.parent.index}",
            gpu.name,
            gpu.product,
            format_bytes(gpu.memory_bytes),
            format_bytes(gpu.memory_used_bytes),
            gpu.pci_bus_id or "-",
        ]
        if near:
            cells += [
                str(gpu.numa_node) if gpu.numa_node is not None else "-",
                format_core_list(gpu.cores or ()) or "-",
            ]
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    # A UUID cut short to fit a narrow terminal, or the 80 columns of a pipe, could not be copied.
    console.width = max(console.width, Measurement.get(console, console.options.update(width=1000), table).maximum)
    console.print(table)
