"""The Java client compared with the Python clients on the same daemon, in one run.

    python benchmarks/java.py [--rounds 5] [--seconds 3] [--outstanding 64] [--models echo,digits,frozen]

The daemon has two CPU workers and listens on tcp and ipc. Each contender is a process with one client:

- `java`: threads that share one `MultitowerClient` and wait for each answer, over tcp;
- `threads`: the same with Python's `Client`, over tcp;
- `pipelined`: one Python thread that keeps as many requests outstanding with `submit`, over tcp;
- `asyncio`: as many coroutines with `AsyncClient`, over tcp;
- `pipelined ipc`: like `pipelined`, over ipc, which the Java client does not support;
- `in process`, for `frozen` only: no daemon, but TensorFlow for Java with a graph and a session for each of one or two
  logical CPUs in the application's process (`java/InProcess.java`; it downloads 170 MB).

`echo` is a handler without TensorFlow, with float32 [1, 16] and batching. `digits` is the demo's SavedModel. `frozen`
is the same with its weights as constants, which a session of TensorFlow for Java can load. Each round measures all
contenders in turn, in a rotating order; each warms up first, mainly for Java's compiler. Figures are medians of the
rounds. The ratio is to the best Python contender in the same round. It needs a JDK and Maven.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import serving

from multitower import AsyncClient, Client

HERE = Path(__file__).parent
PROGRAMS = HERE / "java"
CLIENT = HERE.parent / "clients" / "java"
CLASS_PATHS = {
    "Throughput": f"{CLIENT}/target/*:{CLIENT}/target/lib/*",
    "InProcess": f"{PROGRAMS}/target/lib/*",
}
"""The class path of each program."""
PYTHON = ("threads", "pipelined", "asyncio", "pipelined ipc")
CONTENDERS = ("java", *PYTHON)
IN_PROCESS = {"in process, 1": 1, "in process, 2": 2}
"""The number of logical CPUs by contender."""
LIMIT_S = 60.0
"""Seconds that a contender may take beyond the time that it measures."""


class Model:
    """A model: its name, its input and output, and the columns of its input."""

    def __init__(self, name: str, input: str, columns: int, output: str) -> None:
        self.name, self.input, self.columns, self.output = name, input, columns, output

    def inputs(self) -> dict[str, np.ndarray]:
        """The inputs of a request of one row."""
        return {self.input: np.zeros((1, self.columns), np.float32)}


MODELS = {
    "echo": Model("echo", "x", 16, "x"),
    "digits": Model("digits", "x", 64, "probabilities"),
    "frozen": Model("frozen", "x", 64, "probabilities"),
}


class Tally:
    """Counts the answers in the time measured.

    Args:
        warm_up: seconds before measuring begins.
        seconds: seconds to measure.
    """

    def __init__(self, warm_up: float, seconds: float) -> None:
        self.begin = time.monotonic() + warm_up
        self.end = self.begin + seconds
        self.milliseconds: list[float] = []
        self._seconds = seconds

    def add(self, sent: float) -> float:
        """Counts an answer to a request sent at a time, and returns the time now."""
        now = time.monotonic()
        if self.begin <= now < self.end:
            self.milliseconds.append((now - sent) * 1000)
        return now

    def figures(self) -> dict[str, float]:
        """The figures that `Throughput.java` prints as well."""
        p50, p99 = np.percentile(self.milliseconds, [50, 99])
        return {"rps": len(self.milliseconds) / self._seconds, "p50": float(p50), "p99": float(p99)}


def threads(endpoint: str, model: Model, outstanding: int, tally: Tally) -> None:
    """Threads that share one client."""
    failures: list[BaseException] = []
    with Client(endpoint) as client:

        def work() -> None:
            try:
                sent = time.monotonic()
                while sent < tally.end:
                    assert client.infer(model.name, model.inputs())[model.output].shape[0] == 1
                    sent = tally.add(sent)
            except BaseException as failure:  # noqa: BLE001 - raised again below
                failures.append(failure)

        workers = [threading.Thread(target=work) for _ in range(outstanding)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for failure in failures:
        raise failure


def pipelined(endpoint: str, model: Model, outstanding: int, tally: Tally) -> None:
    """One thread that waits for the oldest answer and sends another request."""
    waiting: deque[tuple[float, Future[dict[str, np.ndarray]]]] = deque()
    with Client(endpoint) as client:
        while (now := time.monotonic()) < tally.end:
            while len(waiting) < outstanding:
                waiting.append((now, client.submit(model.name, model.inputs())))
            sent, future = waiting.popleft()
            assert future.result()[model.output].shape[0] == 1
            tally.add(sent)
        for _, future in waiting:
            future.result()


def coroutines(endpoint: str, model: Model, outstanding: int, tally: Tally) -> None:
    """Coroutines that share one client."""

    async def work(client: AsyncClient) -> None:
        sent = time.monotonic()
        while sent < tally.end:
            assert (await client.infer(model.name, model.inputs()))[model.output].shape[0] == 1
            sent = tally.add(sent)

    async def run() -> None:
        async with AsyncClient(endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(outstanding):
                group.create_task(work(client))

    asyncio.run(run())


WAYS = {"threads": threads, "pipelined": pipelined, "asyncio": coroutines, "pipelined ipc": pipelined}


def run_python(options: argparse.Namespace) -> None:
    """Runs one Python contender in this process, and prints its figures."""
    tally = Tally(options.warm_up, options.seconds)
    WAYS[options.contender](options.endpoint, MODELS[options.models], options.outstanding, tally)
    print(json.dumps(tally.figures()))


def contenders(model: str) -> tuple[str, ...]:
    """The contenders for a model."""
    return (*CONTENDERS, *(IN_PROCESS if model == "frozen" else ()))


def build(folder: Path) -> None:
    """Builds a folder with Maven."""
    command = ["mvn", "--quiet", "--batch-mode", "--no-transfer-progress", "-DskipTests", "package"]
    subprocess.run(command, cwd=folder, check=True)


def compile_programs(names: list[str], folder: Path) -> None:
    """Compiles programs in `java/` to `folder/classes`."""
    for name in names:
        sources = [str(PROGRAMS / f"{each}.java") for each in ("Loop", name)]
        subprocess.run(["javac", "-d", str(folder / "classes"), "-cp", CLASS_PATHS[name], *sources], check=True)


def java(name: str, folder: Path) -> list[str]:
    """The command that runs a Java program."""
    return ["java", "-cp", f"{folder}/classes:{CLASS_PATHS[name]}", name]


def measure(
    contender: str, endpoints: dict[str, str], model: Model, folder: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Runs one contender and returns its figures; `folder` contains the models and the programs."""
    settings = [str(options.outstanding), str(options.seconds), str(options.warm_up)]
    if contender == "java":
        command = [*java("Throughput", folder), endpoints["tcp"], model.name, model.input, str(model.columns)]
        command += [model.output, *settings]
    elif contender in IN_PROCESS:
        saved_model = folder / "models" / "frozen" / "1"
        command = [*java("InProcess", folder), str(saved_model), str(IN_PROCESS[contender]), *settings]
    else:
        command = [sys.executable, __file__, "--contender", contender, "--models", model.name]
        command += ["--endpoint", endpoints["ipc" if contender.endswith("ipc") else "tcp"]]
        command += ["--outstanding", settings[0], "--seconds", settings[1], "--warm-up", settings[2]]
    limit = options.seconds + options.warm_up + LIMIT_S
    ended = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    if ended.returncode:
        raise SystemExit(f"{contender}: {ended.stderr}{ended.stdout}")
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def show(model: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Prints the table of one model."""
    best = [max(each[name]["rps"] for name in PYTHON) for each in rounds]
    print(f"\n{model:16}{'requests/s':>12}{'of best':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for name in contenders(model):
        rps, p50, p99 = (statistics.median(each[name][figure] for each in rounds) for figure in ("rps", "p50", "p99"))
        ratio = statistics.median(each[name]["rps"] / of for each, of in zip(rounds, best, strict=True))
        print(f"{name:16}{rps:12,.0f}{ratio:10.2f}{p50:10.2f}{p99:10.2f}")


def make_models(folder: Path, wanted: list[str]) -> dict[str, str]:
    """Trains and freezes the models that are needed; returns the YAML of each."""
    settings = {"echo": "handler: 'handlers:Echo', batching: {}"}
    if wanted != ["echo"]:
        python(["-m", "multitower.tools.demo.model", str(folder)])
        settings["digits"] = f"path: '{folder}/models/digits', batching: {{}}"
    if "frozen" in wanted:
        program = PROGRAMS / "freeze.py"
        python([str(program), str(folder / "models" / "digits" / "1"), str(folder / "models" / "frozen" / "1")])
        settings["frozen"] = f"path: '{folder}/models/frozen', batching: {{}}"
    return {name: settings[name] for name in wanted}


def python(arguments: list[str]) -> None:
    """Runs a Python program."""
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {ended.stderr}")


def main() -> None:
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender, model and round")
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds before that")
    parser.add_argument("--outstanding", type=int, default=64)
    parser.add_argument("--models", default="echo,digits")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        run_python(options)
        return
    wanted = options.models.split(",")
    results: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in wanted}
    build(CLIENT)
    programs = ["Throughput"]
    if "frozen" in wanted:
        build(PROGRAMS)
        programs.append("InProcess")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        compile_programs(programs, folder)
        models = make_models(folder, wanted)
        endpoints = {transport: serving.free_endpoint(folder, "both", transport) for transport in ("tcp", "ipc")}
        also = [endpoints["tcp"]]
        stack.enter_context(serving.daemon(folder, "both", workers=2, models=models, also=also))
        for number in range(options.rounds):
            for name in wanted:
                order = contenders(name)
                shift = number % len(order)
                rotated = order[shift:] + order[:shift]
                results[name].append({one: measure(one, endpoints, MODELS[name], folder, options) for one in rotated})
    print(f"{options.outstanding} outstanding, medians of {options.rounds} rounds of {options.seconds:g} s")
    for name in wanted:
        show(name, results[name])


if __name__ == "__main__":
    main()
