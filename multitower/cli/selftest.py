"""`multitower selftest`: shows on this machine that workers are pinned, memory is freed and deaths are survived."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.layout import Cell, Column
from multitower.cli.tables import print_table
from multitower.exit_codes import Exit
from multitower.supervisor.loop.log import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from multitower.tools.selftest.results import Report, Result
    from multitower.tools.selftest.targets import Target

_LEAST_MEMORY: Final = 64 << 20
_ONE_SIGNAL_S: Final = 1.0
"""Signals within this time count as one: a terminal and a shell that waits may both send one for a single Ctrl-C."""

_STYLES: Final = {"ok": "good", "failed": "bad", "skipped": "attention"}


@click.command()
@click.option(
    "--devices",
    default="all",
    show_default=True,
    help="Devices to check, as in the configuration: all, [0, 2], [GPU-8f3a1c], [[0, 1]] or {cpu: 2}.",
)
@click.option(
    "--memory",
    default="256MiB",
    show_default=True,
    help="Memory that each worker takes on its device for the checks, at least 64MiB.",
)
@click.option("--tensorflow", is_flag=True, help="Also serve a small TensorFlow model, if TensorFlow is installed.")
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Keep the daemon's log in this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def selftest(devices: str, memory: str, tensorflow: bool, log: Path | None, as_json: bool) -> None:
    """Check on this machine that workers are pinned, freed and restarted.

    Starts a private daemon on all GPUs and checks, device by device, that a worker sees exactly its device; that memory
    it takes appears in the status and is free after a SIGKILL; that exhausted memory, a hang and a crash cost no more
    than their request; how many requests the daemon answers; and that nothing is left at the end. Needs neither a model
    nor TensorFlow, and takes less than two minutes without --tensorflow. Others may use the GPUs: each worker takes
    --memory and what the driver needs for a process. Without GPUs: --devices '{cpu: 2}'. Exit codes: 0 when no check
    failed, 1 when one did, 2 when an option is wrong, 69 when there is no such device, or others need every device.
    """
    from multitower.supervisor.config.source import ConfigError
    from multitower.supervisor.machine.devices import DeviceError
    from multitower.tools.selftest.occupancy import find_mps, leave_out_occupied
    from multitower.tools.selftest.run import Options, run
    from multitower.tools.selftest.targets import find_targets

    size = _parse_memory(memory)
    _check_log(log)
    _check_visible_devices()
    try:
        targets, found = find_targets(devices)
    except ConfigError as error:
        raise click.BadParameter(error.problems[0].message, param_hint="'--devices'") from None
    except DeviceError as error:
        click.echo(f"multitower: {escape_controls(str(error), keep_lines=True)}", err=True)
        sys.exit(Exit.UNAVAILABLE)
    missing = found.problem if devices == "all" else None
    targets, occupied = leave_out_occupied(targets, size)
    _print_targets(targets, as_json=as_json)
    mps = find_mps()
    if mps is not None:
        click.echo(
            f"MPS has a control daemon in {escape_controls(str(mps))}: the selftest's workers do not use it", err=True
        )
    _end_on_signals()

    def show(result: Result) -> None:
        if not as_json:
            where = result.target.label if result.target is not None else "daemon"
            click.echo(f"{where}: {result.check}: {result.outcome} ({result.seconds:.1f} s)", err=True)

    options = Options(targets=targets, occupied=occupied, missing=missing, memory=size, tensorflow=tensorflow, log=log)
    report = run(options, show)
    if as_json:
        click.echo(json.dumps(_to_json(targets, [*occupied], size, report), indent=2))
    else:
        _print_report(report)
        if report.counts()["failed"] and log is None:
            click.echo("With --log FILE, the daemon's log tells more.")
    if report.counts()["failed"]:
        sys.exit(1)
    if not targets:
        click.echo("multitower: nothing was checked: others need every device", err=True)
        sys.exit(Exit.UNAVAILABLE)


def _parse_memory(text: str) -> int:
    from multitower.supervisor.config.units import format_size, parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--memory'") from None
    if size < _LEAST_MEMORY:
        least = format_size(_LEAST_MEMORY)
        raise click.BadParameter(f"{text} is less than {least}, the least", param_hint="'--memory'")
    return size


def _check_log(log: Path | None) -> None:
    if log is None:
        return
    try:
        log.open("ab").close()
    except OSError as error:
        raise click.BadParameter(f"{log} cannot be written: {error.strerror}", param_hint="'--log'") from None


def _check_visible_devices() -> None:
    """Refuses to check all GPUs where a scheduler may have lent only some of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    source = click.get_current_context().get_parameter_source("devices")
    if visible is not None and source is click.core.ParameterSource.DEFAULT:
        raise click.UsageError(
            f"CUDA_VISIBLE_DEVICES={escape_controls(visible)} is set here, so some GPUs may be reserved for others. It "
            "does not limit multitower: name the GPUs to check with --devices, as `multitower devices` shows them, "
            "or all of them with --devices all"
        )


def _end_on_signals() -> None:
    """Lets the first SIGINT, SIGTERM or SIGHUP end the selftest and drain its daemon, and the second kill the daemon.

    SIGHUP stays ignored where it was, as under nohup.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    first_at: float | None = None

    def end(number: int, _: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if first_at is None:
            first_at = now
            click.echo("ending the daemon of the selftest", err=True)
        elif now - first_at < _ONE_SIGNAL_S:
            return
        else:
            for each in numbers:
                signal.signal(each, signal.SIG_IGN)
            click.echo("killing the daemon of the selftest", err=True)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, end)


def _print_targets(targets: tuple[Target, ...], *, as_json: bool) -> None:
    from multitower.tools.selftest.targets import describe

    if as_json:
        return
    for target in targets:
        devices = ", ".join(map(describe, target.devices))
        click.echo(f"slot {target.number}: {escape_controls(devices)}")


def _print_report(report: Report) -> None:
    rows = (
        (
            result.target.label if result.target is not None else "daemon",
            result.check,
            Cell(result.outcome.value, _STYLES[result.outcome.value]),
            f"{result.seconds:.2f} s",
            result.detail,
        )
        for result in report.sorted()
    )
    print_table(("Device", "Check", "Result", ">Time", Column("Found", prose=True, label="found:")), rows)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts().items() if count)
    click.echo(f"{counts}, after {report.seconds:.0f} s")


def _to_json(targets: Sequence[Target], occupied: Sequence[Target], memory: int, report: Report) -> dict[str, Any]:
    from importlib.metadata import version

    from multitower.compiled import compiled

    return {
        "version": version("multitower"),
        "compiled": compiled(),
        "memory_bytes": memory,
        "devices": [
            {"slot": slot, "names": list(target.names), "products": [each.product for each in target.devices]}
            for slot, target in [*enumerate(targets), *((None, target) for target in occupied)]
        ],
        "results": [result.to_json() for result in report.sorted()],
        "counts": report.counts(),
        "requests_per_s": report.requests_per_s,
        "seconds": round(report.seconds, 1),
    }
