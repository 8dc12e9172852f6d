"""Where the time of one request goes: wall time by stage, CPU time and wake-ups by thread, CPU time by function.

    pip install py-spy                       # for the last table only
    apt-get install strace                   # for the table of system calls only
    python benchmarks/budget.py [--seconds 3] [--cases echo:1/1,echo:64/1,digits:64/1] [--transport ipc] [--top 25]

A case is MODEL:OUTSTANDING/CONNECTIONS, on two workers. `echo` is a handler with `batching`, 64 bytes a request;
`single` is the same without batching; `digits` is the demo's SavedModel, 256 bytes, with one TensorFlow thread in each
worker. For each case:

- **wall**: the mean latency of the client and its parts, from the daemon's statistics: to the router and back (client,
  both sockets, waiting for the router's thread), the queue, to the worker and back (including the worker's reading and
  writing, and waiting for the router's thread again), assembly of the batch, the model, and slicing of its outputs. A
  request takes as long as its batch. With one request outstanding nothing overlaps.
- **CPU**: microseconds of each process and thread for a request, and how often the thread waited; each wait ends in a
  wake-up. `pre-empted` counts how often the thread lost its core without waiting.
- **system calls**: with `--calls`, of each process and thread for a request, counted by strace, which makes the daemon
  several times slower. A thread that waits more often because of that makes more calls, so look at this table only with
  one request outstanding.
- **functions**: the functions of the router's main thread, sampled by py-spy: the share of samples in the function
  itself (and in C code that it calls), and including the functions that it calls.

The daemon runs as in production. strace and py-spy stop it, and so run after everything else was measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import serving

from multitower import Client

LONG_S = 60.0
"""Seconds of a load that lasts longer than any sampling; it is killed after that."""

SAMPLES_A_SECOND = 500

TRACED_REQUESTS = 3000
"""Requests while system calls are counted."""

RARE = 0.02
"""System calls for a request below which a call is not shown."""

MODELS = {
    "echo": "handler: 'handlers:Echo', batching: {}",
    "single": "handler: 'handlers:Echo'",
    "digits": "path: models/digits",
}
SIZES = {"echo": ("-s", "1,16"), "single": ("-s", "1,16"), "digits": ("-s", "1,64", "-o", "40")}
"""The options of load.c for each model."""


@dataclass(frozen=True)
class Thread:
    """Counters of a thread.

    Attributes:
        cpu_ns: CPU time.
        waits: how often it waited.
        preempted: how often it lost its core without waiting.
    """

    cpu_ns: int
    waits: int
    preempted: int

    def since(self, before: Thread) -> Thread:
        """The difference from earlier counters."""
        return Thread(self.cpu_ns - before.cpu_ns, self.waits - before.waits, self.preempted - before.preempted)


def threads(pids: dict[int, str]) -> dict[tuple[str, str, int], Thread]:
    """The counters of all threads of some processes, by name of the process, name of the thread, and thread id."""
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
    """The daemon's statistics of the model."""
    with Client(endpoint) as client:
        answer: dict[str, Any] = client.statistics("model")["model_stats"][0]
    return answer


def show_wall(figures: load.Figures, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Prints the table of wall times."""

    def total(name: str) -> float:
        """Microseconds that all requests or batches spent in a stage."""
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
    """Prints the table of CPU times."""
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
    """Prints the table of functions of a process that is under load."""
    # From this interpreter's environment, even if that is not activated.
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if spy is None:
        print("\nno table of the router's functions: pip install py-spy")
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
def traced(prefix: Path, pids: Iterable[int]) -> Iterator[None]:
    """Writes the system calls of some processes to `prefix.TID`, one a line, while the context is open."""
    command = ["strace", "-ff", "-qq", "-e", "raw=all", "-e", "signal=none", "-o", str(prefix)]
    command += [word for pid in pids for word in ("-p", str(pid))]
    tracer = subprocess.Popen(command)
    try:
        time.sleep(1.0)  # nothing reports that it has attached to every thread
        if tracer.poll() is not None:
            raise SystemExit("strace could not attach to the daemon; see above")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def show_calls(
    program: Path, endpoint: str, folder: Path, pids: dict[int, str], wanted: load.Load, *sized: str
) -> None:
    """Prints the table of system calls."""
    names = {thread: (process, name) for process, name, thread in threads(pids)}
    prefix = folder / "calls"
    command = [str(program), endpoint, *load.arguments(wanted, LONG_S), "-r", str(TRACED_REQUESTS), *sized]
    with traced(prefix, pids):
        client = ["strace", "-ff", "-qq", "-e", "raw=all", "-o", str(folder / "load"), *command]
        subprocess.run(client, check=True, stdout=subprocess.DEVNULL)
    counts: dict[tuple[str, str], Counter[str]] = {}
    for path in (*folder.glob("calls.*"), *folder.glob("load.*")):
        if path.suffix[1:].isdigit():
            main = path.suffix == min((each.suffix for each in folder.glob("load.*")), key=lambda suffix: suffix)
            here = ("load.c", "main" if main else "ZMQbg") if path.stem == "load" else names.get(int(path.suffix[1:]))
            calls = counts.setdefault(here or ("new threads", ""), Counter())
            calls.update(line.partition("(")[0] for line in path.read_text().splitlines() if "(" in line)
            path.unlink()
    print(f"\n{'system calls, for a request':34}{'all':>9}")
    for (process, thread), calls in sorted(counts.items()):
        each = {name: count / TRACED_REQUESTS for name, count in calls.most_common()}
        text = ", ".join(f"{name} {count:.2f}" for name, count in each.items() if count >= RARE)
        if text:
            print(f"{process + ' ' + thread:34}{sum(each.values()):9.2f}    {text}")
    print(f"{'all':34}{sum(sum(calls.values()) for calls in counts.values()) / TRACED_REQUESTS:9.2f}")


@contextmanager
def constant_load(program: Path, endpoint: str, wanted: load.Load, *options: str) -> Iterator[None]:
    """Runs a load until the context is left."""
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
        before, threads_before = statistics(running.endpoint), threads(pids)
        figures = load.run(program, running.endpoint, wanted, options.seconds, *SIZES[model], warm_up=0)
        threads_after, after = threads(pids), statistics(running.endpoint)
        show_wall(figures, before, after)
        new = Thread(0, 0, 0)
        used = {key: thread.since(threads_before.get(key, new)) for key, thread in threads_after.items()}
        show_cpu(figures, used)
        if options.calls:
            show_calls(program, running.endpoint, folder, pids, wanted, *SIZES[model])
        if options.top:
            with constant_load(program, running.endpoint, wanted, *SIZES[model]):
                show_functions(parent, options.seconds, options.top)


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cases", default="echo:1/1,echo:64/1,digits:64/1")
    parser.add_argument("--transport", choices=["ipc", "tcp"], default="ipc")
    parser.add_argument("--top", type=int, default=25, help="functions in the last table; 0 for no such table")
    parser.add_argument("--calls", action="store_true", help="also count system calls, with strace")
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
