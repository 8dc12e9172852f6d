"""`multitower record`: the next requests of a model as a warm-up file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.connection import awaits_requests
from multitower.cli.operate import connected_for_orders, find_order_endpoint
from multitower.durations import exact_duration
from multitower.exit_codes import Exit
from multitower.tools.prediction_log import WARMUP_FILE
from multitower.wire import MAX_RECORDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multitower import Client

DEFAULT_COUNT: Final = 100

MARGIN_S: Final = 30.0
"""Seconds that the reply may take after the daemon has ended the recording."""

_PRIVATE: Final = 0o600  # the file has clients' data


@click.command()
@click.argument("model")
@click.option(
    "--count",
    type=click.IntRange(1, MAX_RECORDED),
    default=DEFAULT_COUNT,
    show_default=True,
    help="How many requests are recorded.",
)
@click.option(
    "--version",
    "--model-version",
    "model_version",
    default="",
    metavar="VERSION",
    help="Record only requests that this version answers.  [default: all versions]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=WARMUP_FILE,
    show_default=True,
    metavar="FILE",
    help="The file to write; only its owner may read it.",
)
@awaits_requests
def record(client: Client, model: str, count: int, model_version: str, output: Path) -> int:
    """Write the next requests of MODEL as a warm-up file of TensorFlow Serving.

    Put the file into the folder `assets.extra` of a SavedModel, as tf_serving_warmup_requests: workers run its requests
    before they serve the model, and so does TensorFlow Serving. Only requests that the model answers without an error
    are recorded. The file has clients' data. Like other orders, this needs the daemon's own user or root, on its
    machine, or a key with the role `operate`.
    """
    from multitower import wire
    from multitower.client.requests import model_header
    from multitower.tools.prediction_log import read_recorded
    from multitower.tools.replaced_file import check_replaceable

    timeout_s: float = click.get_current_context().params["timeout"]
    try:
        check_replaceable(output)
    except OSError as error:
        return _unwritable(output, error)
    header = {**model_header(model, model_version), "count": count}
    if math.isfinite(timeout_s * 1000):
        header["timeout_ms"] = round(timeout_s * 1000, 3)
    seconds = timeout_s + MARGIN_S
    with connected_for_orders(client, find_order_endpoint(client), seconds) as requests:
        reply, frames = requests.start_framed_query(wire.RECORD, header, seconds).result()
    recorded = read_recorded(frames)
    why_fewer = _why_fewer(str(reply["ended"]), timeout_s)
    if not recorded:
        message = f"no request was recorded, and {output} was not written: {why_fewer}"
        click.echo(f"multitower: {message}", err=True)
        return 1
    try:
        size = _write(output, model, recorded)
    except OSError as error:
        return _unwritable(output, error)
    requests_text = f"{len(recorded)} request{'s' if len(recorded) > 1 else ''}"
    piped = not output.is_file()  # such as /dev/stdout
    click.echo(f"recorded {requests_text} to {model} in {output} ({size} bytes)", err=piped)
    if len(recorded) < count:
        click.echo(f"{count} were asked for: {why_fewer}", err=piped)
    return Exit.OK


def _why_fewer(ended: str, timeout_s: float) -> str:
    if ended == "timeout":
        return f"no more were answered within {exact_duration(timeout_s)} (--timeout)"
    if ended == "full":
        return "the inputs of more would exceed what the daemon keeps, 256 MiB for all recordings"
    if ended == "draining":
        return "the daemon is stopping"
    return f"the recording ended early ({ended})"


def _write(output: Path, model: str, recorded: Sequence[Any]) -> int:
    """Writes the file, and returns its size in bytes.

    Raises:
        OSError: it cannot be written.
    """
    from multitower.tools.prediction_log import encode_prediction_log
    from multitower.tools.replaced_file import replaced_file
    from multitower.tools.tfrecord import frame_record

    size = 0
    with replaced_file(output, _PRIVATE) as file:
        for request in recorded:
            for part in frame_record(encode_prediction_log(model, request)):
                size += file.write(part)
    return size


def _unwritable(output: Path, error: OSError) -> int:
    click.echo(f"multitower: {output} cannot be written: {error.strerror or error}", err=True)
    return 1
