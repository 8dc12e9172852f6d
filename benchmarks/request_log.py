"""What the request log costs a request: noting it in the event loop, and formatting its line in the thread.

    python benchmarks/request_log.py [--rounds 20]

Microseconds of CPU time per request of one batch, without `tensors`. A figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace
from typing import Any, cast

from multitower.supervisor.observability.request_log_entries import Entry, describe_request, format_entry
from multitower.supervisor.scheduling.batch_run import BatchRun
from multitower.supervisor.scheduling.request import Request

REQUESTS = 5000


def example() -> Request:
    """A request that has been answered."""
    plan = SimpleNamespace(model="ranking", key=SimpleNamespace(version=""), trace=None)
    runs = (BatchRun(1, 2, "GPU-1", 4, 28, 32, 10.5, 10.5, 12.0, 10_000, 6_810_000, 20_000),)
    return cast(Request, SimpleNamespace(plan=plan, version="7", received=10.0, rows=4, runs=runs))


def measure(request: Request) -> tuple[float, float]:
    """Returns the microseconds for noting a request, and for formatting its line."""
    answer: Any = (b"{}",)
    date, entries = time.time(), []
    began = time.thread_time()
    for _ in range(REQUESTS):
        entry = Entry(date, b"a41c5b1e", describe_request(request, answer, 12.25))
        entries.append((entry, entry.size))
    noted = time.thread_time()
    for entry, _ in entries:
        format_entry(entry)
    formatted = time.thread_time()
    return (noted - began) / REQUESTS * 1e6, (formatted - noted) / REQUESTS * 1e6


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    request = example()
    found = [measure(request) for _ in range(rounds)]
    noting, formatting = (statistics.median(each) for each in zip(*found, strict=True))
    print(f"noting a request: {noting:.1f} us; formatting its line: {formatting:.1f} us")


if __name__ == "__main__":
    main()
