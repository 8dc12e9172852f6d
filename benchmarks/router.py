"""The router beside libzmq's own C proxy, in one run: the cost of scheduling, batching and every guarantee.

    python benchmarks/router.py [--rounds 5] [--seconds 1] [--loads 64/1,64/64,8/8,1/1] [--transport ipc] [--json FILE]

The same client (load.c, one float32 [1, 16] tensor in each request, every answer checked) sends in turn to

- `proxy`: `zmq.proxy` (C) in a separate process, in front of two minimal Python echo loops that check, count and
  guarantee nothing;
- `batched`: the daemon with an echo handler on two CPU workers, with `batching`;
- `single`: the same without batching, so each request is a separate message to a worker.

A load is OUTSTANDING/CONNECTIONS: 64/1 is one client that pipelines, 64/64 are 64 clients that wait for each answer.
Each round measures all contenders in turn under each load, in a rotating order. Figures are medians of the rounds, and
ratios are medians of each round's ratio, since these machines are noisy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import load
import serving
import zmq

from multitower import wire
from multitower.compiled import compiled, describe

COLUMNS = {"requests/s": "rps", "per CPU s": "per_cpu_second", "p50 ms": "p50", "p99 ms": "p99"}

CONTENDERS = ("proxy", "batched", "single")

Server = tuple[str, list[int]]
"""A server's endpoint and its processes."""


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
def proxy(folder: Path, transport: str) -> Iterator[Server]:
    """The reference, running; its workers are behind ipc sockets, as ours are."""
    front = serving.free_endpoint(folder, "proxy-front", transport)
    back = serving.free_endpoint(folder, "proxy-back", "ipc")
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
def ours(folder: Path, name: str, batching: str, transport: str) -> Iterator[Server]:
    """The daemon, running."""
    models = {"model": f"handler: 'handlers:Echo'{batching}"}
    with serving.daemon(folder, name, workers=2, models=models, transport=transport) as running:
        yield running.endpoint, running.pids()


def measure(program: Path, server: Server, wanted: load.Load, seconds: float) -> dict[str, float]:
    """One load on one server: the figures of `COLUMNS`."""
    endpoint, pids = server
    before = serving.cpu_seconds(pids)
    figures = load.run(program, endpoint, wanted, seconds, "-v")
    used = serving.cpu_seconds(pids) - before
    return dataclasses.asdict(figures) | {"per_cpu_second": figures.answered / used, "server_cpu_s": used}


def show(wanted: load.Load, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Prints the table of one load; each round has the figures of each contender."""
    print(f"\n{wanted!s:10}" + "".join(f"{title:>12}{'of proxy':>10}" for title in COLUMNS))
    for name in CONTENDERS:
        cells = []
        for figure in COLUMNS.values():
            median = statistics.median(each[name][figure] for each in rounds)
            ratio = statistics.median(each[name][figure] / each["proxy"][figure] for each in rounds)
            cells.append(f"{median:12,.0f}{ratio:10.2f}" if median >= 100 else f"{median:12.2f}{ratio:10.2f}")
        print(f"{name:10}{''.join(cells)}")


def main() -> None:
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender, load and round")
    parser.add_argument("--loads", type=load.parse_many, default="64/1,64/64,8/8,1/1", help="OUTSTANDING/CONNECTIONS,…")
    parser.add_argument("--transport", choices=["ipc", "tcp"], default="ipc")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        program = load.build(folder)
        contenders: dict[str, Callable[[], AbstractContextManager[Server]]] = {
            "proxy": lambda: proxy(folder, options.transport),
            "batched": lambda: ours(folder, "batched", ", batching: {}", options.transport),
            "single": lambda: ours(folder, "single", "", options.transport),
        }
        servers = {name: stack.enter_context(start()) for name, start in contenders.items()}
        rounds: dict[str, list[dict[str, dict[str, float]]]] = {str(wanted): [] for wanted in options.loads}
        for number in range(options.rounds):
            shift = number % len(CONTENDERS)
            order = CONTENDERS[shift:] + CONTENDERS[:shift]
            for wanted in options.loads:
                figures = {name: measure(program, servers[name], wanted, options.seconds) for name in order}
                rounds[str(wanted)].append(figures)
    each = f"{options.rounds} rounds of {options.seconds:g} s"
    built = describe(compiled())
    print(f"outstanding/connections over {options.transport}, multitower {built}, medians of {each}")
    for wanted in options.loads:
        show(wanted, rounds[str(wanted)])
    if options.json:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "transport": options.transport}
        options.json.write_text(json.dumps({"options": settings, "loads": rounds}, indent=2))


if __name__ == "__main__":
    main()
