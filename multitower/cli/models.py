"""`multitower models`: the models of a running daemon, with their inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.connection import asks_daemon
from multitower.cli.layout import Column
from multitower.cli.tables import memory_growth_cells, print_table, state_cell, version_cell
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client

_STATUS_KEYS: Final = (
    *("name", "version", "labels", "state", "cause"),
    *("host_memory_bytes", "device_memory_bytes", "device_memory_peak_bytes"),
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the Open Inference Protocol's metadata, for programs.")
@asks_daemon
def models(client: Client, as_json: bool) -> int:
    """List the models, their versions, inputs and outputs.

    A SavedModel is listed with each of its signatures; the first one is the default. The size `any` means that a
    dimension accepts every size; of a batched model that is the first dimension, the rows. Memory is the growth of a
    worker's memory while it loaded and warmed up the model, the largest of all workers.
    """
    from multitower import MultitowerError

    found: list[dict[str, Any]] = []
    for model in client.status()["models"]:
        entry = {key: model[key] for key in _STATUS_KEYS if key in model}
        try:
            found.append({**entry, **client.metadata(model["name"], model["version"] or "")})
        except MultitowerError as error:  # not loaded yet, or no longer
            found.append({**entry, "cause": entry["cause"] or error.message})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_table(_COLUMNS, (row for model in found for row in _rows(model)))
    return Exit.OK


_COLUMNS: Final = (
    *("Model", "State", "Version", "Signature", "", "Name", "Datatype", "Shape", ">Host memory", ">Device memory"),
    Column("Note", prose=True, label="note:", optional=True),
)


def _rows(model: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    """A row for each input and output; the model, its signature and its memory stand in the first row only.

    Why a model or a signature has no inputs and outputs stands in the last column.
    """
    first: list[object] = [model["name"], state_cell(model["state"]), version_cell(model)]
    memory: Sequence[object] = memory_growth_cells(model)
    for name, signature in model.get("signatures", {"": model}).items():
        tensors = [(side, tensor) for side in ("input", "output") for tensor in signature.get(f"{side}s", ())]
        if not tensors:
            cause = signature["cause"] if name or "inputs" not in model else None
            yield (*first, name, "", "takes any inputs" if cause is None else "", "", "", *memory, cause or "")
        for side, tensor in tensors:
            shape = ", ".join("any" if size == -1 else str(size) for size in tensor["shape"])
            yield (*first, name, side, tensor["name"], tensor["datatype"], f"[{shape}]", *memory, "")
            first, name, memory = ["", "", ""], "", ("", "")
        first, memory = ["", "", ""], ("", "")
