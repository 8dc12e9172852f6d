"""The router's CPU time for a request, with more workers and with a fuller queue.

    python benchmarks/cost.py [--rounds 3] [--seconds 1] [--workers 1,2,4,8,16] [--queues 0,10,100,1000,10000]

1. 1 to 16 workers with an echo handler, 64 requests outstanding on one connection. `single` is without batching: each
   request is one message to a worker and one back, so only the number of workers changes. `batched` shows what batches
   save, and that they get smaller when more workers are free.
2. Two workers without batching, and the given number of requests waiting in the queue: that many more are outstanding
   than the workers hold.

Figures are medians of the rounds. Each round measures all numbers of a part in turn, in a rotating order.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import load
import serving

ECHO = "handler: 'handlers:Echo', queue: {max_size: 1000000}"
MODELS = {"single": ECHO, "batched": f"{ECHO}, batching: {{}}"}
WORKERS_OF_QUEUES = 2

Case = TypeVar("Case", bound=Hashable)


def cost(program: Path, daemon: serving.Daemon, model: str, outstanding: int, seconds: float) -> tuple[float, float]:
    """Microseconds of the daemon process's CPU time for a request, and requests a second."""
    before = serving.cpu_seconds([daemon.pid])
    figures = load.run(program, daemon.endpoint, load.Load(outstanding, 1), seconds, "-m", model)
    return (serving.cpu_seconds([daemon.pid]) - before) / figures.answered * 1e6, figures.rps


def print_medians(cases: Sequence[Case], rounds: int, measure: Callable[[Case], tuple[float, float]]) -> None:
    """Measures every case in each round, and prints a line for each."""
    figures: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(rounds):
        shift = number % len(cases)
        for case in [*cases[shift:], *cases[:shift]]:
            figures[case].append(measure(case))
    first = statistics.median(each[0] for each in figures[cases[0]])
    for case, had in figures.items():
        micros, rps = (statistics.median(column) for column in zip(*had, strict=True))
        print(f"{case!s:>10}{rps:12,.0f}{micros:12.1f}{micros / first:14.2f}")


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--queues", default="0,10,100,1000,10000")
    options = parser.parse_args()
    numbers = [int(number) for number in options.workers.split(",")]
    lengths = [int(length) for length in options.queues.split(",")]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        program = load.build(folder)
        daemons = {
            number: stack.enter_context(serving.daemon(folder, f"w{number}", workers=number, models=MODELS))
            for number in sorted({*numbers, WORKERS_OF_QUEUES})
        }
        for model in MODELS:
            print(f"\n{'workers':>10}{'requests/s':>12}{'router µs':>12}{'of the first':>14}    {model}")

            def with_workers(number: int, model: str = model) -> tuple[float, float]:
                return cost(program, daemons[number], model, 64, options.seconds)

            print_medians(numbers, options.rounds, with_workers)
        print(f"\n{'queue':>10}{'requests/s':>12}{'router µs':>12}{'of the first':>14}    single, two workers")

        def with_queue(length: int) -> tuple[float, float]:
            two = daemons[WORKERS_OF_QUEUES]
            return cost(program, two, "single", length + WORKERS_OF_QUEUES, options.seconds)

        print_medians(lengths, options.rounds, with_queue)


if __name__ == "__main__":
    main()
