"""What traces cost: the daemon with a share of requests traced, compared with the same daemon without `tracing`.

    python benchmarks/tracing.py [--rounds 9] [--seconds 1] [--loads 64/64,1/1] [--samples 0.01,1]

The daemons run all the time, each with an echo handler on two CPU workers; those that are not measured are idle. They
send their spans over HTTP to one listener, in a process of its own, which reads them and takes them. `clients` is a
daemon with `sample: 0` whose every request has a `traceparent` of its own, as from clients that are all traced and
sampled.

Each of them is compared with the daemon without `tracing` in rounds of its own, in the order A B B A or B A A B, so
that a machine that gets slower or faster meanwhile changes both. After each measurement the spans that still wait are
exported before the next one begins: otherwise a daemon that exports thousands of them would slow down the others. A
figure is the median of the rounds' ratios, with the first and third quartile behind it. `without` is a second daemon
without `tracing`: where another line's quartiles reach as far from 1 as its own do, the difference is within the noise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import load
import serving

from multitower import Client

MODELS = {"echo": "handler: 'handlers:Echo', batching: {}"}
REFERENCE, WITHOUT, CLIENTS = "reference", "without", "clients"
FIGURES = ("rps", "cpu_us", "p50", "p99")
EXPORTED_S = 60.0
"""Seconds in which all spans of a measurement must have been exported."""

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


def wait_until_exported(daemon: serving.Daemon) -> None:
    """Waits until the daemon has no spans left."""
    until = time.monotonic() + EXPORTED_S
    with Client(daemon.endpoint) as client:
        while (tracing := client.status().get("tracing")) is not None and tracing["spans_waiting"]:
            if time.monotonic() > until:
                raise SystemExit(f"error: {tracing['spans_waiting']} spans are not exported")
            time.sleep(0.05)


def measure(program: Path, name: str, daemon: serving.Daemon, wanted: load.Load, seconds: float) -> dict[str, float]:
    """One load on one daemon: requests a second, the daemon's CPU microseconds a request, and latencies."""
    also = [EACH_ITS_OWN] if name == CLIENTS else []
    before = serving.cpu_seconds([daemon.pid])
    found = load.run(program, daemon.endpoint, wanted, seconds, "-m", "echo", *also)
    wait_until_exported(daemon)
    used = serving.cpu_seconds([daemon.pid]) - before
    return {"rps": found.rps, "cpu_us": used / found.answered * 1e6, "p50": found.p50, "p99": found.p99}


def compare(
    program: Path, daemons: dict[str, serving.Daemon], name: str, wanted: load.Load, rounds: int, seconds: float
) -> list[dict[str, float]]:
    """The ratios of one daemon's figures to those of the reference, in each round."""
    for each in (name, REFERENCE):
        measure(program, each, daemons[each], wanted, seconds)  # the first run warms up
    ratios = []
    for number in range(rounds):
        order = (REFERENCE, name, name, REFERENCE) if number % 2 else (name, REFERENCE, REFERENCE, name)
        sums = {each: dict.fromkeys(FIGURES, 0.0) for each in order}
        for each in order:
            for figure, value in measure(program, each, daemons[each], wanted, seconds).items():
                sums[each][figure] += value
        ratios.append({figure: sums[name][figure] / sums[REFERENCE][figure] for figure in FIGURES})
    return ratios


def main() -> None:
    """Runs the rounds and prints a line for each load and daemon."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement, four of which are a round")
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
        samples = {REFERENCE: "", WITHOUT: "", **{f"sample {each}": each for each in options.samples.split(",")}}
        daemons = {
            name: stack.enter_context(
                serving.daemon(
                    folder,
                    name.replace(" ", "-"),
                    workers=2,
                    models=MODELS,
                    more="spares: 0" + (f"\ntracing: {{endpoint: '{endpoint}', sample: {sample}}}" if sample else ""),
                )
            )
            for name, sample in {**samples, CLIENTS: "0"}.items()
        }
        print(f"ratios to a daemon without tracing, {options.rounds} rounds of 4 x {options.seconds:g} s for each line")
        print(f"{'load':8}{'':14}" + "".join(f"{figure:>20}" for figure in FIGURES))
        for wanted in options.loads:
            for name in daemons:
                if name == REFERENCE:
                    continue
                ratios = compare(program, daemons, name, wanted, options.rounds, options.seconds)
                cells = []
                for figure in FIGURES:
                    first, median, third = statistics.quantiles([each[figure] for each in ratios], n=4)
                    cells.append(f"{median:7.3f} ({first:4.2f}-{third:4.2f})".rjust(20))
                print(f"{wanted!s:8}{name:14}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
