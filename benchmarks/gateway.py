"""The gateway beside MT1 on the same daemon, and beside peer servers, in one run.

    python benchmarks/gateway.py [--rounds 5] [--seconds 2] [--workloads echo,image,model,waiting,json]
        [--tools FOLDER]

Workloads, each on a daemon with two CPU workers:

- `echo`: float32 [1, 16] there and back, 64 bytes, at 1, 8 and 64 connections.
- `image`: float32 [1, 224, 224, 3] there and back, 602,112 bytes, at 8 connections; unbatched, as by the peers.
- `model`: a SavedModel, Dense 64 -> 64 -> 10, batches of up to 32, TensorFlow with one thread, at 8 and 64 connections.
- `waiting`: the same, with `max_queue_delay: 1ms`, the time that the peers may wait for a batch, too.
- `json`: an image as rows of TensorFlow Serving's JSON: CPU time of the gateway for a request, compared with Python's
  `json` and numpy on the same text.

Contenders: `mt1` (load.c over ipc), `http` (wrk, Open Inference Protocol with binary tensors) and `grpc` (h2load,
ModelInfer), all of one daemon. With `--tools` (or PEERS_TOOLS) also mosec and Triton, started from the same scripts as
in peers.py; Triton by HTTP and by gRPC. All servers of a workload run at the same time, and each round measures one
after the other, in a rotating order. CPU time of a server is that of all its processes: gateway, daemon and workers.

It needs wrk and h2load: on Debian `apt-get install wrk nghttp2-client`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import serving
from http_load import GRPC_PATH, Loads, Target, ask, grpc_body, http_body

COLUMNS = {"requests/s": "rps", "per CPU s": "per_cpu_second", "p50 ms": "p50", "p99 ms": "p99"}
OURS = ("mt1", "http", "grpc")
PEERS = ("mosec", "triton")
PEERS_WORKLOADS = {"echo": "w1", "image": "w2", "model": "w3", "waiting": "w3"}
MODELS = ("model", "waiting")
SHAPES = {"echo": (1, 16), "image": (1, 224, 224, 3), "model": (1, 64), "waiting": (1, 64)}
CONNECTIONS = {"echo": (1, 8, 64), "image": (8,), "model": (8, 64), "waiting": (8, 64)}
READY_S = 120.0


def tensor_of(workload: str) -> np.ndarray:
    """The input of a workload."""
    return np.random.default_rng(5).normal(size=SHAPES[workload]).astype("f4")


def save_model(folder: str) -> None:
    """Writes the SavedModel of `model`; in a process of its own, since it loads TensorFlow."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    random = np.random.default_rng(7)
    module = tf.Module()
    first = module.first = tf.Variable(random.normal(size=(64, 64)).astype("f4") / 8)
    second = module.second = tf.Variable(random.normal(size=(64, 10)).astype("f4") / 8)
    spec = tf.TensorSpec([None, 64], tf.float32, name="x")
    # The peers' scripts call `f`.
    module.f = tf.function(lambda x: tf.matmul(tf.nn.relu(tf.matmul(x, first)), second), input_signature=[spec])
    served = tf.function(lambda x: {"y": module.f(x)}, input_signature=[spec])
    tf.saved_model.save(module, folder, signatures=served)
    sample = np.random.default_rng(11).normal(size=(1, 64)).astype("f4")
    np.save(Path(folder, "expect_y.npy"), module.f(tf.constant(sample)).numpy())


def free_ports(number: int) -> int:
    """The first of some consecutive ports that are free."""
    for first in range(28300, 60000, 10):
        try:
            for port in range(first, first + number):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise SystemExit("no ports are free")


@contextmanager
def ours(folder: Path, workload: str, model: Path) -> Iterator[dict[str, Target]]:
    """The daemon with its gateway."""
    port = free_ports(2)
    yaml = {
        "echo": "handler: 'handlers:Echo', batching: {}",
        "image": "handler: 'handlers:Echo'",
        "model": f"path: {model}, batching: {{max_batch_size: 32}}",
        "waiting": f"path: {model}, batching: {{max_batch_size: 32, max_queue_delay: 1ms}}",
        "json": "handler: 'handlers:Sum'",
    }[workload]
    more = f"""spares: 0
threads: {{intra_op: 1, inter_op: 1}}
gateway: {{http: "127.0.0.1:{port}", grpc: "127.0.0.1:{port + 1}"}}"""
    with serving.daemon(folder, f"ours-{workload}", workers=2, models={"bench": yaml}, more=more) as running:
        if workload == "json":
            yield {"http": Target("wrk", f"127.0.0.1:{port}", "/v1/models/bench:predict", {}, b"", running.pid)}
            return
        output = "y" if workload in MODELS else "x"
        tensor = tensor_of(workload)
        headers, body = http_body(tensor, output)
        framed = {"Content-Type": "application/grpc", "TE": "trailers"}
        yield {
            "mt1": Target("load.c", running.endpoint, "", {}, b"", running.pid),
            "http": Target("wrk", f"127.0.0.1:{port}", "/v2/models/bench/infer", headers, body, running.pid),
            "grpc": Target(
                "h2load", f"127.0.0.1:{port + 1}", GRPC_PATH, framed, grpc_body("bench", tensor, output), running.pid
            ),
        }


@contextmanager
def peer(folder: Path, name: str, workload: str, tools: Path, model: Path) -> Iterator[dict[str, Target]]:
    """A peer server from the tools' scripts, with all of its interfaces."""
    entry = json.loads((tools / "peers.json").read_text())[name]
    root = Path(os.environ.get("PEERS_ROOT", Path(tempfile.gettempdir(), "peers")))
    port, run = free_ports(3), folder / f"{name}-{workload}"
    run.mkdir()
    venv = root / entry["venv"] / "venv"
    names = {"py": venv / "bin/python", "venv": venv, "bench": tools, "root": root, "port": port, "run": run}
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "BENCH_WORKLOAD": PEERS_WORKLOADS[workload],
        "BENCH_EVENTS": str(run / "events"),
        "BENCH_MODEL": str(model),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
    }
    command = [part.format(**names) for part in entry["cmd"]]
    with (run / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=run, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    tensor = tensor_of(workload)
    headers, body = http_body(tensor, "y")
    if entry["codec"] == "raw":
        headers, body = {"Content-Type": "application/octet-stream"}, tensor.tobytes()
    targets = {name: Target("wrk", f"127.0.0.1:{port}", entry["path"], headers, body, process.pid)}
    if name == "triton":
        framed = {"Content-Type": "application/grpc", "TE": "trailers"}
        body = grpc_body("bench", tensor, "y")
        targets["triton_grpc"] = Target("h2load", f"127.0.0.1:{port + 1}", GRPC_PATH, framed, body, process.pid)
    try:
        wait_until_ready(targets[name], process, run / "log")
        yield targets
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(target: Target, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for the first good answer to a request."""
    until = time.monotonic() + READY_S
    while True:
        try:
            ask(target)
            return
        except (OSError, http.client.HTTPException, SystemExit) as error:
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{target.address} did not start: {error}\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)


def check(name: str, target: Target, workload: str) -> None:
    """Asks once, and compares the tensor in the answer: wrk and h2load look at the status alone."""
    if target.tool == "load.c":
        return  # it checks each answer itself
    if target.tool == "h2load":
        command = [
            "curl",
            "-sS",
            "--http2-prior-knowledge",
            "--data-binary",
            "@-",
            "--max-time",
            "30",
            "--noproxy",
            "*",
        ]
        given = [option for each in target.headers.items() for option in ("-H", "{}: {}".format(*each))]
        url = f"http://{target.address}{target.path}"
        answer = subprocess.run([*command, *given, url], input=target.body, capture_output=True, check=True).stdout
    else:
        answer = ask(target)
    if workload not in MODELS and tensor_of(workload).tobytes() not in answer:
        raise SystemExit(f"{name} answered something else than it was sent: {answer[:300]!r}")
    if workload in MODELS and len(answer) < 40:
        raise SystemExit(f"{name} answered without an output: {answer[:300]!r}")


Round = dict[str, dict[str, float]]


def run_workload(
    workload: str, servers: Mapping[str, Target], loads: Loads, options: argparse.Namespace
) -> dict[int, list[Round]]:
    """All rounds of a workload, by connections."""
    for name, target in servers.items():
        check(name, target, workload)
    shape = ",".join(str(size) for size in SHAPES[workload])
    mt1 = ["-m", "bench", "-s", shape, *(["-o", "40"] if workload in MODELS else ["-v"])]
    rounds: dict[int, list[Round]] = {}
    for connections in options.connections or CONNECTIONS[workload]:
        for target in servers.values():
            loads.measure(target, mt1, connections, 1)  # warms up
        rounds[connections] = []
        for number in range(options.rounds):
            shift = number % len(servers)
            order = [*servers][shift:] + [*servers][:shift]
            figures = {name: loads.measure(servers[name], mt1, connections, options.seconds) for name in order}
            rounds[connections].append(figures)
        show(workload, connections, rounds[connections])
    return rounds


def show(workload: str, connections: int, rounds: Sequence[Round]) -> None:
    """Prints the table of one load: medians, and ratios to MT1 and to the best peer in the same round."""
    names = [*rounds[0]]
    peers = [name for name in names if name not in OURS]
    title = f"{workload}, {connections} connections"
    print(f"\n{title:26}" + "".join(f"{column:>12}{'of mt1':>8}{'of best':>8}" for column in COLUMNS))
    for name in names:
        cells = []
        for figure in COLUMNS.values():
            best = max if figure in ("rps", "per_cpu_second") else min
            median = statistics.median(each[name][figure] for each in rounds)
            cells.append(f"{median:12,.0f}" if median >= 100 else f"{median:12.2f}")
            for reference in ("mt1",), peers:
                ratios = (
                    [each[name][figure] / best(each[other][figure] for other in reference) for each in rounds]
                    if (reference)
                    else []
                )
                cells.append(f"{statistics.median(ratios):8.2f}" if ratios else f"{'':8}")
        print(f"{name:26}{''.join(cells)}")


def decode(text: bytes) -> float:
    """CPU seconds of `json` and numpy for the text of a request."""
    began = time.process_time()
    np.array(json.loads(text)["instances"], "f4")
    return time.process_time() - began


def gateway_pid(pid: int) -> int:
    """The gateway's process of a daemon."""
    for child in psutil.Process(pid).children():
        if Path(child.exe()).name == "multitower-gateway":
            return child.pid
    raise SystemExit("the daemon has no gateway")


def run_json(target: Target, options: argparse.Namespace) -> list[dict[str, float]]:
    """Rounds of `json`: CPU milliseconds of a request in the gateway, and of Python for the same text."""
    image = np.random.default_rng(5).uniform(size=(1, 224, 224, 3)).astype("f4")
    text = json.dumps({"instances": [[[[round(float(x), 6) for x in p] for p in row] for row in image[0]]]}).encode()
    target = Target(target.tool, target.address, target.path, {"Content-Type": "application/json"}, text, target.pid)
    gateway = [gateway_pid(target.pid)]
    rounds = []
    for _ in range(options.rounds):
        before = serving.cpu_seconds(gateway)
        for _ in range(20):
            ask(target)
        used = (serving.cpu_seconds(gateway) - before) / 20
        rounds.append({"gateway_ms": used * 1e3, "python_ms": statistics.median(decode(text) for _ in range(5)) * 1e3})
    gateway_ms, python_ms = (statistics.median(each[name] for each in rounds) for name in rounds[0])
    ratio = statistics.median(each["gateway_ms"] / each["python_ms"] for each in rounds)
    print(f"\njson, an image of {len(text):,} bytes: gateway {gateway_ms:.2f} ms of CPU for the whole request,")
    print(f"json + numpy {python_ms:.2f} ms for decoding alone; ratio {ratio:.3f}, 1/{1 / ratio:.1f}")
    return rounds


def main() -> None:
    """Runs the workloads and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="for each contender, load and round")
    parser.add_argument("--workloads", default="echo,image,model,waiting,json")
    parser.add_argument(
        "--connections", type=lambda text: [int(part) for part in text.split(",")], help="instead of the workload's own"
    )
    parser.add_argument("--tools", type=Path, default=os.environ.get("PEERS_TOOLS"), help="the peers' scripts")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        folder = Path(name)
        loads = Loads(folder)
        print(f"medians of {options.rounds} rounds of {options.seconds} s; ratios to MT1 over ipc and to the best peer")
        for workload in options.workloads.split(","):
            model = folder / "model"
            if workload in MODELS and not model.exists():
                saving = multiprocessing.get_context("spawn").Process(target=save_model, args=(str(model),))
                saving.start()
                saving.join()
            with ExitStack() as stack:
                servers = dict(stack.enter_context(ours(folder, workload, model)))
                if workload == "json":
                    results[workload] = run_json(servers["http"], options)
                    continue
                for each in PEERS if options.tools else ():
                    servers.update(stack.enter_context(peer(folder, each, workload, options.tools.resolve(), model)))
                results[workload] = run_workload(workload, servers, loads, options)
    if options.json:
        settings = {"rounds": options.rounds, "seconds": options.seconds}
        options.json.write_text(json.dumps({"options": settings, "workloads": results}, indent=2))


if __name__ == "__main__":
    main()
