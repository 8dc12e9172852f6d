"""The router beside libzmq's own C proxy, in one run: what balancing, batching and every guarantee cost.

    python benchmarks/router.py [--rounds 5] [--seconds 3] [--outstanding 64] [--json FILE]

The same client (raw pyzmq, one pipelined connection, a float32 [1, 16] tensor a request) talks in turn to

- `proxy`: `zmq.proxy` (C) between two minimal Python echo loops, which check, count and guarantee nothing;
- `batched`: the daemon with an echo handler on two CPU workers, `batching` on;
- `single`: the same without batching, each request in a message of its own to a worker.

Each round measures all of them one after the other, in an order that rotates; the figures are the medians of the
rounds, and the ratios are medians of each round's ratio, since these machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import serving
import zmq

from multitower import wire

HEADER = wire.infer_header("model", [wire.Tensor("x", "FP32", (1, 16))])
TENSOR = np.arange(16, dtype="<f4").tobytes()


def run_proxy(front: str, back: str) -> None:
    """The reference's router: libzmq's proxy."""
    context = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    clients.bind(front)
    workers.bind(back)
    zmq.proxy(clients, workers)


def run_echo(back: str) -> None:
    """One of the reference's workers: as little as an echo can be in Python."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(back)
    while True:
        client, empty, _, id, header, *tensors = socket.recv_multipart()
        socket.send_multipart([client, empty, wire.OK, id, header, *tensors])


@contextmanager
def proxy(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The reference, running: its endpoint and its processes."""
    front, back = f"ipc://{folder}/proxy-front", f"ipc://{folder}/proxy-back"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=run_proxy, args=(front, back), daemon=True)]
    processes += [spawn.Process(target=run_echo, args=(back,), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    try:
        yield front, [process.pid or 0 for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def ours(folder: Path, name: str, batching: str) -> Iterator[tuple[str, list[int]]]:
    """The daemon, running: its endpoint and its processes."""
    with serving.daemon(folder, name, workers=2, model=f"handler: 'handlers:Echo'{batching}") as running:
        yield running.endpoint, running.pids()


def measure(endpoint: str, pids: list[int], outstanding: int, seconds: float) -> dict[str, float]:
    """A closed loop of `outstanding` requests for `seconds`: requests a second, and a server CPU second."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)

    def send(number: int) -> None:
        socket.send_multipart([b"", wire.INFER, number.to_bytes(8, "little"), HEADER, TENSOR])

    def receive() -> None:
        if not socket.poll(10_000):
            raise SystemExit(f"{endpoint} does not answer")
        reply = socket.recv_multipart()
        if reply[1] != wire.OK or reply[4] != TENSOR:
            raise SystemExit(f"a wrong answer: {reply}")

    for number in range(outstanding):
        send(number)
    until = time.monotonic() + 0.3  # warm-up
    while time.monotonic() < until:
        receive()
        send(0)
    busy, begun, count = _cpu_seconds(pids), time.monotonic(), 0
    until = begun + seconds
    while time.monotonic() < until:
        receive()
        send(0)
        count += 1
    took, busy = time.monotonic() - begun, _cpu_seconds(pids) - busy
    for _ in range(outstanding):
        receive()
    socket.close()
    context.term()
    return {"per_second": count / took, "per_cpu_second": count / busy}


def _cpu_seconds(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(time.user + time.system for time in times)


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--outstanding", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        contenders: dict[str, Callable[[], Any]] = {
            "proxy": lambda: proxy(folder),
            "batched": lambda: ours(folder, "batched", ", batching: {}"),
            "single": lambda: ours(folder, "single", ""),
        }
        servers = {name: stack.enter_context(start()) for name, start in contenders.items()}
        rounds: list[dict[str, dict[str, float]]] = []
        names = list(servers)
        for number in range(options.rounds):
            order = names[number % len(names) :] + names[: number % len(names)]
            rounds.append({name: measure(*servers[name], options.outstanding, options.seconds) for name in order})
    print(f"{options.outstanding} outstanding, {options.rounds} rounds of {options.seconds:g} s, medians")
    print(f"{'':10}{'requests/s':>12}{'of proxy':>10}{'per CPU s':>12}{'of proxy':>10}")
    for name in names:
        cells = []
        for figure in ("per_second", "per_cpu_second"):
            cells.append(f"{statistics.median(r[name][figure] for r in rounds):12,.0f}")
            cells.append(f"{statistics.median(r[name][figure] / r['proxy'][figure] for r in rounds):10.2f}")
        print(f"{name:10}{''.join(cells)}")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "rounds": rounds}, indent=2))


if __name__ == "__main__":
    main()
