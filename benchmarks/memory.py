"""The daemon's memory over a million requests: resident, of the parent and of the workers.

    python benchmarks/memory.py [--requests 1000000] [--steps 10]

An echo handler on two workers with `batching`; the requests go out in as many loads as there are steps, each on new
connections, by turns one that pipelines, 64 that wait for each answer, and one of larger tensors. The growth is told
from the third step on: queues, caches and libzmq's pools have got their sizes by then.
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
"""For one step: it ends with its number of requests."""


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
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
        parent, *workers = running.pids()
        print(f"{'requests':>10}{'load':>8}{'tensor':>8}{'parent MiB':>12}{'workers MiB':>13}")
        done = 0
        sizes: list[float] = []
        for step in range(options.steps):
            wanted, shape = LOADS[step % len(LOADS)]
            done += load.run(program, running.endpoint, wanted, LONGEST_S, "-r", str(each), "-s", shape).answered
            sizes.append(rss_mib(parent))
            theirs = sum(map(rss_mib, workers))
            print(f"{done:10,}{wanted!s:>8}{shape:>8}{sizes[-1]:12.1f}{theirs:13.1f}", flush=True)
    settled = min(len(LOADS), len(sizes)) - 1
    grown = sizes[-1] - sizes[settled]
    print(f"the parent grew by {grown:+.1f} MiB after step {settled + 1}; {max(sizes):.1f} MiB at the most")


if __name__ == "__main__":
    main()
