"""Simulated devices (handlers that sleep) compared with the ideal, and one slow device among equal ones.

    python benchmarks/devices.py [--rounds 3] [--seconds 1] [--workers 1,2,4,8,16] [--batches 4,32]

1. A device takes 5 ms for a batch and 0.02 ms for a row. Three times as many rows as all devices hold are outstanding
   on one connection, so every device could be busy all the time. `ideal` is the throughput of devices that are never
   idle. `ceiling` is the throughput of the same daemon with a handler that takes no time: the limit of this machine's
   cores, which daemon and load share. `reached` is the measured throughput relative to the smaller of the two.
2. Four devices take 4 ms for a batch and 0.03 ms for a row, one of them four times as long. Requests arrive at random
   (Poisson). The latency through one daemon is compared with the same requests spread in turn over four daemons of one
   worker each (round robin), and the slow worker's share of the requests is shown.

Each round measures both sides in turn. Figures are medians of the rounds, and of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import load
import serving

from multitower import Client

BATCH_S, ROW_S = 0.005, 0.00002
SLOW_BATCH_S, SLOW_ROW_S = 0.004, 0.00003
QUEUE = "queue: {max_size: 100000}"


def device_yaml(batch_s: float, row_s: float, more: str = "") -> str:
    """The YAML of a simulated device."""
    return f"handler: 'handlers:Device', parameters: {{batch_s: {batch_s}, row_s: {row_s:.6f}{more}}}, {QUEUE}"


def compare_with_ideal(program: Path, workers: int, batches: list[int], rounds: int, seconds: float) -> None:
    """The first measurement, for one number of workers: prints a line for each batch size."""
    models = {}
    for size in batches:
        batching = f", batching: {{max_batch_size: {size}}}"
        models[f"device{size}"] = device_yaml(BATCH_S, ROW_S) + batching
        models[f"nothing{size}"] = f"handler: 'handlers:Echo', {QUEUE}{batching}"
    with (
        tempfile.TemporaryDirectory(prefix="mt-") as folder,
        serving.daemon(Path(folder), "devices", workers=workers, models=models) as running,
    ):
        for size in batches:
            wanted = load.Load(3 * workers * size, 1)

            def ask(model: str, wanted: load.Load = wanted) -> float:
                return load.run(program, running.endpoint, wanted, seconds, "-m", model).rps

            ideal = workers * size / (BATCH_S + size * ROW_S)
            figures: list[tuple[float, float]] = []
            for number in range(rounds):
                # Every second round measures the ceiling first.
                order = ("device", "nothing")[:: -1 if number % 2 else 1]
                rps = {name: ask(f"{name}{size}") for name in order}
                figures.append((rps["device"], rps["nothing"]))
            measured, ceiling = (statistics.median(column) for column in zip(*figures, strict=True))
            reached = statistics.median(had / min(ideal, limit) for had, limit in figures)
            above = " (ceiling)" if ideal > ceiling else ""
            print(
                f"{workers:7}{size:7}{ideal:12,.0f}{ceiling:12,.0f}{measured:12,.0f}{reached:9.3f}{above}", flush=True
            )


def compare_with_round_robin(program: Path, rates: list[float], rounds: int, seconds: float) -> None:
    """The second measurement."""
    batching = ", batching: {max_batch_size: 32}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))

        def start(name: str, workers: int, slow: str) -> str:
            models = {"model": device_yaml(SLOW_BATCH_S, SLOW_ROW_S, slow) + batching}
            return stack.enter_context(serving.daemon(folder, name, workers=workers, models=models)).endpoint

        together = start("together", 4, ", slow: 0")
        # Slot 0 of the first daemon is the slow one; the others are equally fast.
        apart = [start(f"apart{n}", 1, ", slow: 0" if n == 0 else "") for n in range(4)]
        print(f"{'arrivals/s':>10}{'p50 ms':>9}{'in turn':>9}{'p99 ms':>9}{'in turn':>9}{'ratio':>7}{'slow share':>12}")
        for rate in rates:
            before = completed(together)
            figures = []
            for _ in range(rounds):
                ours = load.run(program, together, load.Arrivals(rate), seconds)
                in_turn = load.run(program, apart, load.Arrivals(rate), seconds)
                figures.append((ours, in_turn))
            done = [after - had for after, had in zip(completed(together), before, strict=True)]
            cells = []
            for name in ("p50", "p99"):
                pairs = [[getattr(side, name) for side in pair] for pair in figures]
                cells += [statistics.median(column) for column in zip(*pairs, strict=True)]
            ratio = statistics.median(ours.p99 / in_turn.p99 for ours, in_turn in figures)
            shown = "".join(f"{cell:9.1f}" for cell in cells)
            print(f"{rate:10,.0f}{shown}{ratio:7.2f}{done[0] / sum(done):12.1%}", flush=True)


def completed(endpoint: str) -> list[int]:
    """Rows that each slot has completed."""
    with Client(endpoint) as client:
        return [slot["completed"] for slot in client.status()["slots"]]


def main() -> None:
    """Runs both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each side of a round; twice that in part 2")
    parser.add_argument("--workers", default="1,2,4,8,16", help="numbers of workers in part 1")
    parser.add_argument("--batches", default="4,32", help="max_batch_size in part 1")
    parser.add_argument("--rates", default="400,1500,3000", help="requests/s in part 2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        program = load.build(Path(folder))
        print(f"{'workers':>7}{'batch':>7}{'ideal/s':>12}{'ceiling/s':>12}{'measured/s':>12}{'reached':>9}")
        for workers in map(int, options.workers.split(",")):
            sizes = [int(size) for size in options.batches.split(",")]
            compare_with_ideal(program, workers, sizes, options.rounds, options.seconds)
        print("\none of four devices is four times slower; in turn: the same over four daemons of one worker each")
        compare_with_round_robin(
            program, [float(rate) for rate in options.rates.split(",")], options.rounds, 2 * options.seconds
        )


if __name__ == "__main__":
    main()
