"""Resident memory of the daemon process and its workers over a million requests.

    python benchmarks/memory.py [--requests 1000000] [--steps 10]

An echo handler runs on two workers with `batching`. The requests are divided into steps, each on new connections: in
turn, one client that pipelines, 64 clients that wait for each answer, and 8 clients with larger tensors. Growth is
measured from the third step on, when queues, caches and libzmq's pools have reached their sizes.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import load
import psutil
import serving

MIB = 1 << 20
LOADS = (
    (load.Load(64, 1), "1,16"),
    (load.Load(64, 64), "1,16"),
    (load.Load(64, 8), "4,256"),
)
LONGEST_S = 600.0
"""Limit for one step, which ends after its number of requests."""


def rss_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    return float(psutil.Process(pid).memory_info().rss) / MIB


def main() -> None:
    """Runs the steps and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    each = options.requests // options.steps
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        program = load.build(folder)
        models = {"model": "handler: 'handlers:Echo', batching: {}"}
        running = stack.enter_context(serving.daemon(folder, "memory", workers=2, models=models))
        daemon, *workers = running.pids()
        print(f"{'requests':>10}{'load':>8}{'tensor':>8}{'daemon MiB':>12}{'workers MiB':>13}")
        done = 0
        sizes: list[float] = []
        for step in range(options.steps):
            wanted, shape = LOADS[step % len(LOADS)]
            done += load.run(program, running.endpoint, wanted, LONGEST_S, "-r", str(each), "-s", shape).answered
            sizes.append(rss_mib(daemon))
            of_workers = sum(map(rss_mib, workers))
            print(f"{done:10,}{wanted!s:>8}{shape:>8}{sizes[-1]:12.1f}{of_workers:13.1f}", flush=True)
    settled = min(len(LOADS), len(sizes)) - 1
    growth = sizes[-1] - sizes[settled]
    print(f"the daemon grew by {growth:+.1f} MiB after step {settled + 1}; {max(sizes):.1f} MiB at most")


if __name__ == "__main__":
    main()
