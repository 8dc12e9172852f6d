"""`multitower status`, `models` and `infer`: what a running daemon is asked from a shell."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multitower.exits import Exit

if TYPE_CHECKING:
    from rich.table import Table

    from multitower import Client

TIMEOUT_S = 5.0


def _asks(command: Callable[..., int]) -> Callable[..., None]:
    """A command that asks a daemon: gets a `Client`, and tells errors in one line."""

    @click.option("--endpoint", help="Of the daemon; else MULTITOWER_ENDPOINT, else tcp://127.0.0.1:5555.")
    @click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), default=TIMEOUT_S, show_default=True, help="Seconds."
    )
    @functools.wraps(command)
    def run(endpoint: str | None, timeout: float, **arguments: Any) -> None:
        from multitower import Client, MultitowerError, Unavailable

        try:
            with Client(endpoint, timeout=timeout, connect_timeout=timeout) as client:
                code = command(client, **arguments)
        except MultitowerError as error:
            click.echo(f"multitower: {error.message}", err=True)
            code = Exit.UNAVAILABLE if isinstance(error, Unavailable) else 1
        sys.exit(code)

    return run


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for programs.")
@_asks
def status(client: Client, as_json: bool) -> int:
    """Show the daemon, its slots and its models.

    Exit code 0 when each model has a ready worker, 69 when not, or when no daemon answers.
    """
    state = client.status()
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        _print_status(state)
    return Exit.OK if state["daemon"]["ready"] else Exit.UNAVAILABLE


def _print_status(state: dict[str, Any]) -> None:
    daemon = state["daemon"]
    click.echo(
        f"multitower {daemon['version']}, pid {daemon['pid']}, {daemon['state']} for {_seconds(daemon['uptime_s'])}, "
        f"{daemon['slots_ready']}/{daemon['slots_total']} slots ready, {len(daemon['spares'])} spare, "
        f"{daemon['rss_bytes'] / 1e6:.0f} MB"
    )
    click.echo(f"listening on {', '.join(daemon['listen'])}\n")
    slots = _table("Slot", "State", "Device", "Pid", "Restarts", "Depth", "Rows answered", "Last error")
    for slot in state["slots"]:
        slots.add_row(
            str(slot["slot"]),
            _coloured(slot["state"]),
            slot["device"],
            str(slot["pid"] or "-"),
            str(slot["restarts"]),
            str(slot["depth"]),
            f"{slot['completed']:,}",
            slot["last_error"] or "",
        )
    models = _table("Model", "Version", "State", "Slots", "Queue", "Answered", "Failed", "Rows a batch", "Cause")
    for model in state["models"]:
        models.add_row(
            model["name"],
            model["version"] or "-",
            _coloured(model["state"]),
            str(model["slots_ready"]),
            str(model["queue"]),
            f"{model['completed']:,}",
            f"{model['failed']:,}",
            f"{model['rows'] / model['batches']:.1f}" if model["batches"] else "-",
            model["cause"] or model["unbatched_because"] or "",
        )
    _print(slots, models)


def _coloured(state: str) -> str:
    colour = {"ready": "green", "failed": "red"}.get(state, "yellow")
    return f"[{colour}]{state}[/{colour}]"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _print(*tables: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width; nothing is gained by folding lines in it
    for table in tables:
        console.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the Open Inference Protocol's metadata, for programs.")
@_asks
def models(client: Client, as_json: bool) -> int:
    """List the models with their inputs and outputs."""
    from multitower import MultitowerError

    table = _table("Model", "Version", "State", "Tensor", "Name", "Datatype", "Shape")
    found: list[dict[str, Any]] = []
    for model in client.status()["models"]:
        try:
            metadata = client.metadata(model["name"])
        except MultitowerError as error:
            found.append({"name": model["name"], "state": model["state"], "cause": error.message})
            table.add_row(model["name"], "-", _coloured(model["state"]), "", error.message, "", "")
            continue
        found.append({**metadata, "state": model["state"]})
        first = (model["name"], ", ".join(metadata["versions"]), _coloured(model["state"]))
        tensors = [(side, tensor) for side in ("inputs", "outputs") for tensor in metadata[side]]
        if not tensors:
            table.add_row(*first, "", "takes any inputs", "", "")
        for row, (side, tensor) in enumerate(tensors):
            shape = ", ".join("any" if size == -1 else str(size) for size in tensor["shape"])
            cells = (side.removesuffix("s"), tensor["name"], tensor["datatype"], f"[{shape}]".replace("[", r"\["))
            table.add_row(*(first if row == 0 else ("", "", "")), *cells)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(table)
    return Exit.OK


@click.command()
@click.argument("model")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=FILE.npy", help="An input from a file of numpy; may be repeated."
)
@click.option(
    "--from",
    "source",
    metavar="FILE",
    help="All inputs from an .npz file, or from JSON ({name: values}); - for JSON on the standard input.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.npz", help="Write the outputs here.")
@_asks
def infer(client: Client, model: str, inputs: tuple[str, ...], source: str | None, output: Path | None) -> int:
    """Ask MODEL once, and print its outputs as JSON.

    Values of JSON become the datatype that the model declares. Without --input and --from, JSON is read from the
    standard input: echo '{"x": [[0, 1, 2]]}' | multitower infer MODEL
    """
    import numpy as np

    metadata = client.metadata(model)
    datatypes = {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]}
    arrays = _read(source if source is not None or inputs else "-", datatypes)
    for entry in inputs:
        name, equals, path = entry.partition("=")
        if not equals:
            raise click.BadParameter(f"{entry!r} is not NAME=FILE.npy", param_hint="--input")
        arrays[name] = _load(path)
    answer = client.infer(model, arrays)
    if output is not None:
        with output.open("wb") as file:
            np.savez(file, **answer)  # type: ignore[arg-type]  # its stubs know no arrays by name
        return Exit.OK
    click.echo(json.dumps({name: _plain(array) for name, array in answer.items()}))
    return Exit.OK


def _read(source: str | None, datatypes: dict[str, str]) -> dict[str, Any]:
    if source is None:
        return {}
    if source.endswith(".npz"):
        return dict(_load(source))
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{source}: {error}", param_hint="--from") from None
    if not isinstance(values, dict):
        raise click.BadParameter("the JSON must be an object of inputs by name", param_hint="--from")
    return {name: _array(name, value, datatypes.get(name)) for name, value in values.items()}


def _array(name: str, value: Any, datatype: str | None) -> Any:
    import numpy as np

    from multitower import tensors

    if datatype is None or datatype == tensors.BYTES:
        return np.asarray(value)
    try:
        return np.asarray(value, tensors.dtype_of(datatype))
    except (OverflowError, TypeError, ValueError) as error:
        raise click.BadParameter(f"input {name!r} cannot be {datatype}: {error}", param_hint="--from") from None


def _load(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--input") from None


def _plain(array: Any) -> Any:
    """What JSON can hold of an array: text for bytes, [real, imaginary] for complex numbers."""
    if array.dtype == object:
        return _decoded(array.tolist())
    if array.dtype.kind == "c":
        import numpy as np

        return np.stack([array.real, array.imag], axis=-1).tolist()
    return array.tolist()


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode("utf-8", "backslashreplace")
