"""`multitower check` and `multitower schema`: a configuration before it is served."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `serve`.")
@click.option("--devices", "with_devices", is_flag=True, help="Also look whether this machine has the devices.")
def check(config: Path, overrides: tuple[str, ...], with_devices: bool) -> None:
    """Check the configuration file CONFIG, without starting anything.

    Prints everything that is wrong with it, each with its line and column. Exit code 0 when it is right, 78 when it
    is wrong.
    """
    from multitower.exits import Exit
    from multitower.supervisor import devices, placement
    from multitower.supervisor.config import ConfigError, load

    try:
        settings = load(config, overrides=overrides)
        click.echo(f"{config}: models {', '.join(model.name for model in settings.models)}")
        click.echo(f"{config}: listens on {', '.join(settings.listen)}")
        if with_devices:
            found = devices.resolve(settings.devices, devices.discover())
            slots = placement.place(
                found,
                workers_per_device=settings.workers_per_device,
                memory=settings.memory,
                intra_op=settings.threads.intra_op,
                inter_op=settings.threads.inter_op,
                cores=settings.cores,
                available_cores=sorted(os.sched_getaffinity(0)),
            )
            for slot in slots:
                click.echo(f"{config}: slot {slot.slot} on {slot.device}")
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(Exit.CONFIG)
    except devices.DeviceError as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(Exit.CONFIG)
    click.echo(f"{config}: correct" + ("" if with_devices else "; --devices looks at this machine's devices as well"))


@click.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors.

    In an editor that speaks YAML's language server, the first line of a configuration may be
    `# yaml-language-server: $schema=FILE`.
    """
    from multitower.supervisor.config import schema as configuration_schema

    click.echo(json.dumps(configuration_schema(), indent=2))
