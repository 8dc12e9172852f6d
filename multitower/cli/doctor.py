"""`multitower doctor`: a dry run of a configuration on this machine."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multitower.exits import Exit

if TYPE_CHECKING:
    from multitower.tools.doctor.findings import Finding

_INDENT = 12


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `serve`.")
@click.option("--no-models", is_flag=True, help="Load no model.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1, max=86400),
    default=120.0,
    show_default=True,
    help="Seconds for a model to load.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(config: Path, overrides: tuple[str, ...], no_models: bool, timeout: float, as_json: bool) -> None:
    """Examine CONFIG on this machine, without starting a daemon.

    Tells of versions, devices, threads, limits, endpoints, the driver, the models (each is loaded once, on the CPU,
    in a process of its own: its code runs), their operations, and memory, with what to do about each finding. No GPU
    is touched. Exit codes: 0 when there are no problems, 69 when there are, 78 when the configuration is wrong.
    """
    from multitower.supervisor.config.config import ConfigError, load
    from multitower.tools.doctor.examination import examine
    from multitower.tools.doctor.findings import Level, count

    try:
        settings = load(config, overrides=overrides)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(Exit.CONFIG)
    findings = examine(settings, load_models=not no_models, timeout_s=timeout)
    seen = list(findings) if as_json else _print(findings)
    counts = count(seen)
    if as_json:
        entries = [finding.to_json() for finding in seen]
        click.echo(json.dumps({"config": str(settings.path), "findings": entries, "counts": counts}, indent=2))
    else:
        click.echo("\n" + ", ".join(f"{_several(counts[level], level)}" for level in reversed(Level)))
    sys.exit(Exit.UNAVAILABLE if counts[Level.PROBLEM] else Exit.OK)


def _several(number: int, level: str) -> str:
    return f"{number} {level}{'' if number == 1 or level == 'ok' else 's'}"


def _print(findings: Iterable[Finding]) -> list[Finding]:
    """As they come: loading models takes its time."""
    seen: list[Finding] = []
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    for finding in findings:
        if not seen or seen[-1].section != finding.section:
            click.echo(("\n" if seen else "") + finding.section)
        seen.append(finding)
        first = f"  {finding.level:8}  "
        click.echo(_wrapped(finding.text, first, width))
        if finding.advice is not None:
            click.echo(_wrapped(finding.advice, " " * _INDENT + "→ ", width))
    return seen


def _wrapped(text: str, first: str, width: int) -> str:
    return textwrap.fill(
        text,
        width=width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
