"""`multitower check` and `multitower schema`: help with writing a configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multitower.durations import exact_duration
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower.supervisor.config.config import Config
    from multitower.supervisor.config.models import ModelConfig


@click.command()
@click.argument("config", type=click.Path(readable=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `serve`.")
@click.option(
    "--devices",
    "with_devices",
    is_flag=True,
    help="Also check that this machine has the devices, and the gateway's program.",
)
def check(config: Path, overrides: tuple[str, ...], with_devices: bool) -> None:
    """Check the configuration file CONFIG, without starting anything.

    All mistakes are printed at once, with line and column, and the exit code is 78. No model is loaded and no handler
    is imported; its module is looked for, and its class in the text of the module. Without --devices, the machine's
    devices and the gateway's program are not checked: a file can be checked on any machine that has the models.
    """
    from multitower.supervisor.config.loading import load
    from multitower.supervisor.config.source import ConfigError
    from multitower.supervisor.gateway.program import ProgramError, check_program
    from multitower.supervisor.machine.devices import DeviceError

    try:
        settings = load(config, overrides=overrides, find_handlers=True)
        slots = list(_slots(settings)) if with_devices else None
        if with_devices and settings.gateway is not None:
            check_program(settings.gateway.program)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(Exit.CONFIG)
    except DeviceError as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(Exit.CONFIG)
    except ProgramError as error:
        click.echo(f"{config}: gateway: {error}; {error.advice}", err=True)
        sys.exit(Exit.UNAVAILABLE)
    click.echo(f"{config} is correct.")
    _show("listen", settings.listen)
    _show("gateway", _gateway(settings))
    _show("access", _access(settings))
    _show("devices", [_selection(settings)])
    _show("models", _models(settings))
    _show("limits", _limits(settings))
    if slots is None:
        click.echo("Only the file was checked; --devices also checks it against this machine's devices.")
    else:
        _show("slots", slots)


def _show(title: str, lines: Iterator[str] | list[str] | tuple[str, ...]) -> None:
    for line in lines:
        click.echo(f"  {title:7}  {line}")
        title = ""


def _gateway(config: Config) -> Iterator[str]:
    if config.gateway is not None:
        served = {"HTTP": config.gateway.http, "gRPC": config.gateway.grpc}
        yield "; ".join(f"{protocol} on {', '.join(addresses)}" for protocol, addresses in served.items() if addresses)


def _access(config: Config) -> Iterator[str]:
    """Lines about who gets in, and what may lock somebody out; none without `security` and TLS."""
    from multitower.supervisor.config.principals import unmatched, without_fingerprint

    if config.security is not None and config.principals is not None:
        principals = config.principals.by_name.values()
        keys, tokens = (
            sum(bool(each.public_keys) for each in principals),
            sum(bool(each.token_hashes) for each in principals),
        )
        curve = "CURVE" if config.security.curve is not None else "no CURVE"
        yield f"{curve}; principals: {len(principals)} ({keys} with a key, {tokens} with a token)"
        if not principals:
            yield "note: without a principal nobody is let in over tcp, HTTP and gRPC"
        names = [model.name for model in config.models]
        for name, patterns in unmatched(config.principals, names).items():
            yield f"note: {name}: {', '.join(patterns)} matches no model of this configuration"
        if old := without_fingerprint(config.principals):
            yield f"note: {', '.join(old)}: a token_hash without f=, so wrong tokens can make others at an address wait"
    tls = config.gateway.tls if config.gateway is not None else None
    if tls is not None:
        from datetime import UTC, datetime

        from multitower.tools.doctor.findings import Level
        from multitower.tools.doctor.security import certificate_finding

        finding = certificate_finding("TLS", tls.certificate, datetime.now(UTC))
        yield finding.text if finding.level is Level.OK else f"warning: {finding.text}"


def _selection(config: Config) -> str:
    devices = config.devices
    if devices == "all":
        text = "all GPUs"
    elif isinstance(devices, tuple):
        text = ", ".join(f"[{', '.join(map(str, item))}]" if isinstance(item, tuple) else str(item) for item in devices)
    else:
        text = f"cpu: {devices.cpu}"
    workers = config.workers_per_device
    return f"{text}; {workers} {'worker' if workers == 1 else 'workers'} on each"


def _models(config: Config) -> Iterator[str]:
    from multitower.supervisor.config.version_folders import chosen_versions

    width = max(len(model.name) for model in config.models)
    for model in config.models:
        versions = chosen_versions(model.path, model.versions) if model.path is not None else ()
        chosen = ", ".join(version for version in versions if version is not None)
        where = str(model.handler or model.path)
        if chosen:
            where += f", version{'s' if len(versions) > 1 else ''} {chosen}"
        on = "" if model.devices == "all" else f", on {', '.join(map(str, model.devices))}"
        yield f"{model.name:{width}}  {where}{on}"
        if ignored := _keys_without_effect(model):
            effect = "have no effect" if len(ignored) > 1 else "has no effect"
            yield f"note: {model.name}: max_batch_size is 0, so {', '.join(ignored)} {effect}"


def _keys_without_effect(model: ModelConfig) -> list[str]:
    """The keys of a model's `batching` that were set although its requests run unbatched."""
    batching = model.batching
    if batching is None or batching.max_batch_size:
        return []
    return [key for key in ("pad_variable_length_inputs", "trust", "max_queue_delay") if getattr(batching, key)]


def _limits(config: Config) -> Iterator[str]:
    own = [f"{model.name} {exact_duration(model.load_timeout)}" for model in config.models if model.load_timeout]
    limits = ", ".join([exact_duration(config.load_timeout), *own])
    yield f"a load fails after {limits} (load_timeout)"
    if config.exit_when_failed:
        yield "if every slot fails, the daemon exits with 69 (exit_when_failed: true)"
    else:
        yield "if every slot fails, the daemon runs on (exit_when_failed: false)"


def _slots(config: Config) -> Iterator[str]:
    """A line for each slot: its devices, threads, memory, cores and models."""
    from multitower.supervisor.machine import devices, placement
    from multitower.supervisor.machine.cores import format_core_list

    for slot in placement.place_workers(config):
        limit = slot.memory_limit_bytes
        memory = f", memory {devices.format_bytes(limit)}" if limit is not None else ""
        cores = f", cores {format_core_list(slot.cores)}" if slot.cores else ""
        threads = f"{slot.intra_op_threads} intra-op and {slot.inter_op_threads} inter-op threads"
        models = f", models {', '.join(slot.models)}" if len(slot.models) < len(config.models) else ""
        yield f"{slot.slot}  {slot.device}, {threads}{memory}{cores}{models}"


@click.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors.

    Save it, and begin a configuration with `# yaml-language-server: $schema=FILE`. Editors with the YAML language
    server then complete keys, show their meanings and underline mistakes.
    """
    from multitower.supervisor.config.config import schema as configuration_schema

    click.echo(json.dumps(configuration_schema(), indent=2))
