"""Where a request's time goes: the budget of one request, in wall time, in CPU time and in wake-ups.

    pip install py-spy                       # for the last table; the others need nothing
    python benchmarks/budget.py [--seconds 3] [--cases echo:1/1,echo:64/1,digits:64/1] [--transport ipc] [--top 25]

A case is MODEL:OUTSTANDING/CONNECTIONS, on two workers. `echo` is a handler with `batching`, 64 bytes a request,
`single` the same without; `digits` the demo's SavedModel, 256 bytes, with one thread of TensorFlow each. For each case:

- **wall**: the mean latency that the client sees, and what it is made of, from the daemon's own statistics: the way to
  the router and back (client, both sockets, waiting for the router's attention), the queue, the way to the worker and
  back (with the worker's reading and writing, and waiting for the router to take the result), assembly of the batch,
  the model, and slicing its outputs. A request lasts as long as its batch; with one outstanding nothing overlaps.
- **CPU**: microseconds of each process and thread for a request, and how often it waited: each wait ends in a wake-up.
  Pre-empted are those where the thread did not wait but lost its core.
- **functions**: of the router's main thread, sampled from outside by py-spy: the share of samples in a function itself
  (and the C code it calls), and in it with all that it calls.

No figure needs anything in the daemon that is not there in service; py-spy, which stops it for each sample, runs after
the others have been measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import serving

from multitower import Client

LONG_S = 60.0
"""A load that is longer than any sampling; it is ended."""

SAMPLES_A_SECOND = 500

MODELS = {
    "echo": "handler: 'handlers:Echo', batching: {}",
    "single": "handler: 'handlers:Echo'",
    "digits": "path: models/digits",
}
SIZES = {"echo": ("-s", "1,16"), "single": ("-s", "1,16"), "digits": ("-s", "1,64", "-o", "40")}
"""The options of load.c that go with them."""


@dataclass(frozen=True)
class Thread:
    """What a thread has used so far.

    Attributes:
        cpu_ns: on a core.
        waits: times that it waited.
        preempted: times that it lost its core.
    """

    cpu_ns: int
    waits: int
    preempted: int

    def since(self, before: Thread) -> Thread:
        """What it has used meanwhile."""
        return Thread(self.cpu_ns - before.cpu_ns, self.waits - before.waits, self.preempted - before.preempted)


def threads(pids: dict[int, str]) -> dict[tuple[str, str, int], Thread]:
    """The threads of processes, by the process's name, the thread's and its id."""
    found = {}
    for pid, process in pids.items():
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            name = "main" if task.name == str(pid) else status["Name"]
            cpu_ns = int((task / "schedstat").read_text().split()[0])
            waits, preempted = int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"])
            found[process, name, int(task.name)] = Thread(cpu_ns, waits, preempted)
    return found


def statistics(endpoint: str) -> dict[str, Any]:
    """The daemon's account of the model."""
    with Client(endpoint) as client:
        answer: dict[str, Any] = client.statistics("model")["model_stats"][0]
    return answer


def show_wall(figures: load.Figures, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Prints the first table."""

    def total(name: str) -> float:
        """Seconds that all requests spent so, or all batches."""
        return float(after["inference_stats"][name]["ns"] - before["inference_stats"][name]["ns"]) / 1e3

    answered = after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"]
    batches = after["execution_count"] - before["execution_count"]
    in_router, queue = total("success") / answered, total("queue") / answered
    stages = {name: total(f"compute_{name}") / batches for name in ("input", "infer", "output")}
    seen = figures.mean * 1e3
    rows = {
        "client, to the router and back": seen - in_router,
        "queue": queue,
        "to the worker and back": in_router - queue - sum(stages.values()),
        "assembly": stages["input"],
        "model": stages["infer"],
        "slicing": stages["output"],
    }
    print(f"\n{'wall':34}{'µs':>9}{'share':>8}    {answered / batches:.1f} requests a batch, {figures.rps:,.0f}/s")
    for name, micros in rows.items():
        print(f"{name:34}{micros:9.1f}{micros / seen:8.1%}")
    print(f"{'seen by the client, mean':34}{seen:9.1f}")


def show_cpu(figures: load.Figures, used: dict[tuple[str, str, int], Thread]) -> None:
    """Prints the second table."""
    answered = figures.answered
    sums: dict[tuple[str, str], list[float]] = {}
    for (process, thread, _), has in used.items():
        row = sums.setdefault((process, thread), [0.0, 0.0, 0.0])
        for column, value in enumerate((has.cpu_ns / 1e3, has.waits, has.preempted)):
            row[column] += value / answered
    print(f"\n{'CPU, for a request':34}{'µs':>9}{'waits':>8}{'pre-empted':>12}")
    others = [0.0, 0.0, 0.0]
    for (process, thread), row in sorted(sums.items(), key=lambda item: (item[0][0], -item[1][0])):
        if row[0] < 0.1 and row[1] < 0.001:
            others = [had + more for had, more in zip(others, row, strict=True)]
        else:
            print(f"{process + ' ' + thread:34}{row[0]:9.1f}{row[1]:8.3f}{row[2]:12.3f}")
    print(f"{'all other threads':34}{others[0]:9.1f}{others[1]:8.3f}{others[2]:12.3f}")
    server = [sum(column) for column in zip(*sums.values(), strict=True)]
    print(f"{'server':34}{server[0]:9.1f}{server[1]:8.3f}{server[2]:12.3f}")
    print(f"{'load.c':34}{figures.cpu_s / answered * 1e6:9.1f}{figures.waits / answered:8.3f}")


def show_functions(pid: int, seconds: float, top: int) -> None:
    """Prints the third table, of a process that is under load."""
    # From the environment of this interpreter, activated or not.
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if spy is None:
        print("\npip install py-spy, and a table of the router's functions follows here")
        return
    with tempfile.NamedTemporaryFile(suffix=".txt") as output:
        command = [spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds))), "--format", "raw"]
        command += ["--rate", str(SAMPLES_A_SECOND), "--function", "--threads", "--output", output.name]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            print(f"\npy-spy: {ended.stderr.strip()}")
            return
        stacks = Path(output.name).read_text().splitlines()
    itself: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks:
        frames, _, samples = line.rpartition(" ")
        thread, *functions = frames.split(";")
        if not functions or "MainThread" not in thread:
            continue
        itself[functions[-1]] += int(samples)
        within.update(dict.fromkeys(functions, int(samples)))
    total = sum(itself.values())
    print(f"\n{'the router, function':66}{'itself':>8}{'within':>8}    {total} samples")
    for function, count in within.most_common():
        if count < 0.99 * total and top:
            print(f"{function:66.66}{itself[function] / total:8.1%}{count / total:8.1%}")
            top -= 1


@contextmanager
def constant_load(program: Path, endpoint: str, wanted: load.Load, *options: str) -> Iterator[None]:
    """A load while something else is done."""
    command = [str(program), endpoint, *load.arguments(wanted, LONG_S), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def case(program: Path, folder: Path, model: str, wanted: load.Load, options: argparse.Namespace) -> None:
    """Prints the tables of one case."""
    more = "spares: 0\nthreads: {intra_op: 1, inter_op: 1}"
    name = f"{model}{wanted.outstanding}of{wanted.connections}"
    print(f"\n## {model}, {wanted.outstanding} outstanding, connections: {wanted.connections}")
    with serving.daemon(
        folder, name, workers=2, models={"model": MODELS[model]}, more=more, transport=options.transport
    ) as running:
        parent, *workers = running.pids()
        pids = {parent: "router", **dict.fromkeys(workers, "workers")}
        load.run(program, running.endpoint, wanted, 0.5, *SIZES[model])
        told, had = statistics(running.endpoint), threads(pids)
        figures = load.run(program, running.endpoint, wanted, options.seconds, *SIZES[model], warm_up=0)
        has, tells = threads(pids), statistics(running.endpoint)
        show_wall(figures, told, tells)
        show_cpu(figures, {key: now.since(had.get(key, Thread(0, 0, 0))) for key, now in has.items()})
        if options.top:
            with constant_load(program, running.endpoint, wanted, *SIZES[model]):
                show_functions(parent, options.seconds, options.top)


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cases", default="echo:1/1,echo:64/1,digits:64/1")
    parser.add_argument("--transport", choices=["ipc", "tcp"], default="ipc")
    parser.add_argument("--top", type=int, default=25, help="how many functions; 0 for no such table")
    options = parser.parse_args()
    cases = [(model, load.Load.parse(wanted)) for model, wanted in (one.split(":") for one in options.cases.split(","))]
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        folder = Path(name)
        program = load.build(folder)
        if any(model == "digits" for model, _ in cases):
            command = [sys.executable, "-m", "multitower.tools.demo.model", name]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        for model, wanted in cases:
            case(program, folder, model, wanted, options)


if __name__ == "__main__":
    main()
