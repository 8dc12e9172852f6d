"""`multitower convert-config`: converts TensorFlow Serving's configuration files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from multitower.exit_codes import Exit


@click.command()
@click.argument("models", metavar="MODELS_CONFIG", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--batching",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The file of TensorFlow Serving's --batching_parameters_file.",
)
@click.option(
    "--model-batching",
    is_flag=True,
    help="Read the batching_params.pbtxt of each model, as --enable_per_model_batching_parameters does.",
)
def convert_config(models: Path, batching: Path | None, model_batching: bool) -> None:
    """Print the YAML for TensorFlow Serving's MODELS_CONFIG.

    MODELS_CONFIG is the file of its --model_config_file. Each field that cannot be carried over is a comment in the
    YAML and is also printed to stderr, with file and line. Exit codes: 1 when no model could be carried over, 78 when a
    file cannot be read.
    """
    from multitower.supervisor.config.source import ConfigError
    from multitower.tools.convert.reading import read_message
    from multitower.tools.convert.serving import FlagSettings, convert

    try:
        conversion = convert(
            read_message(models),
            read_message(batching) if batching is not None else None,
            models_file=models.name,
            batching_file=batching.name if batching is not None else "",
            flags=FlagSettings(model_batching=model_batching),
        )
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(Exit.CONFIG)
    click.echo(conversion.yaml, nl=False)
    for note in conversion.notes:
        click.echo(str(note), err=True)
    if not conversion.models:
        click.echo(f"{models}: no model could be carried over", err=True)
        sys.exit(1)
