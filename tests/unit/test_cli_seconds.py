"""Options that are a time take seconds, or a duration with a unit."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from multitower.cli.seconds import Seconds


@click.command()
@click.option("--timeout", type=Seconds(0, 3600, min_open=True))
def command(timeout: float) -> None:
    click.echo(repr(timeout))


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5.0), ("0.5", 0.5), ("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0)]
)
def test_a_time_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    done = CliRunner().invoke(command, ["--timeout", text])
    assert (done.exit_code, done.output) == (0, f"{seconds!r}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5x", "'5x' is not a duration: give seconds, as in 5, or a unit, as in 500ms, 5s, 2m or 1h."),
        ("", "'' is not a duration: give seconds"),
        ("nan", "'nan' is not a duration."),
        ("0", "0.0 is not in the range 0<x<=3600"),
        ("2h", "7200.0 is not in the range 0<x<=3600"),
    ],
)
def test_what_is_no_time_is_refused_with_what_would_be(text: str, message: str) -> None:
    done = CliRunner().invoke(command, ["--timeout", text])
    assert done.exit_code == 2
    assert message in done.output
