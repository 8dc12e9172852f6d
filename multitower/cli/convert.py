"""`multitower convert-config`: converts TensorFlow Serving's configuration files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower.tools.convert.text_format import Message

MAX_FILE_BYTES = 1 << 20


@click.command()
@click.argument("models", metavar="MODELS_CONFIG", type=click.Path(path_type=Path))
@click.option(
    "--batching",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The file of TensorFlow Serving's --batching_parameters_file.",
)
def convert_config(models: Path, batching: Path | None) -> None:
    """Print the YAML for TensorFlow Serving's MODELS_CONFIG.

    MODELS_CONFIG is the file of its --model_config_file. Each field that cannot be carried over is a comment in the
    YAML and is also printed to stderr, with file and line. Exit codes: 1 when no model could be carried over, 78 when a
    file cannot be read.
    """
    from multitower.tools.convert.serving import convert

    conversion = convert(
        _read(models),
        _read(batching) if batching is not None else None,
        models_file=models.name,
        batching_file=batching.name if batching is not None else "",
    )
    click.echo(conversion.yaml, nl=False)
    for note in conversion.notes:
        click.echo(str(note), err=True)
    if not conversion.models:
        click.echo(f"{models}: no model could be carried over", err=True)
        sys.exit(1)


def _read(path: Path) -> Message:
    from multitower.tools.convert.text_format import TextFormatError, parse

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"is over {MAX_FILE_BYTES >> 20} MiB")
        return parse(data.decode())
    except TextFormatError as error:
        click.echo(f"{path}:{error.line}:{error.column}: {error}", err=True)
    except OSError as error:
        click.echo(f"{path}: cannot be read: {error.strerror}", err=True)
    except UnicodeDecodeError:
        click.echo(f"{path}: is not UTF-8", err=True)
    except ValueError as error:
        click.echo(f"{path}: {error}", err=True)
    sys.exit(Exit.CONFIG)
