"""`multitower status`, `models` and `infer`: what a running daemon is asked from a shell."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multitower.compiled import describe
from multitower.exits import Exit

if TYPE_CHECKING:
    from multitower import Client

CONNECT_S = 3.0
TIMEOUT_S = 10.0
COLOURS = {"ready": "green", "running": "green", "failed": "red", "stopped": "red", "unloaded": "default"}
OTHER_COLOUR = "yellow"
MEMORY = ("host_memory_bytes", "device_memory_bytes", "device_memory_peak_bytes")


def _not_nan(context: click.Context, parameter: click.Parameter, seconds: float) -> float:
    if math.isnan(seconds):
        raise click.BadParameter("nan is no time", context, parameter)
    return seconds


def asks(command: Callable[..., int]) -> Callable[..., None]:
    """A command that asks a daemon: gets a `Client`, and tells errors in one line."""

    @click.option("--endpoint", help="Of the daemon; else MULTITOWER_ENDPOINT, else tcp://127.0.0.1:5555.")
    @click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        callback=_not_nan,
        default=TIMEOUT_S,
        show_default=True,
        help="Seconds to wait for an answer.",
    )
    @functools.wraps(command)
    def run(endpoint: str | None, timeout: float, **arguments: Any) -> None:
        from multitower import Client, MultitowerError, Unavailable
        from multitower.tools.tensor_files import ValuesError

        code: int
        try:
            with Client(endpoint, timeout=timeout, connect_timeout=min(timeout, CONNECT_S)) as client:
                code = command(client, **arguments)
        except MultitowerError as error:
            click.echo(f"multitower: {' '.join(str(error).split())}", err=True)
            code = Exit.UNAVAILABLE if isinstance(error, Unavailable) else 1
        except ValuesError as error:
            click.echo(f"multitower: {error}", err=True)
            code = 1
        sys.exit(code)

    return run


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for programs.")
@asks
def status(client: Client, as_json: bool) -> int:
    """Show the daemon, its slots and its models.

    The exit code is 0 when every slot that has a model is ready, 1 when every model is served but some slot is not
    ready, 69 when a model has no ready worker and is not unloaded, when the daemon is stopping, or when none answers.
    """
    state = client.status()
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        _print_status(state)
    daemon = state["daemon"]
    if not daemon["ready"]:
        return Exit.UNAVAILABLE
    return Exit.OK if daemon["slots_ready"] == daemon["slots_total"] else Exit.DEGRADED


def _print_status(state: dict[str, Any]) -> None:
    daemon, slots, models = state["daemon"], state["slots"], state["models"]
    spares = ", ".join(spare["state"] for spare in daemon["spares"]) or "none"
    click.echo(
        f"multitower {daemon['version']} ({describe(daemon['compiled'])}), pid {daemon['pid']}: "
        f"{daemon['state']} for {_time(daemon['uptime_s'])}, "
        f"{daemon['slots_ready']}/{daemon['slots_total']} slots ready, {_size(daemon['rss_bytes'])}"
    )
    click.echo(f"listens on {', '.join(daemon['listen'])}; spares: {spares}")
    counted = [
        f"{daemon[key]:,} {words}"
        for key, words in (
            ("rejected", "requests refused"),
            ("late", "answers too late"),
            ("replies_dropped", "replies not read by their clients"),
        )
        if daemon[key]
    ]
    if counted:
        click.echo("; ".join(counted))
    click.echo()
    _print_table(
        ("Slot", "State", "Device", ">Pid", ">Restarts", ">Depth", ">Rows answered", "Last error"),
        (
            (
                slot["slot"],
                slot["state"],
                slot["device"].replace(",", "\n"),
                slot["pid"],
                slot["restarts"],
                slot["depth"],
                f"{slot['completed']:,}",
                slot["last_error"] or "",
            )
            for slot in slots
        ),
    )
    _print_use(slots)
    _print_towers(slots)
    if daemon.get("quarantine"):
        kept = daemon["quarantine"]
        refused = sum(entry["refused"] for entry in kept)
        click.echo(f"in quarantine: {len(kept)} requests that crashed a worker; {refused:,} equal ones were refused\n")
    _print_table(
        (
            *("Model", "State", "Version", ">Slots", ">Queue", ">Answered", ">Failed", ">Rows a batch"),
            *(">Host memory", ">Device memory", "Note"),
        ),
        (
            (
                model["name"],
                model["state"],
                _version(model),
                f"{model['slots_ready']}/{model.get('slots_total', len(slots))}",
                model["queue"],
                f"{model['completed']:,}",
                f"{model['failed']:,}",
                f"{model['rows'] / model['batches']:.1f}" if model["batches"] else None,
                *_grown(model),
                "; ".join(_notes(model)),
            )
            for model in models
        ),
    )


def _version(model: dict[str, Any]) -> str | None:
    """The version with its labels."""
    labels = ", ".join(model["labels"])
    return f"{model['version']} ({labels})" if labels else model["version"]


def _notes(model: dict[str, Any]) -> Iterable[str]:
    told = model["cause"] or model["unbatched_because"]
    if told:
        yield told
    for label, version in model["labels_not_served"].items():
        yield f"the label {label} is version {version}, which is not served"


def _print_use(slots: Sequence[dict[str, Any]]) -> None:
    """How fast each slot is, and what it uses of the machine."""
    headings = ("Slot", ">Batch p50", ">p99", ">Rows/s", ">Memory", ">CPU", ">Device memory", ">Device busy")
    rows = []
    for slot in slots:
        batch = slot.get("batch_ms") or {}
        memory = slot.get("rss_bytes")
        devices = slot.get("devices") or ()
        rows.append(
            (
                slot["slot"],
                *(f"{batch[name]:,.1f} ms" if batch.get(name) is not None else None for name in ("p50", "p99")),
                f"{slot['rows_per_s']:,.0f}" if slot.get("rows_per_s") is not None else None,
                _size(memory),
                _percent(slot.get("cpu_percent")),
                "\n".join(_size(each["memory_bytes"]) or "-" for each in devices) or None,
                "\n".join(_busy(each) or "-" for each in devices) or None,
            )
        )
    _print_table(headings, rows)


def _print_towers(slots: Sequence[dict[str, Any]]) -> None:
    """Where the towers of slots with several devices are, and what of them runs elsewhere."""
    rows = [
        (
            slot["slot"],
            model["device"],
            # Of the whole tower, and so once.
            *((tower["depth"], f"{tower['batches']:,}", f"{tower['completed']:,}") if not index else ("", "", "")),
            model["name"],
            _counted(model["nodes"]) if model["nodes"] is not None else "not known: no warm-up run",
            _counted(model["fallbacks"]) if model["nodes"] is not None else None,
        )
        for slot in slots
        for tower in slot.get("towers", ())
        for index, model in enumerate(tower["models"])
    ]
    if rows:
        headings = ("Slot", "Tower", ">Depth", ">Batches", ">Rows answered", "Model", "Nodes", "Not on its device")
        _print_table(headings, rows)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _busy(device: dict[str, Any]) -> str | None:
    return "gone" if device["present"] is False else _percent(device["utilization_percent"])


def _grown(model: dict[str, Any]) -> tuple[str | None, str | None]:
    """By how much host and device memory grew when a worker loaded the model."""
    host, device = model.get("host_memory_bytes"), model.get("device_memory_bytes")
    return _more(host), _more(device)


def _more(size: int | None) -> str | None:
    return None if size is None else f"{size / (1 << 20):+,.0f} MiB"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} %"


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(size: int | None) -> str | None:
    return None if size is None else f"{size / (1 << 20):,.0f} MiB"


def _print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; `>` before a heading aligns its column to the right, None is shown as `-`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left", overflow="fold")
    for row in rows:
        # Not strings, in which rich would look for markup: names and errors may hold brackets.
        cells = [Text("-" if cell is None else str(cell)) for cell in row]
        cells[1].stylize(COLOURS.get(cells[1].plain, OTHER_COLOUR))
        table.add_row(*cells)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 250  # a pipe has no width, and lines that are not folded are easier to search
    console.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the Open Inference Protocol's metadata, for programs.")
@asks
def models(client: Client, as_json: bool) -> int:
    """List the models, their versions, inputs and outputs.

    Of a SavedModel those of each signature; the first one is the default. A dimension `any` takes every size; where a
    model is batched it is the first one, the rows. Memory is by how much that of a worker grew while it loaded the
    model and warmed it up, the most of any worker.
    """
    from multitower import MultitowerError

    found: list[dict[str, Any]] = []
    for model in client.status()["models"]:
        entry = {
            name: model[name] for name in ("name", "version", "labels", "state", "cause", *MEMORY) if name in model
        }
        try:
            found.append({**entry, **client.metadata(model["name"], model["version"] or "")})
        except MultitowerError as error:  # not loaded, or not any more
            found.append({**entry, "cause": entry["cause"] or error.message})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_table(
            (
                "Model",
                "State",
                "Version",
                "Signature",
                "",
                "Name",
                "Datatype",
                "Shape",
                ">Host memory",
                ">Device memory",
            ),
            (row for model in found for row in _rows(model)),
        )
    return Exit.OK


def _rows(model: dict[str, Any]) -> Iterable[Sequence[object]]:
    first = [model["name"], model["state"], _version(model)]
    memory: Sequence[object] = _grown(model)
    nothing = "takes any inputs" if "inputs" in model else model["cause"]
    for name, signature in model.get("signatures", {"": model}).items():
        tensors = [(side, tensor) for side in ("input", "output") for tensor in signature.get(f"{side}s", ())]
        if not tensors:
            yield (*first, name, "", signature["cause"] if name else nothing, "", "", *memory)
        for side, tensor in tensors:
            shape = ", ".join("any" if size == -1 else str(size) for size in tensor["shape"])
            yield (*first, name, side, tensor["name"], tensor["datatype"], f"[{shape}]", *memory)
            first, name, memory = ["", "", ""], "", ("", "")
        first, memory = ["", "", ""], ("", "")


@click.command()
@click.argument("model")
@click.option(
    "--input", "files", multiple=True, metavar="NAME=FILE.npy", help="An input from a file of numpy's. Repeatable."
)
@click.option("--from", "source", metavar="FILE", help="Inputs from a file of JSON or .npz; - for JSON on stdin.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the outputs to FILE, .npz or .json."
)
@click.option("--only", "wanted", multiple=True, metavar="NAME", help="Ask for this output alone. Repeatable.")
@click.option("--model-version", default="", metavar="VERSION", help="Else the highest that is served.")
@click.option("--version-label", default="", metavar="LABEL", help="Of the model's version_labels, in place of that.")
@click.option("--signature", default="", metavar="NAME", help="Of the model's signatures; else its default one.")
@asks
def infer(
    client: Client,
    model: str,
    files: tuple[str, ...],
    source: str | None,
    output: Path | None,
    wanted: tuple[str, ...],
    model_version: str,
    version_label: str,
    signature: str,
) -> int:
    """Ask MODEL once, and print its outputs as JSON.

    Without --input and --from the inputs are read from stdin, as JSON: values by name, or the Open Inference
    Protocol's `inputs`. Numbers become the datatypes that the model declares; elements of BYTES are strings, or
    {"b64": "…"}.

    \b
      echo '{"x": [[0, 1, 2]]}' | multitower infer MODEL
      multitower infer MODEL --input x=x.npy --output answer.npz
    """  # noqa: D301 - the escape tells click not to fold these lines
    from multitower.tools import tensor_files

    if output is not None and output.suffix not in (".npz", ".json"):
        raise click.BadParameter("a file's name ends in .npz or .json", param_hint="'--output'")
    metadata = client.metadata(model, model_version, version_label=version_label)
    # One that does not exist is the daemon's to refuse.
    signed = metadata.get("signatures", {}).get(signature, metadata)
    declared = {tensor["name"]: tensor["datatype"] for tensor in signed["inputs"]}
    inputs = tensor_files.read(source if source or files else tensor_files.STDIN, files, declared)
    answer = client.infer(
        model,
        inputs,
        outputs=wanted or None,
        version=model_version,
        version_label=version_label,
        signature=signature,
    )
    if output is not None:
        tensor_files.save(output, answer)
    else:
        click.echo(tensor_files.to_json(answer))
    return Exit.OK
