"""`multitower compare`: the ways to use several devices, with one's own model on one's own machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multitower.exits import Exit

if TYPE_CHECKING:
    from multitower.tools.compare.measure import Plan
    from multitower.tools.compare.results import Way

LOGICAL = 2
"""CPU devices where there is no GPU, and nobody says how many."""


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--devices", type=click.IntRange(2, 64), help="How many.  [default: all GPUs, else 2 CPU devices]")
@click.option("--cpu", is_flag=True, help="Logical CPU devices also where there are GPUs.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 3600),
    default=3.0,
    show_default=True,
    help="That each load is measured: two for each way.",
)
@click.option("--outstanding", type=click.IntRange(1, 4096), help="Requests at a time.  [default: 8 for each device]")
@click.option("--rows", type=click.IntRange(1), help="Of each request.  [default: 1]")
@click.option("--max-batch-size", type=click.IntRange(0), default=32, show_default=True, help="Rows of a batch.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME:DIM,DIM,…", help="Of an input, as in `bench`. Repeatable."
)
@click.option(
    "--graph-input", "inputs", multiple=True, metavar="NAME=TENSOR", help="Of a frozen graph, as x=x:0. Repeatable."
)
@click.option(
    "--graph-output", "outputs", multiple=True, metavar="NAME=TENSOR", help="Likewise, as y=softmax:0. Repeatable."
)
@click.option(
    "--recovery",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    help="Seconds to wait until a killed process is back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def compare(model: Path, **given: Any) -> None:
    """Serve MODEL by one process per device, then by towers in one process, and show both side by side.

    MODEL is a SavedModel folder, or a file as in a configuration. For each way a daemon is started, measured under the
    same load, and robbed of a process with SIGKILL, to see what that takes down. On GPUs also sessions with a
    visible_device_list each are opened in one process, to see which GPU each really uses. Where there are no two GPUs,
    logical CPU devices stand for them: what a crash takes down is the same there, throughput is the CPU's. Nothing else
    should run on the machine. Exit codes: 0 when every way was measured that can be, 1 when one failed.

    \b
      multitower compare models/digits
      multitower compare models/frozen.pb --graph-input x=x:0 --graph-output y=softmax:0 --json
    """  # noqa: D301 - the escape tells click not to fold these lines
    from multitower.supervisor.machine.discovery import discover
    from multitower.tools.compare import measure, sessions

    gpus = () if given["cpu"] else tuple(gpu.name for gpu in discover().gpus)
    count = given["devices"] or (len(gpus) if len(gpus) > 1 else LOGICAL)
    if len(gpus) > 1 and count > len(gpus):
        raise click.BadParameter(f"there are {len(gpus)} GPUs; --cpu compares on CPU devices", param_hint="'--devices'")
    used = gpus[:count] if len(gpus) > 1 else ()
    devices = used or tuple(f"cpu:{number}" for number in range(count))
    plan = _plan(model, devices, given)
    say = _Told(quiet=given["as_json"])
    say(f"comparing {model} on {', '.join(devices)}, {plan.outstanding} requests outstanding")
    ways = [
        _run(1, lambda: measure.processes(plan), say),
        _run(2, lambda: sessions.sessions(used, plan.most_s), say),
        _run(4, lambda: measure.towers(plan), say),
    ]
    if given["as_json"]:
        found = {"model": str(model), "devices": devices, "ways": [way.to_json() for way in ways]}
        click.echo(json.dumps(found, indent=2))
    else:
        _print(ways)
    failed = [way for way in ways if way.not_run is not None and way.not_run != sessions.NO_GPU]
    sys.exit(1 if failed else Exit.OK)


class _Told:
    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, text: str) -> None:
        if not self._quiet:
            click.echo(text, err=True)


def _plan(model: Path, devices: tuple[str, ...], given: dict[str, Any]) -> Plan:
    from multitower.tools.bench.inputs import InputsError, parse_shape
    from multitower.tools.bench.session import Options
    from multitower.tools.compare.measure import Plan

    try:
        shapes = dict(map(parse_shape, given["shapes"]))
    except InputsError as error:
        raise click.BadParameter(str(error), param_hint="'--shape'") from None
    options = Options(
        model=None,
        version="",
        seconds=given["seconds"],
        warmup=min(1.0, given["seconds"] / 2),
        timeout=30.0,
        processes=1,
        seed=0,
        rows=given["rows"],
        shapes=shapes,
        read=None,
    )
    keys: dict[str, Any] = {"batching": {"max_batch_size": given["max_batch_size"]}}
    for side in ("inputs", "outputs"):
        if given[side]:
            keys[side] = dict(_pair(text, side) for text in given[side])
    return Plan(
        path=model.absolute(),
        devices=devices,
        outstanding=given["outstanding"] or 8 * len(devices),
        most_s=given["recovery"],
        options=options,
        model=keys,
    )


def _pair(text: str, side: str) -> tuple[str, str]:
    name, equals, tensor = text.partition("=")
    if not (name and equals and tensor):
        raise click.BadParameter(f"{text!r} is not NAME=TENSOR", param_hint=f"'--graph-{side[:-1]}'")
    return name, tensor


def _run(number: int, measure: Callable[[], Way], say: _Told) -> Way:
    from multitower import MultitowerError
    from multitower.tools.bench.client_pool import BenchError
    from multitower.tools.bench.inputs import InputsError
    from multitower.tools.compare.results import TITLES, Way

    say(f"{number}. {TITLES[number]} …")
    try:
        return measure()
    except (BenchError, InputsError, MultitowerError, OSError) as error:
        return Way(number=number, not_run=" ".join(str(error).split()))


def _print(ways: Sequence[Way]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from multitower.tools.compare.results import notes, table

    headings, *rows = table(ways)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(shown)
    for note in notes(ways):
        click.echo(note)
