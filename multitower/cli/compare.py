"""`multitower compare`: the ways to use several devices, with the user's own model on the user's own machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.seconds import Seconds
from multitower.cli.tables import print_table
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower.tools.compare.measure import Plan

CPU_DEVICES: Final = 2
"""Logical CPU devices on a machine without several GPUs, unless --devices sets another number."""


_GRAPH_OPTIONS: Final = {"--graph-input": "inputs", "--graph-output": "outputs"}


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--devices", type=click.IntRange(2, 64), help="Number of devices.  [default: all GPUs, else 2 CPU devices]"
)
@click.option("--cpu", is_flag=True, help="Use logical CPU devices even if there are GPUs.")
@click.option(
    "--seconds",
    type=Seconds(0.5, 3600),
    default=3.0,
    show_default=True,
    help="Seconds that each load is measured: two loads for each way.",
)
@click.option("--outstanding", type=click.IntRange(1, 4096), help="Requests outstanding.  [default: 8 for each device]")
@click.option("--rows", type=click.IntRange(1), help="Rows of each request.  [default: 1]")
@click.option(
    "--max-batch-size", type=click.IntRange(0), default=32, show_default=True, help="The most rows of a batch."
)
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME:DIM,DIM,…", help="Shape of an input, as in `bench`. Repeatable."
)
@click.option(
    "--graph-input", "inputs", multiple=True, metavar="NAME=TENSOR", help="Input of a frozen graph: x=x:0. Repeatable."
)
@click.option(
    "--graph-output", "outputs", multiple=True, metavar="NAME=TENSOR", help="Output of it: y=softmax:0. Repeatable."
)
@click.option(
    "--recovery",
    type=Seconds(1, 3600),
    default=60.0,
    show_default=True,
    help="Seconds that a killed process may take to come back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def compare(model: Path, **given: Any) -> None:
    """Serve MODEL by one process per device, then by towers in one process, and show both side by side.

    MODEL is a SavedModel folder, or a file as in a configuration. For each way, a daemon is started and measured under
    the same load; then one of its processes is killed with SIGKILL, to see what that takes down. On GPUs, sessions with
    a visible_device_list each are opened in one process, to see which GPU each of them uses. On a machine without
    several GPUs, logical CPU devices are used: what a crash takes down is the same there, throughput is the CPU's.
    Nothing else should run on the machine. Exit codes: 0 when every way was measured that can be, 1 when one failed.

    \b
      multitower compare models/digits
      multitower compare models/frozen.pb --graph-input x=x:0 --graph-output y=softmax:0 --json
    """  # noqa: D301 - the escape keeps click from folding these lines
    from multitower.supervisor.machine.discovery import discover
    from multitower.tools.compare import measure, sessions
    from multitower.tools.compare.results import TITLES, notes, table

    gpus = () if given["cpu"] else tuple(gpu.name for gpu in discover().gpus)
    count = given["devices"] or (len(gpus) if len(gpus) > 1 else CPU_DEVICES)
    if len(gpus) > 1 and count > len(gpus):
        raise click.BadParameter(f"there are {len(gpus)} GPUs; --cpu compares on CPU devices", param_hint="'--devices'")
    used_gpus = gpus[:count] if len(gpus) > 1 else ()
    devices = used_gpus or tuple(f"cpu:{number}" for number in range(count))
    plan = _plan(model, devices, given)
    _check_graph_tensors(model, given)

    def print_progress(text: str) -> None:
        if not given["as_json"]:
            click.echo(text, err=True)

    print_progress(f"comparing {model} on {', '.join(devices)}, {plan.outstanding} requests outstanding")
    ways = []
    for number, run in (
        (1, lambda: measure.measure_processes(plan)),
        (2, lambda: sessions.try_sessions(used_gpus, plan.most_s)),
        (4, lambda: measure.measure_towers(plan)),
    ):
        print_progress(f"{number}. {TITLES[number]} …")
        ways.append(measure.try_way(number, run))
    if given["as_json"]:
        found = {"model": str(model), "devices": devices, "ways": [way.to_json() for way in ways]}
        click.echo(json.dumps(found, indent=2))
    else:
        headings, *rows = table(ways)
        print_table(headings, rows)
        for note in notes(ways):
            click.echo(note)
    failed = [way for way in ways if way.not_run is not None and way.not_run != sessions.NO_GPU]
    sys.exit(1 if failed else Exit.OK)


def _check_graph_tensors(model: Path, given: dict[str, Any]) -> None:
    """Rejects a frozen graph without the names of its tensors, and such names for another model."""
    from multitower.format_registry import recognize

    is_graph = recognize(model).names_tensors
    missing = [option for option, side in _GRAPH_OPTIONS.items() if is_graph and not given[side]]
    if missing:
        raise click.UsageError(
            f"{model} is a frozen graph, which does not name its inputs and outputs: give {' and '.join(missing)}, as "
            "in --graph-input x=x:0 --graph-output y=softmax:0; the page 'Frozen graphs' of multitower's documentation "
            "shows how to find the tensors"
        )
    for option, side in _GRAPH_OPTIONS.items():
        if given[side] and not is_graph:
            raise click.UsageError(f"{option} is for frozen graphs; {model} names its inputs and outputs itself")


def _plan(model: Path, devices: tuple[str, ...], given: dict[str, Any]) -> Plan:
    from multitower.tools.bench.inputs import InputsError, parse_shape
    from multitower.tools.bench.session import Options
    from multitower.tools.compare.measure import Plan

    try:
        shapes = dict(map(parse_shape, given["shapes"]))
    except InputsError as error:
        raise click.BadParameter(str(error), param_hint="'--shape'") from None
    options = Options(
        seconds=given["seconds"],
        warmup=min(1.0, given["seconds"] / 2),
        timeout=30.0,
        rows=given["rows"],
        shapes=shapes,
    )
    keys: dict[str, Any] = {"batching": {"max_batch_size": given["max_batch_size"]}}
    for side in ("inputs", "outputs"):
        if given[side]:
            keys[side] = dict(_parse_pair(text, side) for text in given[side])
    return Plan(
        path=model.absolute(),
        devices=devices,
        outstanding=given["outstanding"] or 8 * len(devices),
        most_s=given["recovery"],
        options=options,
        model=keys,
    )


def _parse_pair(text: str, side: str) -> tuple[str, str]:
    name, equals, tensor = text.partition("=")
    if not (name and equals and tensor):
        raise click.BadParameter(f"{text!r} is not NAME=TENSOR", param_hint=f"'--graph-{side[:-1]}'")
    return name, tensor
