"""`multitower bench`: throughput, latency and bottleneck of a daemon. Options, and the printing of the results."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from multitower import wire
from multitower.cli.connection import endpoint_option, error_line, exit_code, key_options
from multitower.cli.seconds import Seconds
from multitower.cli.tables import print_table
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower.tools.bench.rate_search import Objective
    from multitower.tools.bench.run import BenchRun
    from multitower.tools.bench.session import Options

SECONDS_PER_OBJECTIVE: Final = 10
"""A step must last at least this many times the objective: in less time, a growing queue would not show."""

NO_MATPLOTLIB: Final = "multitower: --plot needs the package matplotlib: pip install matplotlib"


class NumberList(click.ParamType[tuple[float, ...]]):
    """Numbers greater than 0, separated by commas."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self.name = "N[,N…]" if whole else "R[,R…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parses the numbers."""
        if isinstance(value, tuple):
            return value
        numbers = []
        for text in str(value).split(","):
            try:
                number = int(text) if self._whole else float(text)
            except ValueError:
                number = 0
            if not 0 < number < math.inf:
                self.fail(f"{text!r} is not a {'whole ' if self._whole else ''}number greater than 0", param, ctx)
            numbers.append(number)
        return tuple(numbers)


def _parse_duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    from multitower.supervisor.config.units import parse_duration

    if value is None:
        return None
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    if not seconds:
        raise click.BadParameter("must be greater than 0", context, parameter)
    return seconds


def _check_plot_file(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in (".svg", ".png"):
        raise click.BadParameter("the file's name must end in .svg or .png", context, parameter)
    return value


@click.command()
@click.argument("model", required=False)
@endpoint_option
@key_options
@click.option("--model-version", default="", metavar="VERSION", help="Version of the model.  [default: the served one]")
@click.option(
    "--concurrency",
    type=NumberList(whole=True),
    help="Closed loop: requests outstanding, step by step.  [default: 1,8,64]",
)
@click.option("--rate", type=NumberList(whole=False), help="Open loop: requests/s with Poisson arrivals, step by step.")
@click.option(
    "--slo", callback=_parse_duration, metavar="DURATION", help="Search the highest rate within this latency: 20ms."
)
@click.option(
    "--slo-percentile",
    type=click.FloatRange(0, 100, min_open=True),
    default=99.0,
    show_default=True,
    help="Percentile of the latency that must be within --slo.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=12, show_default=True, help="The most rates that --slo measures."
)
@click.option(
    "--scaling",
    "config",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="Serve CONFIG with 1, 2, 4, … workers, one daemon after the other, and measure each.",
)
@click.option(
    "--workers",
    type=NumberList(whole=True),
    help="Numbers of workers for --scaling.  [default: 1,2,4,… up to those of CONFIG]",
)
@click.option(
    "--seconds",
    type=Seconds(0.1, 86400),
    default=5.0,
    show_default=True,
    help="Seconds that each step is measured.",
)
@click.option(
    "--warmup", type=Seconds(0, 3600), default=1.0, show_default=True, help="Seconds of load before each step."
)
@click.option(
    "--timeout",
    type=Seconds(0, 3600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds until a request has failed.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Client processes that share the load.",
)
@click.option("--rows", type=click.IntRange(1), help="Rows of each request.  [default: 1]")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DIM,DIM,…",
    help="Shape of an input that the model leaves open; NAME:DATATYPE:DIM,… if it declares no inputs. Repeatable.",
)
@click.option(
    "--input",
    "source",
    metavar="FILE.npz",
    help="Inputs to send instead of random ones; with --rows, split into requests of that many rows.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of random values and arrivals."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures to FILE.")
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    callback=_check_plot_file,
    metavar="FILE",
    help="Plot the figures, as FILE.svg or FILE.png.",
)
def bench(**given: Any) -> None:
    """Measure how much MODEL answers, how fast, and what limits it.

    Without --concurrency, --rate and --slo: a closed loop of 1, 8 and 64 requests outstanding. Latencies of --rate
    count from the time when a request was due, even if it could only be sent later (coordinated omission). Requests
    are not retried. MODEL may be left out if the daemon serves only one.

    \b
      multitower bench digits --concurrency 1,8,64 --rows 4
      multitower bench digits --rate 500,1000 --seconds 30 --json figures.json --plot figures.svg
      multitower bench digits --slo 20ms
      multitower bench --scaling multitower.yaml --workers 1,2,4

    Below the table, the bottleneck is the part that is at its limit: the client processes, the router (the daemon's own
    process), the workers, the devices, or the machine's cores. Figures limited by the client are those of the client.
    Exit codes: 1 when no request was answered or no rate met the objective, 69 when no daemon answers.

    The page 'Measure a model with multitower bench' of multitower's documentation explains every figure.
    """  # noqa: D301 - the escape keeps click from folding these lines
    from multitower.tools.bench.rate_search import Objective
    from multitower.tools.bench.run import BenchRun
    from multitower.tools.bench.text_report import meets_objective

    _check_options(given)
    _pass_keys_on(given)
    if given["plot_file"] is not None:
        try:
            from multitower.tools.bench import plot  # noqa: F401 - fails before minutes of load, not after them
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "multitower":
                raise
            click.echo(NO_MATPLOTLIB, err=True)
            sys.exit(Exit.UNAVAILABLE)
    _check_files(given)
    objective = Objective(given["slo"], given["slo_percentile"]) if given["slo"] is not None else None
    run = BenchRun(_options(given), lambda line: click.echo(line, err=True))
    # A signal ends the bench by SystemExit, so that its daemon and client processes are ended first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    code = _measure(run, given, objective)
    if run.steps:
        _print_results(run, objective)
        code = _write_files(run, objective, given) or code
    if code == Exit.OK:
        answered = any(step.tally.answered for step in run.steps)
        met = objective is None or any(meets_objective(objective, result) for result in run.tried)
        code = Exit.OK if answered and met else 1
    sys.exit(code)


def _check_options(given: Mapping[str, Any]) -> None:
    """Rejects options that do not go together."""
    scaling = given["config"] is not None
    for name, option in (("endpoint", "--endpoint"), ("key", "--key"), ("rate", "--rate"), ("slo", "--slo")):
        if scaling and given[name] is not None:
            raise click.UsageError(f"--scaling starts its own daemons and saturates them: it takes no {option}")
    if given["workers"] is not None and not scaling:
        raise click.UsageError("--workers belongs to --scaling CONFIG")
    if given["source"] is not None and given["shapes"]:
        raise click.UsageError("--shape is for random inputs; those of --input have their shapes in the file")
    if given["slo"] is not None and given["seconds"] < SECONDS_PER_OBJECTIVE * given["slo"]:
        raise click.UsageError(
            f"--seconds must be at least {SECONDS_PER_OBJECTIVE} times --slo "
            f"({SECONDS_PER_OBJECTIVE * given['slo']:g}): in less time, a growing queue does not show"
        )
    if any(math.isnan(given[name]) for name in ("seconds", "warmup", "timeout", "slo_percentile")):
        raise click.UsageError("nan is not a number of seconds or a percentile")


def _pass_keys_on(given: dict[str, Any]) -> None:
    """Moves the keys into the environment: the processes that act as clients have it, too. No report has them."""
    for name, variable in (("key", wire.KEY_VARIABLE), ("server_key", wire.SERVER_KEY_VARIABLE)):
        value = given.pop(name)
        if value is not None:
            os.environ[variable] = str(value)


def _check_files(given: Mapping[str, Any]) -> None:
    """Ends the command if the files that it is to write cannot be written: before minutes of load, not after them."""
    from multitower.tools.replaced_file import check_replaceable

    for name in ("json_file", "plot_file"):
        if given[name] is not None:
            try:
                check_replaceable(given[name])
            except OSError as error:
                click.echo(f"multitower: {given[name]}: {error.strerror}", err=True)
                sys.exit(1)


def _options(given: Mapping[str, Any]) -> Options:
    from multitower.tools.bench.inputs import InputsError, parse_shape
    from multitower.tools.bench.session import Options

    try:
        shapes = dict(map(parse_shape, given["shapes"]))
    except InputsError as error:
        raise click.BadParameter(str(error), param_hint="'--shape'") from None
    source = given["source"]
    if source is not None and not source.endswith(".npz"):
        raise click.BadParameter("the file must be a numpy file whose name ends in .npz", param_hint="'--input'")
    return Options(
        model=given["model"],
        version=given["model_version"],
        seconds=given["seconds"],
        warmup=given["warmup"],
        timeout=given["timeout"],
        processes=given["processes"],
        seed=given["seed"],
        rows=given["rows"],
        shapes=shapes,
        source=source,
    )


def _measure(run: BenchRun, given: Mapping[str, Any], objective: Objective | None) -> int:
    """Runs the steps; prints the error if there is one, and returns the exit code."""
    from multitower import MultitowerError
    from multitower.supervisor.config.loading import load
    from multitower.supervisor.config.source import ConfigError
    from multitower.supervisor.machine.devices import DeviceError
    from multitower.tools.bench.scaling_plan import plan_scaling
    from multitower.tools.errors import ToolError

    try:
        if given["config"] is not None:
            plan = plan_scaling(load(given["config"]), given["workers"])
            run.measure_scaling(given["config"], plan, given["concurrency"])
        else:
            run.measure_daemon(
                given["endpoint"],
                concurrency=given["concurrency"],
                rates=given["rate"],
                objective=objective,
                max_search_steps=given["steps"],
            )
    except KeyboardInterrupt:
        click.echo("interrupted; the results until then:", err=True)
        return 128 + signal.SIGINT
    except MultitowerError as error:
        from_inputs = error.code in ("INTERNAL", "INVALID_ARGUMENT")
        hint = "; check the inputs (--shape, --rows, --input)" if from_inputs else ""
        click.echo(error_line(error) + hint, err=True)
        return exit_code(error)
    except (ConfigError, DeviceError) as error:
        click.echo(str(error), err=True)
        return Exit.CONFIG
    except ToolError as error:
        click.echo(f"multitower: {error}", err=True)
        return 1
    return Exit.OK


def _print_results(run: BenchRun, objective: Objective | None) -> None:
    from multitower.tools.bench import text_report
    from multitower.tools.bench.results import best

    print_table(text_report.COLUMNS, map(text_report.result_row, run.steps))
    explained = best(run.steps)
    if run.scaling:
        print_table(text_report.SCALING_COLUMNS, text_report.scaling_rows(run.scaling))
        explained = run.scaling[max(run.scaling)]
    if objective is not None and run.tried:
        for line in text_report.objective_lines(objective, run.tried):
            click.echo(line)
        click.echo()
    for line in text_report.explain_bottleneck(explained):
        click.echo(line)
    for line in text_report.notes(run.steps):
        click.echo(line)


def _write_files(run: BenchRun, objective: Objective | None, given: Mapping[str, Any]) -> int:
    """Writes the JSON and the plot; returns the exit code."""
    from multitower.tools.bench import json_report
    from multitower.tools.replaced_file import replaced_file

    json_file: Path | None = given["json_file"]
    plot_file: Path | None = given["plot_file"]
    try:
        if json_file is not None:
            report = json_report.build_report(
                {name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
                daemon=run.daemon,
                requests=run.requests,
                steps=run.steps,
                objective=objective,
                tried=run.tried,
                scaling=run.scaling,
                complete=run.complete,
            )
            with replaced_file(json_file) as output:
                output.write(f"{json.dumps(report, indent=1, allow_nan=False)}\n".encode())
        if plot_file is not None:
            from multitower.tools.bench import plot

            title = f"multitower bench {run.model}"
            plot.draw(plot_file, title, run.steps, objective=objective, scaling=run.scaling)
    except OSError as error:
        click.echo(f"multitower: {error.filename}: {error.strerror}", err=True)
        return 1
    return Exit.OK
