"""`multitower bench`: how much a daemon answers, how fast, and what limits it."""

from __future__ import annotations

import functools
import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.exits import Exit

if TYPE_CHECKING:
    from multitower.tools.bench.inputs import Request
    from multitower.tools.bench.rate_search import Objective
    from multitower.tools.bench.results import Result
    from multitower.tools.bench.session import Options

RAMP: Final = (1, 8, 64)
SHORTEST: Final = 10
"""A step lasts this many times the objective at least: in less, a queue that grows would not show."""

SEARCH_FROM: Final = 64
"""Requests outstanding in the closed loop whose throughput a search begins with, where none was measured."""

NO_MATPLOTLIB: Final = 'multitower: --plot needs the package matplotlib: pip install "multitower[bench]"'


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers over 0, with commas between them."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self.name = "N[,N…]" if whole else "R[,R…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Reads them."""
        if isinstance(value, tuple):
            return value
        numbers = []
        for text in str(value).split(","):
            try:
                number = int(text) if self._whole else float(text)
            except ValueError:
                number = 0
            if not 0 < number < math.inf:
                self.fail(f"{text!r} is no {'whole ' if self._whole else ''}number over 0", param, ctx)
            numbers.append(number)
        return tuple(numbers)


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    from multitower.supervisor.config.units import parse_duration

    if value is None:
        return None
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    if not seconds:
        raise click.BadParameter("nothing takes no time", context, parameter)
    return seconds


def _plot_file(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in (".svg", ".png"):
        raise click.BadParameter("a picture's name ends in .svg or .png", context, parameter)
    return value


@dataclass
class _Outcome:
    """What there is to report, also when it was interrupted."""

    model: str = ""
    daemon: Mapping[str, Any] | None = None
    requests: Sequence[Request] = ()
    steps: list[Result] = field(default_factory=list)
    tried: list[Result] = field(default_factory=list)
    scaling: dict[int, Result] | None = None
    complete: bool = False


@click.command()
@click.argument("model", required=False)
@click.option("--endpoint", help="Of the daemon; else MULTITOWER_ENDPOINT, else tcp://127.0.0.1:5555.")
@click.option("--model-version", default="", metavar="VERSION", help="Else the one that is served.")
@click.option(
    "--concurrency",
    type=Numbers(whole=True),
    help="Closed loop: requests outstanding, step by step.  [default: 1,8,64]",
)
@click.option("--rate", type=Numbers(whole=False), help="Open loop: requests/s with Poisson arrivals, step by step.")
@click.option(
    "--slo", callback=_duration, metavar="DURATION", help="Find the highest rate with the latency within this: 20ms."
)
@click.option(
    "--slo-percentile",
    type=click.FloatRange(0, 100, min_open=True),
    default=99.0,
    show_default=True,
    help="Of the latency that --slo is about.",
)
@click.option("--steps", type=click.IntRange(1), default=12, show_default=True, help="Rates that --slo tries at most.")
@click.option(
    "--scaling",
    "config",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="Serve CONFIG with 1, 2, 4, … workers, one daemon after the other, and measure each.",
)
@click.option("--workers", type=Numbers(whole=True), help="Of --scaling.  [default: 1,2,4,… up to those of CONFIG]")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 86400),
    default=5.0,
    show_default=True,
    help="That each step is measured.",
)
@click.option(
    "--warmup", type=click.FloatRange(0, 3600), default=1.0, show_default=True, help="Seconds of load before each step."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds until a request has failed.",
)
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Client processes to share the load."
)
@click.option("--rows", type=click.IntRange(1), help="Of each request.  [default: 1]")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DIM,DIM,…",
    help="Of an input, where the model leaves it open; NAME:DATATYPE:DIM,… where it declares none. Repeatable.",
)
@click.option(
    "--input",
    "source",
    metavar="FILE.npz",
    help="Inputs instead of random ones; with --rows, cut into requests of that many rows.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random values and arrivals.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures to FILE.")
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    callback=_plot_file,
    metavar="FILE",
    help="Draw them, as FILE.svg or FILE.png.",
)
def bench(**given: Any) -> None:
    """Measure how much MODEL answers, how fast, and what limits it.

    Without --concurrency, --rate and --slo: a closed loop of 1, 8 and 64 requests outstanding. Latencies of --rate
    run from the time when a request was due, also when it could be sent only later (coordinated omission). Requests
    are not retried. MODEL may be left out where there is only one.

    \b
      multitower bench digits --concurrency 1,8,64 --rows 4
      multitower bench digits --rate 500,1000 --seconds 30 --json figures.json --plot figures.svg
      multitower bench digits --slo 20ms
      multitower bench --scaling multitower.yaml --workers 1,2,4

    docs/benchmarking.md tells how to read it. The exit code is 1 when no request was answered or no rate held the
    objective, and 69 when no daemon answers.
    """  # noqa: D301 - the escape tells click not to fold these lines
    _check(given)
    if given["plot_file"] is not None:
        try:
            from multitower.tools.bench import plot  # noqa: F401 - before minutes of load, not after
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "multitower":
                raise
            click.echo(NO_MATPLOTLIB, err=True)
            sys.exit(Exit.UNAVAILABLE)
    objective = _objective(given)
    outcome = _Outcome()
    # Whatever ends the bench, it ends its daemon and its client processes first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    code = _told(functools.partial(_measure, given, objective, outcome))
    if outcome.steps:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        _report(outcome, objective)
        code = _write(outcome, objective, settings, given["json_file"], given["plot_file"]) or code
    if code == Exit.OK:
        answered = any(step.tally.answered for step in outcome.steps)
        held = objective is None or any(_held(objective, result) for result in outcome.tried)
        code = Exit.OK if answered and held else 1
    sys.exit(code)


def _check(given: Mapping[str, Any]) -> None:
    """Options that do not go together."""
    scaling = given["config"] is not None
    for name, option in (("endpoint", "--endpoint"), ("rate", "--rate"), ("slo", "--slo")):
        if scaling and given[name] is not None:
            raise click.UsageError(f"--scaling starts daemons of its own and saturates them: it takes no {option}")
    if given["workers"] is not None and not scaling:
        raise click.UsageError("--workers belongs to --scaling CONFIG")
    if given["source"] is not None and given["shapes"]:
        raise click.UsageError("--shape describes random inputs; with --input the file says all")
    if given["slo"] is not None and given["seconds"] < SHORTEST * given["slo"]:
        raise click.UsageError(
            f"--seconds must be at least {SHORTEST} times --slo ({SHORTEST * given['slo']:g}): "
            "in less time, a queue that grows does not show"
        )
    if any(math.isnan(given[name]) for name in ("seconds", "warmup", "timeout", "slo_percentile")):
        raise click.UsageError("nan is no time")


def _objective(given: Mapping[str, Any]) -> Objective | None:
    from multitower.tools.bench.rate_search import Objective

    return Objective(given["slo"], given["slo_percentile"]) if given["slo"] is not None else None


def _told(measure: functools.partial[None]) -> int:
    """Runs it, and tells in one line what kept it from its end; the exit code."""
    from multitower import MultitowerError, Unavailable
    from multitower.supervisor.config.source import ConfigError
    from multitower.supervisor.machine.devices import DeviceError
    from multitower.tools.bench.client_pool import BenchError
    from multitower.tools.bench.inputs import InputsError
    from multitower.tools.tensor_files import ValuesError

    try:
        measure()
    except KeyboardInterrupt:
        click.echo("interrupted; what was measured until then:", err=True)
        return 128 + signal.SIGINT
    except MultitowerError as error:
        hint = (
            "; is it the inputs? (--shape, --rows, --input)" if error.code in ("INTERNAL", "INVALID_ARGUMENT") else ""
        )
        click.echo(f"multitower: {' '.join(str(error).split())}{hint}", err=True)
        return Exit.UNAVAILABLE if isinstance(error, Unavailable) else 1
    except (ConfigError, DeviceError) as error:
        click.echo(str(error), err=True)
        return Exit.CONFIG
    except (BenchError, InputsError, ValuesError) as error:
        click.echo(f"multitower: {error}", err=True)
        return 1
    return Exit.OK


def _options(given: Mapping[str, Any]) -> Options:
    from multitower.tools import tensor_files
    from multitower.tools.bench.inputs import InputsError, parse_shape
    from multitower.tools.bench.session import Options

    try:
        shapes = dict(map(parse_shape, given["shapes"]))
    except InputsError as error:
        raise click.BadParameter(str(error), param_hint="'--shape'") from None
    source = given["source"]
    if source is not None and not source.endswith(".npz"):
        raise click.BadParameter("the file of inputs is one of numpy's, .npz", param_hint="'--input'")
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
        read=functools.partial(tensor_files.read, source, ()) if source is not None else None,
    )


def _measure(given: Mapping[str, Any], objective: Objective | None, outcome: _Outcome) -> None:
    options = _options(given)
    if given["config"] is not None:
        _measure_scaling(given, options, outcome)
    else:
        _measure_daemon(given, options, objective, outcome)
    outcome.complete = True


def _measure_daemon(given: Mapping[str, Any], options: Options, objective: Objective | None, outcome: _Outcome) -> None:
    from multitower.tools.bench.arrivals import Load
    from multitower.tools.bench.results import best
    from multitower.tools.bench.session import Session

    closed = given["concurrency"] or (RAMP if given["rate"] is None and objective is None else ())
    if objective is not None and not closed:
        closed = (SEARCH_FROM,)
    loads = [Load("closed", amount) for amount in closed] + [Load("open", rate) for rate in given["rate"] or ()]
    with Session(given["endpoint"], options, max(closed, default=0)) as session:
        outcome.model, outcome.daemon, outcome.requests = session.model, session.daemon, session.requests
        click.echo(_asking(outcome, options), err=True)
        for load in loads:
            _add(outcome, session.measure(load))
        if objective is not None:
            throughput = best([step for step in outcome.steps if step.load.loop == "closed"]).requests_per_s
            for result in session.search(objective, throughput, given["steps"]):
                outcome.tried.append(result)
                _add(outcome, result)


def _measure_scaling(given: Mapping[str, Any], options: Options, outcome: _Outcome) -> None:
    from multitower.supervisor.config.config import load
    from multitower.tools.bench.arrivals import Load
    from multitower.tools.bench.results import best
    from multitower.tools.bench.scaling import most_concurrency
    from multitower.tools.bench.session import Session
    from multitower.tools.daemon import OwnDaemon, plan

    config = load(given["config"])
    counts = plan(config, given["workers"])
    outcome.scaling = {}
    for workers in counts.workers:
        click.echo(f"starting a daemon with {workers} {'worker' if workers == 1 else 'workers'}", err=True)
        most = max(given["concurrency"] or (most_concurrency(workers),))
        with (
            OwnDaemon(given["config"], [counts.override(workers)]) as daemon,
            Session(daemon.endpoint, options, most) as session,
        ):
            outcome.model, outcome.daemon, outcome.requests = session.model, session.daemon, session.requests
            click.echo(_asking(outcome, options), err=True)
            steps: Iterator[Result] = session.saturate(workers)
            if given["concurrency"] is not None:
                steps = (session.measure(Load("closed", amount)) for amount in given["concurrency"])
            done = []
            for result in steps:
                done.append(result)
                _add(outcome, result)
                outcome.scaling[workers] = best(done)


def _asking(outcome: _Outcome, options: Options) -> str:
    inputs = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in outcome.requests[0].items())
    processes = "1 client process" if options.processes == 1 else f"{options.processes} client processes"
    return f"asking {outcome.model} with {inputs}, from {processes}, {options.seconds:g} s a step"


def _add(outcome: _Outcome, result: Result) -> None:
    from multitower.tools.bench import text_report

    outcome.steps.append(result)
    click.echo(f"  {text_report.line(result)}", err=True)


def _held(objective: Objective, result: Result) -> bool:
    return objective.holds(result.tally.percentile_s(objective.percent))


def _report(outcome: _Outcome, objective: Objective | None) -> None:
    from multitower.tools.bench import text_report
    from multitower.tools.bench.results import best

    _table(text_report.COLUMNS, map(text_report.row, outcome.steps))
    shown = best(outcome.steps)
    if outcome.scaling:
        _table(text_report.SCALING_COLUMNS, text_report.scaling_rows(outcome.scaling))
        shown = outcome.scaling[max(outcome.scaling)]
    if objective is not None and outcome.tried:
        for text in text_report.objective_lines(objective, outcome.tried):
            click.echo(text)
        click.echo()
    for text in text_report.explanation(shown):
        click.echo(text)
    for text in text_report.notes(outcome.steps):
        click.echo(text)


def _table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 250  # as in `query`: lines that are not folded are easier to search
    console.print(table)


def _write(
    outcome: _Outcome,
    objective: Objective | None,
    settings: Mapping[str, Any],
    json_file: Path | None,
    plot_file: Path | None,
) -> int:
    """The files; the exit code when one cannot be written."""
    from multitower.tools.bench import json_report

    try:
        if json_file is not None:
            document = json_report.document(
                settings,
                daemon=outcome.daemon,
                requests=outcome.requests,
                steps=outcome.steps,
                objective=objective,
                tried=outcome.tried,
                scaling=outcome.scaling,
                complete=outcome.complete,
            )
            json_file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        if plot_file is not None:
            from multitower.tools.bench import plot

            title = f"multitower bench {outcome.model}"
            plot.draw(plot_file, title, outcome.steps, objective=objective, scaling=outcome.scaling)
    except OSError as error:
        click.echo(f"multitower: {error.filename}: {error.strerror}", err=True)
        return 1
    return Exit.OK
