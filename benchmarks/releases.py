"""Two installations of the daemon in one run, as before and after a change: ratios of the second one to the first.

    make wheel && cp -r build/installed /tmp/before     # in a checkout of the earlier commit
    make wheel && cp -r build/installed /tmp/after      # in a checkout of the later one
    python benchmarks/releases.py /tmp/before /tmp/after [--rounds 12] [--seconds 0.7] [--loads 64/1,64/64,8/8,1/1]

Both daemons run all the time, each with an echo handler on two CPU workers; the one that is not measured is idle. A
round measures each of them twice, in the order A B B A or B A A B, so that a machine that gets slower or faster
meanwhile changes both. `batched` and `single` are as in `router.py`. A figure is the median of the rounds' ratios, with
the first and third quartile behind it: where they are on both sides of 1, the difference is within the noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import load
import psutil
import serving

MODELS = {"batched": "handler: 'handlers:Echo', batching: {}", "single": "handler: 'handlers:Echo'"}

FIGURES = {
    "rps": "requests/s",
    "per_cpu_second": "per CPU s",
    "daemon_us": "daemon CPU us",
    "workers_us": "workers CPU us",
    "p50": "p50 ms",
    "p99": "p99 ms",
}


def measure(program: Path, daemon: serving.Daemon, wanted: load.Load, seconds: float, model: str) -> dict[str, float]:
    """One load on one daemon: the values of `FIGURES`; CPU time is for each request."""
    workers = [child.pid for child in psutil.Process(daemon.pid).children()]
    before = serving.cpu_seconds([daemon.pid]), serving.cpu_seconds(workers)
    found = load.run(program, daemon.endpoint, wanted, seconds, "-m", model)
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


def main() -> None:
    """Runs the rounds and prints a line for each model and load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("installations", type=Path, nargs=2, help="folders with the package multitower: before, after")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.7, help="for each measurement, four of which are a round")
    parser.add_argument("--loads", type=load.parse_many, default="64/1,64/64,8/8,1/1", help="OUTSTANDING/CONNECTIONS,…")
    parser.add_argument("--transport", choices=["ipc", "tcp"], default="ipc")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        program = load.build(folder)
        daemons = [
            stack.enter_context(
                serving.daemon(
                    folder, name, workers=2, models=MODELS, transport=options.transport, installation=path.resolve()
                )
            )
            for name, path in zip(("before", "after"), options.installations, strict=True)
        ]
        print(f"after / before over {options.transport}, {options.rounds} rounds of 4 x {options.seconds:g} s")
        print(f"{'':8}{'':8}" + "".join(f"{title:>22}" for title in FIGURES.values()))
        for model in MODELS:
            for wanted in options.loads:
                for daemon in daemons:
                    measure(program, daemon, wanted, options.seconds, model)  # the first run warms up
                rounds = []
                for number in range(options.rounds):
                    order = (0, 1, 1, 0) if number % 2 else (1, 0, 0, 1)
                    rounds.append(
                        [(side, measure(program, daemons[side], wanted, options.seconds, model)) for side in order]
                    )
                cells = []
                for figure in FIGURES:
                    first, median, third = statistics.quantiles(ratios(rounds, figure), n=4)
                    cells.append(f"{median:8.2f} ({first:4.2f}-{third:4.2f})".rjust(22))
                print(f"{model:8}{wanted!s:>8}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
