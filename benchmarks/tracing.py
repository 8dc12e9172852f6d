"""What traces cost: the daemon with a share of requests traced, compared with the same daemon without `tracing`.

    python benchmarks/tracing.py [--rounds 9] [--seconds 1] [--loads 64/64,1/1] [--samples 0.01,1]

The daemons run all the time, each with an echo handler on two CPU workers; those that are not measured are idle. They
send their spans over HTTP to one listener, in a process of its own, which reads them and takes them. `clients` is a
daemon with `sample: 0` whose every request has a `traceparent` of its own, as from clients that are all traced and
sampled. A round measures each daemon twice, forwards and backwards, so that a machine that gets slower or faster
meanwhile changes all of them. A figure is the median of the rounds' ratios to the daemon without `tracing`, with the
first and third quartile behind it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import load
import serving

MODELS = {"echo": "handler: 'handlers:Echo', batching: {}"}
WITHOUT, CLIENTS = "without", "clients"
EACH_ITS_OWN = "-T"
"""load.c: each request names a trace of its own."""


class Listener(BaseHTTPRequestHandler):
    """Takes what a daemon exports."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Reads the spans, and answers that all were taken."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


def listen(port: Connection) -> None:
    """Runs the listener; sends its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    port.send(server.server_port)
    server.serve_forever()


def measure(program: Path, name: str, daemon: serving.Daemon, wanted: load.Load, seconds: float) -> dict[str, float]:
    """One load on one daemon: requests a second, the daemon's CPU microseconds a request, and latencies."""
    also = [EACH_ITS_OWN] if name == CLIENTS else []
    before = serving.cpu_seconds([daemon.pid])
    found = load.run(program, daemon.endpoint, wanted, seconds, "-m", "echo", *also)
    used = serving.cpu_seconds([daemon.pid]) - before
    return {"rps": found.rps, "cpu_us": used / found.answered * 1e6, "p50": found.p50, "p99": found.p99}


def main() -> None:
    """Runs the rounds and prints a line for each load and daemon."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    parser.add_argument("--loads", type=load.parse_many, default="64/64,1/1", help="OUTSTANDING/CONNECTIONS,…")
    parser.add_argument("--samples", default="0.01,1", help="values of `tracing.sample`")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        program = load.build(folder)
        receiving, sending = multiprocessing.Pipe(duplex=False)
        listener = multiprocessing.get_context("spawn").Process(target=listen, args=(sending,), daemon=True)
        listener.start()
        stack.callback(listener.kill)
        endpoint = f"http://127.0.0.1:{receiving.recv()}"
        samples = {WITHOUT: "", **{f"sample {each}": each for each in options.samples.split(",")}, CLIENTS: "0"}
        daemons = {
            name: stack.enter_context(
                serving.daemon(
                    folder,
                    name.replace(" ", "-"),
                    workers=2,
                    models=MODELS,
                    more="spares: 0"
                    + (f"\ntracing: {{endpoint: '{endpoint}', sample: {sample}}}" if name != WITHOUT else ""),
                )
            )
            for name, sample in samples.items()
        }
        print(f"ratios to a daemon without tracing, {options.rounds} rounds of 2 x {options.seconds:g} s each")
        figures = ("rps", "cpu_us", "p50", "p99")
        print(f"{'load':8}{'':14}" + "".join(f"{figure:>20}" for figure in figures))
        for wanted in options.loads:
            for name, daemon in daemons.items():
                measure(program, name, daemon, wanted, options.seconds)  # the first run warms up
            rounds: list[dict[str, dict[str, float]]] = []
            for _ in range(options.rounds):
                sums: dict[str, dict[str, float]] = {name: dict.fromkeys(figures, 0.0) for name in daemons}
                for name in (*daemons, *reversed(daemons)):
                    for figure, value in measure(program, name, daemons[name], wanted, options.seconds).items():
                        sums[name][figure] += value
                rounds.append(sums)
            for name in daemons:
                cells = []
                for figure in figures:
                    ratios = [sums[name][figure] / sums[WITHOUT][figure] for sums in rounds]
                    first, median, third = statistics.quantiles(ratios, n=4)
                    cells.append(f"{median:7.3f} ({first:4.2f}-{third:4.2f})".rjust(20))
                print(f"{wanted!s:8}{name:14}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
