"""What metrics cost: requests/s while they are scraped, against without; and the daemon's CPU time for a scrape.

    python benchmarks/metrics.py [--rounds 9] [--seconds 3] [--load 64/64] [--slots 16] [--models 50]

The first part sends small requests to one daemon with two CPU workers. Each round measures it with `MT1:metrics` asked
every second, as Prometheus would at its shortest usual interval, and without, in alternating order. The second part
starts a daemon with many slots and models, asks for its metrics again and again, and shows the CPU time of the whole
daemon for each answer, which the event loop's part cannot exceed, and how long another client waits for an answer of
the loop meanwhile. The figures are medians of the rounds;
requests per CPU second of the daemon's process, scrapes included, depend least on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import load
import psutil
import serving

from multitower import Client
from multitower.compiled import compiled, describe

SCRAPE_S = 1.0
SCRAPES = 100


@contextmanager
def scraped(endpoint: str, *, wanted: bool) -> Iterator[None]:
    """Asks for the metrics every second, where wanted."""
    end = threading.Event()

    def scrape() -> None:
        with Client(endpoint, timeout=60, connect_timeout=60) as client:
            while True:
                client.metrics()
                if end.wait(SCRAPE_S):
                    return

    thread = threading.Thread(target=scrape)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        end.set()
        if wanted:
            thread.join()


def measure_throughput(folder: Path, rounds: int, seconds: float, wanted: load.Load) -> None:
    """Prints requests/s and latency with and without scrapes."""
    program = load.build(folder)
    ratios: dict[str, list[float]] = {"requests/s": [], "per CPU s": [], "p50": [], "p99": []}
    with serving.daemon(
        folder, "scraped", workers=2, models={"model": "handler: 'handlers:Echo', batching: {}"}
    ) as daemon:
        load.run(program, daemon.endpoint, wanted, 1.0)
        for number in range(rounds):
            figures: dict[bool, load.Figures] = {}
            used_s: dict[bool, float] = {}
            for with_scrapes in (True, False) if number % 2 else (False, True):
                before_s = serving.cpu_seconds([daemon.pid])
                with scraped(daemon.endpoint, wanted=with_scrapes):
                    figures[with_scrapes] = load.run(program, daemon.endpoint, wanted, seconds)
                used_s[with_scrapes] = serving.cpu_seconds([daemon.pid]) - before_s
            ratios["requests/s"].append(figures[True].rps / figures[False].rps)
            per_cpu_second = {each: figures[each].answered / used_s[each] for each in figures}
            ratios["per CPU s"].append(per_cpu_second[True] / per_cpu_second[False])
            ratios["p50"].append(figures[True].p50 / figures[False].p50)
            ratios["p99"].append(figures[True].p99 / figures[False].p99)
    print(f"with a scrape every second, of without ({wanted}, medians of {rounds} rounds of {seconds:g} s):")
    for name, found in ratios.items():
        print(f"  {name:12}{statistics.median(found):8.3f}   ({min(found):.3f} to {max(found):.3f})")


def measure_scrapes(folder: Path, slots: int, models: int) -> None:
    """Prints what a scrape of a large daemon costs."""
    configured = {f"model_{number}": "handler: 'handlers:Echo', batching: {}" for number in range(models)}
    with (
        serving.daemon(folder, "large", workers=slots, models=configured) as daemon,
        Client(daemon.endpoint, timeout=60, connect_timeout=60) as scraper,
        Client(daemon.endpoint, timeout=60, connect_timeout=60) as other,
    ):
        first = time.monotonic()
        text = scraper.metrics()
        print(f"\n{slots} slots, {models} models: {text.count(chr(10))} lines, {len(text) / 1e3:.0f} kB")
        print(f"  the first answer took {(time.monotonic() - first) * 1e3:.0f} ms")
        idle = [waited_ms(other) for _ in range(SCRAPES)]
        process = psutil.Process(daemon.pid)
        end = threading.Event()
        waits: list[float] = []

        def ask() -> None:
            while not end.is_set():
                waits.append(waited_ms(other))

        before = sum(process.cpu_times()[:2])
        for _ in range(SCRAPES):
            scraper.metrics()
        used_ms = (sum(process.cpu_times()[:2]) - before) / SCRAPES * 1e3
        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(SCRAPES):
            scraper.metrics()
        end.set()
        thread.join()
    print(f"  CPU time of the daemon, all threads: {used_ms:.2f} ms for an answer")
    for name, found in (("without scrapes", idle), ("while scraped without a pause", waits)):
        found.sort()
        p50, p99 = found[len(found) // 2], found[-len(found) // 100 - 1]
        print(f"  another client's answer {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def waited_ms(client: Client) -> float:
    """How long an answer of the loop takes that needs no worker, in milliseconds."""
    began = time.monotonic()
    client.live()
    return (time.monotonic() - began) * 1e3


def main() -> None:
    """Measures both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each side of each round")
    parser.add_argument("--load", type=load.Load.parse, default="64/64", help="OUTSTANDING/CONNECTIONS")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--models", type=int, default=50)
    options = parser.parse_args()
    print(f"multitower {describe(compiled())}")
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        if options.rounds:
            measure_throughput(Path(name), options.rounds, options.seconds, options.load)
        if options.models:
            measure_scrapes(Path(name), options.slots, options.models)


if __name__ == "__main__":
    main()
