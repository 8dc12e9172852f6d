"""Two installations of the daemon in one run, as before and after a change: ratios of the second one to the first.

    make wheel && cp -r build/installed /tmp/before     # in a checkout of the earlier commit
    make wheel && cp -r build/installed /tmp/after      # in a checkout of the later one
    python benchmarks/releases.py /tmp/before /tmp/after [--rounds 12] [--seconds 0.7]
        [--workloads small,large,devices] [--loads 64/1,64/64,8/8,1/1]

Workloads:

- `small`: an echo of 64 bytes on two CPU workers, under each of the loads; `batched` and `single` as in `router.py`.
- `large`: an echo of 602,112 bytes on two CPU workers, 8 on 8 connections.
- `devices`: 16 workers, whose handlers sleep 5 ms for a batch and 0.02 ms for a row, in batches of up to 32. Three
  times as many requests are outstanding as all workers hold.

Both daemons of a workload run all the time; the one that is not measured is idle. A round measures each of them twice,
in the order A B B A or B A A B, so that a machine that gets slower or faster meanwhile changes both. A figure is the
median of the rounds' ratios, with the first and third quartile behind it: where they are on both sides of 1, the
difference is within the noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import load
import psutil
import serving


@dataclass(frozen=True)
class Workload:
    """What both daemons serve, and how they are loaded.

    Attributes:
        workers: how many each daemon has.
        models: the YAML of each model.
        loads: each is put on each model; None for those of the command line.
        options: of load.c.
    """

    workers: int
    models: dict[str, str]
    loads: tuple[load.Load, ...] | None = None
    options: tuple[str, ...] = ()


DEVICE = "handler: 'handlers:Device', parameters: {batch_s: 0.005, row_s: 0.00002}, queue: {max_size: 100000}"

WORKLOADS = {
    "small": Workload(2, {"batched": "handler: 'handlers:Echo', batching: {}", "single": "handler: 'handlers:Echo'"}),
    "large": Workload(2, {"large": "handler: 'handlers:Echo'"}, (load.Load(8, 8),), ("-s", "1,224,224,3")),
    "devices": Workload(16, {"devices": f"{DEVICE}, batching: {{max_batch_size: 32}}"}, (load.Load(3 * 16 * 32, 1),)),
}

FIGURES = {
    "rps": "requests/s",
    "per_cpu_second": "per CPU s",
    "daemon_us": "daemon CPU us",
    "workers_us": "workers CPU us",
    "p50": "p50 ms",
    "p99": "p99 ms",
}


def measure(
    program: Path, daemon: serving.Daemon, wanted: load.Load, seconds: float, model: str, options: tuple[str, ...]
) -> dict[str, float]:
    """One load on one daemon: the values of `FIGURES`; CPU time is for each request."""
    workers = [child.pid for child in psutil.Process(daemon.pid).children()]
    before = serving.cpu_seconds([daemon.pid]), serving.cpu_seconds(workers)
    found = load.run(program, daemon.endpoint, wanted, seconds, "-m", model, *options)
    after = serving.cpu_seconds([daemon.pid]), serving.cpu_seconds(workers)
    daemon_us, workers_us = ((late - early) / found.answered * 1e6 for late, early in zip(after, before, strict=True))
    return {
        "rps": found.rps,
        "per_cpu_second": 1e6 / (daemon_us + workers_us),
        "daemon_us": daemon_us,
        "workers_us": workers_us,
        "p50": found.p50,
        "p99": found.p99,
    }


def ratios(rounds: list[list[tuple[int, dict[str, float]]]], figure: str) -> list[float]:
    """The ratio of the second installation to the first in each round."""
    sums = [[sum(found[figure] for side, found in each if side == number) for number in (0, 1)] for each in rounds]
    return [after / before for before, after in sums]


def compare(name: str, options: argparse.Namespace) -> None:
    """Runs the rounds of one workload, and prints a line for each model and load."""
    workload = WORKLOADS[name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        program = load.build(folder)
        daemons = [
            stack.enter_context(
                serving.daemon(
                    folder,
                    name,
                    workers=workload.workers,
                    models=workload.models,
                    transport=options.transport,
                    installation=path.resolve(),
                )
            )
            for name, path in zip(("before", "after"), options.installations, strict=True)
        ]
        for model in workload.models:
            for wanted in workload.loads or options.loads:
                for daemon in daemons:
                    measure(program, daemon, wanted, options.seconds, model, workload.options)  # the first run warms up
                rounds = []
                for number in range(options.rounds):
                    order = (0, 1, 1, 0) if number % 2 else (1, 0, 0, 1)
                    rounds.append(
                        [
                            (side, measure(program, daemons[side], wanted, options.seconds, model, workload.options))
                            for side in order
                        ]
                    )
                cells = []
                for figure in FIGURES:
                    first, median, third = statistics.quantiles(ratios(rounds, figure), n=4)
                    cells.append(f"{median:8.2f} ({first:4.2f}-{third:4.2f})".rjust(22))
                print(f"{model:8}{wanted!s:>8}{''.join(cells)}", flush=True)


def main() -> None:
    """Measures the workloads one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("installations", type=Path, nargs=2, help="folders with the package multitower: before, after")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.7, help="for each measurement, four of which are a round")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="separated by commas")
    parser.add_argument("--loads", type=load.parse_many, default="64/1,64/64,8/8,1/1", help="OUTSTANDING/CONNECTIONS,…")
    parser.add_argument("--transport", choices=["ipc", "tcp"], default="ipc")
    options = parser.parse_args()
    print(f"after / before over {options.transport}, {options.rounds} rounds of 4 x {options.seconds:g} s")
    print(f"{'':8}{'':8}" + "".join(f"{title:>22}" for title in FIGURES.values()))
    for name in options.workloads.split(","):
        compare(name, options)


if __name__ == "__main__":
    main()
