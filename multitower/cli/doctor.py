"""`multitower doctor`: prints the findings of an examination of a configuration on this machine."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multitower.cli.seconds import Seconds
from multitower.exit_codes import Exit
from multitower.supervisor.loop.log import escape_controls

if TYPE_CHECKING:
    from multitower.tools.doctor.findings import Finding

_INDENT = 12


@click.command()
@click.argument("config", type=click.Path(readable=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `serve`.")
@click.option("--no-models", is_flag=True, help="Do not load the models.")
@click.option(
    "--timeout",
    type=Seconds(min=1, max=86400),
    default=120.0,
    show_default=True,
    help="Seconds that each model may take to load; less if its load_timeout is shorter.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(config: Path, overrides: tuple[str, ...], no_models: bool, timeout: float, as_json: bool) -> None:
    """Examine CONFIG on this machine, without starting a daemon.

    Checks versions, devices, threads, limits, endpoints, the driver, the models, their operations, and memory, and
    gives advice on each problem. Each model is loaded once, on the CPU, in a separate process; its code runs. No GPU is
    used. Exit codes: 0 when there are no problems, 69 when there are, 78 when the configuration is wrong.
    """
    from multitower.supervisor.config.loading import load
    from multitower.supervisor.config.source import ConfigError
    from multitower.tools.doctor.examination import examine
    from multitower.tools.doctor.findings import Level, count_levels, with_number

    try:
        settings = load(config, overrides=overrides, strict=False)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(Exit.CONFIG)
    findings = examine(settings, load_models=not no_models, timeout_s=timeout)
    shown = list(findings) if as_json else _print(findings)
    counts = count_levels(shown)
    if as_json:
        entries = [finding.to_json() for finding in shown]
        click.echo(json.dumps({"config": str(settings.path), "findings": entries, "counts": counts}, indent=2))
    else:
        words = (
            f"{counts[level]} ok" if level is Level.OK else with_number(counts[level], level)
            for level in reversed(Level)
        )
        click.echo("\n" + ", ".join(words))
    sys.exit(Exit.UNAVAILABLE if counts[Level.PROBLEM] else Exit.OK)


def _print(findings: Iterable[Finding]) -> list[Finding]:
    """Prints findings as they come, since loading models takes time; returns them."""
    shown: list[Finding] = []
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    for finding in findings:
        if not shown or shown[-1].section != finding.section:
            click.echo(("\n" if shown else "") + finding.section)
        shown.append(finding)
        first = f"  {finding.level:8}  "
        click.echo(_wrapped(finding.text, first, width))
        if finding.advice is not None:
            click.echo(_wrapped(finding.advice, " " * _INDENT + "→ ", width))
    return shown


def _wrapped(text: str, first: str, width: int) -> str:
    return textwrap.fill(
        escape_controls(text, keep_lines=True),  # it may quote a worker's output
        width=width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
